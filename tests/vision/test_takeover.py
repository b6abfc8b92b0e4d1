"""`nearfar watch --stream NAME`, taken over by and standing by in other processes; hosts and successors are killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nearfar.client.connect import connect
from nearfar.gateway.answers import labels_in
from nearfar.settings import load
from nearfar.types.ids import ModelName
from nearfar.vision.areas import parse_areas
from nearfar.vision.results import FrameResult
from nearfar.vision.sources import open_source
from nearfar.vision.stream import STOPPED, Watch
from nearfar.vision.tracking.follow import Follow
from nearfar.vision.tracking.registry import tracker
from tests.cli.commands import environment, nearfar
from tests.fleetlab import Lab, Node
from tests.waiting import until_now

pytest.importorskip("scipy", reason="scipy is not installed: pip install 'nearfar[track]'")

ROOT = Path(__file__).parents[2]
RATE, SECONDS = 12, 8
FOREVER = ("--loop", "--realtime")
"""A film that ends while a slow machine still starts the second program would show nothing."""
TRACKED = ("--track", "sort", "--line", "0,0.5,1,0.5:across", "--zone", "0,0,1,0,1,1,0,1:everywhere")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from recipes.yard.scene import render_clip

    path = tmp_path_factory.mktemp("film") / "yard.mp4"
    render_clip(path, 7, float(SECONDS), RATE)
    return path


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Lab(tmp_path_factory.mktemp("fleet")) as lab:
        yield lab.node("yard-gate", ["yard"])


class Program:
    """One `nearfar watch` process; what it prints goes to files, so that it can be read while it runs."""

    def __init__(self, node: Node, folder: Path, name: str, *words: object) -> None:
        self.name = name
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = environment(node.home, {"NEARFAR_MESH_FLEET": node.fleet, "PYTHONPATH": python_path})
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nearfar.cli.main", "watch", *map(str, words), "--json"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=folder, start_new_session=True,
            )  # fmt: skip

    def says(self, text: str) -> None:
        """Wait until it has printed this on standard error."""
        until_now(
            lambda: text in " ".join(self.err.read_text().split()) or self.process.poll() is not None,
            f"{self.name} says {text!r}",
            60.0,
        )
        told = " ".join(self.err.read_text().split())
        assert text in told, f"{self.name} ended with {self.process.poll()}: {told}"

    def goes_on(self) -> None:
        """Wait until it has told twice more how many frames were answered; the second one is of after this moment."""
        told = self.err.read_text().count(" answered ")
        until_now(lambda: self.err.read_text().count(" answered ") >= told + 2, f"{self.name} goes on", 60.0)

    def kill9(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def ends(self, code: int = 0) -> Any:
        """Its summary, or what it printed when it failed."""
        self.process.wait(120)
        told = self.out.read_text()
        printed = told + self.err.read_text()
        assert self.process.returncode == code and "Traceback" not in printed, printed
        return json.loads(told) if code == 0 else printed

    def stop(self) -> Any:
        """Its summary, after SIGTERM."""
        self.process.terminate()
        return self.ends(0)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)


@pytest.fixture
def programs(node: Node, tmp_path: Path) -> Iterator[Any]:
    started: list[Program] = []

    def start(name: str, *words: object) -> Program:
        started.append(Program(node, tmp_path, name, *words))
        return started[-1]

    yield start
    for program in started:
        program.close()


def alone(node: Node, film: Path, frames: int) -> Any:
    """What one program counts in so many frames of the film, again and again from its beginning."""
    words = [name for name in TRACKED if not name.startswith("--")]
    flags = {"home": str(node.home), "mesh.fleet": node.fleet, "mesh.discover": False}

    async def main() -> Any:
        async with connect(load(flags)) as client:
            labels = labels_in((await client.describe(ModelName("yard"))).manifest)
            follow = Follow(tracker(words[0]), *parse_areas([words[1]], [words[2]]), labels)

            def on_result(result: FrameResult, image: Any) -> None:
                if result.index < frames:
                    follow.take(result, image)
                if result.index == frames - 1:
                    engine.stop()

            engine = Watch(open_source(str(film), loop=True), client, ModelName("yard"), on_result=on_result)
            await asyncio.wait_for(engine.run(), 120)
            return follow.to_dict()

    return asyncio.run(main())


def steady(told: Any) -> bool:
    """Whether no frame fell out but those that were on their way at the end: a busy machine drops some of a camera."""
    return set(told["drops"]) <= {STOPPED} and not told["lost"]["count"]


def test_another_program_takes_the_stream_over_and_every_count_goes_on(
    node: Node, film: Path, programs: Any, tmp_path: Path
) -> None:
    first = programs("first", film, *FOREVER, *TRACKED, "--stream", "gate", "-o", tmp_path / "first.mp4")
    first.says("answered")
    again = nearfar("watch", film, "--stream", "gate", home=node.home, env={"NEARFAR_MESH_FLEET": node.fleet})
    assert again.code == 2 and "--takeover" in again.sentence and "--standby" in again.sentence
    second = programs("second", film, *FOREVER, "--stream", "gate", "--takeover", "-o", tmp_path / "second.mp4")
    before = first.ends(0)
    second.says("answered")
    after = second.stop()
    at = before["frames"]["read"]
    assert before["ended"].startswith("handed over to yard-gate-") and before["ended"].endswith(f"after frame {at - 1}")
    assert before["handed_over"] and at > 0
    assert [(one["frame"], one["kind"]) for one in after["hosts"]] == [(at, "planned")]
    assert after["frames"]["read"] == after["frames"]["answered"] + after["frames"]["dropped"] > at
    assert after["lost"] == {"count": 0, "ranges": []} and not after["handed_over"]
    if steady(after):
        assert after["tracking"] == alone(node, film, after["frames"]["answered"])
    assert (tmp_path / "first.mp4").stat().st_size > 1000 and (tmp_path / "second.mp4").stat().st_size > 1000


def test_a_standby_goes_on_when_the_host_is_killed_and_says_which_frames_nobody_saw(
    node: Node, film: Path, programs: Any
) -> None:
    first = programs("first", film, *FOREVER, *TRACKED, "--stream", "gate")
    first.says("answered")
    second = programs("second", film, *FOREVER, "--stream", "gate", "--standby")
    second.says("holding a checkpoint of yard-gate-")
    first.kill9()
    second.says("answered")
    told = second.stop()
    (over,) = told["hosts"]
    assert over["kind"] == "unplanned"
    if told["lost"]["count"]:
        ((start, end),) = told["lost"]["ranges"]
        assert 0 < start <= end == over["frame"] - 1
    assert told["frames"]["read"] == told["frames"]["answered"] + told["frames"]["dropped"]
    assert told["tracking"]["frames"] == told["frames"]["answered"]
    everywhere = told["tracking"]["zones"]["everywhere"]
    assert everywhere["entered"] == sum(everywhere[k] for k in ("present", "left", "vanished")) > 0


def test_a_standby_of_a_film_that_waits_loses_nothing(node: Node, film: Path, programs: Any) -> None:
    """Its counts are those of one program that was never killed."""
    first = programs("first", film, "--loop", *TRACKED, "--stream", "gate")
    first.says("answered")
    second = programs("second", film, "--loop", "--stream", "gate", "--standby")
    second.says("holding a checkpoint of yard-gate-")
    first.kill9()
    second.says("answered")
    told = second.stop()
    assert [one["kind"] for one in told["hosts"]] == ["unplanned"]
    assert told["lost"]["count"] == 0 and steady(told)
    assert told["tracking"] == alone(node, film, told["frames"]["answered"])


def test_what_cannot_travel_stays(node: Node, film: Path, programs: Any) -> None:
    first = programs("first", film, *FOREVER, "--track", "tests.vision.test_succession:Rooted", "--stream", "gate")
    first.says("answered")
    told = programs("second", film, *FOREVER, "--stream", "gate", "--takeover").ends(2)
    assert "it holds pictures of people" in " ".join(told.split())
    summary = first.stop()
    assert summary["ended"] == "stopped by SIGTERM" and not summary["handed_over"] and summary["hosts"] == []


KILLED_WITH_THE_MEMORY_IN_HAND = """
import asyncio, os, signal, sys
from nearfar.client.connect import connect
from nearfar.settings import load
from nearfar.vision.circle import Circle, ask
from nearfar.vision.handover import Ask, Op, host_key, taker_key

