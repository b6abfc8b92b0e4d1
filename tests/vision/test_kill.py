"""A stream over a real node whose processes are killed while it runs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from nearfar.client.connect import connect
from nearfar.models.adding import AddOptions, add_file
from nearfar.models.store import Store
from nearfar.runtimes.modelfile import format_of
from nearfar.runtimes.registry import inspect_here
from nearfar.settings import load
from nearfar.types.ids import ModelName
from nearfar.vision.results import FrameResult, Outcome
from nearfar.vision.sources import open_source
from nearfar.vision.stream import Watch
from tests.realdata import need_data
from tests.vision.helpers import make_video

MODEL = ModelName("target")
NODE = """
import asyncio, json, sys
from nearfar.cli.common import settings
from nearfar.cli.up import run_node
flags = json.loads(sys.argv[1])
flags["mesh.join"] = tuple(flags["mesh.join"])
asyncio.run(run_node(settings(flags), ["target"]))
"""


@contextmanager
def node(home: Path, name: str, fleet: str, join: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], list[str]]]:
    """A serving node as processes; its mesh endpoints."""
    path = need_data("detection_models", "yolox_nano_416.onnx")
    found = inspect_here(path)
    add_file(
        Store(home / "models"),
        path,
        lambda p: (format_of(p), found.inputs, found.outputs),
        AddOptions(name=MODEL),
    )
    flags = {"home": str(home), "node.id": name, "mesh.fleet": fleet, "gateway.port": 0}
    flags |= {"mesh.discover": False, "mesh.join": join}
    log = home / "log.txt"
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-c", NODE, json.dumps(flags)], stderr=stderr, stdout=stderr)
    try:
        run_file = home / "run" / f"{name}.json"
        end = time.monotonic() + 60
        while not (run_file.exists() and run_file.stat().st_size):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        yield process, json.loads(run_file.read_text())["endpoints"]
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)


def kill(process: subprocess.Popen[bytes], what: str) -> None:
    """SIGKILL to the services of a node, to its agent, or to both."""
    children = psutil.Process(process.pid).children(recursive=True)
    services = [child for child in children if "nearfar.node.service" in " ".join(child.cmdline())]
    assert services
    for pid in [c.pid for c in services if what != "agent"] + [process.pid for _ in "x" if what != "service"]:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_the_only_service_is_killed_and_the_stream_goes_on_when_it_is_back(tmp_path: Path) -> None:
    async def body(process: subprocess.Popen[bytes], endpoints: list[str]) -> None:
        results: list[FrameResult] = []
        killed_at = 0

        def on_result(result: FrameResult, image: object) -> None:
            nonlocal killed_at
            results.append(result)
            if not killed_at and len([r for r in results if r.answer]) == 10:
                killed_at = result.index
                kill(process, "service")
            failed = [r.index for r in results if r.error is not None]
            if failed and len([r for r in results if r.answer and r.index > failed[-1]]) >= 5:
                watcher.stop()

        clip = make_video(tmp_path / "clip.mp4", 50)
        flags = {"home": str(tmp_path / "client"), "mesh.fleet": "kill-one", "mesh.discover": False}
        async with connect(load(flags), join=endpoints) as client:
            await client.wait_for(MODEL, 60)
            source = open_source(str(clip), realtime=True, loop=True)
            watcher = Watch(source, client, MODEL, on_result=on_result)
            summary = await asyncio.wait_for(watcher.run(), 90)
        assert [r.index for r in results] == list(range(summary.read))
        assert summary.accounted == summary.read
        failed = [r for r in results if r.outcome is Outcome.FAILED]
        assert failed and failed[0].index > killed_at
        assert all(r.reason for r in results if r.answer is None)
        assert summary.exit_code not in (0, 1)

    with node(tmp_path / "a", "a", "kill-one", []) as (process, endpoints):
        asyncio.run(body(process, endpoints))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["service", "agent", "node"])
def test_another_node_takes_over(tmp_path: Path, what: str) -> None:
    async def body(processes: dict[str, subprocess.Popen[bytes]], endpoints: list[str], fleet: str) -> None:
        results: list[FrameResult] = []
        victim = ""

        def on_result(result: FrameResult, image: object) -> None:
            nonlocal victim
            results.append(result)
            if not victim and len([r for r in results if r.answer]) == 10:
                victim = str(result.served_by)
                kill(processes[victim.partition("/")[0]], what)
            elif victim and len([r for r in results if r.served_by not in (None, victim)]) >= 20:
                watcher.stop()

        clip = make_video(tmp_path / "clip.mp4", 50)
        flags = {"home": str(tmp_path / "client"), "mesh.fleet": fleet, "mesh.discover": False}
        async with connect(load(flags), join=endpoints) as client:
            await client.wait_for(MODEL, 60)
            end = time.monotonic() + 60
            while sum(view.alive for view in client.snapshot().services.values()) < 2:
                assert time.monotonic() < end
                await asyncio.sleep(0.02)
            source = open_source(str(clip), realtime=True, loop=True)
            watcher = Watch(source, client, MODEL, on_result=on_result)
            summary = await asyncio.wait_for(watcher.run(), 90)
        assert [r.index for r in results] == list(range(summary.read))
        assert summary.accounted == summary.read
        assert summary.moved >= 1
        assert all(r.reason for r in results if r.answer is None)
        assert all(r.error is not None for r in results if r.outcome is Outcome.FAILED)

    fleet = f"kill-{what}"
    with node(tmp_path / "a", "a", fleet, []) as (first, endpoints):
        with node(tmp_path / "b", "b", fleet, endpoints) as (second, more):
            asyncio.run(body({"a": first, "b": second}, endpoints + more, fleet))
