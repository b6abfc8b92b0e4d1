"""The public routing data as the benchmark and the recipe read it, and the shipped weights on it."""

from __future__ import annotations

import numpy as np

from benchmarks.routing_data import items
from nearfar.language import evaluation
from nearfar.language.routers.base import Prompt
from nearfar.language.routers.ngram import Ngram
from nearfar.language.routers.train import coarse
from tests.realdata import need_data


def test_rows_and_near_duplicates_of_the_real_data() -> None:
    found = items(need_data("routing"))
    sources = [item.row.source for item in found]
    assert {name: sources.count(name) for name in set(sources)} == {
        "mmlu": 9765,
        "gsm8k": 660,
        "mt_bench": 40,
        "nine": 4417,
    }
    assert [sum(i.scored for i in found if i.row.source == s) for s in ("mmlu", "gsm8k", "mt_bench")] == [9762, 654, 37]
    asked_twice = {item.row.group for item in found if item.part == "agentverse-mgsm"}
    assert asked_twice <= {item.row.group for item in found if item.row.source == "gsm8k"}

    # Trained on these very rows: this says that file and features belong together, not how good the router is.
    router, some = Ngram(), [item.row for item in found if item.row.source == "mmlu"][::10]
    wish = [1 - router.score(Prompt(row.prompt)).probability for row in some]
    assert evaluation.report(wish, [r.near for r in some], [r.far for r in some]).apgr > 0.7


def test_coarse_weights_are_nearly_the_same() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    assert np.all(np.abs(coarse(values).astype(np.float64) - values) <= np.abs(values) / 60 + 1e-6)
    assert coarse(np.zeros(3)).tolist() == [0.0, 0.0, 0.0]
