"""The verbs against a node that runs: what they print, what they count, and how they end when they are interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from tests.cli.commands import Said, finish, nearfar, start
from tests.fleetlab import Lab, Node, poll
from tests.vision.helpers import make_video
from tests.waiting import until_now

FRAMES = 12


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node that serves the embedded model."""
    with Lab(tmp_path_factory.mktemp("fleet")) as lab:
        yield lab.node("gate-of-the-yard", ["yard"])


def on(node: Node, *words: object, **env: str) -> Said:
    return nearfar(*words, home=node.home, env={"NEARFAR_MESH_FLEET": node.fleet, **env})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.jpg"
    cv2.imwrite(str(path), np.full((120, 160, 3), 90, np.uint8))
    return path


def test_every_list_is_json_when_asked(node: Node) -> None:
    (row,) = on(node, "nodes", "--json").json
    assert row["node"] == node.name and row["alive"] and row["gateway"] == node.url
    (row,) = on(node, "services", "--json").json
    assert (row["service"], row["healthy"]) == (f"{node.name}/yard", True)
    facts, row = on(node, "models", "--json").json
    assert facts["model"] == "facts" and facts["served_by"] == []
    assert row["model"] == "yard" and row["served_by"] == [f"{node.name}/yard"]
    assert isinstance(on(node, "devices", "--json").json, dict | list)


@pytest.mark.parametrize("verb", ["nodes", "services", "models", "devices"])
@pytest.mark.parametrize("columns", [80, 60])
def test_tables_fit_the_terminal_and_names_stay_whole(node: Node, verb: str, columns: int) -> None:
    said = on(node, verb, COLUMNS=str(columns))
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= columns
    name = {"nodes": node.name, "services": f"{node.name}/yard", "models": f"{node.name}/yard", "devices": "cpu"}
    assert name[verb] in said.out, "a name that is cut cannot be copied"


def test_one_image_is_answered_and_drawn(node: Node, image: Path, tmp_path: Path) -> None:
    told = on(node, "run", "yard", image, "--json")
    assert told.code == 0 and told.json["served_by"] == f"{node.name}/yard"
    assert set(told.json["stages_ms"]) == {"link", "queue", "preprocess", "inference", "postprocess"}
    drawn = tmp_path / "out.jpg"
    said = on(node, "run", "yard", image, "-o", drawn)
    assert said.code == 0 and str(drawn.name) in " ".join(said.out.split())
    picture = cv2.imread(str(drawn))
    assert picture is not None and picture.shape[1] == 160


def test_a_picture_that_cannot_be_kept_does_not_cost_the_answer(node: Node, image: Path, tmp_path: Path) -> None:
    (tmp_path / "out.png").mkdir()  # stands for a full disk: writing there fails after the answer has come
    said = on(node, "run", "yard", image, "-o", tmp_path / "out.png")
    assert said.code == 5 and "cannot be written" in said.sentence
    assert f"{node.name}/yard" in said.out and "boxes drawn" not in said.out


