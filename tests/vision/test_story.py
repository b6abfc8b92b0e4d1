"""What a stream's trail tells, beside what panel and summary tell: the same moves, levels and steps, no more."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from nearfar.cli.story import lines
from nearfar.cli.watch import tell
from nearfar.client import trailfile
from nearfar.client.trail import Trail
from nearfar.placement.decide import Decision
from nearfar.placement.policies.base import Ranked
from nearfar.placement.trail import AnyEntry, Decided, Degraded, Ended, HandedOver, Level, Moved, Started, Warned
from nearfar.types.ids import ServiceId, StreamId
from nearfar.types.image import Image
from nearfar.types.request import Degrade, Qos, Request
from nearfar.types.units import Milliseconds, Seconds
from nearfar.vision.notes import Notes
from nearfar.vision.results import FrameResult, HandOver, Kind, Move, Summary
from nearfar.vision.story import Story
from nearfar.vision.terminal import Dashboard
from tests.vision.helpers import MODEL, ScriptedSeer, ScriptedSource, answer
from tests.vision.test_moving import A, B, C, Fleet, plain
from tests.vision.test_stream import QuickWatch
from tests.waiting import until

S = StreamId("s")


class Told:
    """Everything that a person may read of one stream."""

    def __init__(self, summary: Summary, entries: list[AnyEntry], panel: list[str], status: Any) -> None:
        self.summary, self.entries, self.panel, self.status = summary, entries, panel, status

    def of(self, kind: type) -> list[Any]:
        return [entry for entry in self.entries if isinstance(entry, kind)]

    def check_moves(self) -> None:
        """Panel, trail, status and summary tell the very same moves."""
        moves = list(self.summary.moves)
        told = [(m.source, m.target, m.frame, m.planned, m.reason) for m in self.of(Moved)]
        assert told == [(m.source, m.target, m.frame, m.kind is Kind.PLANNED, m.reason) for m in moves]
        assert self.status.moved == self.summary.moved == len(moves)
        assert len([line for line in self.panel if ": moved from " in line]) == len(moves)


def watched(
    seer: Any,
    frames: int = 20,
    qos: Qos = Qos(),  # noqa: B008 - frozen
    *,
    home: Path | None = None,
    patient: bool = True,
    before: Callable[[Trail], None] = lambda trail: None,
    **options: Any,
) -> Told:
    """A whole stream as `nearfar watch` runs it: engine, panel and trail."""

    async def body() -> Told:
        summary = options.pop("summary", None) or Summary()
        panel = Dashboard("s", summary)
        notes: list[str] = []

        async def on_result(result: FrameResult, image: Any) -> None:
            panel.update(result, image)
            story.after(result)

        engine = QuickWatch(ScriptedSource(frames), seer, MODEL, qos, on_result=on_result, stream=S, summary=summary,
                            **options)  # fmt: skip
        trail = Trail(S, MODEL, home=home, warn=notes.append)
        story = Story(trail, engine)
        before(trail)
        await story.begin(seer.listeners, patient=patient)
        await engine.run()
        await story.close()
        assert not seer.listeners, "nobody hears a stream that is over"
        return Told(summary, trail.entries(), [text for text, _ in panel._notes], trail.status())

    return asyncio.run(asyncio.wait_for(body(), 60))


def test_a_planned_move_is_told_once_by_panel_trail_and_summary() -> None:
    told = watched(Fleet(lambda n: A if n < 5 else B, plain), in_flight=1)
    told.check_moves()
    (move,) = told.of(Moved)
    assert (move.source, move.target, move.planned) == (A, B, True) and "is best" in move.reason
    assert told.status.served_by == B and told.of(Ended)[0].counts == {"answered": 20}


def test_a_service_that_is_refused_is_left_at_once_and_told_as_such() -> None:
    fleet = Fleet(lambda n: A, plain)

    def dies(service: ServiceId, image: Image) -> Any:
        if len(fleet.asked) == 6:
            fleet.refused[A] = "it is gone"
        return plain(service, image)

    fleet.answers = dies
    told = watched(fleet, in_flight=1)
    told.check_moves()
    (move,) = told.of(Moved)
    assert not move.planned and "it is gone" in move.reason


def test_frames_still_on_their_way_to_the_old_service_are_no_moves_back() -> None:
    fleet = Fleet(lambda n: A, plain)

    async def slow_at_a(service: ServiceId, image: Image) -> Any:
        if len(fleet.asked) == 8:
            fleet.refused[A] = "it is gone"
        if service == A:
            await asyncio.sleep(0.05)  # so that answers of both come mixed
        return plain(service, image)

    fleet.answers = slow_at_a
    told = watched(fleet, 40, in_flight=4)
    told.check_moves()
    assert len(told.of(Moved)) == 1 and told.status.served_by == B


def test_an_answer_given_aside_is_no_move_anywhere() -> None:
    fleet = Fleet(lambda n: A, plain)

    def by_the_way(service: ServiceId, image: Image) -> Any:
        if len(fleet.asked) % 4 == 2:
            return msgspec.structs.replace(plain(C, image), aside=True)
        return plain(service, image)

    fleet.answers = by_the_way
    told = watched(fleet, 40, Qos(Milliseconds(5000.0)), in_flight=1)
    told.check_moves()
    assert told.summary.moved == 0 and told.summary.served[C] == 10 and told.status.served_by == A
    promise: Any = told.summary.promise
    assert promise.incumbent == A, "the promise is watched where the stream is"
    assert not promise.monitor._restarts, "nothing was changed: its window goes on"


def test_levels_and_what_was_given_up_are_in_the_trail() -> None:
    seer = ScriptedSeer()
    seer.listeners = Fleet(lambda n: A, plain).listeners  # type: ignore[attr-defined]

    async def late(_: int, image: Image) -> Any:
        await asyncio.sleep(0.02)
        return answer(image, boxes=[])

    seer.reply = late
    qos = Qos(Milliseconds(1.0), degrade=(Degrade.RATE,))
    told = watched(seer, 150, qos, in_flight=1)
    promise: Any = told.summary.promise
    first = told.of(Level)[0]
    assert (first.level, first.before) == ("broken", "kept") and "is broken" in first.reason
    steps = [(e.frame, e.step, e.restored) for e in told.of(Degraded)]
    assert steps == [(frame, change.step.words, not change.down) for frame, _, change in promise.changes]
    levels = [(e.level, e.frame) for e in told.of(Level)]
    assert levels == [(found.level.value, frame) for frame, found in promise.turns]
    assert all(sum(e.level == level for e in told.of(Level)) == n for level, n in promise.levels.items())


def test_a_move_at_the_last_frame_is_told_too() -> None:
    async def body() -> list[AnyEntry]:
        summary = Summary()
        promise = SimpleNamespace(changed=0, changes=(), turned=0, turns=())
        engine: Any = SimpleNamespace(summary=summary, promise=promise, incumbent=None)
        trail = Trail(S, MODEL)
        story = Story(trail, engine)
        await story.begin(Fleet(lambda n: A, plain).listeners)
        summary.note(Move(A, B, 7, Kind.UNPLANNED, "gone"))  # and the stream is stopped before frame 7 was answered
        await story.close()
        return trail.entries()

    moves = [entry for entry in asyncio.run(body()) if isinstance(entry, Moved)]
    assert [(m.source, m.target, m.frame) for m in moves] == [(A, B, 7)]


def test_the_trail_of_a_stream_that_is_taken_over_goes_on_in_the_same_file(tmp_path: Path) -> None:
    """The program before still holds the file when the new one begins, which waits for it and misses nothing."""
    watched(Fleet(lambda n: A, plain), 5, home=tmp_path)
    before = trailfile.read(tmp_path, S)
    summary = Summary()
    summary.note(Move(C, A, 2, Kind.PLANNED, "of the program before"))
    summary.hosts.append(HandOver("one", "two", 5, Kind.PLANNED, "no frame is missing between"))
    fleet = Fleet(lambda n: A if n < 2 else B, plain)
    path = trailfile.folder_of(tmp_path, S) / trailfile.FILE

    async def body() -> Told:
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)  # as the program that hands over
            engine = QuickWatch(ScriptedSource(20), fleet, MODEL, stream=S, summary=summary, incumbent=A, in_flight=1,
                                on_result=lambda result, image: story.after(result))  # fmt: skip
            trail = Trail(S, MODEL, home=tmp_path)
            story = Story(trail, engine)
            await story.begin(fleet.listeners, patient=False)
            await engine.run()
            assert trail.status().moved == 1, "nothing that was told meanwhile is lost"
        await until(lambda: trail._file is not None, "the file is taken up")
        await story.close()
        return Told(summary, trail.entries(), [], trail.status())

    told = asyncio.run(asyncio.wait_for(body(), 60))
    assert not told.of(Warned)
    found = trailfile.read(tmp_path, S)
    assert [e.number for e in found] == list(range(len(found))) and found[: len(before)] == before
    assert found[len(before) :] == told.entries
    assert isinstance(told.entries[0], Started), "what came before the file was there stands after the first line"
    assert [(m.source, m.target) for m in told.of(Moved)] == [(A, B)], "moves of the program before are in its part"
    assert [(h.source, h.target, h.frame) for h in told.of(HandedOver)] == [("one", "two", 5)]
    assert told.of(Decided) and isinstance(told.entries[-1], Ended)


def test_notes_tell_only_what_is_chosen_for_the_stream() -> None:
    told: list[str] = []
    notes = Notes(S, None, lambda request, decision: told.append(decision.reason))

    def hear(chosen: ServiceId, *, aside: bool = False, **more: Any) -> None:
        request = msgspec.structs.replace(Request(MODEL, "here", stream=S, frame=1), **more)
        decision = Decision(chosen, None, False, (), (), f"{chosen} it is", 3, 3, 0, "scripted", aside=aside)
        notes.decided(request, decision, Fleet(lambda n: A, plain).snapshot(), 0.0)  # type: ignore[arg-type]

    hear(A)
    hear(A)
    hear(B, aside=True)
    hear(B, excluded=(A,))  # a second copy, or a second try
    hear(B, stream=None)  # a copy during a move
    hear(C, stream=StreamId("other"))
    hear(A, qos=Qos(node="a"))  # held there during a move
    hear(B)
    hear(C, incumbent=C)  # the move there was told
    assert told == [f"{A} it is", f"{B} it is"]


def test_a_frame_that_goes_elsewhere_alone_is_told_as_such() -> None:
    """A long queue at the incumbent: the decision says aside, the trail too, and no fold mixes the two."""
    fleet = Fleet(lambda n: A, plain)
    decide = fleet.decide

    def aside(request: Request) -> Decision:
        made = decide(request)
        if request.frame is not None and request.frame % 5 == 4:
            made = msgspec.structs.replace(made, chosen=B, aside=True)
        fleet.listeners.decided(request, made, fleet.snapshot(), Seconds(0.0))  # as the client tells it
        return made

    fleet.decide = aside  # type: ignore[method-assign]
    told = watched(fleet, 20, in_flight=1)
    told.check_moves()
    assert told.summary.moved == 0
    alone = [frame for e in told.of(Decided) if e.aside for run in e.frames for frame in run]
    assert alone == [4, 9, 14, 19]
    assert "]aside[/]" in next(iter(lines(next(e for e in told.of(Decided) if e.aside))))


def test_a_planned_move_says_what_the_service_before_was_expected_to_take() -> None:
    fleet = Fleet(lambda n: A if n < 5 else B, plain)
    decide = fleet.decide

    def both(request: Request) -> Decision:
        made = decide(request)
        return msgspec.structs.replace(made, ranking=(*made.ranking, Ranked(A, 50.0, note="waits for 200 ms")))

    fleet.decide = both  # type: ignore[method-assign]
    told = watched(fleet, 20, in_flight=1)
    (move,) = told.of(Moved)
    assert move.reason == f"{B} is best {A}: waits for 200 ms."


def test_a_summary_hints_only_at_a_trail_that_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary()
    summary.stream = "gate"
    summary.stop("the file ended")
    tell(summary)
    assert "nearfar explain gate" in capsys.readouterr().out
    tell(summary, trailed=False)
    assert "nearfar explain" not in capsys.readouterr().out
