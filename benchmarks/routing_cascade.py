"""How well a near answer is judged, and what a cascade makes of it: GSM8K, near Mixtral-8x7B-Instruct, far GPT-4.

What is measured: 660 questions of GSM8K's test set with both models' responses and whether each is right (RouteLLM,
Apache-2.0), without the few that the published protocol leaves out as too near to training data. Each row is
judged by a judge that was trained and calibrated on the other folds alone (10 folds by prompt, prompts that differ in
case, spaces or punctuation stay together); the judge sees the prompt and the near response, never the far one. The
lowest judged go far. Repeated with `--seeds` (5) divisions into folds, the mean is stated; the interval is a bootstrap
over prompts (1,000 draws).
Metrics: share of the quality gap recovered (PGR) against the share of far calls; APGR is its mean over all shares,
CPT(50 %) and CPT(80 %) the least share that recovers so much. A cascade pays the near model always: the same against
cost, from always-near (0) to always-far (1), where a near answer costs `--near-cost` of a far one.
Beside it: random, prompt length, answer length, an oracle that knows whether the near answer is right, and one that
knows both. Calibration error (10 bins of equal count) beside what chance alone gives a perfect judge of as many rows.
Which features count: without each group, and with each group alone.
Warm-up: none; nothing is timed but the judging of one answer (median over the rows, for scale).
Needs the real data (NEARFAR_TEST_DATA). Run: python -m benchmarks.routing_cascade [--json]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nearfar.language.answer import Answer
from nearfar.language.judge.features import GROUPS, NAMES, observe
from nearfar.language.judge.final import normal
from nearfar.language.judge.train import Row, calibration_error, folds, train
from nearfar.language.prompt import Asked

Floats = NDArray[np.float64]
NEAR, FAR = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
FILE, LEFT_OUT = "routellm_gsm8k_responses.csv", "contaminated_prompts_gsm8k.jsonl"
PROVENANCE = (
    "GSM8K test questions with responses of Mixtral-8x7B-Instruct-v0.1 and whether they are right, as published by "
    "lm-sys/RouteLLM (routellm/evals/gsm8k), commit 0b64fdafe049e596a3f5657c219329f24af24198, Apache-2.0"
)
COSTS = (0.01, 0.1, 0.25)
"""Of a near answer in far answers: the published prices of these two models; a busy machine's; a slow machine's."""


class Responses(NamedTuple):
    rows: list[Row]
    """Features of the near responses; `good` when the near response is right."""
    answers: list[tuple[str, str]]
    """(prompt, near response)"""
    near: Floats
    far: Floats
    """1 where the model's response is right, else 0."""


def read(folder: Path, *, all_rows: bool = False) -> Responses:
    """The rows of `folder` (`routing/` of the real data), without those that the published protocol leaves out."""
    with (folder / FILE).open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    lines = (folder / LEFT_OUT).read_text(encoding="utf-8").splitlines()
    out = set() if all_rows else {normal(json.loads(line)["eval_prompt"]) for line in lines if line.strip()}
    found = [row for row in found if normal(row["prompt"]) not in out]
    answers = [(row["prompt"], row[f"{NEAR}_response"]) for row in found]
    near, far = (np.array([row[name] == "True" for row in found], np.float64) for name in (NEAR, FAR))
    rows = [
        Row(prompt, observe(Asked(prompt), Answer(text)), bool(good))
        for (prompt, text), good in zip(answers, near, strict=True)
    ]
    return Responses(rows, answers, near, far)


def judged(rows: Sequence[Row], names: Sequence[str] = NAMES, *, count: int = 10, seed: int = 0) -> Floats:
    """The calibrated probability of each row by a judge that never saw its fold."""
    fold = folds([row.prompt for row in rows], count, seed)
    told = np.zeros(len(rows))
    for k in range(count):
        judge = train([row for row, at in zip(rows, fold, strict=True) if at != k], "", names=names, seed=seed)
        for i in np.flatnonzero(fold == k).tolist():
            told[i] = judge.probability(rows[i].features)
    return told


def recovered(scores: Floats, near: Floats, far: Floats) -> Floats:
    """PGR after 0, 1, ... n far calls, lowest scores first; rows of equal score go together, so in between lies the
    straight line that choosing among them at random would give."""
    order = np.argsort(scores, kind="stable")
    gained = np.concatenate(([0.0], np.cumsum((far - near)[order])))
    ends = np.concatenate(([0], np.flatnonzero(np.diff(scores[order])) + 1, [len(order)]))
    filled: Floats = np.interp(np.arange(len(order) + 1), ends, gained[ends])
    return filled / float((far - near).sum())


def apgr(curve: Floats, near_cost: float | None = None) -> float:
    """Mean PGR over far-call shares 0 to 1; with `near_cost` over the cost from always-near to always-far, where the
    cascade at a share s stands at s / (1 - near_cost) as its near answers are paid in any case."""
    shares = np.linspace(0.0, 1.0, len(curve)) / (1.0 - (near_cost or 0.0))
    grid = np.linspace(0.0, 1.0, 2001)
    return float(np.trapezoid(np.interp(grid, shares, curve), grid))


def cpt(curve: Floats, part: float, near_cost: float | None = None) -> float:
    """The least share of far calls (or of the cost, as in `apgr`) that recovers this part of the gap."""
    first = int(np.argmax(curve >= part - 1e-12))
    return first / (len(curve) - 1) / (1.0 - (near_cost or 0.0))


