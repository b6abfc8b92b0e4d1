"""The public routing data as rows, near-duplicates tied together. Used by benchmarks/routing.py and recipes/router.

Qualities from 0 to 1: right or wrong (MMLU, GSM8K), the judge's mean score of both turns / 10 (MT-Bench), the score of
each of nine models (llmrouter). Prompts that the published protocol leaves out of scoring are marked, not dropped.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nearfar.language.routers.duplicates import near_duplicates
from nearfar.language.routers.train import Row

WEAK, STRONG = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
NINE_WEAK = ("mistral-7b-instruct-v0.3", "codegemma-7b", "llama3-chatqa-1.5-70b")
NINE_STRONG = (
    "qwen2.5-7b-instruct",
    "gemma-2-9b-it",
    "llama-3.1-8b-instruct",
    "llama-3.1-nemotron-51b-instruct",
    "llama-3.3-nemotron-super-49b-v1",
)
"""The mean of each serves as near and far when the nine models' rows are trained on."""


class Item(NamedTuple):
    row: Row
    scored: bool
    """Not on the published list of contaminated prompts."""
    part: str
    """MMLU subject, MT-Bench category or task. Never a feature."""
    models: dict[str, float]
    """Score of each of the nine models."""


def folder() -> Path:
    stated = os.environ.get("NEARFAR_TEST_DATA")
    found = (Path(stated) if stated else Path(__file__).parents[2] / "shared" / "data") / "routing"
    if not found.is_dir():
        sys.exit("the routing data is absent: set NEARFAR_TEST_DATA to its folder")
    return found


def items(data: Path) -> list[Item]:
    """All rows of the four sets, in a fixed order."""
    found = [*_mmlu(data), *_gsm8k(data), *_mt_bench(data), *_nine(data)]
    groups = near_duplicates([item.row.prompt for item in found])
    return [
        item._replace(row=Row(item.row.prompt, item.row.near, item.row.far, str(group), item.row.source))
        for item, group in zip(found, groups, strict=True)
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _excluded(data: Path, name: str) -> set[str]:
    return {line["eval_prompt"] for line in _lines(data / f"contaminated_prompts_{name}.jsonl")}


def _pairs(path: Path, source: str, part: str, excluded: set[str]) -> list[Item]:
    with path.open(encoding="utf-8", newline="") as text:
        return [
            Item(
                Row(r["prompt"], float(r[WEAK] == "True"), float(r[STRONG] == "True"), source=source),
                r["prompt"] not in excluded,
                part,
                {},
            )
            for r in csv.DictReader(text)
        ]


def _mmlu(data: Path) -> list[Item]:
    out = _excluded(data, "mmlu")
    files = sorted((data / "routellm_mmlu").glob("mmlu_*.csv"))
    return [item for path in files for item in _pairs(path, "mmlu", path.stem.removeprefix("mmlu_"), out)]


def _gsm8k(data: Path) -> list[Item]:
    return _pairs(data / "routellm_gsm8k_responses.csv", "gsm8k", "gsm8k", _excluded(data, "gsm8k"))


def _mt_bench(data: Path) -> list[Item]:
    out, scores = _excluded(data, "mt_bench"), dict[tuple[int, str], list[float]]()
    for line in _lines(data / "mt_bench_judgements.jsonl"):
        scores.setdefault((line["question_id"], line["model"]), []).append(line["score"] / 10)
    found = []
    for q in _lines(data / "mt_bench_questions.jsonl"):
        near, far = scores.get((q["question_id"], WEAK)), scores.get((q["question_id"], STRONG))
        if near and far:  # half of the questions have judgements; only the first turn is looked at, as published
            row = Row(q["turns"][0], statistics.mean(near), statistics.mean(far), source="mt_bench")
            found.append(Item(row, not out & set(q["turns"]), q["category"], {}))
    return found


def _nine(data: Path) -> list[Item]:
    def mean(scores: dict[str, float], names: Sequence[str]) -> float:
        return statistics.mean(scores[name] for name in names)

    return [
        Item(
            Row(r["question"], mean(r["scores"], NINE_WEAK), mean(r["scores"], NINE_STRONG), source="nine"),
            True,
            r["task"],
            r["scores"],
        )
        for r in _lines(data / "llmrouter_9models.jsonl")
    ]
