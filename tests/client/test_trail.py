"""The trail of a running stream: what it hears, who may ask, what the disk gets, and that nothing of it can hurt."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nearfar.client import trailfile
from nearfar.client.listening import Listener
from nearfar.client.trail import Trail
from nearfar.client.trails import Trails
from nearfar.errors import InferenceError, InputError, NearfarError, NoCandidate, UnknownStream
from nearfar.mesh.memory import MemoryMesh
from nearfar.placement.trail import AnyEntry, Decided, Ended, Failed, Level, Moved, Started, Warned, unfold
from nearfar.types.ids import ServiceId, StreamId
from nearfar.types.image import Image
from nearfar.types.request import FRAME
from tests.client.scripted import MODEL, World, X, answers, fails, run
from tests.waiting import until

CAM = StreamId("cam")
HOSTILE = [
    "../x",
    "..",
    ".",
    "",
    "a/b",
    "%2e%2e",
    "%2e%2e%2fx",
    "/etc/passwd",
    "a\x00b",
    "A",
    "a" * 65,
    "*",
    "**",
    "x\n",
]


def trail_of(world: World, home: Path | None = None, **options: Any) -> Trail:
    return Trail(CAM, MODEL, source="clip.mp4", by="client", home=home, mesh=world.client.mesh, **options)


async def ask(world: World, frame: int, stream: StreamId | None = CAM, incumbent: ServiceId | None = None) -> None:
    FRAME.set(frame)
    image = Image.encoded(b"\xff\xd8\xff\xd9")
    await world.client.see(MODEL, image, stream=stream, incumbent=incumbent)


def of_kind(entries: list[AnyEntry], kind: type) -> list[Any]:
    return [entry for entry in entries if isinstance(entry, kind)]


def test_decisions_failures_and_moves_are_told_in_order(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        bad, good = await world.add(fails(InferenceError("the engine says no")), answers)
        trail = trail_of(world, tmp_path)
        await trail.start()
        world.client.listeners.add(trail)
        trail.outcome("answered", bad.id, 0)
        await ask(world, 1, incumbent=bad.id)
        trail.outcome("answered", good.id, 1)
        await ask(world, 1, stream=StreamId("another"))
        await ask(world, 1, stream=None)
        trail.level("threatened", "the link grows slower", 2)
        trail.level("threatened", "still")
        trail.degraded("rate", "15 frames a second are enough", 3)
        trail.handed_over("a", "b", 4)
        trail.ended("the file ended", {"answered": 2})
        trail.ended("once more")
        await trail.close()
        entries = trail.entries()
        kinds = [type(entry).__name__ for entry in entries]
        assert kinds[:5] == ["Started", "Decided", "Failed", "Decided", "Moved"]
        assert kinds[5:] == ["Level", "Degraded", "HandedOver", "Ended"]
        assert [entry.number for entry in entries] == list(range(9))
        (failed,) = of_kind(entries, Failed)
        assert (failed.service, failed.code, failed.frame) == (bad.id, "inference", 1)
        first, second = of_kind(entries, Decided)
        assert (first.chosen, second.chosen) == (bad.id, good.id)
        assert [(r.subject, r.code) for r in second.refusals] == [(bad.id, "excluded")]
        assert first.candidates[0].service_ms and first.expected is not None and first.reason
        (moved,) = of_kind(entries, Moved)
        assert (moved.source, moved.target, moved.frame, moved.planned) == (bad.id, good.id, 1, False)
        assert trailfile.read(tmp_path, CAM) == entries, "the file says what memory says"
        assert not trailfile.is_running(tmp_path / "streams" / "cam" / "trail.jsonl")

    run(body)


def test_who_asks_on_the_mesh_is_answered_and_repetitions_reach_the_file(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.add(answers)
        trail = trail_of(world, tmp_path)
        await trail.start()
        world.client.listeners.add(trail)
        for frame in range(20):
            await ask(world, frame)
        path = tmp_path / "streams" / "cam" / "trail.jsonl"
        assert trailfile.is_running(path)

        def all_written() -> bool:
            decided = of_kind(trailfile.read(tmp_path, CAM), Decided)
            return [frame for entry in decided for frame, _, _ in unfold(entry)] == list(range(20))

        await until(all_written, "every decision is in the file while the stream runs")
        trails = Trails(MemoryMesh(world.ether), None)
        await until(lambda: trails.running() == [CAM], "the stream is seen on the mesh")
        page = await trails.page(CAM, since=0, limit=500)
        assert page.stream.running and page.stream.model == MODEL and page.stream.source == "clip.mp4"
        assert [f for e in page.entries if isinstance(e, Decided) for f, _, _ in unfold(e)] == list(range(20))
        (status,) = await trails.list()
        assert status == page.stream
        trail.ended("enough")
        await trail.close()
        await until(lambda: trails.running() == [], "it is seen no more")
        with pytest.raises(UnknownStream, match="nearfar streams"):
            await trails.page(CAM)
        trails = Trails(None, tmp_path)
        (status,) = await trails.list()
        assert status.ended == "enough" and not status.running
        with pytest.raises(UnknownStream, match="Did you mean cam"):
            await trails.page("cams")
        await world.client.mesh.close()

    run(body)


def test_nobody_may_take_it_is_written_with_every_reason() -> None:
    async def body(world: World) -> None:
        (service,) = await world.add(answers)
        trail = trail_of(world)
        await trail.start()
        world.client.listeners.add(trail)
        service.vanish()
        await until(lambda: not world.client.snapshot().services[service.id].alive, "it is gone")
        with pytest.raises(NoCandidate):
            await ask(world, 0)
        (entry,) = of_kind(trail.entries(), Decided)
        assert entry.chosen is None and [(r.subject, r.code) for r in entry.refusals] == [(service.id, "disconnected")]
        assert entry.refusals[0].reason
        await trail.close()

    run(body)


def test_a_listener_that_fails_breaks_no_request(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Listener):
        def decided(self, *_: object) -> None:
            raise RuntimeError("of its own")

        def failed(self, *_: object) -> None:
            raise RuntimeError("of its own")

    async def body(world: World) -> None:
        _, good = await world.add(fails(InferenceError("no")), answers)
        trail = trail_of(world)
        await trail.start()
        remove = world.client.listeners.add(Broken())
        world.client.listeners.add(trail)
        for _ in range(3):
            assert (await world.client.infer(MODEL, [X], stream=CAM)).served_by == good.id
        assert len(of_kind(trail.entries(), Failed)) >= 1, "the others are told all the same"
        assert sum("of its own" in str(record.exc_info) for record in caplog.records) == 1
        remove()
        await trail.close()

    run(body)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: a write fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_writing_with_one_warning(tmp_path: Path) -> None:
    warned: list[str] = []

    async def body(world: World) -> None:
        await world.add(answers)
        trail = trail_of(world, tmp_path, warn=warned.append)
        await trail.start()
        world.client.listeners.add(trail)
        with files_of_at_most(1000):
            for frame in range(5):
                await ask(world, frame)
                trail.level("broken" if frame % 2 else "kept", "x" * 300)
            await until(lambda: trail.warning, "the disk said no")
        await ask(world, 5)
        await trail.close()
        frames = [frame for entry in of_kind(trail.entries(), Decided) for frame, _, _ in unfold(entry)]
        assert frames == list(range(6)), "memory has it all"
        assert [entry.message for entry in of_kind(trail.entries(), Warned)] == warned == [trail.warning]
        assert "too large" in trail.warning
        data = (tmp_path / "streams" / "cam" / "trail.jsonl").read_bytes()
        assert data.endswith(b"\n") and all(json.loads(line) for line in data.splitlines()), "whole lines only"
        kept = trailfile.read(tmp_path, CAM)
        assert [e.number for e in kept] == list(range(len(kept))), "without a gap"

    run(body)


def test_a_home_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "streams").write_text("a file where a folder should be")
    warned: list[str] = []

    async def body(world: World) -> None:
        await world.add(answers)
        trail = trail_of(world, tmp_path, warn=warned.append)
        await trail.start()
        world.client.listeners.add(trail)
        await ask(world, 0)
        await trail.close()
        assert len(warned) == 1 and len(of_kind(trail.entries(), Decided)) == 1

    run(body)


def test_a_second_writer_of_the_same_trail_keeps_its_own_in_memory(tmp_path: Path) -> None:
    warned: list[str] = []

    async def body(world: World) -> None:
        first, second = trail_of(world, tmp_path), trail_of(world, tmp_path, warn=warned.append)
        await first.start()
        await second.start()
        assert len(warned) == 1 and "another process" in warned[0] and not first.warning
        await second.close()
        await first.close()
        assert len(of_kind(trailfile.read(tmp_path, CAM), Started)) == 1

    run(body)


def test_a_trail_is_bounded_and_a_steady_decision_outlives_both_files(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.add(answers)
        trail = trail_of(world, tmp_path, limit=2000, kept=50)
        await trail.start()
        world.client.listeners.add(trail)
        await ask(world, 0)
        for frame in range(1, 60):
            await ask(world, frame)
            trail._flush()  # as after a second each
        trail.ended("done")
        await trail.close()
        folder = tmp_path / "streams" / "cam"
        assert all(path.stat().st_size <= 4000 for path in folder.iterdir()) and len(list(folder.iterdir())) == 2
        entries = trailfile.read(tmp_path, CAM)
        assert isinstance(entries[0], Started) and isinstance(entries[-1], Ended)
        frames = [frame for entry in of_kind(entries, Decided) for frame, _, _ in unfold(entry)]
        assert frames[-1] == 59 and len(trail.entries()) <= 50

    run(body)


def test_a_stream_that_is_taken_up_again_goes_on_in_its_trail(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        for _ in range(2):
            trail = trail_of(world, tmp_path)
            await trail.start()
            trail.level("broken", "nobody answers")
            await trail.close()
        path = tmp_path / "streams" / "cam" / "trail.jsonl"
        with path.open("ab") as file:
            file.write(b'{"kind":"level","number":6,"at"')  # killed in the middle of a line
        trail = trail_of(world, tmp_path)
        await trail.start()
        await trail.close()
        entries = trailfile.read(tmp_path, CAM)
        assert [entry.number for entry in entries] == list(range(8))
        assert len(of_kind(entries, Started)) == 3 and len(of_kind(entries, Level)) == 2

    run(body)


def test_the_oldest_ended_trails_make_room(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        held = Trail(StreamId("held"), MODEL, home=tmp_path, keep=3)
        await held.start()
        for at in range(6):
            trail = Trail(StreamId(f"s{at}"), MODEL, home=tmp_path, keep=3)
            await trail.start()
            await trail.close()
            path = tmp_path / "streams" / f"s{at}" / "trail.jsonl"
            os.utime(path, (at, at))
        (tmp_path / "streams" / "s5" / "other").write_text("of somebody else")
        last = Trail(StreamId("last"), MODEL, home=tmp_path, keep=3)
        await last.start()
        kept = {stream for stream, _ in trailfile.recent(tmp_path)}
        assert "held" in kept and "last" in kept and "s0" not in kept and len(kept) <= 4
        assert (tmp_path / "streams" / "s5" / "other").exists()
        await last.close()
        await held.close()

    run(body)


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_no_path_is_made_of_what_is_no_name(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    for place in (tmp_path / "x", home / "x", home):
        place.mkdir(parents=True, exist_ok=True)
        (place / "trail.jsonl").write_text('{"kind":"started","number":0,"at":"x","stream":"x","model":"secret"}\n')

    async def body() -> None:
        with pytest.raises(UnknownStream):
            await Trails(None, home).page(name)

    asyncio.run(body())
    with pytest.raises(InputError):
        Trail(StreamId(name), MODEL, home=home)
    with pytest.raises(ValueError, match="no stream's name"):
        trailfile.read(home, StreamId(name))


def test_what_is_asked_in_nonsense_is_answered_and_what_is_answered_in_nonsense_is_an_error(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        trail = trail_of(world)
        await trail.start()
        other = MemoryMesh(world.ether)
        await until(lambda: other.alive("trail/cam"), "it is there")
        for head in (b"", b"\xff\xfe", b'{"since":"x"}', b'{"limit":-5}', b'{"since":-99}', b"[]"):
            message = await other.request("trail/cam", head, [b""], 20.0)
            assert json.loads(bytes(message.body))["stream"]["stream"] == "cam"
        other.serve("trail/liar", lambda call: call.reply(b"", [b'{"stream": 3}']))
        trails = Trails(other, tmp_path)
        await until(lambda: len(trails.running()) == 2, "both are seen")
        with pytest.raises(NearfarError, match="cannot be read"):
            await trails.page("liar")
        listed = {status.stream: status for status in await trails.list()}
        assert listed[StreamId("liar")].running and "does not answer" in listed[StreamId("liar")].source
        await trail.close()
        await other.close()

    run(body)