def test_a_node_tells_a_program_how_it_is_reached(tmp_path: Path) -> None:
    process = start("up", "--json", "--port", "0", "--fleet", "told", "--name", "one", home=tmp_path / "home")
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    assert told["node"] == "one" and told["fleet"] == "told" and told["endpoints"]
    with urllib.request.urlopen(told["gateway"] + "/v2/health/live", timeout=60) as answer:
        assert answer.status == 200
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 0


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["run", "yrad", "IMAGE"], 3, "did you mean yard"),
        (["run", "yard", "TEXT"], 2, "not a picture of a known format"),
        (["run", "yard", "EMPTY"], 2, "no bytes"),
        (["run", "yard", "IMAGE", "--node", "elsewhere"], 7, "pinned"),
        (["run", "yard", "IMAGE", "--node", "elsewhere"], 7, "See 'nearfar services'"),
        (["run", "yard", "IMAGE", "--deadline", "1us"], 7, "deadline"),
        (["run", "yard", "IMAGE", "-o", "no/such/folder/out.jpg"], 2, "no/such/folder"),
        (["run", "yard", "IMAGE", "-o", "out.docx"], 2, ".docx"),
        (["watch", "TEXT"], 5, "text"),
        (["watch", "IMAGE", "--model", "yrad"], 3, "did you mean yard"),
        (["watch", "IMAGE", "-o", "no/such/folder/out.mp4"], 5, "no/such/folder"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said(
    node: Node, image: Path, tmp_path: Path, words: list[str], code: int, told: str
) -> None:
    (tmp_path / "text.jpg").write_text("this is no image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    files = {"IMAGE": image, "TEXT": tmp_path / "text.jpg", "EMPTY": tmp_path / "empty.jpg"}
    said = on(node, *(files.get(word, word) for word in words))
    assert said.code == code, said.err + said.out
    assert told in said.sentence + " ".join(said.out.split()), said.err


# -- streams ------------------------------------------------------------------------------------------------------


def counted(summary: dict[str, Any]) -> int:
    return sum(count for name, count in summary["frames"].items() if name != "read")


def test_a_clip_is_watched_to_its_end_and_every_frame_is_accounted_for(node: Node, tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4", FRAMES)
    said = on(node, "watch", clip, "--json", "-o", tmp_path / "out.mp4")
    summary = said.json
    assert said.code == summary["exit_code"] == 0
    assert summary["frames"]["read"] == summary["frames"]["answered"] == counted(summary) == FRAMES
    assert summary["served_by"] == {f"{node.name}/yard": FRAMES}
    assert (tmp_path / "out.mp4").stat().st_size > 1000
    shown = on(node, "watch", clip)
    assert shown.code == 0 and f"{FRAMES} frames read" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


def test_a_clip_that_is_cut_short_ends_with_its_own_code(node: Node, tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4", 200)
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 2 // 3])
    said = on(node, "watch", clip, "--json")
    summary = said.json
    assert counted(summary) == summary["frames"]["read"] > 0
    assert (said.code, summary["exit_code"]) == (5, 5) and summary["error"]["code"] == "source"


def watching(node: Node, clip: Path, *words: str) -> subprocess.Popen[str]:
    """A stream without an end, once it has got answers."""
    before = settled(node)
    env = {"NEARFAR_MESH_FLEET": node.fleet}
    process = start("watch", clip, "--loop", "--realtime", *words, home=node.home, env=env)
    poll(lambda: answered(node) >= before + 5 or process.poll() is not None, "frames are answered", 60.0)
    return process


def settled(node: Node) -> int:
    """The count of answers once what earlier streams got is in it: telemetry lags half a second behind."""
    seen: list[int] = []

    def steady() -> bool:
        seen.append(answered(node))
        return len(seen) >= 4 and len(set(seen[-4:])) == 1

    poll(steady, "no answer is given any more", every=0.25)
    return seen[-1]


def answered(node: Node) -> int:
    return int((node.service_json("yard") or {}).get("answered", 0))


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_a_stream_with_its_summary(node: Node, tmp_path: Path, times: int) -> None:
    clip = make_video(tmp_path / "clip.mp4", 50)
    process = watching(node, clip, "--json")
    for _ in range(times):
        process.send_signal(signal.SIGINT)
    said = finish(process)
    if times == 2 and not said.out:
        assert said.code == 130, "a second Ctrl-C may cut the summary, not more"
        return
    summary = said.json
    assert counted(summary) == summary["frames"]["read"] >= 5
    assert said.code == summary["exit_code"] or (times == 2 and said.code == 130), said.err
    assert summary["ended"]


def test_sigterm_ends_a_stream_as_ctrl_c_does_and_its_recording_can_be_played(node: Node, tmp_path: Path) -> None:
    """What `timeout`, systemd and containers send."""
    import av

    recording = tmp_path / "out.mp4"
    process = watching(node, make_video(tmp_path / "clip.mp4", 50), "--json", "-o", str(recording))
    process.send_signal(signal.SIGTERM)
    said = finish(process)
    assert "SIGTERM" in said.json["ended"]
    assert said.code == said.json["exit_code"]
    with av.open(str(recording)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 1


def test_a_stream_whose_node_goes_for_good_ends_in_numbers_that_tell_it(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        node = lab.node("one", ["yard"])
        process = watching(node, make_video(tmp_path / "clip.mp4", 50), "--json")
        node.kill9_node()
        # It plays a file in real time: frames fail with a reason until it is told to end.
        assert process.stderr is not None
        assert any(re.search(r"failed [1-9]", line) for line in process.stderr), "it never says that frames fail"
        process.send_signal(signal.SIGINT)
        said = finish(process)
        summary = said.json
        assert counted(summary) == summary["frames"]["read"]
        assert summary["frames"]["answered"] >= 5
        assert summary["frames"]["failed"] == sum(failure["count"] for failure in summary["failures"].values()) > 0
        assert all(failure["reason"] for failure in summary["failures"].values())
        assert said.code == summary["exit_code"] == 7


# -- the life of a node ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sign", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 3)])
@pytest.mark.parametrize("when", ["serving", "starting"])
def test_a_node_that_is_told_to_end_leaves_nothing(tmp_path: Path, sign: signal.Signals, times: int, when: str) -> None:
    with Lab(tmp_path) as lab:
        node = lab.node("one", ["yard"], wait=False)
        assert node._process is not None
        if when == "serving":
            node.wait_ready()
        else:
            until_now(lambda: len(lab.processes()) >= 2, "its first child is there", 60.0)
        for _ in range(times):
            node._process.send_signal(sign)
        code = node.wait_ended()
        assert code == 0 or (times > 1 and code in (130, -signal.SIGINT)), node.stderr
        assert "Traceback" not in node.stderr and "Exception" not in node.stderr, node.stderr
        until_now(lambda: not lab.processes(), "no process is left", 20.0)
        assert not (node.home / "run" / "one.json").read_bytes() or times > 1


def test_a_closed_terminal_does_not_leave_a_node_half_alive(tmp_path: Path) -> None:
    """SIGHUP ends it as a power cut does; its services end by themselves."""
    with Lab(tmp_path) as lab:
        node = lab.node("one", ["yard"])
        services = psutil.Process(node.agent_pid).children(recursive=True)
        os.kill(node.agent_pid, signal.SIGHUP)
        node.wait_ended()
        until_now(lambda: not any(p.is_running() and p.status() != "zombie" for p in services), "services are gone")
