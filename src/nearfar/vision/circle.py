"""Who has to do with one stream, as the mesh knows it: its hosts with their epochs, standbys, and who is taking it.

Presence is liveliness, so it ends with the process that announced it, and the epoch stands in the key: nobody need be
asked to learn who is the newer one of two.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import msgspec

from nearfar.errors import MeshError, NearfarError
from nearfar.mesh.base import Buffer, Mesh
from nearfar.types.wire import Failure
from nearfar.vision.handover import Ask, Op, Told, everybody

_ask = msgspec.msgpack.Decoder(Ask)
_told = msgspec.msgpack.Decoder(Told)
_encode = msgspec.msgpack.Encoder().encode


class Circle:
    """Made on an event loop; everything in it changes there."""

    def __init__(self, mesh: Mesh, stream: str) -> None:
        self.mesh, self.stream = mesh, stream
        self.hosts: dict[str, int] = {}
        """Host -> epoch."""
        self.standbys: set[str] = set()
        self.takers: set[str] = set()
        self.listeners: list[Callable[[], None]] = []
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._handle = mesh.watch(everybody(stream), self._on_change)

    def _on_change(self, key: str, alive: bool) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
            self._loop.call_soon_threadsafe(self._change, key, alive)

    def _change(self, key: str, alive: bool) -> None:
        role, *rest = key.split("/")[2:]
        if role == "host" and len(rest) == 2 and rest[0].isdigit():
            if alive:
                self.hosts[rest[1]] = int(rest[0])
            elif self.hosts.get(rest[1]) == int(rest[0]):
                del self.hosts[rest[1]]
        elif len(rest) == 1 and role in ("standby", "taker"):
            group = self.standbys if role == "standby" else self.takers
            (group.add if alive else group.discard)(rest[0])
        self._changed.set()
        for listener in tuple(self.listeners):
            listener()

    def newest(self) -> tuple[str, int] | None:
        """The host with the highest epoch, and that epoch."""
        return max(self.hosts.items(), key=lambda item: (item[1], item[0]), default=None)

    async def changes(self, within: float | None = None) -> bool:
        """Wait for the next change, at most so many seconds; False when there was none."""
        self._changed.clear()
        try:
            async with asyncio.timeout(within):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def until(self, condition: Callable[[], object], within: float) -> bool:
        """Wait until the condition on this circle holds; False when it did not within so many seconds."""
        end = time.monotonic() + within
        while not condition():
            if not await self.changes(max(0.0, end - time.monotonic())) and time.monotonic() >= end:
                return bool(condition())
        return True

    def close(self) -> None:
        self._handle.close()


async def ask(mesh: Mesh, key: str, what: Ask, timeout: float) -> tuple[Told, Buffer]:
    """The answer and its body. Raises what the far side refused with, and as `Mesh.request` does."""
    message = await mesh.request(key, _encode(what), [b""], timeout)
    try:
        told = _told.decode(message.head)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MeshError(f"{key} answered what cannot be read: {error}.", "Does it run another version?") from None
    if told.failure is not None:
        raise told.failure.error()
    return told, message.body


def read_ask(head: bytes) -> Ask | NearfarError:
    """What a request says, or why it cannot be understood."""
    try:
        found = _ask.decode(head)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return MeshError(f"This is no request to a stream: {error}.", "Use the same version of nearfar on both nodes.")
    return found


def tell(told: Told) -> bytes:
    return _encode(told)


def refuse(error: NearfarError) -> bytes:
    return _encode(Told(Failure.of(error)))


def hello(host: str) -> Ask:
    return Ask(Op.HELLO, host)
