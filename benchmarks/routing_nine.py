"""Nine models with prices: what routing between them gives. Used by benchmarks/routing.py."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.routing_data import Item, folder
from nearfar.language import evaluation
from nearfar.language.routers.train import Table, predict, solve

Floats = NDArray[np.float64]
ANSWER_TOKENS = 256
"""Supposed length of an answer; the data holds none."""


def nine_models(found: list[Item], all_rows: Table, fold: NDArray[np.int64]) -> dict[str, Any]:
    places = np.array([i for i, item in enumerate(found) if item.models])
    names = sorted(found[places[0]].models)
    listed = json.loads((folder() / "llmrouter_models.json").read_text())
    price = np.array([(listed[name]["input_price"] + listed[name]["output_price"]) / 2 for name in names])
    score = np.array([[found[i].models[name] for name in names] for i in places])
    tokens = np.array([len(found[i].row.prompt) / 4 + ANSWER_TOKENS for i in places])
    cost = tokens[:, None] * price[None] / 1e6
    guess = _guessed(all_rows.pick(places), score, fold[places])
    single = score.mean(0)
    best = int(single.argmax())
    its_cost, its_quality = float(cost[:, best].mean()), float(single[best])
    points = [_point(guess - weight * cost, score, cost) for weight in [0.0, *np.geomspace(1, 1e6, 59).tolist()]]
    top = evaluation.hull([p[0] for p in points], [p[1] for p in points])
    plain = evaluation.hull(cost.mean(0), single)
    at_cost = float(np.interp(its_cost, top.far, top.quality))
    reached = float(np.interp(its_quality, top.quality, top.far)) if top.quality[-1] >= its_quality else None
    return {
        "rows": len(places),
        "best_single": {"model": names[best], "quality": round(its_quality, 3), "usd_1000": round(its_cost * 1000, 4)},
        "oracle": round(float(score.max(1).mean()), 3),
        "quality_at_its_cost": round(at_cost, 3),
        "usd_1000_at_its_quality": None if reached is None else round(reached * 1000, 4),
        "share_of_its_cost_at_its_quality": None if reached is None else round(reached / its_cost, 3),
        "highest_quality": round(float(top.quality[-1]), 3),
        "singles": {
            n: [round(float(c) * 1000, 4), round(float(q), 3)]
            for n, c, q in zip(names, cost.mean(0), single, strict=True)
        },
        "hull_of_singles": [[round(float(x) * 1000, 4), round(float(y), 3)] for x, y in zip(*plain, strict=True)],
        "curve": [[round(float(x) * 1000, 4), round(float(y), 3)] for x, y in zip(*top, strict=True)],
    }


def _guessed(rows: Table, score: Floats, fold: NDArray[np.int64]) -> Floats:
    out = np.zeros_like(score)
    for number in np.unique(fold):
        seen, unseen = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        one, other = rows.pick(seen), rows.pick(unseen)
        for model in range(score.shape[1]):
            solved = solve(one, score[seen, model], np.ones(len(seen)), np.zeros(len(seen), np.int64), rounds=25)
            out[unseen, model] = predict(other, solved)
    return out


def _point(worth: Floats, score: Floats, cost: Floats) -> tuple[float, float]:
    chosen = worth.argmax(1)
    rows = np.arange(len(chosen))
    return float(cost[rows, chosen].mean()), float(score[rows, chosen].mean())