async def main():
    async with connect(load({"home": sys.argv[1], "mesh.fleet": sys.argv[2], "mesh.discover": False})) as client:
        circle = Circle(client.mesh, "gate")
        client.mesh.announce(taker_key("gate", "mortal"))
        assert await circle.until(lambda: circle.hosts, 20.0)
        (host, epoch), = circle.hosts.items()
        told, body = await ask(client.mesh, host_key("gate", epoch, host), Ask(Op.TAKE, "mortal"), 20.0)
        print(told.next_frame, len(body), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_the_host_goes_on_when_its_successor_is_killed_with_the_memory_in_hand(
    node: Node, film: Path, programs: Any, tmp_path: Path
) -> None:
    first = programs("first", film, *FOREVER, *TRACKED, "--stream", "gate")
    first.says("answered")
    standby = programs("standby", film, *FOREVER, "--stream", "gate", "--standby")
    standby.says("yard-gate-")
    code = [sys.executable, "-c", KILLED_WITH_THE_MEMORY_IN_HAND, str(node.home), node.fleet]
    done = subprocess.run(code, capture_output=True, text=True, timeout=90, cwd=tmp_path, env=environment(node.home))
    assert done.returncode == -signal.SIGKILL, done.stderr
    at = int(done.stdout.split()[0])
    first.says("mortal did not take the stream over: it is gone; going on here")
    first.goes_on()
    standby.says("holding a checkpoint of yard-gate-")
    summary = first.stop()
    assert summary["frames"]["read"] > at and not summary["handed_over"] and summary["hosts"] == []
    assert summary["lost"]["count"] == 0
    told = standby.ends(0)
    assert told["ended"] == "stopped by SIGTERM" and told["frames"]["read"] == 0, "the stream is over, not orphaned"


def test_flags_that_contradict_are_told(node: Node, film: Path) -> None:
    for words, why in (
        (["--takeover"], "Add --stream NAME"),
        (["--stream", "gate", "--takeover", "--standby"], "Give one of them"),
        (["--stream", "../gate"], "is no name"),
        (["--stream", "nobody", "--takeover"], "Nobody runs the stream 'nobody'"),
    ):
        said = nearfar("watch", film, *words, home=node.home, env={"NEARFAR_MESH_FLEET": node.fleet})
        assert said.code != 0 and why in said.sentence
