"""A stream goes over to another program: the same bits as if it had stayed, never two hosts, never none."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearfar.errors import DuplicateStream, InputError, MeshError, NearfarError, SourceError, Unreachable
from nearfar.types.detections import Detections
from nearfar.types.ids import ModelName
from nearfar.types.image import Image
from nearfar.types.request import Answer, Privacy
from nearfar.vision import hosting, succession
from nearfar.vision.circle import ask
from nearfar.vision.handover import Ask, Op, host_key, taker_key, unpack_memory
from nearfar.vision.results import FrameResult, Kind, Outcome, Summary
from nearfar.vision.sources import open_source
from nearfar.vision.tracking.base import Tracker
from nearfar.vision.tracking.follow import Follow
from tests.vision.helpers import ScriptedSeer, ScriptedSource, answer, make_video, scene
from tests.vision.hosts import Program, Stage, follow
from tests.waiting import until

pytest.importorskip("scipy", reason="scipy is not installed: pip install 'nearfar[track]'")

FRAMES = 90


def play(body: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Stage() as stage:
            await asyncio.wait_for(body(stage), 100)

    asyncio.run(main())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES)


def bits(results: list[FrameResult]) -> list[tuple[int, bytes, bytes]]:
    found = []
    for result in results:
        assert result.tracked is not None and result.tracked.track_ids is not None
        found.append((result.index, result.tracked.track_ids.tobytes(), result.tracked.boxes.tobytes()))
    return found


class Brake:
    """Holds the source before a frame until it is let go: so that a stream is still running when it is taken."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.go = threading.Event()

    def __call__(self, frame: int) -> None:
        if frame >= self.at:
            self.go.wait(30)


def held(clip: Path, brake: Brake) -> Any:
    """The clip, whose frames from `brake.at` on come when they are let."""
    source: Any = open_source(str(clip))
    read = source.read

    def slow() -> Any:
        frame = read()
        if frame is not None:
            brake(frame.index)
        return frame

    source.read = slow
    return source


def test_a_stream_that_goes_from_program_to_program_gives_the_same_bits(clip: Path) -> None:
    async def body(stage: Stage) -> None:
        alone = stage.program("alone", open_source(str(clip)), follow=follow(), stream="other")
        stays = await alone.summary()
        brakes = [Brake(20), Brake(50), Brake(FRAMES)]
        programs: list[Program] = []
        for n, brake in enumerate(brakes):
            role = "takeover" if n else ""
            made = stage.program(f"p{n}", held(clip, brake), role, follow=None if n else follow())
            if n:
                await until(lambda: any("asking it to hand over" in said for said in made.said), "it asks")  # noqa: B023
                brakes[n - 1].go.set()
            programs.append(made)
            await made.running(brake.at - 5)
        last = await programs[-1].summary()
        first = await programs[0].summary()
        parts = [program.results for program in programs]
        assert [r.index for part in parts for r in part] == list(range(FRAMES)), "none lost, none twice, in order"
        assert all(parts), "every one of them ran a part of it"
        assert bits([r for part in parts for r in part]) == bits(alone.results)
        mine, theirs = programs[-1].follow, alone.follow
        assert mine is not None and theirs is not None and mine.export_state() == theirs.export_state()
        assert last.counts == stays.counts and last.read == stays.read and last.lost.count == 0
        assert last.stages["total"].total == FRAMES
        assert (
            first.handed_over
            and first.exit_code == 0
            and first.ended == f"handed over to p1 after frame {parts[0][-1].index}"
        )
        assert first.read == first.accounted == len(parts[0])
        assert [(h.source, h.target, h.kind) for h in last.hosts] == [
            ("p0", "p1", Kind.PLANNED),
            ("p1", "p2", Kind.PLANNED),
        ]
        assert [h.frame for h in last.hosts] == [len(parts[0]), len(parts[0]) + len(parts[1])]
        assert programs[-1].monitor.seen == FRAMES, "other parts travel too"
        assert last.to_dict()["tracking"] == stays.to_dict()["tracking"]

    play(body)


def test_a_second_program_of_one_name_is_told_what_to_type(clip: Path) -> None:
    async def body(stage: Stage) -> None:
        brake = Brake(5)
        first = stage.program("first", held(clip, brake), follow=follow())
        await first.running(4)
        with pytest.raises(DuplicateStream, match=r"runs already, in first.*--takeover.*--standby"):
            await stage.program("second", open_source(str(clip))).summary()
        brake.go.set()
        assert (await first.summary()).counts[Outcome.ANSWERED] == FRAMES

    play(body)


