"""The seam: publish and subscribe, liveliness, and requests with a deadline, cancellation and streamed replies.

A message is a small `head` and a `body` of zero or more buffers; what they mean is the caller's business.
Callbacks run on a thread of the mesh and must return at once: hand the work to a queue or an event loop.
Keys are `/`-separated names; in a pattern, `*` stands for one part and `**` for any number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import NamedTuple, Protocol

Buffer = bytes | memoryview

MAX_MESSAGE = 512 * 1024 * 1024
"""Larger messages are refused with `TooLarge`; zenoh drops them silently from 1000 MB."""


class Message(NamedTuple):
    """One reply: `body` is all its buffers, one after the other (the head says where each one ends)."""

    head: bytes
    body: Buffer


class Call(Protocol):
    """A request as its server sees it. `reply` may be called from any thread, more than once; the last one ends it."""

    head: bytes
    body: Buffer
    sender: str
    received: float
    """`time.monotonic()` of the arrival."""
    patient: bool
    """Whether the thread that brings this call may work on it for a moment itself: others do not wait for it."""

    @property
    def cancelled(self) -> bool:
        """True once the caller went away: drop the work."""
        ...

    def reply(self, head: bytes, body: Sequence[Buffer] = (), *, last: bool = True) -> None: ...


class Handle(Protocol):
    """Something that was declared; `close` withdraws it and may be called twice."""

    def close(self) -> None: ...


OnMessage = Callable[[str, bytes], None]
OnChange = Callable[[str, bool], None]
OnCall = Callable[[Call], None]


class Mesh(ABC):
    """One participant. `identity` differs for every open mesh, also on one node."""

    identity: str

    @abstractmethod
    def publish(self, key: str, payload: bytes) -> None:
        """Send to whoever subscribed now; soft state, may be lost, never blocks for long."""

    @abstractmethod
    def subscribe(self, pattern: str, on_message: OnMessage) -> Handle: ...

    @abstractmethod
    def announce(self, key: str) -> Handle:
        """Be alive at a key until the handle or the mesh is closed, the process dies or the link is cut."""

    @abstractmethod
    def watch(self, pattern: str, on_change: OnChange) -> Handle:
        """Who is alive: called for each that is, then at every change with (key, alive)."""

    @abstractmethod
    def serve(self, key: str, on_call: OnCall) -> Handle:
        """Answer requests to a key, and be alive at that key."""

    @abstractmethod
    async def request(
        self, key: str, head: bytes, body: Sequence[Buffer], timeout: float, *, private: bool = False
    ) -> Message:
        """Ask one server and wait for its one answer, `timeout` seconds at most.

        A `private` request takes no way that leaves this machine; when there is none it raises `Unreachable`.

        Raises `Unreachable` at once when nobody serves the key or when its server dies before it answered,
        `DeadlineExceeded` when the time is over, `TooLarge` beyond `MAX_MESSAGE`. Cancelling the task tells the server.
        """

    @abstractmethod
    def stream(
        self, key: str, head: bytes, body: Sequence[Buffer], timeout: float, *, private: bool = False
    ) -> AsyncGenerator[Message, None]:
        """As `request`, for a server that replies more than once, and `private` as there. `timeout` bounds it all.

        A server that dies in the middle raises `Unreachable` from the iterator: a cut stream never looks complete.
        """

    @abstractmethod
    def alive(self, key: str) -> bool:
        """Whether a server is known to be alive at this very key."""

    @abstractmethod
    async def close(self) -> None:
        """Withdraw everything. Pending requests fail with `Unreachable`."""
