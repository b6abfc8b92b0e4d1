"""A process of the lab that is told things on its standard input and says things on its output, line by line."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence

import msgspec

from nearfar.errors import MeshError
from nearfar.lab.gateway import Said

STOP_LIMIT = 5.0
_LONGEST_LINE = 1 << 24


class Process:
    """Runs until `close`. What it says goes to `hear`, on the event loop."""

    def __init__(self, process: asyncio.subprocess.Process, hear: Callable[[Said], None]) -> None:
        self._process = process
        self._hear = hear
        self._errors = b""
        self._reading = [asyncio.create_task(self._read()), asyncio.create_task(self._read_errors())]

    @classmethod
    async def start(
        cls, words: Sequence[str], environment: Mapping[str, str], first: bytes, hear: Callable[[Said], None]
    ) -> Process:
        """Start it and tell it `first`. In a session of its own: the terminal's Ctrl-C is for the lab alone."""
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            limit=_LONGEST_LINE,
            start_new_session=True,
        )
        made = cls(process, hear)
        await made.tell(first)
        return made

    async def tell(self, line: bytes) -> None:
        """Raises `MeshError` when it is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + b"\n")
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError, RuntimeError):  # the last one is uvloop's
            raise self._ended() from None

    def must_run(self) -> None:
        """Raises `MeshError` with its last words when it is gone."""
        if self._process.returncode is not None:
            raise self._ended()

    def _ended(self) -> MeshError:
        lines = self._errors.decode(errors="replace").strip().splitlines()
        return MeshError(f"A gateway of the lab ended: {lines[-1] if lines else 'it said nothing'}")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            with contextlib.suppress(msgspec.DecodeError):  # a library may print there too
                self._hear(msgspec.json.decode(line, type=Said))

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(4096):
            self._errors = (self._errors + data)[-4096:]

    async def close(self) -> None:
        """Let it end, which it does when its input ends; killed when it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_LIMIT):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await asyncio.gather(*self._reading, return_exceptions=True)
