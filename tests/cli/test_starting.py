"""Commands that are typed right behind `nearfar up`, or behind `nearfar far add`: they wait for what is starting."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import cv2
import numpy as np

from tests.cli.commands import finish, nearfar, start
from tests.fleetlab import Lab, Node, fake, talking
from tests.fleetlab import lab as lab
from tests.waiting import until_now


def picture(folder: Path) -> Path:
    path = folder / "grey.jpg"
    cv2.imwrite(str(path), np.full((96, 96, 3), 128, np.uint8))
    return path


def begun(node: Node) -> None:
    """Wait until the node has its name, and says nothing yet."""
    claim = node.home / "run" / f"{node.name}.json"
    until_now(claim.exists, "the node has begun to start")


def fleet(lab: Lab) -> dict[str, str]:
    return {"NEARFAR_MESH_FLEET": lab.fleet}


def test_run_and_watch_wait_for_a_node_and_its_model(lab: Lab, tmp_path: Path) -> None:
    image = picture(tmp_path)
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "1.jpg").write_bytes(image.read_bytes())
    node = lab.node("a", ["yard"], wait=False)
    begun(node)
    said = nearfar("run", "yard", image, "--json", home=node.home, env=fleet(lab))
    assert said.code == 0 and said.json["served_by"] == "a/yard", said.err
    assert said.err.count("; waiting") <= 2 and "a" in said.err
    node.stop()
    node.launch()
    watched = nearfar("watch", tmp_path / "frames", "--json", home=node.home, env=fleet(lab))
    assert watched.code == 0 and watched.json["frames"]["answered"] == 1, watched.err


def test_commands_ask_the_fleet_that_runs_here_unless_another_is_named(lab: Lab, tmp_path: Path) -> None:
    node = lab.node("a", [fake(tmp_path, "echo")])
    assert [row["node"] for row in nearfar("nodes", "--json", home=node.home).json] == ["a"], "none was named"
    assert nearfar("nodes", "--json", "--fleet", "elsewhere", home=node.home).json == []
    assert nearfar("nodes", "--json", home=node.home, env={"NEARFAR_MESH_FLEET": "elsewhere"}).json == []


def until_told(command: subprocess.Popen[str], what: str) -> None:
    """Read its standard error until it says so."""
    assert command.stderr is not None
    lines = [""]
    while what not in lines[-1]:
        lines.append(command.stderr.readline())
        assert lines[-1], f"it never said: {what}\n{''.join(lines)}"


def test_a_model_that_takes_its_time_is_waited_for_and_told_once(lab: Lab, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.touch()
    slow = talking(tmp_path, "slow", load_while=str(held), says=[{"when": "eggs", "text": "You have 6 eggs."}])
    node = lab.node("a", [slow], wait=False)
    begun(node)
    named = start("chat", "--model", "slow", "how many eggs?", home=node.home)
    near = start("chat", "--near", "how many eggs?", home=node.home)
    for command in (named, near):
        until_told(command, "slow is starting on a; waiting")
    held.unlink()
    for said in map(finish, (named, near)):
        assert said.code == 0 and said.out == "You have 6 eggs.\n", said.err
        assert "waiting" not in said.err, "it is told once"
    far = nearfar("chat", "--far", "how many eggs?", home=node.home)
    assert far.code == 7 and "waiting" not in far.err, "nobody starts who could answer that"


def test_what_fails_to_start_is_told_and_an_interrupt_ends_the_waiting(lab: Lab, tmp_path: Path) -> None:
    held, image = tmp_path / "held", picture(tmp_path)
    held.touch()
    node = lab.node("a", [fake(tmp_path, "stuck", load_while=str(held), load_error="its sum is wrong")], wait=False)
    begun(node)
    waiting, left = (start("run", "stuck", image, home=node.home, env=fleet(lab)) for _ in range(2))
    for command in (waiting, left):
        until_told(command, "stuck is starting on a; waiting")
    elsewhere = nearfar("run", "stuck", image, "--node", "b", home=node.home, env=fleet(lab))
    assert elsewhere.code == 7 and "waiting" not in elsewhere.err, "what starts there is of no use"
    left.send_signal(signal.SIGINT)
    assert finish(left).code == 130
    assert waiting.poll() is None
    held.unlink()
    failed = finish(waiting)
    assert failed.code == 7 and "its sum is wrong" in failed.sentence