def figures(scores: Floats, data: Responses) -> dict[str, float]:
    curve = recovered(scores, data.near, data.far)
    return {"apgr": apgr(curve), "cpt50": cpt(curve, 0.5), "cpt80": cpt(curve, 0.8)}


def _mean(results: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.fmean(r[key] for r in results), 4) for key in results[0]}


def _interval(scores: Floats, data: Responses, draws: int = 1000) -> list[float]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        at = rng.integers(0, len(scores), len(scores))
        found.append(apgr(recovered(scores[at], data.near[at], data.far[at])))
    return [round(float(value), 3) for value in np.percentile(found, (2.5, 97.5))]


def _chance_error(told: Floats, draws: int = 200) -> float:
    """Calibration error of a perfect judge with these probabilities, by chance alone."""
    rng = np.random.default_rng(0)
    return float(np.mean([calibration_error(told, (rng.random(len(told)) < told).astype(float)) for _ in range(draws)]))


def _area_under_roc(scores: Floats, good: Floats) -> float:
    right, wrong = scores[good == 1], scores[good == 0]
    return float(((right[:, None] > wrong).mean() + (right[:, None] >= wrong).mean()) / 2)


def evaluate(
    folder: Path, *, seeds: int = 5, ablate: bool = True, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """All figures of this file; `folder` is `routing/` of the real data. `say` gets the lines for people."""
    data = read(folder)
    n = len(data.rows)
    say(f"{n} prompts; near right {data.near.mean():.3f}, far right {data.far.mean():.3f}")
    told = [judged(data.rows, seed=seed) for seed in range(seeds)]
    curves = [recovered(one, data.near, data.far) for one in told]
    result: dict[str, Any] = {"prompts": n, "near": round(data.near.mean(), 4), "far": round(data.far.mean(), 4)}
    result["judge"] = _mean([figures(one, data) for one in told]) | {"apgr95": _interval(told[0], data)}
    result["with_near_cost"] = {
        str(cost): _mean(
            [{"apgr": apgr(c, cost), "cpt50": cpt(c, 0.5, cost), "cpt80": cpt(c, 0.8, cost)} for c in curves]
        )
        for cost in COSTS
    }
    result["calibration"] = _mean(
        [
            {
                "error": calibration_error(one, data.near),
                "by_chance": _chance_error(one),
                "roc": _area_under_roc(one, data.near),
                "brier": float(((one - data.near) ** 2).mean()),
            }
            for one in told
        ]
    )
    rng = np.random.default_rng(0)
    words = np.array([[-len(prompt), -len(text)] for prompt, text in data.answers], np.float64)
    random = [figures(rng.random(n), data) for _ in range(20)]
    knows = [figures(data.near + 0.5 * rng.random(n), data) for _ in range(20)]
    result["beside"] = {
        "random": _mean(random),
        "prompt_length": _mean([figures(words[:, 0], data)]),
        "answer_length": _mean([figures(words[:, 1], data)]),
        "knows_near": _mean(knows),
        "oracle": _mean([figures(data.near - data.far, data)]),
    }
    at = np.linspace(0, n, 11).astype(int)
    gap = data.far.mean() - data.near.mean()
    result["quality_at_tenths"] = [
        round(float(data.near.mean() + gap * statistics.fmean(curve[i] for curve in curves)), 4) for i in at
    ]
    for name, row in [("judge", result["judge"]), *result["beside"].items()]:
        say(f"{name:14} APGR {row['apgr']:.3f}  CPT50 {row['cpt50']:.3f}  CPT80 {row['cpt80']:.3f}")
    for cost, row in result["with_near_cost"].items():
        say(f"near costs {cost:4}: APGR {row['apgr']:.3f}  CPT50 {row['cpt50']:.3f}  CPT80 {row['cpt80']:.3f}")
    say(f"calibration: {result['calibration']}; interval of APGR {result['judge']['apgr95']}")
    say(f"quality at 0, 10, ... 100 % far: {result['quality_at_tenths']}")
    if ablate:
        result["ablation"] = _ablation(data, min(3, seeds), say)
    return result


def _ablation(data: Responses, seeds: int, say: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    varies = {name for name in NAMES if len({str(row.features[name]) for row in data.rows}) > 1}
    for group, names in GROUPS.items():
        if not varies & set(names):
            found[group] = "does not vary in these rows"
            say(f"{group:12} does not vary in these rows")
            continue
        without = [name for name in NAMES if name not in names]
        parts = {}
        for label, chosen in (("without", without), ("alone", list(names))):
            parts[label] = _mean([figures(judged(data.rows, chosen, seed=s), data) for s in range(seeds)])["apgr"]
        found[group] = parts
        say(f"{group:12} without it {parts['without']:.3f}, alone {parts['alone']:.3f}")
    return found


def _milliseconds(data: Responses) -> float:
    spent = []
    for prompt, text in data.answers:
        start = time.perf_counter()
        observe(Asked(prompt), Answer(text))
        spent.append(time.perf_counter() - start)
    return statistics.median(spent) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="The cascade's judge on GSM8K, out of fold.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="only the last line")
    given = parser.parse_args()
    stated = os.environ.get("NEARFAR_TEST_DATA")
    folder = (Path(stated) if stated else Path(__file__).parents[2] / "shared" / "data") / "routing"
    if not folder.is_dir():
        sys.exit("benchmarks/routing_cascade.py needs the real data: set NEARFAR_TEST_DATA to its folder")
    result = evaluate(folder, seeds=given.seeds, say=(lambda line: None) if given.json else print)
    result["judging_ms"] = round(_milliseconds(read(folder)), 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
