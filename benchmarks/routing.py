"""How good is the default router? APGR, CPT(50 %), CPT(80 %), calibration error, and microseconds a prompt.

What is measured: MMLU and GSM8K (weak Mixtral-8x7B, strong GPT-4) and MT-Bench by RouteLLM's published protocol (its
definitions: `nearfar.language.evaluation`; its contaminated prompts are not scored), beside random (mean of 20 seeds),
prompt length and the oracle. Every row is scored by a model that saw neither it nor a near-duplicate of it (5 folds
over groups of `near_duplicates`); what was trained on:
  ngram      the other folds of all four sets (MMLU, GSM8K, MT-Bench, nine models)
  own        the other folds of the same set only
  transfer   the other three sets only, near-duplicates of scored rows left out
  sums       (GSM8K) the other folds of GSM8K, and what the nine models were asked of GSM8K and MGSM
  subjects   (MMLU) the other sets, and the subjects of other folds only: none of the scored subject was seen
No parameter is fitted to a scored row; the ridge strengths are the constants of routers/train.py, and what was looked
at while the features were made is told in docs/explanation-routing.md. The 95 % interval is a bootstrap over groups,
400 times. Calibration error: 10 bins of equal count; `pooled` one curve for all sets, `own`
refitted on the other folds of the same set, `online` the pooled curve updated after each prompt, in random order;
`by_chance` what a probability without error would show on as many rows of right or wrong.
Nine models with prices: a predictor for each model, the same folds; the model with the highest prediction minus
x * cost, over 60 values of x. Cost: price * (characters / 4 + 256 tokens), since the data holds no answer lengths.
Speed: `Ngram.score` of the shipped weights on 400 prompts of MMLU, once to warm up, best of 7 rounds, thread time.
Limit: the oracle, which knows both answers.
Needs the real data (NEARFAR_TEST_DATA). Run: python -m benchmarks.routing [--json]
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.routing_data import Item, folder, items
from benchmarks.routing_nine import nine_models
from nearfar.language import evaluation
from nearfar.language.calibration import expected_error, fit
from nearfar.language.routers.base import Prompt
from nearfar.language.routers.ngram import SHIPPED, Ngram
from nearfar.language.routers.train import Table, fold_of, predict, solve, table

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
FOLDS, SEED, RESAMPLED = 5, 11, 400
SETS = ("mmlu", "gsm8k", "mt_bench")
AIMS = {"mmlu": 0.68, "gsm8k": 0.70, "mt_bench": 0.80}
PUBLISHED = {"mmlu": 0.603, "gsm8k": 0.622, "mt_bench": 0.802}
"""RouteLLM's best routers on the whole sets; ours are the halves that the data holds."""


class Sets:
    """All rows as arrays."""

    def __init__(self, found: list[Item]) -> None:
        rows = [item.row for item in found]
        self.prompts = [row.prompt for row in rows]
        self.table: Table = table(self.prompts)
        self.near, self.far = np.array([r.near for r in rows]), np.array([r.far for r in rows])
        self.good = np.array([r.good for r in rows])
        self.source = np.array([r.source for r in rows])
        self.numbered = np.unique(self.source, return_inverse=True)[1].astype(np.int64)
        self.group = np.array([int(r.group) for r in rows])
        self.scored = np.array([item.scored for item in found])
        self.part = np.array([item.part for item in found])
        self.fold = fold_of(rows, FOLDS, SEED)

    def of(self, name: str) -> Places:
        return np.flatnonzero((self.source == name) & self.scored)

    def learn_and_predict(self, seen: Places, unseen: Places) -> Floats:
        assert not set(self.group[seen].tolist()) & set(self.group[unseen].tolist())
        solved = solve(self.table.pick(seen), (self.far - self.near)[seen], np.ones(len(seen)), self.numbered[seen])
        return predict(self.table.pick(unseen), solved)

    def crossed(self, trained: NDArray[np.bool_], scored: NDArray[np.bool_], fold: Places) -> Floats:
        """For each row of `scored`, the expected gain by a model of the `trained` rows of other folds and groups."""
        out = np.zeros(len(self.prompts))
        for number in range(FOLDS):
            unseen = np.flatnonzero(scored & (fold == number))
            if len(unseen):
                apart = ~np.isin(self.group, self.group[unseen])
                out[unseen] = self.learn_and_predict(np.flatnonzero(trained & (fold != number) & apart), unseen)
        return out

    def transferred(self, name: str) -> Floats:
        out = np.zeros(len(self.prompts))
        unseen = np.flatnonzero(self.source == name)
        seen = np.flatnonzero((self.source != name) & ~np.isin(self.group, self.group[unseen]))
        out[unseen] = self.learn_and_predict(seen, unseen)
        return out


def told(sets: Sets, wish: Floats, rows: Places, interval: bool = True) -> dict[str, Any]:
    found = evaluation.report(wish[rows], sets.near[rows], sets.far[rows])
    row: dict[str, Any] = {"apgr": round(found.apgr, 3), "cpt50": round(found.cpt50, 1), "cpt80": round(found.cpt80, 1)}
    if interval:
        row["apgr95"] = [round(v, 3) for v in bootstrap(sets, wish, rows)]
    return row


def bootstrap(sets: Sets, wish: Floats, rows: Places) -> list[float]:
    rng, members = np.random.default_rng(SEED), dict[int, list[int]]()
    for row in rows.tolist():
        members.setdefault(int(sets.group[row]), []).append(row)
    groups, values = [np.array(m) for m in members.values()], list[float]()
    for _ in range(RESAMPLED):
        drawn = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        if sets.near[drawn].mean() < sets.far[drawn].mean():
            values.append(evaluation.report(wish[drawn], sets.near[drawn], sets.far[drawn]).apgr)
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]


