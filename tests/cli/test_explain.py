"""`nearfar watch` leaves a trail, and `nearfar explain` and `nearfar streams` tell it: while it runs, when it is over,
and after it was killed."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nearfar.client import trailfile
from nearfar.placement.trail import Decided, Ended, unfold
from nearfar.types.ids import StreamId
from tests.cli.commands import Said, finish, nearfar, start
from tests.fleetlab import Lab, Node, poll
from tests.vision.helpers import make_video


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Lab(tmp_path_factory.mktemp("explain")) as lab:
        yield lab.node("pi", ["yard"])


class Watched:
    """A `nearfar watch` in a process and a home folder of its own, that plays a clip for ever."""

    def __init__(self, node: Node, folder: Path, *words: str) -> None:
        self.home = folder / "client"
        self.env = {"NEARFAR_MESH_FLEET": node.fleet, "NEARFAR_MESH_JOIN": ",".join(node.endpoints), "COLUMNS": "150"}
        clip = folder / "clip.mp4"
        if not clip.exists():
            make_video(clip, 20)
        given = ["watch", clip, *(words or ("--realtime", "--loop", "--deadline", "10s")), "--display", "none"]
        self.process = start(*given, home=self.home, env=self.env)

    @property
    def folder(self) -> Path | None:
        return next(iter((self.home / "streams").glob("*")), None)

    @property
    def stream(self) -> StreamId:
        assert self.folder is not None
        return StreamId(self.folder.name)

    def frames(self) -> list[int | None]:
        """The frames of every decision in the file."""
        if self.folder is None:
            return []
        known = trailfile.read(self.home, self.stream)
        return [frame for entry in known if isinstance(entry, Decided) for frame, _, _ in unfold(entry)]

    def until_seen(self, count: int = 10) -> None:
        poll(lambda: len(self.frames()) >= count, f"{count} decisions are in the file", 60.0)

    def tell(self, *words: str, fleet: bool = True, home: Path | None = None) -> Said:
        return nearfar(*words, home=home or self.home, env=self.env if fleet else {"COLUMNS": "150"})

    def close(self) -> Said | None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return finish(self.process) if self.process.stdout is not None and not self.process.stdout.closed else None


@contextlib.contextmanager
def watched(node: Node, folder: Path) -> Iterator[Watched]:
    made = Watched(node, folder)
    try:
        made.until_seen()
        yield made
    finally:
        made.close()


def test_another_process_tells_of_a_stream_while_it_runs(node: Node, tmp_path: Path) -> None:
    with watched(node, tmp_path) as watch:
        (row,) = watch.tell("streams", "--json").json
        assert row["stream"] == watch.stream and row["running"] and row["model"] == "yard"
        assert row["source"].endswith("clip.mp4") and row["served_by"] == "pi/yard" and row["answered"] > 0
        said = watch.tell("explain", watch.stream)
        assert said.code == 0, said.err
        assert "pi/yard" in said.out and "running" in said.out and "service" in said.out
        # Somebody elsewhere has no file of it, and asks the mesh.
        elsewhere = watch.tell("explain", watch.stream, "--json", home=tmp_path / "elsewhere").json
        assert elsewhere["stream"]["running"] and elsewhere["stream"]["stream"] == watch.stream
        assert elsewhere["entries"][-1]["kind"] == "decided"
        # So does the gateway of a node.
        with node.http() as http:
            told = http.get(f"/v1/streams/{watch.stream}/decisions").raise_for_status().json()
            assert told["stream"]["running"] and told["entries"][0]["kind"] in ("started", "decided")
            assert watch.stream in {row["stream"] for row in http.get("/v1/streams").json()["streams"]}
        follow = start("explain", watch.stream, "--follow", "--json", home=watch.home, env=watch.env)
        assert follow.stdout is not None
        first = json.loads(follow.stdout.readline())
        watch.process.send_signal(signal.SIGTERM)
        followed = finish(follow)
        assert followed.code == 0, followed.err
        assert first["kind"] in ("started", "decided") and json.loads(followed.out.splitlines()[-1])["kind"] == "ended"
        finished = watch.close()
        assert finished is not None and finished.code == 0, finished
        assert f"nearfar explain {watch.stream}" in finished.out, "the summary says how to ask"
        assert f"nearfar explain {watch.stream}" in finished.err, "and so did the start"


def test_an_ended_stream_is_told_from_files_without_any_fleet(node: Node, tmp_path: Path) -> None:
    watch = Watched(node, tmp_path, "--fast")
    said = finish(watch.process)
    assert said.code == 0, said.err
    known = trailfile.read(watch.home, watch.stream)
    assert isinstance(known[-1], Ended) and known[-1].counts == {"answered": 20}
    assert sorted(frame for frame in watch.frames() if frame is not None) == list(range(20))
    told = watch.tell("explain", watch.stream, "--json", "--last", "1000", fleet=False).json
    assert [entry["number"] for entry in told["entries"]] == [entry.number for entry in known]
    assert told["stream"]["answered"] == 20 and not told["stream"]["running"]
    one = watch.tell("explain", watch.stream, "--frame", "7", fleet=False)
    assert one.code == 0 and "frame 7" in one.out and "pi/yard" in one.out
    (entry,) = watch.tell("explain", watch.stream, "--frame", "7", "--json", fleet=False).json["entries"]
    assert any(7 in (first + at * step for at in range(count)) for first, count, step in entry["frames"])
    missing = watch.tell("explain", watch.stream, "--frame", "700", fleet=False)
    assert missing.code == 2 and "frames 0 to 19" in missing.sentence
    wrong = watch.tell("explain", f"{watch.stream}x", fleet=False)
    assert wrong.code == 2 and watch.stream in wrong.sentence and "nearfar streams" in wrong.sentence
    assert watch.tell("explain", watch.stream, "--follow", fleet=False).code == 0, (
        "what is over is told, and that is all"
    )
    assert "ended" in watch.tell("streams", fleet=False).out


def test_kill_9_leaves_a_readable_trail(node: Node, tmp_path: Path) -> None:
    with watched(node, tmp_path) as watch:
        watch.process.kill()
        watch.process.communicate()
        frames = watch.frames()
        assert len(frames) >= 10 and len(set(frames)) == len(frames)
        assert watch.folder is not None
        data = (watch.folder / "trail.jsonl").read_bytes()
        (watch.folder / "trail.jsonl").write_bytes(data[:-7])  # as if it had been killed in the middle of a line
        said = watch.tell("explain", watch.stream, fleet=False)
        assert said.code == 0, said.err
        assert "without a word" in said.out and "pi/yard" in said.out
        (row,) = watch.tell("streams", "--json", fleet=False).json
        assert not row["running"] and row["ended"] is None and row["answered"] is None


def test_without_a_trail_nothing_is_written(node: Node, tmp_path: Path) -> None:
    watch = Watched(node, tmp_path, "--fast", "--no-trail", "--json")
    said = finish(watch.process)
    assert said.code == 0 and said.json["stream"]
    assert not (watch.home / "streams").exists() and "explain" not in said.err


def test_a_full_disk_does_not_end_the_stream(node: Node, tmp_path: Path) -> None:
    with watched(node, tmp_path) as watch:
        assert watch.folder is not None
        size = (watch.folder / "trail.jsonl").stat().st_size
        resource.prlimit(watch.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        def warned() -> bool:
            said = watch.tell("explain", watch.stream, "--json", "-n", "1000", home=tmp_path / "elsewhere")
            told: dict[str, Any] = said.json
            return any(entry["kind"] == "warned" for entry in told["entries"])

        poll(warned, "the trail on the mesh tells of the disk", 60.0)
        said = watch.close()
        assert said is not None and said.code == 0, said
        assert len(re.findall("is kept in memory only", said.err)) == 1
        assert (watch.folder / "trail.jsonl").stat().st_size <= size


def test_a_password_is_nowhere(tmp_path: Path) -> None:
    """The source that a trail names is the one that every message names."""
    from nearfar.vision.sources import open_source

    assert "hunter2" not in open_source("rtsp://user:hunter2@cam.local/stream1").uri
