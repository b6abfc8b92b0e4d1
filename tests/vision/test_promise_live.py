"""Promises over real nodes: a stream that leaves before it breaks, and what is given up when nobody can keep it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from nearfar.client.client import Client
from nearfar.client.connect import connect
from nearfar.errors import NoCandidate
from nearfar.models.images import pixels_of
from nearfar.placement.qos import Level
from nearfar.settings import load
from nearfar.types.ids import ModelName
from nearfar.types.image import Image
from nearfar.types.request import Degrade, Qos
from nearfar.types.units import Milliseconds
from nearfar.vision.results import FrameResult, Outcome, Summary
from nearfar.vision.stream import Watch
from tests.fleetlab import Lab, LabModel, Node, real
from tests.fleetlab import lab as lab
from tests.realdata import need_data
from tests.vision.detectors import detector
from tests.vision.helpers import ScriptedSource
from tests.waiting import until

LIMIT = 120.0


def camera(rate: float) -> ScriptedSource:
    """A live source with so many frames per second, for longer than any test waits."""
    started = time.monotonic()
    image = np.zeros((64, 64, 3), np.uint8)

    def pace(index: int) -> None:
        time.sleep(max(0.0, started + index / rate - time.monotonic()))

    return ScriptedSource(int(LIMIT * 2 * rate), live=True, gate=pace, image=image)


async def watched(
    lab: Lab, nodes: list[Node], model: str, qos: Qos, rate: float, enough: Callable[[Watch], object],
    prepare: Callable[[Client], None] = lambda _: None,
) -> tuple[Watch, Summary, list[FrameResult]]:  # fmt: skip
    """A stream over these nodes until it is enough; its engine, summary and results."""
    results: list[FrameResult] = []
    flags = {"home": str(lab.folder / "client"), "mesh.fleet": lab.fleet, "mesh.discover": False}
    async with connect(load(flags), join=[e for node in nodes for e in node.endpoints]) as client:
        for node in nodes:
            await client.wait_for(ModelName(model), 60, node.name)
        prepare(client)
        engine = Watch(camera(rate), client, ModelName(model), qos, on_result=lambda found, _: results.append(found))
        running = asyncio.create_task(engine.run())
        try:
            await until(lambda: enough(engine) or running.done(), "the stream has done what it is watched for", LIMIT)
        finally:
            engine.stop()
            summary = await asyncio.wait_for(running, 60)
    assert summary.accounted == summary.read == len(results)
    return engine, summary, results


@pytest.mark.slow
def test_a_stream_leaves_a_node_that_gets_slower_before_the_promise_breaks(lab: Lab) -> None:
    """a takes a little longer with every frame. b is not so much better that a stream would move there by itself."""
    deadline = Milliseconds(400.0)
    a = lab.node("a", [detector(lab.folder, "det", "fast", delay_ms=150.0, delay_step_ms=2.5)])
    b = lab.node("b", [detector(lab.folder, "det", "steady", delay_ms=320.0)], join=[a])
    qos = Qos(deadline)
    _, summary, results = asyncio.run(
        watched(lab, [a, b], "det", qos, 20.0, lambda w: w.incumbent == "b/det" and w.summary.moved)
    )
    assert summary.moves[0].source == "a/det" and summary.moves[0].target == "b/det"
    before = [r for r in results if r.served_by == "a/det"]
    late = sum(r.outcome is Outcome.LATE for r in before)
    assert late <= (1 - qos.percentile / 100) * 30 * len(before) / max(1.0, summary.wall_s)
    told = summary.to_dict()["promise"]
    assert told["entered"]["broken"] == 0, "whoever saw it first, the decision's margin or the monitor's forecast"
    assert told["deadline_ms"] == deadline


@pytest.mark.slow
def test_a_lower_rate_keeps_a_promise_that_the_full_one_breaks(lab: Lab) -> None:
    """A frame every 100 ms at a service that takes 160: every frame waits for the one before it, up to 100 ms."""
    node = lab.node("a", [detector(lab.folder, "det", delay_ms=160.0)])
    qos = Qos(Milliseconds(225.0), degrade=(Degrade.RATE,))

    def enough(engine: Watch) -> bool:
        keeper = engine.promise
        found = keeper.found
        kept = found is not None and found.level is Level.KEPT and found.forecast is not None
        return kept and keeper.effect.every > 1 and found is not None and (found.forecast or 1e9) < 225.0

    _, summary, results = asyncio.run(watched(lab, [node], "det", qos, 10.0, enough))
    told = summary.to_dict()["promise"]
    assert told["steps"][0].startswith("rate 1/") and told["changes"][0]["step"] == "rate 1/2"
    assert "225 ms" in told["changes"][0]["because"] and told["degraded"].startswith("degraded: rate 1/")
    skipped = {r.reason for r in results if r.reason.startswith("degraded: ")}
    assert skipped and all(r.outcome is Outcome.DROPPED for r in results if r.reason in skipped)


@pytest.mark.slow
def test_a_smaller_model_of_the_same_labels_is_asked_when_the_own_one_is_too_slow(lab: Lab) -> None:
    models = [detector(lab.folder, "big", delay_ms=700.0), detector(lab.folder, "small", delay_ms=20.0)]
    other = detector(lab.folder, "strange", delay_ms=10.0)
    strange = LabModel(msgspec.structs.replace(other.manifest, labels=("cat",)), other.file)
    node = lab.node("a", [*models, strange])
    qos = Qos(Milliseconds(400.0), degrade=(Degrade.MODEL, Degrade.REFUSE))
    _, summary, results = asyncio.run(
        watched(lab, [node], "big", qos, 5.0, lambda w: w.summary.served["a/small"] > 5)  # type: ignore[index]
    )
    assert not summary.served["a/strange"]  # type: ignore[index]
    told = summary.to_dict()["promise"]
    assert told["steps"] == ["model small"] and "model small instead of big" in told["degraded"]
    assert not any(isinstance(r.error, NoCandidate) for r in results)  # refusing comes after the model


@pytest.mark.slow
def test_frames_that_nobody_keeps_are_refused_at_once_and_say_by_whom(lab: Lab) -> None:
    node = lab.node("a", [detector(lab.folder, "det", delay_ms=500.0)])
    qos = Qos(Milliseconds(200.0), degrade=(Degrade.REFUSE,))
    _, summary, results = asyncio.run(
        watched(lab, [node], "det", qos, 10.0, lambda w: w.summary.failures["no-candidate"] > 2)
    )
    refused = [r.error for r in results if isinstance(r.error, NoCandidate)]
    assert refused and all(dict(error.refusals[0])["code"] == "late" for error in refused)
    assert "Nobody is expected to answer within" in summary.reasons["no-candidate"]
    assert node.service_json("det") is not None and not summary.seen


@pytest.mark.slow
def test_boxes_of_a_smaller_picture_fit_the_original(lab: Lab) -> None:
    """A real detector over a real node: what it finds at 3/4 and at half the size lies where it lies at full size."""
    photo = pixels_of(Image.encoded(need_data("images", "fruit_bowl.jpg").read_bytes()))
    node = lab.node("a", [real("yolox-nano")])

    async def body() -> list[Any]:
        flags = {"home": str(lab.folder / "client"), "mesh.fleet": lab.fleet, "mesh.discover": False}
        async with connect(load(flags), join=node.endpoints) as client:
            await client.wait_for(ModelName("yolox-nano"), 60)
            found = []
            for position in (0, 1, 2):
                results: list[FrameResult] = []
                engine = Watch(
                    ScriptedSource(1, image=photo), client, ModelName("yolox-nano"),
                    Qos(Milliseconds(60_000.0), degrade=(Degrade.INPUT,)), on_result=lambda r, _: results.append(r),  # noqa: B023
                )  # fmt: skip
                engine.promise.ladder.position = position
                engine.promise._effect = engine.promise.ladder.effect()
                await engine.run()
                assert results[0].answer is not None, results[0].reason
                found.append(results[0].answer.detections())
            return found

    whole, *smaller = asyncio.run(asyncio.wait_for(body(), LIMIT))
    sure = whole[whole.scores > 0.6]
    assert len(sure)
    for small in smaller:
        for box, kind in zip(sure.boxes, sure.class_ids, strict=True):
            best = max((overlap(box, other) for other in small.boxes[small.class_ids == kind]), default=0.0)
            assert best > 0.7


def overlap(a: Any, b: Any) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(0.0, float(width)) * max(0.0, float(height))
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (a, b)]
    return inside / (sum(areas) - inside)
