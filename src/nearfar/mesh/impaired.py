"""A mesh seen through a bad link: delay, jitter, loss, a bandwidth limit and a cut, around any other mesh.

Everything that leaves and everything that arrives passes the link once, so a round trip pays the delay twice. Order is
kept, as on a real connection. A lost message is one that is sent again after `RESEND`, as TCP does it; only what is
published (telemetry) is really lost. Liveliness is not delayed.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec

from nearfar.errors import NearfarError
from nearfar.mesh.base import Buffer, Call, Handle, Mesh, Message, OnCall, OnChange, OnMessage
from nearfar.mesh.exchange import late

log = logging.getLogger(__name__)

RESEND = 0.2
"""Seconds until TCP sends again (the least retransmission time-out of Linux)."""


class Impairment(msgspec.Struct, frozen=True):
    """One way. `bandwidth` in bytes per second, 0 for no limit; `loss` between 0 and 1."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    bandwidth: float = 0.0
    loss: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.delay_ms or self.jitter_ms or self.bandwidth or self.loss)


class _Lane:
    """One direction: runs what passed the link, in order, when its time has come."""

    def __init__(self, impairment: Impairment, seed: int) -> None:
        self._impairment = impairment
        self._random = random.Random(seed)  # noqa: S311 - a simulated link, not a secret
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._busy_until = 0.0
        self._last = 0.0
        self._changed = threading.Condition()
        self._closed = False
        self.cut = False
        threading.Thread(target=self._run, name="link", daemon=True).start()

    def set(self, impairment: Impairment) -> None:
        with self._changed:
            self._impairment = impairment

    def pass_through(self, size: int, work: Callable[[], None], *, droppable: bool = False) -> None:
        with self._changed:
            link = self._impairment
            lost = link.loss > 0 and self._random.random() < link.loss
            if self.cut or self._closed or (lost and droppable):
                return
            now = time.monotonic()
            self._busy_until = max(now, self._busy_until) + (size / link.bandwidth if link.bandwidth else 0.0)
            delay = max(0.0, self._random.gauss(link.delay_ms, link.jitter_ms)) / 1000 + (RESEND if lost else 0.0)
            self._last = max(self._last, self._busy_until + delay)
            heapq.heappush(self._heap, (self._last, next(self._numbers), work))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._heap or self._heap[0][0] > time.monotonic()):
                    wait = self._heap[0][0] - time.monotonic() if self._heap else None
                    self._changed.wait(wait)
                if self._closed:
                    return
                work = heapq.heappop(self._heap)[2]
            try:
                work()
            except (NearfarError, RuntimeError) as error:  # the other side or its loop is gone; the link is not
                log.debug("a message was lost: %s", error)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()


class _ImpairedCall:
    patient = False  # one thread serves the whole link

    def __init__(self, call: Call, outward: _Lane) -> None:
        self._call = call
        self._outward = outward
        self.head = call.head
        self.body = call.body
        self.sender = call.sender
        self.received = time.monotonic()

    @property
    def cancelled(self) -> bool:
        return self._call.cancelled

    def reply(self, head: bytes, body: Sequence[Buffer] = (), *, last: bool = True) -> None:
        kept = [bytes(part) for part in body]  # the caller may reuse its buffers before the link lets them pass
        size = len(head) + sum(map(len, kept))
        self._outward.pass_through(size, lambda: self._call.reply(head, kept, last=last))


class ImpairedMesh(Mesh):
    """The other participants see this one through the link; use it on one side only."""

    def __init__(self, inner: Mesh, impairment: Impairment, seed: int = 0) -> None:
        self.inner = inner
        self.identity = inner.identity
        self._outward = _Lane(impairment, seed)
        self._inward = _Lane(impairment, seed + 1)

    def set(self, impairment: Impairment) -> None:
        """Change the link while it is in use."""
        self._outward.set(impairment)
        self._inward.set(impairment)

    def cut(self, cut: bool = True) -> None:
        """A silent black hole in both directions; what is on its way still arrives."""
        self._outward.cut = self._inward.cut = cut

    def publish(self, key: str, payload: bytes) -> None:
        self._outward.pass_through(len(payload), lambda: self.inner.publish(key, payload), droppable=True)

    def subscribe(self, pattern: str, on_message: OnMessage) -> Handle:
        def passed(key: str, payload: bytes) -> None:
            self._inward.pass_through(len(payload), lambda: on_message(key, payload), droppable=True)

        return self.inner.subscribe(pattern, passed)

    def announce(self, key: str) -> Handle:
        return self.inner.announce(key)

    def watch(self, pattern: str, on_change: OnChange) -> Handle:
        return self.inner.watch(pattern, on_change)

    def serve(self, key: str, on_call: OnCall) -> Handle:
        def passed(call: Call) -> None:
            wrapped = _ImpairedCall(call, self._outward)

            def arrive() -> None:
                wrapped.received = time.monotonic()
                on_call(wrapped)

            self._inward.pass_through(len(call.head) + len(call.body), arrive)

        return self.inner.serve(key, passed)

    async def _cross(self, lane: _Lane, size: int) -> None:
        loop = asyncio.get_running_loop()
        crossed = asyncio.Event()

        def arrived() -> None:
            loop.call_soon_threadsafe(crossed.set)

        lane.pass_through(size, arrived)
        await crossed.wait()

    async def request(
        self, key: str, head: bytes, body: Sequence[Buffer], timeout: float, *, private: bool = False
    ) -> Message:
        size = len(head) + sum(map(len, body))
        try:
            async with asyncio.timeout(timeout):
                await self._cross(self._outward, size)
                message = await self.inner.request(key, head, body, timeout, private=private)
                await self._cross(self._inward, len(message.head) + len(message.body))
                return message
        except TimeoutError:
            raise late(key, timeout) from None

    async def stream(
        self, key: str, head: bytes, body: Sequence[Buffer], timeout: float, *, private: bool = False
    ) -> AsyncGenerator[Message, None]:
        end = time.monotonic() + timeout
        error = late(key, timeout)
        try:
            async with asyncio.timeout(timeout):
                await self._cross(self._outward, len(head) + sum(map(len, body)))
        except TimeoutError:
            raise error from None
        async for message in self.inner.stream(key, head, body, end - time.monotonic(), private=private):
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + end - time.monotonic()):
                    await self._cross(self._inward, len(message.head) + len(message.body))
            except TimeoutError:
                raise error from None
            yield message

    def alive(self, key: str) -> bool:
        return self.inner.alive(key)

    async def close(self) -> None:
        self._outward.close()
        self._inward.close()
        await self.inner.close()
