"""A stream that watches its own promise: what it asks of the fleet, and what it gives up. The clock is the test's."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from rich.console import Console

from nearfar.errors import DeadlineExceeded, InferenceError, NearfarError
from nearfar.placement.qos import Level
from nearfar.types.ids import ModelName, ServiceId
from nearfar.types.image import Image
from nearfar.types.request import Answer, Degrade, Qos, Stages
from nearfar.types.units import Milliseconds, Seconds
from nearfar.vision.base import Frame
from nearfar.vision.promise import Keeper
from nearfar.vision.results import FrameResult, Outcome, Summary
from nearfar.vision.stream import Watch
from nearfar.vision.terminal import Dashboard, line_of
from tests.vision.helpers import MODEL, ScriptedSeer, ScriptedSource, answer, find_square, scene

RATE, INPUT = Degrade.RATE, Degrade.INPUT
FPS = 30.0


class FakeFleet:
    """As much of a client as a keeper asks: who would be chosen, and whether late."""

    def __init__(self) -> None:
        self.me = "here"
        self.late = False
        self.chosen: str | None = "a/square"
        self.asked: list[Any] = []
        self.broken: list[tuple[str, float, str]] = []

    def decide(self, request: Any) -> Any:
        self.asked.append(request)
        ranking = [SimpleNamespace(service="a/square", expected=SimpleNamespace(wait=Milliseconds(0.0)))]
        return SimpleNamespace(chosen=self.chosen, late=self.late, ranking=ranking, reason="a/square is late.")

    def promise_broken(self, service: ServiceId, deadline: Milliseconds, reason: str) -> None:
        self.broken.append((service, deadline, reason))


class Timed(Keeper):
    def __init__(self, seer: Any, qos: Qos) -> None:
        self.now = 1000.0
        super().__init__(seer, MODEL, qos)

    def _now(self) -> Seconds:
        return Seconds(self.now)


def level_of(keeper: Keeper) -> Level:
    return keeper.monitor.level


def result(index: int, total: float, server: str = "a/square", error: NearfarError | None = None) -> FrameResult:
    if error is not None:
        return FrameResult(index, Outcome.FAILED, error=error)
    stages = Stages(2.0, 0.0, 1.0, max(0.0, total - 5.0), 1.0)
    return FrameResult(index, Outcome.ANSWERED, answer=Answer([], ServiceId(server), "v", stages), total_ms=total)


def play(
    keeper: Timed, seconds: float, latency: Callable[[float], float], *, server: str = "a/square", at: int = 0
) -> int:
    """Frames at `FPS`; those that are skipped cost nothing. The index after the last one."""
    started = keeper.now
    count = int(seconds * FPS)
    for index in range(at, at + count):
        keeper.now = started + (index - at + 1) / FPS
        frame = Frame(index, Seconds(keeper.now), np.zeros((4, 4, 3), np.uint8))
        if not keeper.skips(frame):
            total = latency(keeper.now - started)
            keeper.ended(result(index, total, server, DeadlineExceeded("late") if total == math.inf else None))
    return at + count


def test_nothing_is_promised_without_a_deadline() -> None:
    keeper = Timed(FakeFleet(), Qos())
    play(keeper, 5.0, lambda _: 1e5)
    assert keeper.plan(Qos(), 0.0).more == {} and keeper.words() == "" and keeper.to_dict() is None


def test_the_forecast_travels_with_the_request_before_an_answer_is_late() -> None:
    fleet = FakeFleet()
    keeper = Timed(fleet, Qos(Milliseconds(100.0)))
    play(keeper, 5.0, lambda _: 40.0)
    assert keeper.plan(Qos(Milliseconds(90.0)), 10.0).more == {}
    seen = []

    def ramp(at: float) -> float:
        total = 40.0 + 10.0 * at
        if level_of(keeper) is Level.THREATENED:
            seen.append(total)
        return total

    play(keeper, 5.9, ramp, at=150)
    assert seen and seen[0] < 100.0
    plan = keeper.plan(Qos(Milliseconds(90.0)), 10.0)
    assert plan.more["forecast"] > 90.0 and keeper.found is not None and keeper.found.forecast is not None
    assert plan.more["forecast"] == pytest.approx(keeper.found.forecast - 10.0)
    # What it asks the fleet carries it too, so that it knows whether anybody would do better.
    assert fleet.asked[0].forecast is None and fleet.asked[-1].forecast is not None
    assert fleet.asked[-1].incumbent == "a/square" and not fleet.broken


def test_after_a_move_the_new_service_is_judged_by_its_own_answers() -> None:
    keeper = Timed(FakeFleet(), Qos(Milliseconds(100.0)))
    index = play(keeper, 8.0, lambda _: 150.0)
    assert level_of(keeper) is Level.BROKEN
    play(keeper, 1.0, lambda _: 40.0, server="b/square", at=index)
    assert level_of(keeper) is Level.KEPT and keeper.plan(Qos(Milliseconds(100.0)), 0.0).more == {}


def test_a_broken_promise_is_held_against_the_service_once() -> None:
    fleet = FakeFleet()
    keeper = Timed(fleet, Qos(Milliseconds(100.0)))
    play(keeper, 20.0, lambda _: 150.0)
    ((service, deadline, reason),) = fleet.broken
    assert (service, deadline) == ("a/square", 100.0)
    assert "late, most by inference" in reason


def test_answers_that_do_not_come_break_it_too_and_dropped_frames_do_not() -> None:
    keeper = Timed(FakeFleet(), Qos(Milliseconds(100.0)))
    for index in range(300):
        keeper.now += 1 / FPS
        keeper.ended(FrameResult(index, Outcome.DROPPED, reason="back-pressure: newer frames came"))
    assert keeper.found is None and level_of(keeper) is Level.KEPT
    for index in range(300, 400):
        keeper.now += 1 / FPS
        keeper.ended(result(index, 0.0, error=InferenceError("no")))
    assert level_of(keeper) is Level.BROKEN
    told = keeper.to_dict()
    assert told is not None and told["quantile_ms"] is None and told["late_share"] == 1.0


def test_while_another_would_keep_it_nothing_is_given_up() -> None:
    fleet = FakeFleet()
    fleet.chosen = "b/square"
    keeper = Timed(fleet, Qos(Milliseconds(100.0), degrade=(RATE,)))
    play(keeper, 20.0, lambda _: 150.0)
    assert level_of(keeper) is Level.BROKEN and keeper.effect.every == 1


def test_a_promise_that_broke_and_is_kept_again_costs_nothing_more() -> None:
    """The window remembers the bad seconds for half a minute; what was given up for them is one step at most."""
    keeper = Timed(FakeFleet(), Qos(Milliseconds(100.0), degrade=(RATE, INPUT)))
    index = play(keeper, 10.0, lambda _: 40.0)
    index = play(keeper, 2.2, lambda _: 150.0, at=index)
    assert level_of(keeper) is not Level.KEPT
    play(keeper, 15.0, lambda _: 40.0, at=index)
    told = [change.down for _, _, change in keeper.changes]
    assert told in ([], [True], [True, False])


def test_while_nobody_at_all_can_be_asked_nothing_is_given_up() -> None:
    fleet = FakeFleet()
    fleet.chosen = None
    keeper = Timed(fleet, Qos(Milliseconds(100.0), degrade=(RATE,)))
    play(keeper, 20.0, lambda _: math.inf)
    assert level_of(keeper) is Level.BROKEN and keeper.effect.every == 1


def test_when_nobody_keeps_it_steps_are_taken_and_taken_back_and_all_is_told() -> None:
    fleet = FakeFleet()
    keeper = Timed(fleet, Qos(Milliseconds(100.0), degrade=(RATE, INPUT)))

    def loaded(_: float) -> float:
        return {1: 150.0, 2: 120.0, 4: 60.0}[keeper.effect.every]

    index = play(keeper, 18.0, loaded)
    assert keeper.effect.every == 4 and keeper.effect.scale == 1.0
    told = keeper.words()
    assert told.startswith("degraded: rate 1/4, since ") and "because 95 % within 100 ms is " in told
    play(keeper, 60.0, lambda _: 30.0, at=index)
    assert keeper.effect.every == 1 and not keeper.degraded() and " is kept: " in keeper.words()
    summary = keeper.to_dict()
    assert summary is not None and summary["level"] == "kept" and summary["degraded"] is None
    assert [(c["step"], c["given_up"]) for c in summary["changes"]] == [
        ("rate 1/2", True), ("rate 1/4", True), ("rate 1/4", False), ("rate 1/2", False),
    ]  # fmt: skip


def test_what_is_expected_late_is_said_at_once_and_given_up_before_anything_was_measured() -> None:
    fleet = FakeFleet()
    fleet.late = True
    keeper = Timed(fleet, Qos(Milliseconds(100.0), degrade=(RATE,)))
    play(keeper, 0.1, lambda _: 90.0)
    assert keeper.words() == "nobody is expected to keep 100 ms: a/square is late."
    play(keeper, 1.5, lambda _: 90.0, at=3)
    assert keeper.effect.every == 2
    # When answers come in time all the same, they are believed.
    keeper = Timed(fleet, Qos(Milliseconds(100.0), degrade=(RATE,)))
    fleet.late = False
    index = play(keeper, 5.0, lambda _: 60.0)
    fleet.late = True
    play(keeper, 20.0, lambda _: 60.0, at=index)
    assert keeper.effect.every == 1


# In the engine


class Preset(Watch):
    """A stream that has given something up from its start."""

    def give_up(self, position: int) -> None:
        self.promise.ladder.position = position
        self.promise._effect = self.promise.ladder.effect()


def test_frames_that_are_not_sent_are_counted_with_their_reason() -> None:
    seer = ScriptedSeer()
    engine = Preset(ScriptedSource(32), seer, MODEL, Qos(Milliseconds(5000.0), degrade=(RATE,)))
    engine.give_up(2)
    summary: Summary = asyncio.run(asyncio.wait_for(engine.run(), 60))
    assert seer.calls == 8 and summary.counts[Outcome.DROPPED] == 24 and summary.accounted == summary.read == 32
    assert dict(summary.drops) == {"degraded: 1 of 4 frames is sent, as --degrade rate allows": 24}
    assert summary.to_dict()["promise"]["steps"] == ["rate 1/4"]


@pytest.mark.parametrize(("position", "size"), [(0, (160, 120)), (1, (120, 90)), (2, (80, 60))])
def test_boxes_of_smaller_pictures_are_in_the_frames_own_pixels(position: int, size: tuple[int, int]) -> None:
    image, where = scene(3)
    sizes = []

    def reply(_: int, sent: Image) -> Answer:
        sizes.append((sent.width, sent.height))
        return answer(sent)

    results: list[FrameResult] = []
    engine = Preset(
        ScriptedSource(3, image=image), ScriptedSeer(reply), MODEL, Qos(Milliseconds(5000.0), degrade=(INPUT,)),
        on_result=lambda found, _: results.append(found),
    )  # fmt: skip
    engine.give_up(position)
    asyncio.run(asyncio.wait_for(engine.run(), 60))
    assert sizes == [size] * 3 and find_square(image) == where
    for found in results:
        assert found.answer is not None
        np.testing.assert_allclose(found.answer.detections().boxes, [where], atol=1 / (size[0] / 160))


def test_the_line_says_what_was_given_up() -> None:
    summary = Summary()
    keeper = Timed(FakeFleet(), Qos(Milliseconds(100.0), degrade=(RATE,)))
    summary.promise = keeper
    play(keeper, 5.0, lambda _: 150.0)
    assert "; degraded: rate 1/2, since " in line_of(summary)


@pytest.mark.parametrize(("latency", "told"), [(40.0, "is kept"), (150.0, "degraded: rate 1/2, since ")])
def test_the_panel_says_it_too(latency: float, told: str) -> None:
    summary = Summary()
    keeper = Timed(FakeFleet(), Qos(Milliseconds(100.0), degrade=(RATE,)))
    summary.promise = keeper
    play(keeper, 5.0, lambda _: latency)
    out = io.StringIO()
    Console(file=out, width=100, height=40).print(Dashboard("clip.mp4", summary))
    assert told in out.getvalue()


def test_far_and_refuse_are_taken_back_when_somebody_near_is_in_time() -> None:
    """No answer need come for that: while frames are refused there are none."""

    class Paid(FakeFleet):
        far = True

        def snapshot(self) -> Any:
            report = SimpleNamespace(runtime="remote" if self.far else "onnx", cost=0.0)
            return SimpleNamespace(services={"a/square": SimpleNamespace(report=report)})

    fleet = Paid()
    keeper = Timed(fleet, Qos(Milliseconds(100.0), degrade=(RATE, Degrade.FAR, Degrade.REFUSE)))
    fleet.late = True
    index = play(keeper, 60.0, lambda _: math.inf)
    assert keeper.effect.degrade == (Degrade.FAR, Degrade.REFUSE) and keeper.ladder.position == 5
    index = play(keeper, 60.0, lambda _: math.inf, at=index)
    assert keeper.ladder.position == 5
    fleet.late = False
    index = play(keeper, 40.0, lambda _: 30.0, at=index)
    assert keeper.ladder.position == 4 and keeper.ladder.top is not None and keeper.ladder.top.kind is Degrade.FAR
    fleet.far = False
    play(keeper, 240.0, lambda _: 30.0, at=index)
    assert keeper.ladder.position == 0


def test_another_model_is_asked_when_that_was_given_up() -> None:
    from nearfar.vision.degrade import Smaller, steps_of

    class Noting(ScriptedSeer):
        models: ClassVar[list[str]] = []

        async def see(self, model: ModelName, image: Image, qos: Qos, **more: Any) -> Answer:
            self.models.append(model)
            return await super().see(model, image, qos, **more)

    seer = Noting()
    engine = Preset(ScriptedSource(2), seer, MODEL, Qos(Milliseconds(5000.0), degrade=(Degrade.MODEL,)))
    smaller = Smaller(ModelName("tiny"), Milliseconds(9.0))
    engine.promise.ladder.extend(steps_of((Degrade.MODEL,), (smaller,)))
    engine.give_up(1)
    asyncio.run(asyncio.wait_for(engine.run(), 60))
    assert seer.models == ["tiny", "tiny"]
