"""One service process, held by its agent: started, listened to, stopped, and its end explained."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import sys
from typing import Any

import msgspec

from nearfar.node.spec import Milestone, ServiceSpec, Word
from nearfar.types.units import Bytes

_LONGEST_WORD = 1 << 20
"""Bytes; of a longer line without an end only the end is kept."""


CACHED = "glibc.malloc.tcache_count=128"
"""Free blocks of each size that a thread of a language service keeps for itself (glibc's own default is 7). llama.cpp
makes thousands of small objects for each request, of its template and its JSON: an eighth of the processor time of a
short call was spent giving them back and asking for them again. It is read when a process starts, and ignored where
there is no glibc."""


def with_tunable(stated: str) -> str:
    """`GLIBC_TUNABLES` with ours; one that the user set stays.

    >>> with_tunable("glibc.malloc.arena_max=2")
    'glibc.malloc.arena_max=2:glibc.malloc.tcache_count=128'
    >>> with_tunable("glibc.malloc.tcache_count=16")
    'glibc.malloc.tcache_count=16'
    """
    if "glibc.malloc.tcache_count=" in stated:
        return stated
    return f"{stated}:{CACHED}" if stated else CACHED


class Child:
    """A running service process. `word` is what it said, `ended` why it is gone (None while it runs)."""

    def __init__(self, spec: ServiceSpec, process: asyncio.subprocess.Process) -> None:
        self.spec = spec
        self.word: Word | None = None
        self.ended: str | None = None
        self.kill_reason: str | None = None
        self.silent = 0.0
        """Seconds since its last word, of those in which its agent itself ran; counted by the agent."""
        self._process = process
        self._last_lines: collections.deque[str] = collections.deque(maxlen=20)
        self._usage: Any = None

    @classmethod
    async def start(cls, spec: ServiceSpec) -> Child:
        """Start the process and hand it its spec; it is ready when `word` says so."""
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(spec.threads)}
        if spec.text is not None:
            environment["GLIBC_TUNABLES"] = with_tunable(os.environ.get("GLIBC_TUNABLES", ""))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nearfar.node.service", spec.service),  # the name is for who reads `ps`
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # the terminal's Ctrl-C is for the agent alone
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(spec) + b"\n")
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died at once; `wait` says why
                await process.stdin.drain()
        except asyncio.CancelledError:
            process.kill()
            raise
        return cls(spec, process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def listen(self) -> None:
        """Follow the process until it ends; then `ended` says why."""
        await asyncio.gather(self._read_words(), self._read_errors())
        code = await self._process.wait()
        self.ended = self._explain(code)

    async def _read_words(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while data := await self._process.stdout.read(65536):  # not by line, which asyncio bounds
            self.silent = 0.0
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-_LONGEST_WORD:]
            for line in lines:
                with contextlib.suppress(ValueError):  # not JSON, not UTF-8: an engine may print there too
                    self.word = msgspec.json.decode(line, type=Word)

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.read(4096):  # not by line: an engine may print without any
            self._last_lines.extend(part for part in line.decode(errors="replace").splitlines() if part.strip())

    def _explain(self, code: int) -> str:
        if self.kill_reason is not None:
            return f"stopped because {self.kill_reason}"
        if self.word is not None and self.word.milestone is Milestone.FAILED:
            return self.word.message
        last = f": {self._last_lines[-1]}" if self._last_lines else ""
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}{last}"
        return "ended as asked" if code == 0 else f"exit code {code}{last}"

    def memory(self) -> Bytes:
        """Resident memory; 0 when the process is gone."""
        import psutil

        try:
            if self._usage is None:
                self._usage = psutil.Process(self.pid)
            return Bytes(int(self._usage.memory_info().rss))
        except (psutil.Error, OSError):  # gone, or this process has no file descriptor left to look with
            return Bytes(0)

    def stop(self) -> None:
        """Ask it to answer what waits and to end: closing its input is the request."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def kill(self, reason: str) -> None:
        """End it now; no effect on one that has ended."""
        if self.ended is None and self._process.returncode is None:
            self.kill_reason = reason
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
