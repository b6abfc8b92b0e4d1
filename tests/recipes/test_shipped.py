"""The weights in the package are small, are those the manifest names, and find what they promise to find."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from recipes.yard import evaluate
from recipes.yard.scene import LABELS

SCENES = 30  # of 4 frames; a fixed set that training never saw
MANIFEST = tomllib.loads((evaluate.EMBEDDED / "yard.toml").read_text(encoding="utf-8"))
FILES = {v["id"]: evaluate.EMBEDDED / v["file"] for v in MANIFEST["variants"]}


def runner(variant: str) -> Callable[[evaluate.Image], evaluate.Raw]:
    if variant == "tflite-int8":
        pytest.importorskip("ai_edge_litert", reason="needs the extra `litert`")
        return evaluate.tflite_runner(FILES[variant])
    return evaluate.onnx_runner(FILES[variant])


@pytest.fixture(scope="module")
def figures() -> Callable[[str], dict[str, Any]]:
    frames = evaluate.test_frames(SCENES)
    known: dict[str, dict[str, Any]] = {}

    def measure(variant: str) -> dict[str, Any]:
        if variant not in known:
            known[variant] = evaluate.accuracy(runner(variant), frames)
        return known[variant]

    return measure


def test_the_manifest_names_the_files_that_are_there() -> None:
    assert MANIFEST["labels"] == list(LABELS)
    assert MANIFEST["decoder"]["score_threshold"] == evaluate.THRESHOLD
    assert set(FILES) == {"onnx-int8", "tflite-int8"}
    for variant in MANIFEST["variants"]:
        content = (evaluate.EMBEDDED / variant["file"]).read_bytes()
        assert len(content) == variant["bytes"] <= 300_000
        assert hashlib.sha256(content).hexdigest() == variant["sha256"]


@pytest.mark.parametrize("variant", sorted(FILES))
def test_unseen_scenes_are_understood(variant: str, figures: Callable[[str], dict[str, Any]]) -> None:
    assert figures(variant)["ap50"] >= 0.85


def test_the_variants_agree(figures: Callable[[str], dict[str, Any]]) -> None:
    onnx, tflite = figures("onnx-int8"), figures("tflite-int8")
    assert abs(onnx["ap50"] - tflite["ap50"]) <= 0.02
    assert abs(onnx["map"] - tflite["map"]) <= 0.02


def test_the_record_is_about_these_files() -> None:
    record = json.loads((evaluate.EMBEDDED / MANIFEST["provenance"]["figures"]).read_text(encoding="utf-8"))
    assert record["seed"] == MANIFEST["provenance"]["seed"]
    for variant, path in FILES.items():
        assert record["variants"][variant]["bytes"] == path.stat().st_size
        assert record["variants"][variant]["ap50"] >= 0.85


@pytest.mark.parametrize("variant", sorted(FILES))
def test_one_frame_always_gives_the_same_bytes(variant: str) -> None:
    runner(variant)
    result = evaluate.determinism(FILES[variant], times=100)
    assert result["all_equal"], result


@pytest.mark.parametrize("variant", sorted(FILES))
def test_an_empty_picture_holds_nothing(variant: str) -> None:
    import numpy as np

    grey = np.full((evaluate.HEIGHT, evaluate.WIDTH, 3), 114, np.uint8)
    assert len(evaluate.decode(runner(variant)(grey))[0]) == 0
