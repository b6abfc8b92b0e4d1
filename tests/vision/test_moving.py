"""A stream goes over to another service: no frame lost, none twice, in order, whoever answers and whoever fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.client.listening import Choices, Listeners
from nearfar.errors import DeadlineExceeded, InferenceError, NearfarError, NoCandidate, Overloaded, Unreachable
from nearfar.fleet.snapshot import Snapshot
from nearfar.placement.decide import Decision
from nearfar.placement.migration import Moving, Phase
from nearfar.placement.policies.base import Ranked
from nearfar.placement.refusal import Refusal
from nearfar.types.ids import ModelName, ServiceId, StreamId, node_of
from nearfar.types.image import Image
from nearfar.types.request import Answer, Privacy, Qos, Request, Stages
from nearfar.types.units import Milliseconds
from nearfar.vision.degrade import Effect
from nearfar.vision.moving import Mover
from nearfar.vision.results import FrameResult, Kind, Outcome, Summary
from nearfar.vision.stream import Watch
from tests.vision.helpers import MODEL, ScriptedSource, answer
from tests.vision.test_stream import QuickWatch, check_accounts, collect, run

A, B, C = (ServiceId(f"{node}/square") for node in "abc")


class Fleet:
    """A seer with services a, b, c; `want(n)` is whom the n-th decision puts first."""

    def __init__(self, want: Callable[[int], ServiceId | None], answers: Callable[[ServiceId, Image], Any]) -> None:
        self.me = "here"
        self.want = want
        self.answers = answers
        self.decisions = 0
        self.refused: dict[ServiceId, str] = {}
        self.asked: list[tuple[ServiceId, Qos, StreamId | None]] = []
        self.told: list[Decision] = []
        self.listeners = Listeners()

    def snapshot(self) -> Snapshot:
        return Snapshot(self.me)

    def decide(self, request: Request) -> Decision:
        best = self.want(self.decisions)
        self.decisions += 1
        if best in self.refused:
            best = next((one for one in (A, B, C) if one not in self.refused), None)
        refusals = tuple(Refusal(service, "gone", why) for service, why in self.refused.items())
        ranking = (Ranked(best, 5.0),) if best is not None else ()
        return Decision(best, None, False, ranking, refusals, f"{best} is best", 3, 3, len(refusals), "scripted")

    async def see(
        self,
        model: ModelName,
        image: Image,
        qos: Qos,
        *,
        stream: StreamId | None = None,
        incumbent: ServiceId | None = None,
    ) -> Answer:
        service = ServiceId(f"{qos.node}/square") if qos.node is not None else incumbent or A
        self.asked.append((service, qos, stream))
        if service in self.refused:
            if qos.node is not None:
                raise NoCandidate(f"{service} is refused")
            service = next(one for one in (A, B, C) if one not in self.refused)
        given = self.answers(service, image)
        if asyncio.iscoroutine(given):
            given = await given
        assert isinstance(given, Answer)
        return given

    def link_to(self, model: ModelName, incumbent: ServiceId | None) -> tuple[float, float | None]:
        return 0.1, None

    def copies(self) -> list[ServiceId]:
        """Whom copies were sent to: they belong to no stream."""
        return [service for service, _, stream in self.asked if stream is None]


def plain(service: ServiceId, image: Image) -> Answer:
    return answer(image, service, boxes=[])


def stream(fleet: Fleet, frames: int, **options: Any) -> tuple[list[FrameResult], Summary]:
    results, on_result = collect()
    watcher = QuickWatch(
        ScriptedSource(frames), fleet, MODEL, options.pop("qos", Qos()), on_result=on_result, stream=StreamId("s"),
        **options,
    )  # fmt: skip
    summary = run(watcher)
    check_accounts(results, summary)
    return results, summary


def test_a_planned_move_loses_nothing_and_is_told_with_its_frame() -> None:
    fleet = Fleet(lambda n: A if n < 5 else B, plain)
    results, summary = stream(fleet, 20, in_flight=1)
    assert [r.outcome for r in results] == [Outcome.ANSWERED] * 20
    assert [str(r.served_by)[0] for r in results] == [
        *"a" * summary.moves[0].frame,
        *"b" * (20 - summary.moves[0].frame),
    ]
    (move,) = summary.moves
    assert (move.source, move.target, move.kind) == (A, B, Kind.PLANNED) and "is best" in move.reason
    assert fleet.copies() == [B] * 4 and summary.shadows == 4, "one to warm it and three to compare"
    assert summary.served == {A: move.frame, B: 20 - move.frame}, "copies are no results"
    assert summary.to_dict()["moves"][0]["kind"] == "planned" and summary.lost.count == 0


def test_until_the_switch_frames_are_pinned_to_the_present_service() -> None:
    fleet = Fleet(lambda n: A if n < 5 else B, plain)
    told: list[Decision] = []
    fleet.listeners.add(Choices(lambda request, decision: told.append(decision)))
    _, summary = stream(fleet, 20, in_flight=1)
    pins = [qos.node for _, qos, stream in fleet.asked if stream is not None]
    first = pins.index("a")
    assert pins[first : summary.moves[0].frame] == ["a"] * (summary.moves[0].frame - first)
    assert set(pins[:first] + pins[summary.moves[0].frame :]) == {None}, "else whoever asks decides, with its retries"
    assert len(told) == pins.count("a") and all(decision.chosen == B for decision in told)


def test_copies_ask_for_what_the_stream_asks_for() -> None:
    """A copy of a frame that may not leave the fleet may not either: its QoS differs by the pin alone."""
    qos = Qos(Milliseconds(5000.0), Privacy.FLEET, percentile=90.0)
    fleet = Fleet(lambda n: A if n < 3 else B, plain)
    stream(fleet, 12, in_flight=1, qos=qos)
    copies = [qos for _, qos, stream in fleet.asked if stream is None]
    assert len(copies) == 4
    for copy in copies:
        assert (copy.privacy, copy.percentile, copy.node) == (Privacy.FLEET, 90.0, "b")
        assert copy.deadline is not None and 0 < copy.deadline <= 5000


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        (Unreachable("gone"), "unreachable: gone"),
        (RuntimeError("a defect"), "RuntimeError: a defect"),
        ("many", "finds 9 objects in a frame in which a/square finds 0"),
        ("other", "answers boxes where a/square answers boxes, scores, class_ids"),
    ],
)
def test_a_target_that_fails_or_answers_something_else_is_not_moved_to(trouble: Any, why: str) -> None:
    def answers(service: ServiceId, image: Image) -> Answer:
        if service == B and isinstance(trouble, Exception):
            raise trouble
        if service == B and trouble == "many":
            return answer(image, service, boxes=[(0, 0, 2, 2)] * 9)
        given = plain(service, image)
        if service == B:
            return Answer(given.outputs[:1], service, given.variant, given.stages)
        return given

    fleet = Fleet(lambda n: A if n < 3 else B, answers)
    results, summary = stream(fleet, 12, in_flight=1)
    assert {r.served_by for r in results} == {A} and summary.moved == 0
    assert why in summary.given_up[0].reason and summary.to_dict()["given_up"][0]["target"] == B
    assert len(fleet.copies()) == 1, "not tried again at once"
    assert summary.exit_code == 0


def test_a_target_that_hangs_holds_nothing_back() -> None:
    async def hang() -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    def answers(service: ServiceId, image: Image) -> Any:
        return hang() if service == B else plain(service, image)

    fleet = Fleet(lambda n: A if n < 3 else B, answers)
    results, summary = stream(fleet, 50, in_flight=2)
    assert {r.served_by for r in results} == {A} and fleet.copies() == [B]
    assert summary.counts[Outcome.ANSWERED] == 50


def test_a_service_that_is_refused_is_left_without_a_warm_up() -> None:
    fleet = Fleet(lambda n: A, plain)

    def answers(service: ServiceId, image: Image) -> Answer:
        if len(fleet.asked) == 6:
            fleet.refused = {A: "its process has not been on the mesh for 0.1 s"}
        return plain(service, image)

    fleet.answers = answers
    results, summary = stream(fleet, 12, in_flight=1)
    assert [str(r.served_by)[0] for r in results] == [*"aaaaaabbbbbb"]
    (move,) = summary.moves
    assert (move.frame, move.kind) == (6, Kind.UNPLANNED) and "not been on the mesh" in move.reason
    assert fleet.copies() == []


def test_a_frame_whose_service_fails_in_the_middle_of_a_move_is_asked_of_another() -> None:
    """It is pinned, so the client may not choose; the stream lets it, once the pinned one has failed."""
    fleet = Fleet(lambda n: A if n < 3 else B, plain)

    def answers(service: ServiceId, image: Image) -> Answer:
        if service == A and fleet.asked[-1][1].node == "a":
            fleet.refused = {A: "gone"}
            raise Unreachable("a/square vanished")
        return plain(service, image)

    fleet.answers = answers
    results, summary = stream(fleet, 12, in_flight=1)
    assert [r.outcome for r in results] == [Outcome.ANSWERED] * 12 and summary.lost.count == 0
    (move,) = summary.moves
    assert (move.frame, move.kind) == (3, Kind.UNPLANNED) and "did not answer frame 3" in move.reason


def test_frames_without_an_answer_are_reported_by_number() -> None:
    def answers(service: ServiceId, image: Image) -> Answer:
        if len(fleet.asked) in (3, 4, 9):
            raise InferenceError("NaN")
        return plain(service, image)

    fleet = Fleet(lambda n: A, answers)
    results, summary = stream(fleet, 12, in_flight=1)
    assert summary.lost.ranges == [(2, 3), (8, 8)] and summary.lost.words() == "2-3, 8"
    assert summary.to_dict()["lost"] == {"count": 3, "ranges": [[2, 3], [8, 8]]}
    assert [r.index for r in results if r.outcome is Outcome.FAILED] == [2, 3, 8]


def test_in_danger_the_decision_hears_the_forecast_and_one_good_copy_is_enough() -> None:
    seen: list[Milliseconds | None] = []

    class Watching(Fleet):
        def decide(self, request: Request) -> Decision:
            seen.append(request.forecast)
            return super().decide(request)

    fleet = Watching(lambda n: A if n < 3 else B, plain)
    watcher = Watch(ScriptedSource(12), fleet, MODEL, in_flight=1, stream=StreamId("s"))
    watcher.promise.forecast = lambda owner=None, spent_ms=0.0: Milliseconds(900.0)  # type: ignore[method-assign]
    summary = run(watcher)
    assert set(seen) == {900.0} and fleet.copies() == [B, B], "one to warm it, one to compare"
    assert summary.moved == 1


@pytest.mark.parametrize("by", [None, A])
def test_a_rescued_frame_that_its_rescuer_did_not_answer_makes_room_for_the_next_copy(by: ServiceId | None) -> None:
    mover = Mover(Fleet(lambda n: B, plain), MODEL, Qos(), Summary())
    mover.state = Moving(owner=A, phase=Phase.WARMING, target=B, out=1, last=5, open=frozenset({5}))
    mover._rescued[5] = (B, 0.0)
    mover.ended(5, None if by is None else Answer([], by, "v", Stages()))
    assert mover.state.out == 0 and mover.state.phase is Phase.WARMING


def test_another_model_is_asked_for_at_once_and_has_no_service_to_compare_with() -> None:
    models: list[tuple[str, ServiceId | None]] = []

    class Watching(Fleet):
        def decide(self, request: Request) -> Decision:
            models.append((request.model, request.incumbent))
            return super().decide(request)

    def on_result(result: FrameResult, image: object) -> None:
        if result.index == 4:
            watcher.promise._effect = Effect(model=ModelName("small"))  # as `--degrade model` does

    fleet = Watching(lambda n: A, plain)
    qos = Qos(Milliseconds(5000.0))
    watcher = Watch(ScriptedSource(12), fleet, MODEL, qos, in_flight=1, on_result=on_result)
    run(watcher)
    assert models[4] == ("square", A) and models[-1] == ("small", A)
    assert ("small", None) in models, "the service of the other model is no incumbent"
    assert fleet.asked[-1][1].deadline is not None


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    frames=st.integers(0, 60),
    in_flight=st.integers(1, 4),
    every=st.integers(1, 12),
    trouble=st.sampled_from([0.0, 0.0, 0.1, 0.5]),
)
def test_moved_about_and_troubled_every_frame_ends_once_and_in_order(
    seed: int, frames: int, in_flight: int, every: int, trouble: float
) -> None:
    rng = random.Random(seed)

    async def answers(service: ServiceId, image: Image) -> Answer:
        for _ in range(rng.randrange(5)):
            await asyncio.sleep(0)
        if rng.random() < trouble:
            kind = rng.choice([Unreachable, NoCandidate, Overloaded, DeadlineExceeded, InferenceError])
            raise kind("trouble")
        return plain(service, image)

    fleet = Fleet(lambda n: (A, B, C)[n // every % 3], answers)
    results, summary = stream(fleet, frames, in_flight=in_flight)
    assert len(results) == frames
    assert summary.shadows == len(fleet.copies()) <= frames
    ats = [move.frame for move in summary.moves]
    assert ats == sorted(set(ats))
    if not trouble:
        assert summary.counts[Outcome.ANSWERED] == frames and summary.lost.count == 0
        assert all(move.kind is Kind.PLANNED for move in summary.moves)
        owner = iter(summary.moves)
        served = [r.served_by for r in results]
        for move in owner:
            assert served[move.frame] == move.target and served[move.frame - 1] == move.source
    assert node_of(A) == "a"


def test_an_error_of_the_mover_is_no_answer() -> None:
    """A client whose decision fails is a defect that must be seen, not a stream that hangs."""

    class Broken(Fleet):
        def decide(self, request: Request) -> Decision:
            raise NearfarError("the snapshot is broken")

    with pytest.raises(NearfarError, match="broken"):
        stream(Broken(lambda n: A, plain), 3)
