"""`nearfar watch --stream NAME`, taken over by and standing by in other processes; hosts and successors are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import environment, nearfar
from tests.fleetlab import Lab, Node
from tests.waiting import until_now

pytest.importorskip("scipy", reason="scipy is not installed: pip install 'nearfar[track]'")

ROOT = Path(__file__).parents[2]
RATE, SECONDS = 12, 20
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


def alone(node: Node, film: Path) -> Any:
    """The same film in one program."""
    told = nearfar("watch", film, *TRACKED, "--json", home=node.home, env={"NEARFAR_MESH_FLEET": node.fleet})
    assert told.code == 0, told.err
    return told.json


def test_another_program_takes_the_stream_over_and_every_count_goes_on(
    node: Node, film: Path, programs: Any, tmp_path: Path
) -> None:
    first = programs("first", film, "--realtime", *TRACKED, "--stream", "gate", "-o", tmp_path / "first.mp4")
    first.says("answered")
    again = nearfar("watch", film, "--stream", "gate", home=node.home, env={"NEARFAR_MESH_FLEET": node.fleet})
    assert again.code == 2 and "--takeover" in again.sentence and "--standby" in again.sentence
    words = (film, "--realtime", "--stream", "gate", "--takeover", "-o", tmp_path / "second.mp4")
    second = programs("second", *words)
    before = first.ends(0)
    after = second.ends(0)
    at = before["frames"]["read"]
    assert before["ended"].startswith("handed over to yard-gate-") and before["ended"].endswith(f"after frame {at - 1}")
    assert before["handed_over"] and 0 < at < RATE * SECONDS
    assert [(one["frame"], one["kind"]) for one in after["hosts"]] == [(at, "planned")]
    assert after["frames"]["read"] == after["frames"]["answered"] + after["frames"]["dropped"] == RATE * SECONDS
    assert after["lost"] == {"count": 0, "ranges": []} and not after["handed_over"]
    if not after["frames"]["dropped"]:  # a machine too busy for 12 frames/s drops some, as of a camera
        assert after["tracking"] == alone(node, film)["tracking"]
    assert (tmp_path / "first.mp4").stat().st_size > 1000 and (tmp_path / "second.mp4").stat().st_size > 1000


def test_a_standby_goes_on_when_the_host_is_killed_and_says_which_frames_nobody_saw(
    node: Node, film: Path, programs: Any
) -> None:
    first = programs("first", film, "--realtime", *TRACKED, "--stream", "gate")
    first.says("answered")
    second = programs("second", film, "--realtime", "--stream", "gate", "--standby")
    second.says("holding a checkpoint of yard-gate-")
    first.kill9()
    told = second.ends(0)
    (over,) = told["hosts"]
    assert over["kind"] == "unplanned"
    lost = told["lost"]
    assert told["frames"]["read"] + lost["count"] == RATE * SECONDS, "every frame is read or reported lost"
    for start, end in lost["ranges"]:
        assert 0 < start <= end < RATE * SECONDS
    if lost["count"]:
        assert lost["ranges"][0][1] == over["frame"] - 1
    assert told["tracking"]["frames"] == told["frames"]["answered"]
    everywhere = told["tracking"]["zones"]["everywhere"]
    assert everywhere["entered"] == sum(everywhere[k] for k in ("present", "left", "vanished")) > 0


def test_a_standby_of_a_film_that_waits_loses_nothing(node: Node, tmp_path: Path, programs: Any) -> None:
    """Nothing is lost, and the counts are those of one program that was never killed."""
    from recipes.yard.scene import render_clip

    film = tmp_path / "long.mp4"
    render_clip(film, 3, 45.0, RATE)
    first = programs("first", film, *TRACKED, "--stream", "gate", "-o", tmp_path / "slow.mp4")
    first.says("answered")
    second = programs("second", film, "--stream", "gate", "--standby")
    try:
        second.says("holding a checkpoint of yard-gate-")
    except AssertionError:
        pytest.skip("this machine saw the whole film before the second program had started")
    first.kill9()
    told = second.ends(0)
    if not told["hosts"]:
        pytest.skip("the film was over before its host was killed")
    assert told["frames"]["answered"] == told["frames"]["read"] == RATE * 45 and told["lost"]["count"] == 0
    assert told["tracking"] == alone(node, film)["tracking"]


def test_what_cannot_travel_stays_and_a_standby_ends_with_its_host(node: Node, film: Path, programs: Any) -> None:
    rooted = ("--track", "tests.vision.test_succession:Rooted")
    first = programs("first", film, "--realtime", *rooted, "--stream", "gate")
    first.says("answered")
    told = programs("second", film, "--stream", "gate", "--takeover").ends(2)
    assert "it holds pictures of people" in " ".join(told.split())
    summary = first.ends(0)
    assert summary["frames"]["read"] == RATE * SECONDS and not summary["handed_over"]


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
    first = programs("first", film, "--realtime", *TRACKED, "--stream", "gate")
    first.says("answered")
    standby = programs("standby", film, "--realtime", "--stream", "gate", "--standby")
    code = [sys.executable, "-c", KILLED_WITH_THE_MEMORY_IN_HAND, str(node.home), node.fleet]
    done = subprocess.run(code, capture_output=True, text=True, timeout=90, cwd=tmp_path, env=environment(node.home))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert int(done.stdout.split()[0]) > 0
    first.says("mortal did not take the stream over: it is gone; going on here")
    summary = first.ends(0)
    assert summary["frames"]["read"] == RATE * SECONDS and not summary["handed_over"]
    assert summary["lost"]["count"] == 0
    told = standby.ends(0)
    assert told["ended"] == "the file ended" and told["frames"]["read"] == 0, "nothing was left to go on with"


def test_flags_that_contradict_are_told(node: Node, film: Path) -> None:
    for words, why in (
        (["--takeover"], "Add --stream NAME"),
        (["--stream", "gate", "--takeover", "--standby"], "Give one of them"),
        (["--stream", "../gate"], "is no name"),
        (["--stream", "nobody", "--takeover"], "Nobody runs the stream 'nobody'"),
    ):
        said = nearfar("watch", film, *words, home=node.home, env={"NEARFAR_MESH_FLEET": node.fleet})
        assert said.code != 0 and why in said.sentence
