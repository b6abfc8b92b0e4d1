"""The client's side of requests, the same for every mesh: who waits for which reply, until when.

A transport calls `deliver` and `lost` from any thread; what waits lives on one event loop and is woken once per burst.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from nearfar.errors import DeadlineExceeded, MeshError, TooLarge, Unreachable
from nearfar.mesh.base import MAX_MESSAGE, Buffer, Message

Send = Callable[[str, int, bytes, Sequence[Buffer]], None]
"""(key, correlation, head, body): hand a request to the transport; any thread; must not wait for the peer."""
Cancel = Callable[[str, int], None]

Near = Callable[[str, int, bytes, Sequence[Buffer]], bool]
"""As `Send`, on the event loop: carry the request a shorter way; False when there is none."""

BULK = 16 * 1024
"""From this size on a send may wait for a peer that does not read, so it is done off the event loop."""
SENDERS = 4
"""Threads that send bulk; one stalled peer must not keep the others waiting."""


def late(key: str, timeout: float) -> DeadlineExceeded:
    """Nobody at the key has answered in so many seconds."""
    return DeadlineExceeded(
        f"{key} did not answer in {timeout * 1000:.0f} ms.",
        "Allow more time.",
    )


class _Waiting:
    __slots__ = ("future", "holders", "items", "key", "timer", "wake")

    def __init__(self, key: str, holders: frozenset[str], future: asyncio.Future[Message] | None) -> None:
        self.key = key
        self.holders = holders
        self.future = future
        """Of the one answer; None when there may be several, which are then `items`."""
        self.items: deque[Message | MeshError | DeadlineExceeded] = deque()
        self.wake: asyncio.Future[None] | None = None
        """Who waits for the next item."""
        self.timer: asyncio.TimerHandle | None = None

    def put(self, message: Message) -> None:
        if self.future is None:
            self._add(message)
        elif not self.future.done():
            self.future.set_result(message)

    def fail(self, error: MeshError | DeadlineExceeded) -> None:
        if self.future is None:
            self._add(error)
        elif not self.future.done():
            self.future.set_exception(error)

    def _add(self, item: Message | MeshError | DeadlineExceeded) -> None:
        self.items.append(item)
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)


class Exchange:
    """Pending requests of one mesh. Used from one event loop at a time."""

    def __init__(
        self, send: Send, cancel: Cancel, holders: Callable[[str], frozenset[str]], near: Near | None = None
    ) -> None:
        """`holders` tells who is alive at a key: none, one, or for a while a server and its successor."""
        self._send = send
        self._near = near
        self._cancel = cancel
        self._holders = holders
        self._senders: ThreadPoolExecutor | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._by_key: dict[str, set[int]] = {}
        self._numbers = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: deque[tuple[int, bool, bytes, Buffer]] = deque()
        self._lost: deque[tuple[str, str]] = deque()
        self._woken = False
        self._closed = False

    # -- called by the transport, from any thread -------------------------------------------------------------

    def deliver(self, number: int, last: bool, head: bytes, body: Buffer) -> None:
        """A reply has come."""
        self._arrived.append((number, last, head, body))
        self._wake()

    def lost(self, key: str, holder: str = "") -> None:
        """A server at this key is gone (any, when none is named): what it was asked fails now, not at its deadline.

        What was sent after it had gone, to a successor, is not touched.
        """
        if self._loop is not None:  # else nothing was ever asked from here
            self._lost.append((key, holder))
            self._wake()

    def _wake(self) -> None:
        # One wake-up per burst: `_drain` takes everything that has come until then. Setting the flag before the call
        # and clearing it before the drain means that a reply can wake twice, but never not at all.
        if self._woken or self._loop is None:
            return
        self._woken = True
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self._woken = False

    def deliver_now(self, number: int, last: bool, head: bytes, body: Buffer) -> None:
        """A reply has come, and we are on the event loop already."""
        waiting = self._waiting.get(number)
        if waiting is not None:  # else it was answered after its deadline, or cancelled
            waiting.put(Message(head, body))
            if last:
                self._forget(number)

    # -- on the event loop --------------------------------------------------------------------------------------

    def _drain(self) -> None:
        self._woken = False
        while self._arrived:
            self.deliver_now(*self._arrived.popleft())
        while self._lost:
            key, holder = self._lost.popleft()
            asked = self._by_key.get(key, ())
            numbers = [n for n in asked if not holder or holder in self._waiting[n].holders]
            if numbers and self._loop is not None:
                # What it said last may lie unread in a door's socket: read that first, which takes a round of the loop.
                self._loop.call_soon(self._loop.call_soon, self._vanished, key, numbers)

    def _vanished(self, key: str, numbers: Sequence[int]) -> None:
        for number in numbers:
            error = Unreachable(f"{key} vanished before it answered.", "Ask again; another may serve.")
            error.vanished = True
            self._fail(number, error)

    def _forget(self, number: int) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            return
        if waiting.timer is not None:
            waiting.timer.cancel()
        numbers = self._by_key.get(waiting.key)
        if numbers is not None:
            numbers.discard(number)
            if not numbers:
                del self._by_key[waiting.key]

    def _fail(self, number: int, error: MeshError | DeadlineExceeded) -> None:
        waiting = self._waiting.get(number)
        if waiting is not None:
            waiting.fail(error)
            self._forget(number)

    def _expire(self, number: int, timeout: float) -> None:
        waiting = self._waiting.get(number)
        if waiting is not None:
            self._cancel(waiting.key, number)
            self._fail(number, late(waiting.key, timeout))

    def _begin(self, key: str, body: Sequence[Buffer], timeout: float, *, streamed: bool) -> tuple[int, _Waiting]:
        if self._closed:
            raise MeshError("This mesh is closed.", "Open a new one.")
        size = sum(map(len, body))
        if size > MAX_MESSAGE:
            raise TooLarge(f"A message of {size} bytes is over the limit of {MAX_MESSAGE}.", "Send less at once.")
        if timeout <= 0:
            raise DeadlineExceeded("The deadline passed before the request was sent.")
        holders = self._holders(key)
        if not holders:
            raise Unreachable(f"Nobody serves {key}.", "See 'nearfar services' for what runs where.")
        loop = asyncio.get_running_loop()
        self._loop = loop
        number = next(self._numbers)
        waiting = _Waiting(key, holders, None if streamed else loop.create_future())
        waiting.timer = loop.call_later(timeout, self._expire, number, timeout)
        self._waiting[number] = waiting
        self._by_key.setdefault(key, set()).add(number)
        return number, waiting

    def _dispatch(self, key: str, number: int, head: bytes, body: Sequence[Buffer]) -> None:
        if self._near is not None and self._near(key, number, head, body):
            return
        if sum(map(len, body)) < BULK:
            self._send(key, number, head, body)
            return
        if self._senders is None:
            self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="bulk")
        sending = asyncio.get_running_loop().run_in_executor(self._senders, self._send, key, number, head, body)

        def sent(done: asyncio.Future[None]) -> None:
            error = None if done.cancelled() else done.exception()
            if isinstance(error, MeshError):
                self._fail(number, error)
            elif error is not None:
                self._fail(number, MeshError(f"Sending to {key} failed: {error}"))

        sending.add_done_callback(sent)  # not awaited: the deadline bounds the request, also while it is being sent

    async def request(self, key: str, head: bytes, body: Sequence[Buffer], timeout: float) -> Message:
        number, waiting = self._begin(key, body, timeout, streamed=False)
        assert waiting.future is not None
        try:
            self._dispatch(key, number, head, body)
            return await waiting.future
        except BaseException as error:
            if number in self._waiting:  # the caller left, or sending failed: tell the server to drop the work
                self._forget(number)
                self._cancel(key, number)
            if waiting.future.done() and not waiting.future.cancelled() and waiting.future.exception() is not error:
                pass  # retrieved above, so that asyncio does not report it as never looked at
            raise

    async def stream(
        self, key: str, head: bytes, body: Sequence[Buffer], timeout: float
    ) -> AsyncGenerator[Message, None]:
        number, waiting = self._begin(key, body, timeout, streamed=True)
        items, loop = waiting.items, asyncio.get_running_loop()
        try:
            self._dispatch(key, number, head, body)
            while True:
                while not items:
                    waiting.wake = loop.create_future()
                    await waiting.wake
                item = items.popleft()
                if not isinstance(item, Message):
                    raise item
                yield item
                if not items and number not in self._waiting:
                    return
        finally:
            if number in self._waiting:
                self._forget(number)
                self._cancel(key, number)

    def close(self) -> None:
        """Fail everything that waits. On the event loop, or when it is gone."""
        self._closed = True
        for number in tuple(self._waiting):
            self._fail(number, Unreachable("The mesh was closed before the answer came."))
        if self._senders is not None:
            self._senders.shutdown(wait=False, cancel_futures=True)
