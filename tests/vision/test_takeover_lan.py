"""A stream goes over to a program on another machine: network namespaces with a cable between, so as root only."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mesh.test_lan import NEARFAR
from tests.mesh.test_lan import hosts as hosts
from tests.waiting import until_now

pytest.importorskip("scipy", reason="scipy is not installed: pip install 'nearfar[track]'")


def test_a_program_on_another_machine_takes_the_stream_over(hosts: tuple[str, str], tmp_path: Path) -> None:
    from recipes.yard.scene import render_clip

    film = tmp_path / "yard.mp4"
    render_clip(film, 7, 25.0, 12)
    fleet = f"lan{os.getpid()}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NEARFAR_")}

    def start(stack: ExitStack, host: str, name: str, *words: str) -> subprocess.Popen[bytes]:
        command = ["ip", "netns", "exec", host, *NEARFAR, *words, "--home", str(tmp_path / host), "--fleet", fleet]
        with (tmp_path / f"{name}.out").open("wb") as out, (tmp_path / f"{name}.err").open("wb") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, cwd=tmp_path, env=environment)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        return process

    def said(process: subprocess.Popen[bytes], name: str, text: str) -> None:
        def heard() -> bool:
            told = (tmp_path / f"{name}.err").read_text()
            assert text in told or process.poll() is None, f"{name} ended with {process.poll()}: {told}"
            return text in told

        until_now(heard, f"{name} has {text!r}", 60.0)

    with ExitStack() as stack:
        nodes = []
        for host, name in zip(hosts, "ab", strict=True):
            flags = ("--listen", "tcp/0.0.0.0:0", "--insecure", "--port", "0", "--name", name)
            nodes.append(start(stack, host, f"node-{name}", "up", *flags))
        for node, name in zip(nodes, "ab", strict=True):
            said(node, f"node-{name}", f"{name} serves yard")
        watch = ("watch", str(film), "--realtime", "--stream", "gate", "--json")
        first = start(stack, hosts[0], "first", *watch, "--track", "sort")
        said(first, "first", "answered")
        second = start(stack, hosts[1], "second", *watch, "--takeover")
        assert first.wait(90) == 0, (tmp_path / "first.err").read_text() + (tmp_path / "second.err").read_text()
        assert second.wait(90) == 0, (tmp_path / "second.err").read_text()
        before = json.loads((tmp_path / "first.out").read_text())
        after = json.loads((tmp_path / "second.out").read_text())
        assert before["handed_over"] and after["hosts"][0]["frame"] == before["frames"]["read"]
        assert after["hosts"][0]["source"].startswith("a-") and after["hosts"][0]["target"].startswith("b-")
        assert after["frames"]["read"] == 300 and after["lost"]["count"] == 0
