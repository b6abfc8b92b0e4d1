"""Promises as a person states them, against a real node that costs something and takes its time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.cli.commands import Said, nearfar
from tests.fleetlab import Lab, Node
from tests.vision.detectors import detector

PRICE = 0.05


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("priced")
    with Lab(folder) as lab:
        yield lab.node("a", [detector(folder, "det", delay_ms=300.0)], env={"NEARFAR_NODE_COST": str(PRICE)})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((48, 64, 3), 40 * number, np.uint8))
    return folder


def asked(node: Node, *words: object) -> Said:
    return nearfar(*words, "--fleet", node.fleet, home=node.home)


def test_the_price_is_told_and_the_highest_cost_is_kept_to(node: Node, pictures: Path) -> None:
    row = node.service_json("det")
    assert row is not None and row["cost"] == PRICE
    said = asked(node, "run", "det", pictures / "0.png", "--max-cost", "0.01")
    assert said.code == 7 and "one request costs 0.05 there, and at most 0.01 is allowed" in said.sentence
    assert asked(node, "run", "det", pictures / "0.png", "--max-cost", PRICE).code == 0


def test_a_picture_that_nobody_is_in_time_for_is_refused_at_once(node: Node, pictures: Path) -> None:
    said = asked(node, "run", "det", pictures / "0.png", "--deadline", "100ms", "--degrade", "refuse")
    assert said.code == 7 and "Nobody is expected to answer within 100 ms; the soonest is a/det" in said.sentence
    said = asked(node, "run", "det", pictures / "0.png", "--deadline", "100ms", "--degrade", "rate")
    assert said.code == 2 and "--degrade: 'rate' cannot be given up here" in said.sentence


def test_a_stream_tells_how_its_promise_stood(node: Node, pictures: Path) -> None:
    words = ("watch", pictures, "--model", "det", "--deadline", "20s", "--percentile", "90", "--degrade", "rate,refuse")
    said = asked(node, *words, "--json")
    assert said.code == 0
    told = said.json["promise"]
    assert (told["deadline_ms"], told["percentile"], told["level"]) == (20_000.0, 90.0, "kept")
    assert told["late_share"] == 0 and told["quantile_ms"] >= 300 and set(told["stages_ms"]) > {"queue", "client"}
    assert told["degraded"] is None and told["changes"] == []
    assert "90 % within 20000 ms is kept: 0 of 3 answers late or lost" in asked(node, *words).out
    assert asked(node, "watch", pictures, "--model", "det", "--json").json["promise"] is None
