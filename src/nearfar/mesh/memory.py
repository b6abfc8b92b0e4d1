"""A mesh inside one process: a public seam for tests and simulation.

Every participant of one `Ether` sees every other, until `cut`. Callbacks run on the Ether's one thread, in order, as on
a real mesh; `Impaired` adds delay and loss.

>>> ether = Ether()
>>> a, b = MemoryMesh(ether), MemoryMesh(ether)
>>> ether.close()
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence

from nearfar.mesh.base import Buffer, Handle, Mesh, Message, OnCall, OnChange, OnMessage
from nearfar.mesh.exchange import Exchange
from nearfar.mesh.patterns import matches


class Ether:
    """What the participants share. All effects happen on its thread, one after the other."""

    def __init__(self) -> None:
        self.members: list[MemoryMesh] = []
        self._cut: set[str] = set()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ether", daemon=True)
        self._thread.start()

    def post(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def connected(self, a: MemoryMesh, b: MemoryMesh) -> bool:
        return a is b or not ({a.identity, b.identity} & self._cut)

    def cut(self, mesh: MemoryMesh) -> None:
        """Silently cut one participant off; the others see it gone, as after a lease has run out."""
        self.post(lambda: self._set_cut(mesh, True))

    def heal(self, mesh: MemoryMesh) -> None:
        self.post(lambda: self._set_cut(mesh, False))

    def _set_cut(self, mesh: MemoryMesh, cut: bool) -> None:
        before = {m: {o for o in self.members if self.connected(m, o)} for m in self.members}
        (self._cut.add if cut else self._cut.discard)(mesh.identity)
        for member, seen in before.items():
            for other in self.members:
                now = self.connected(member, other)
                if now != (other in seen):
                    for key in other.announced():
                        member.notice(key, now, other.identity)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def close(self) -> None:
        """Stop the thread. Participants must be closed before."""
        self._work.put(None)
        self._thread.join()


class _Declared:
    def __init__(self, withdraw: Callable[[], None]) -> None:
        self._withdraw: Callable[[], None] | None = withdraw

    def close(self) -> None:
        withdraw, self._withdraw = self._withdraw, None
        if withdraw is not None:
            withdraw()


class _MemoryCall:
    patient = False  # one thread serves the whole Ether

    def __init__(self, caller: MemoryMesh, server: MemoryMesh, number: int, head: bytes, body: Buffer) -> None:
        self.head = head
        self.body = body
        self.sender = caller.identity
        self.received = time.monotonic()
        self.cancelled = False
        self._caller = caller
        self._server = server
        self._number = number

    def reply(self, head: bytes, body: Sequence[Buffer] = (), *, last: bool = True) -> None:
        joined = b"".join(body)
        if last:
            self._server.calls.pop((self.sender, self._number), None)
        self._server.ether.post(lambda: self._deliver(head, joined, last))

    def _deliver(self, head: bytes, body: bytes, last: bool) -> None:
        if not self._server.closed and self._server.ether.connected(self._server, self._caller):
            self._caller.exchange.deliver(self._number, last, head, body)


class MemoryMesh(Mesh):
    """One participant of an `Ether`."""

    def __init__(self, ether: Ether) -> None:
        self.identity = uuid.uuid4().hex[:16]
        self.ether = ether
        self.closed = False
        self.calls: dict[tuple[str, int], _MemoryCall] = {}
        self.exchange = Exchange(self._send, self._cancel, self._holders_of)
        self._subscriptions: list[tuple[str, OnMessage]] = []
        self._watches: list[tuple[str, OnChange]] = []
        self._alive: list[str] = []
        self._servers: dict[str, OnCall] = {}
        ether.members.append(self)

    def announced(self) -> tuple[str, ...]:
        return tuple(self._alive)

    def notice(self, key: str, alive: bool, holder: str) -> None:
        """Called on the Ether's thread when somebody's token has come or gone; a key is gone with its last holder."""
        if self._holders(key) == (1 if alive else 0):
            for pattern, on_change in tuple(self._watches):
                if matches(pattern, key):
                    on_change(key, alive)
        if not alive:
            self.exchange.lost(key, holder)

    def _holders(self, key: str) -> int:
        return sum(member.announced().count(key) for member in self.ether.members if self.ether.connected(self, member))

    def publish(self, key: str, payload: bytes) -> None:
        self.ether.post(lambda: self._publish(key, payload))

    def _publish(self, key: str, payload: bytes) -> None:
        for member in tuple(self.ether.members):
            if self.ether.connected(self, member):
                for pattern, on_message in tuple(member._subscriptions):
                    if matches(pattern, key):
                        on_message(key, payload)

    def subscribe(self, pattern: str, on_message: OnMessage) -> Handle:
        entry = (pattern, on_message)
        self._subscriptions.append(entry)
        return _Declared(lambda: self._subscriptions.remove(entry))

    def announce(self, key: str) -> Handle:
        self.ether.post(lambda: self._token(key, True))
        return _Declared(lambda: self.ether.post(lambda: self._token(key, False)))

    def _token(self, key: str, alive: bool) -> None:
        if alive and not self.closed:
            self._alive.append(key)
        elif key in self._alive:
            self._alive.remove(key)
        else:
            return
        for member in tuple(self.ether.members):
            if self.ether.connected(self, member):
                member.notice(key, alive, self.identity)

    def watch(self, pattern: str, on_change: OnChange) -> Handle:
        entry = (pattern, on_change)
        self.ether.post(lambda: self._watch(entry))
        return _Declared(lambda: self.ether.post(lambda: self._watches.remove(entry)))

    def _watch(self, entry: tuple[str, OnChange]) -> None:
        self._watches.append(entry)
        connected = (member for member in self.ether.members if self.ether.connected(self, member))
        for key in dict.fromkeys(key for member in connected for key in member.announced()):
            if matches(entry[0], key):
                entry[1](key, True)

    def serve(self, key: str, on_call: OnCall) -> Handle:
        self._servers[key] = on_call
        token = self.announce(key)

        def withdraw() -> None:
            token.close()
            self._servers.pop(key, None)

        return _Declared(withdraw)

    def _holders_of(self, key: str) -> frozenset[str]:
        return frozenset(
            member.identity
            for member in tuple(self.ether.members)
            if key in member.announced() and self.ether.connected(self, member)
        )

    def alive(self, key: str) -> bool:
        return bool(self._holders_of(key))

    def _server_of(self, key: str) -> MemoryMesh | None:
        for member in tuple(self.ether.members):
            if key in member._servers and self.ether.connected(self, member):
                return member
        return None

    def _send(self, key: str, number: int, head: bytes, body: Sequence[Buffer]) -> None:
        joined = b"".join(body)

        def arrive() -> None:
            server = self._server_of(key)
            if server is not None:
                call = _MemoryCall(self, server, number, head, joined)
                server.calls[(self.identity, number)] = call
                server._servers[key](call)

        self.ether.post(arrive)

    def _cancel(self, key: str, number: int) -> None:
        def arrive() -> None:
            server = self._server_of(key)
            call = server.calls.pop((self.identity, number), None) if server else None
            if call is not None:
                call.cancelled = True

        self.ether.post(arrive)

    async def request(
        self, key: str, head: bytes, body: Sequence[Buffer], timeout: float, *, private: bool = False
    ) -> Message:
        return await self.exchange.request(key, head, body, timeout)

    def stream(
        self, key: str, head: bytes, body: Sequence[Buffer], timeout: float, *, private: bool = False
    ) -> AsyncGenerator[Message, None]:
        return self.exchange.stream(key, head, body, timeout)

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.exchange.close()
        self.ether.post(self._leave)

    def _leave(self) -> None:
        for key in self.announced():
            self._token(key, False)
        for calls in (member.calls for member in self.ether.members):
            for (sender, number), call in tuple(calls.items()):
                if sender == self.identity:
                    call.cancelled = True
                    calls.pop((sender, number), None)
        with contextlib.suppress(ValueError):
            self.ether.members.remove(self)
