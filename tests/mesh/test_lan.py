"""Two machines on one network find each other without being told where: network namespaces, so as root only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.waiting import until_now

NEARFAR = (sys.executable, "-m", "nearfar.cli.main")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    mark = uuid.uuid4().hex[:5]
    names = f"nf{mark}a", f"nf{mark}b"
    with ExitStack() as stack:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"this kernel or container makes no network namespace: {error.stderr.decode().strip()}")
            stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
        ip("link", "add", f"v{mark}a", "type", "veth", "peer", "name", f"v{mark}b")
        for number, (name, end) in enumerate(zip(names, "ab", strict=True), 1):
            cable = f"v{mark}{end}"
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "addr", "add", f"10.79.3.{number}/24", "dev", cable)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "route", "add", "224.0.0.0/4", "dev", cable)
        yield names


def test_nodes_on_one_network_find_each_other_and_serve_each_other(hosts: tuple[str, str], tmp_path: Path) -> None:
    flags = ("--listen", "tcp/0.0.0.0:0", "--insecure", "--port", "0", "--fleet", f"lan{uuid.uuid4().hex[:6]}")
    with ExitStack() as stack:
        for host, name in zip(hosts, "ab", strict=True):
            process = subprocess.Popen(
                ["ip", "netns", "exec", host, *NEARFAR, "up", "--name", name, "--home", str(tmp_path / name), *flags],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)

        def asked(*command: str) -> str:
            inside = ("ip", "netns", "exec", hosts[0])
            home = ("--home", str(tmp_path / "a"), "--fleet", flags[-1], "--json")
            done = subprocess.run([*inside, *NEARFAR, *command, *home], capture_output=True, text=True, check=False)
            return done.stdout or "[]"

        def both() -> bool:
            rows = json.loads(asked("services"))
            return {row["service"] for row in rows if row["healthy"]} == {"a/yard", "b/yard"}

        until_now(both, "a sees both services", limit=60)
        told = json.loads(asked("run", "yard", str(_picture(tmp_path / "picture.jpg")), "--node", "b"))
        assert told["served_by"] == "b/yard"
        assert told["stages_ms"]["link"] > 0


def _picture(path: Path) -> Path:
    import cv2
    import numpy as np

    cv2.imwrite(str(path), np.full((120, 160, 3), 90, np.uint8))
    return path