def baselines(sets: Sets, rows: Places) -> dict[str, Any]:
    length = np.array([float(len(prompt)) for prompt in sets.prompts])
    chance = [
        evaluation.report(np.random.default_rng(seed).random(len(rows)), sets.near[rows], sets.far[rows])
        for seed in range(20)
    ]
    best = np.zeros(len(sets.prompts))
    best[rows] = evaluation.oracle(sets.near[rows], sets.far[rows])
    return {
        "always-near": {"quality": round(float(sets.near[rows].mean()), 4)},
        "always-far": {"quality": round(float(sets.far[rows].mean()), 4)},
        "random": {
            key: round(statistics.mean(getattr(r, key) for r in chance), 3) for key in ("apgr", "cpt50", "cpt80")
        },
        "length": told(sets, length, rows),
        "oracle": told(sets, best, rows, interval=False),
    }


def calibrated(sets: Sets, gain: Floats, rows: Places) -> dict[str, float]:
    """Expected calibration errors; every probability by a curve that did not see the row."""
    pooled, own, online = np.zeros(len(gain)), np.zeros(len(gain)), np.zeros(len(gain))
    for number in range(FOLDS):
        here = rows[sets.fold[rows] == number]
        others = np.flatnonzero(sets.fold != number)
        curve = fit(-gain[others], sets.good[others])
        same = rows[sets.fold[rows] != number]
        refitted = fit(-gain[same], sets.good[same])
        pooled[here] = [curve.probability(-v) for v in gain[here].tolist()]
        own[here] = [refitted.probability(-v) for v in gain[here].tolist()]
        if number == 0:
            live = curve
    unsorted = np.random.default_rng(SEED).permutation(rows)
    for row in unsorted.tolist():
        online[row] = live.probability(-gain[row])
        live = live.update(-gain[row], sets.good[row])
    rng = np.random.default_rng(SEED)
    chance = [expected_error(own[rows], (rng.random(len(rows)) < own[rows]) * 1.0) for _ in range(50)]
    errors = {
        name: expected_error(p[rows], sets.good[rows])
        for name, p in (("pooled", pooled), ("own", own), ("online", online))
    }
    return {name: round(value, 4) for name, value in (errors | {"by_chance": statistics.mean(chance)}).items()}


def speed(prompts: list[str]) -> dict[str, Any]:
    router, chosen = Ngram(), [Prompt(p) for p in prompts[:: max(1, len(prompts) // 400)]]
    rounds = list[float]()
    for _ in range(8):
        start = time.thread_time()
        for prompt in chosen:
            router.score(prompt)
        rounds.append((time.thread_time() - start) / len(chosen) * 1e6)
    return {
        "us_a_prompt": round(min(rounds[1:])),
        "mean_characters": round(statistics.mean(len(p.text) for p in chosen)),
        "file_bytes": SHIPPED.stat().st_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="APGR, CPT, calibration and speed of the default router.")
    parser.add_argument("--json", action="store_true", help="only the last line")
    given = parser.parse_args()
    found = items(folder())
    sets = Sets(found)
    every = np.ones(len(found), bool)
    gain = sets.crossed(every, every, sets.fold)
    result: dict[str, Any] = {}
    for name in SETS:
        rows, mine = sets.of(name), sets.source == name
        row = {"rows": len(rows), "aim": AIMS[name], "routellm_best": PUBLISHED[name], **baselines(sets, rows)}
        row["ngram"] = told(sets, gain, rows)
        row["own"] = told(sets, sets.crossed(mine, mine, sets.fold), rows)
        row["transfer"] = told(sets, sets.transferred(name), rows)
        if name == "mmlu":
            subject = np.unique(sets.part, return_inverse=True)[1]
            by_subject = np.where(mine, np.random.default_rng(SEED).permutation(subject.max() + 1)[subject] % FOLDS, -1)
            row["subjects"] = told(sets, sets.crossed(every, mine, by_subject.astype(np.int64)), rows)
        if name == "gsm8k":
            sums = mine | np.isin(sets.part, ("gsm8k", "agentverse-mgsm"))
            row["sums"] = told(sets, sets.crossed(sums, mine, sets.fold), rows)
        row["calibration_error"] = calibrated(sets, gain, rows)
        points = evaluation.curve(gain[rows], sets.near[rows], sets.far[rows])
        row["curve"] = [
            [round(float(x), 3), round(float(y), 4)] for x, y in zip(points.far, points.quality, strict=True)
        ]
        top = evaluation.hull(points.far, points.quality)
        row["hull"] = [[round(float(x), 3), round(float(y), 4)] for x, y in zip(top.far, top.quality, strict=True)]
        result[name] = row
        if not given.json:
            print(f"{name}: {len(rows)} rows, near {sets.near[rows].mean():.3f}, far {sets.far[rows].mean():.3f}")
            for router, figures in row.items():
                if isinstance(figures, dict) and "apgr" in figures:
                    print(f"  {router:<10} {figures}", flush=True)
            print(f"  calibration error {row['calibration_error']}", flush=True)
    nine = nine_models(found, sets.table, sets.fold)
    quick = speed([p for p, s in zip(sets.prompts, sets.source, strict=True) if s == "mmlu"])
    if not given.json:
        print(f"nine models: { {k: v for k, v in nine.items() if k != 'curve'} }\nspeed: {quick}", flush=True)
    print(
        json.dumps(
            {
                "benchmark": "routing",
                "date": datetime.date.today().isoformat(),
                "python": platform.python_version(),
                "machine": platform.machine(),
                "sets": result,
                "nine": nine,
                "speed": quick,
            }
        )
    )


if __name__ == "__main__":
    main()
