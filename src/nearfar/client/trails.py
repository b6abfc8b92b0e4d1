"""Finds trails: of running streams over the mesh, of ended ones in the home folder's files."""

from __future__ import annotations

import asyncio
import difflib
import time
from pathlib import Path

import msgspec

from nearfar.client import trailfile
from nearfar.client.trail import Ask
from nearfar.errors import MeshError, NearfarError, UnknownStream
from nearfar.mesh.base import Handle, Mesh
from nearfar.node import keys
from nearfar.placement import trail as entries
from nearfar.placement.trail import Page, Status
from nearfar.types.ids import ModelName, StreamId, is_name

PATIENCE = 2.0
"""Seconds to wait for a running stream's answer, before its file is read instead."""
AT_ONCE = 16
"""Running streams that are asked at the same time for a list."""
LISTING = 5.0
"""Seconds after which no more of them are asked."""
BULK = 128 * 1024
"""Bytes of an answer from which on it is read on a thread."""
LISTED = 500
"""Longest list of streams."""


class Trails:
    """Looks on the mesh, when there is one, and in the home folder, when there is one. Used on one event loop."""

    def __init__(self, mesh: Mesh | None, home: Path | None) -> None:
        self._mesh, self._home = mesh, home
        self._alive: set[StreamId] = set()
        self._handle: Handle | None = mesh.watch(keys.TRAILS, self._on_change) if mesh is not None else None

    def _on_change(self, key: str, alive: bool) -> None:
        """On a thread of the mesh; one operation on a set needs no lock."""
        stream = StreamId(key.partition("/")[2])
        if is_name(stream):
            (self._alive.add if alive else self._alive.discard)(stream)

    def running(self) -> list[StreamId]:
        """Streams of the whole fleet that run now."""
        return sorted(self._alive.copy())

    async def page(self, stream: str, since: int | None = None, limit: int = 100) -> Page:
        """A part of a stream's trail. Raises `UnknownStream` with the nearest names, `MeshError` when a running one of
        another home does not answer."""
        trouble: NearfarError | None = None
        if is_name(stream):
            known = StreamId(stream)
            if known in self._alive:
                try:
                    return await self._asked(known, since, limit)
                except NearfarError as error:  # it ended this moment, or hangs: its file may still tell
                    trouble = error
            if self._home is not None:
                found = await asyncio.to_thread(_from_file, self._home, known, since, limit)
                if found is not None:
                    return found
        if trouble is not None:
            raise trouble
        raise await self._unknown(stream)

    async def list(self) -> list[Status]:
        """Streams that run in the fleet, then those that left a trail in the home folder, newest first."""
        gate = asyncio.Semaphore(AT_ONCE)
        end = time.monotonic() + LISTING

        async def ask(stream: StreamId) -> Status:
            async with gate:
                try:
                    if time.monotonic() < end:
                        return (await self._asked(stream, None, 1)).stream
                    why = "was not asked: others took too long"
                except NearfarError as error:
                    why = f"does not answer: {error.code}"
            return Status(stream, ModelName(""), "", True, source=why)

        running = await asyncio.gather(*map(ask, self.running()[:LISTED]))
        known = {status.stream for status in running}
        kept = await asyncio.to_thread(_glances, self._home, known) if self._home is not None else []
        return sorted([*running, *kept], key=lambda s: (s.running, s.last or s.since), reverse=True)[:LISTED]

    async def _asked(self, stream: StreamId, since: int | None, limit: int) -> Page:
        assert self._mesh is not None
        head = msgspec.json.encode(Ask(since, limit))
        message = await self._mesh.request(keys.trail_key(stream), head, [b""], PATIENCE)
        try:
            if len(message.body) < BULK:
                return _pages.decode(message.body)
            return await asyncio.to_thread(_pages.decode, message.body)  # milliseconds in which a gateway has to answer
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise MeshError(
                f"The trail of {stream} cannot be read: {error}.", "Does its process run another version?"
            ) from None

    async def _unknown(self, stream: str) -> UnknownStream:
        names: list[str] = list(self.running())
        if self._home is not None:
            found = await asyncio.to_thread(trailfile.recent, self._home)
            names += [name for name, _ in sorted(found, key=lambda item: item[1], reverse=True)]
        near = difflib.get_close_matches(stream[:64], list(dict.fromkeys(names))[:LISTED], n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        return UnknownStream(
            f"No stream {stream[:64]!r} runs in the fleet or left a trail here.",
            f"{hint}See them all with: nearfar streams.",
        )

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()


_pages = msgspec.json.Decoder(Page)


def _from_file(home: Path, stream: StreamId, since: int | None, limit: int) -> Page | None:
    try:
        known = trailfile.read(home, stream, -1)
    except OSError as error:
        raise NearfarError(
            f"The trail of {stream} cannot be read: {error.strerror}.", f"Look at {home / trailfile.FOLDER / stream}."
        ) from None
    running = trailfile.is_running(trailfile.folder_of(home, stream) / trailfile.FILE)
    status = trailfile.status_of(stream, known, running=running)
    return entries.page(status, known, since, limit) if status is not None else None


def _glances(home: Path, known: set[StreamId]) -> list[Status]:
    found = sorted(trailfile.recent(home), key=lambda item: item[1], reverse=True)
    glanced = (trailfile.glance(home, stream) for stream, _ in found[:LISTED] if stream not in known)
    return [status for status in glanced if status is not None]