class Rooted(Tracker):
    """Has ids, and cannot travel."""

    name = "rooted"
    stays = "it holds pictures of people"

    def update(self, detections: Detections, frame: int) -> Detections:
        ids = np.arange(1, len(detections) + 1)
        return Detections(detections.boxes, detections.scores, detections.class_ids, ids)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"model": ModelName("round")}, "is looked at by square, not round. Say --model square"),
        ({"follow": follow("bytetrack")}, "state of 'tracker/sort', not of 'tracker/bytetrack'"),
        ({"follow": Follow(follow().tracker, (), follow().zones[::-1] + follow().lines)}, "another zone"),
        ({"privacy": Privacy.ANY}, "is marked fleet"),
        ({"source": "other"}, "is another video"),
        ({"source": "broken"}, "the cable is out"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_host_goes_on_untouched(
    options: dict[str, Any], why: str, clip: Path, tmp_path: Path
) -> None:
    async def body(stage: Stage) -> None:
        given = {"privacy": Privacy.FLEET} | options
        brake = Brake(30)
        first = stage.program("first", held(clip, brake), follow=follow(), privacy=Privacy.FLEET)
        await first.running(20)
        kind = given.pop("source", "")
        source: Any = open_source(str(clip))
        if kind == "other":
            source = open_source(str(make_video(tmp_path / "other.mp4", 60, rate=10)))
        elif kind == "broken":
            source = ScriptedSource(0, live=True, error=SourceError("the cable is out"))
        second = stage.program("second", source, "takeover", **given)
        with pytest.raises(NearfarError, match=why):
            brake.go.set() if kind == "broken" else None
            task = asyncio.create_task(second.summary())
            await asyncio.sleep(0)
            await until(lambda: second.task.done() or second.said, "it was heard")
            brake.go.set()
            await task
        summary = await first.summary()
        assert first.frames == list(range(FRAMES)) and summary.counts[Outcome.ANSWERED] == FRAMES
        assert not summary.handed_over and summary.exit_code == 0

    play(body)


def test_a_tracker_that_cannot_travel_refuses_with_its_reason(clip: Path) -> None:
    async def body(stage: Stage) -> None:
        brake = Brake(30)
        first = stage.program("first", held(clip, brake), follow=Follow(Rooted()))
        await first.running(20)
        for role in ("takeover", "standby"):
            with pytest.raises(InputError, match="'rooted' cannot travel: it holds pictures of people"):
                await stage.program(f"a-{role}", open_source(str(clip)), role).summary()
        brake.go.set()
        summary = await first.summary()
        assert first.frames == list(range(FRAMES)) and not summary.handed_over

    play(body)


def test_nobody_to_take_over_from_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(succession, "FOUND_WITHIN", 0.05)

    async def body(stage: Stage) -> None:
        with pytest.raises(Unreachable, match="Nobody runs the stream 'gate'"):
            await stage.program("second", ScriptedSource(3), "takeover").summary()

    play(body)


@pytest.mark.parametrize("how", ["dies", "is silent", "gives up"])
def test_the_host_goes_on_when_its_successor_does_not(how: str, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting.Host, "confirm_within", 0.2 if how == "is silent" else 60.0)

    async def body(stage: Stage) -> None:
        brake = Brake(30)
        first = stage.program("first", held(clip, brake), follow=follow())
        await first.running(20)
        from nearfar.mesh.memory import MemoryMesh

        mesh = MemoryMesh(stage.ether)
        token = mesh.announce(taker_key("gate", "second"))
        await until(lambda: "second" in first.circle.takers, "it is seen")
        key = host_key("gate", 1, "first")
        taking = asyncio.create_task(ask(mesh, key, Ask(Op.TAKE, "second"), 20.0))
        brake.go.set()
        told, body = await taking
        assert unpack_memory(bytes(body)).next_frame == told.next_frame == len(first.results)
        at = len(first.results)
        with pytest.raises(MeshError, match="second is just taking this stream over"):
            await ask(mesh, key, Ask(Op.TAKE, "third"), 5.0)
        assert len(first.results) == at, "nothing is delivered while it is decided who goes on"
        if how == "gives up":
            await ask(mesh, key, Ask(Op.CANCEL, "second", "no room"), 5.0)
        elif how == "dies":
            token.close()
        summary = await first.summary()
        assert first.frames == list(range(FRAMES)) and summary.accounted == summary.read == FRAMES
        assert not summary.handed_over and summary.lost.count == 0
        assert any("did not take the stream over" in said and "going on here" in said for said in first.said)
        await mesh.close()

    play(body)


def test_a_confirmation_that_comes_too_late_is_refused(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting.Host, "confirm_within", 0.05)

    async def body(stage: Stage) -> None:
        brake, again = Brake(30), Brake(60)

        def both(frame: int) -> None:
            brake(frame)
            again(frame)

        first = stage.program("first", held(clip, both), follow=follow())  # type: ignore[arg-type]
        await first.running(20)
        from nearfar.mesh.memory import MemoryMesh

        mesh = MemoryMesh(stage.ether)
        mesh.announce(taker_key("gate", "second"))
        key = host_key("gate", 1, "first")
        taking = asyncio.create_task(ask(mesh, key, Ask(Op.TAKE, "second"), 20.0))
        brake.go.set()
        await taking
        newer = mesh.serve(host_key("gate", 2, "second"), lambda call: None)
        await until(lambda: first.said, "it goes on")
        with pytest.raises(MeshError, match="has gone on with the stream"):
            await ask(mesh, key, Ask(Op.CONFIRM, "second"), 5.0)
        again.go.set()
        summary = await first.summary()
        assert first.frames == list(range(FRAMES)) and summary.exit_code == 0, "the late one ends, not this one"
        newer.close()
        await mesh.close()

    play(body)


def test_stopping_the_host_in_the_middle_of_a_hand_over_ends_it(clip: Path) -> None:
    async def body(stage: Stage) -> None:
        brake = Brake(30)
        never = asyncio.Event()

        async def reply(number: int, image: Image) -> Answer:
            if number == 25:
                await never.wait()
            return answer(image)

        first = stage.program("first", held(clip, brake), seer=ScriptedSeer(reply), follow=follow())
        await first.running(24)
        second = stage.program("second", open_source(str(clip)), "takeover")
        await until(lambda: second.said, "it asks; a frame in flight holds the boundary back")
        assert first.engine is not None
        first.engine.stop()
        with pytest.raises(InputError, match="just ended"):
            await second.summary()
        assert (await first.summary()).drops

    play(body)


# -- cameras ----------------------------------------------------------------------------------------------------------


def camera() -> ScriptedSource:
    """Live and without a past: a hundred frames a second of one standing object."""
    return ScriptedSource(10**6, live=True, gate=lambda _: time.sleep(0.01), image=scene(0)[0])


def test_a_camera_goes_on_with_the_next_number_and_the_gap_is_told() -> None:
    async def body(stage: Stage) -> None:
        first = stage.program("first", camera(), follow=follow("bytetrack"))
        await first.running(30)
        second = stage.program("second", camera(), "takeover")
        done = await first.summary()
        await until(lambda: len(second.results) > 20, "it runs")
        assert second.engine is not None
        second.engine.stop()
        told = await second.summary()
        (over,) = told.hosts
        assert over.frame == second.frames[0] == done.accounted + told.lost.count
        assert f"{told.lost.count} frames are missing between" in over.reason
        assert second.frames == list(range(over.frame, over.frame + len(second.frames)))
        assert told.read == told.accounted == done.accounted + len(second.frames)
        seen = [r.tracked.track_ids for r in second.results if r.tracked is not None]
        assert told.lost.count > 20 or {int(i) for ids in seen if ids is not None for i in ids} == {1}, "its id goes on"

    play(body)


# -- standing by ------------------------------------------------------------------------------------------------------


def test_a_standby_goes_on_from_the_last_checkpoint_with_the_same_bits(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosting, "CHECKPOINT_S", 0.0)

    async def body(stage: Stage) -> None:
        alone = stage.program("alone", open_source(str(clip)), follow=follow(), stream="other")
        stays = await alone.summary()
        brakes = [Brake(5), Brake(45)]

        def both(frame: int) -> None:
            for brake in brakes:
                brake(frame)

        first = stage.program("first", held(clip, both), follow=follow())  # type: ignore[arg-type]
        await first.running(4)
        second = stage.program("second", open_source(str(clip)), "standby")
        await until(lambda: "second" in first.circle.standbys, "it stands by")
        brakes[0].go.set()
        await first.running(44)
        await until(lambda: any("holding a checkpoint" in said for said in second.said), "it has a checkpoint")
        await first.die()
        told = await second.summary()
        start = second.frames[0]
        assert 0 < start <= 45 and second.frames == list(range(start, FRAMES))
        assert bits(first.results[:start] + second.results) == bits(alone.results)
        assert told.counts == stays.counts and told.lost.count == 0
        (over,) = told.hosts
        assert (over.kind, over.frame) == (Kind.UNPLANNED, start) and "may be in its output too" in over.reason
        brakes[1].go.set()

    play(body)


def test_a_standby_ends_when_the_stream_does(clip: Path) -> None:
    async def body(stage: Stage) -> None:
        brake = Brake(5)
        first = stage.program("first", held(clip, brake))
        await first.running(4)
        second = stage.program("second", open_source(str(clip)), "standby")
        await until(lambda: "second" in first.circle.standbys, "it stands by")
        brake.go.set()
        await first.summary()
        assert await asyncio.wait_for(second.task, 20) == "the file ended"

    play(body)


def test_one_of_two_standbys_goes_on_and_the_other_waits_for_it(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "CHECKPOINT_S", 0.0)

    async def body(stage: Stage) -> None:
        brake, more = Brake(30), Brake(60)
        first = stage.program("first", held(clip, brake))
        await first.running(4)
        second = stage.program("second", held(clip, more), "standby")
        third = stage.program("third", open_source(str(clip)), "standby")
        await until(lambda: len(first.circle.standbys) == 2, "both stand by")
        await until(lambda: first.frames[-1] == 29, "the brake")
        await first.die()
        await second.running(50)
        await until(lambda: third.said[-1].startswith("second runs"), "it knows its new host")
        assert not third.task.done()
        await second.die()
        told = await third.summary()
        assert [h.target for h in told.hosts][-1] == "third"
        assert {h.kind for h in told.hosts} == {Kind.UNPLANNED}
        brake.go.set()
        more.go.set()

    play(body)


def test_a_host_that_comes_back_after_a_cut_gives_way_to_the_newer_one(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosting, "CHECKPOINT_S", 0.0)

    async def body(stage: Stage) -> None:
        brakes = [Brake(30), Brake(40), Brake(60)]

        def both(frame: int) -> None:
            brakes[0](frame)
            brakes[1](frame)

        first = stage.program("first", held(clip, both))  # type: ignore[arg-type]
        await first.running(4)
        second = stage.program("second", held(clip, brakes[2]), "standby")
        await until(lambda: "second" in first.circle.standbys, "it stands by")
        await first.running(29)
        stage.ether.cut(first.mesh)
        await second.running(50)
        brakes[0].go.set()
        await first.running(39)
        assert not first.task.done(), "cut off, it goes on: nobody it can see took over"
        stage.ether.heal(first.mesh)
        told = await first.summary()
        assert told.error is not None and "second runs the stream 'gate' too" in str(told.error)
        assert "--takeover" in str(told.error) and told.exit_code != 0
        brakes[2].go.set()
        brakes[1].go.set()
        assert (await second.summary()).error is None

    play(body)


def test_of_two_hosts_of_one_epoch_the_younger_ends(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of a cut began the stream anew."""
    monkeypatch.setattr(succession, "SEEN_WITHIN", 0.01)

    async def body(stage: Stage) -> None:
        brakes = [Brake(10), Brake(10)]
        old = stage.program("z-old", held(clip, brakes[0]))
        await old.running(9)
        stage.ether.cut(old.mesh)
        young = stage.program("a-young", held(clip, brakes[1]))
        await young.running(9)
        stage.ether.heal(old.mesh)
        told = await young.summary()
        assert told.error is not None and "z-old runs the stream" in str(told.error)
        for brake in brakes:
            brake.go.set()
        assert (await old.summary()).counts[Outcome.ANSWERED] == FRAMES

    play(body)


def test_a_summary_travels_whole() -> None:
    from nearfar.vision.handover import memory_of, summary_from

    summary = Summary()
    for index in range(5):
        summary.read += 1
        image = Image.bgr(scene(index)[0])
        summary.add(FrameResult(index, Outcome.ANSWERED, answer=answer(image), total_ms=3.0 * index))
    summary.add(FrameResult(5, Outcome.FAILED, error=Unreachable("gone"), reason="gone"))
    summary.read += 1
    back = summary_from(memory_of(summary))
    mine, theirs = summary.to_dict(), back.to_dict()
    for changing in ("wall_s", "fps"):
        del mine[changing], theirs[changing]
    assert mine == theirs
    assert back.wall_s >= summary.wall_s - 0.1
