"""Nodes and a crowd of clients for the demo: real processes, stopped by their ids whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from nearfar.errors import NearfarError
from nearfar.node.identity import Running, running
from nearfar.types.ids import ModelName

START_LIMIT = 60.0
QUEUE_LIMIT = 256
"""Requests that may wait at a service of the demo: more than the usual 64, so that a crowd fits on a fast machine."""


def node_flags(home: Path, fleet: str, join: Sequence[str]) -> dict[str, Any]:
    """Settings of a participant that stays on this machine and in this fleet."""
    return {"home": str(home), "mesh.fleet": fleet, "mesh.join": tuple(join), "mesh.discover": False}


class DemoNode:
    """A node whose inference is `slowdown` times slower than this machine, behind a link of `delay_ms` each way."""

    def __init__(self, name: str, slowdown: float = 1.0, delay_ms: float = 0.0, models: Sequence[str] = ()) -> None:
        """`models`: names in its store; none for what a node serves anyway."""
        self.name = name
        self.models = tuple(models)
        self.slowdown = slowdown
        self.delay_ms = delay_ms

    def __str__(self) -> str:
        speed = "full speed" if self.slowdown == 1 else f"1/{self.slowdown:g} of the speed"
        return f"{self.name} ({speed}{f', {self.delay_ms:g} ms away' if self.delay_ms else ''})"

    @contextlib.asynccontextmanager
    async def running(self, home: Path, fleet: str, join: Sequence[str]) -> AsyncIterator[Running]:
        """The node as a process, from the moment it can be joined until it has ended."""
        own = home / self.name
        own.mkdir(parents=True, exist_ok=True)
        log = own / "log.txt"
        flags = [
            *("up", "--name", self.name, "--home", str(own), "--fleet", fleet, "--port", "0", "--no-discover"),
            *("--emulate-slowdown", str(self.slowdown), "--threads", "1"),
            *(["--emulate-delay", f"{self.delay_ms}ms"] if self.delay_ms else []),
            *(part for endpoint in join for part in ("--join", endpoint)),
            *(part for model in self.models for part in ("--model", model)),
        ]
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "nearfar.cli.main", *flags),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env={**os.environ, "NEARFAR_HOME": str(own), "NEARFAR_NODE_QUEUE_LIMIT": str(QUEUE_LIMIT)},
                start_new_session=True,  # Ctrl-C is for the demo, which then stops its nodes
            )
        try:
            yield await self._reachable(own, process, log)
        finally:
            await end(process)

    async def _reachable(self, own: Path, process: asyncio.subprocess.Process, log: Path) -> Running:
        limit = time.monotonic() + START_LIMIT
        while time.monotonic() < limit:
            if found := running(own):
                return found[0]
            if process.returncode is not None:
                break
            await asyncio.sleep(0.05)
        last = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise NearfarError(f"The node {self.name} did not start: {' '.join(last) or 'it said nothing'}.")


class Overload:
    """Other people's clients: they keep asking one node for more than it can do, from a process of their own."""

    def __init__(self, home: Path, fleet: str, join: Sequence[str], model: ModelName) -> None:
        self._home = str(home)
        self._fleet = fleet
        self._join = tuple(join)
        self._model = model
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, node: str, clients: int) -> None:
        """Returns when they have begun to ask."""
        flags = (node, self._home, self._fleet, self._model, str(clients), *self._join)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "examples.crowd", *flags),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        await self._process.stdout.readline()

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await end(process)


async def end(process: asyncio.subprocess.Process, patience: float = 12.0) -> None:
    """Ask it to end, wait, and kill it when it does not; with it what it left in its session."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), patience)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
