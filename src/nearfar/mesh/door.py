"""The short way to a server on the same machine: a Unix socket beside the mesh.

Between processes of one host a request needs no network engine: measured on two cores, a 1 KB round trip through a
door takes about a third of the time that it takes over a loopback Zenoh session. The mesh still says who is alive; a
door is only another way to carry a call to whom the mesh names, and whoever has none is asked over the mesh.

Sockets are abstract (Linux): they leave nothing behind, and each network namespace has its own. Both ends check that
the other belongs to the same user. A frame is `_FRAME`, then the head, then the body.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence

from nearfar.errors import Overloaded
from nearfar.mesh.base import MAX_MESSAGE, Buffer, OnCall

SUPPORTED = sys.platform == "linux"
_FRAME = struct.Struct("<BxxxIQQ")  # kind, length of the head, length of the body, correlation
_CALL, _CANCEL, _MORE, _LAST = range(4)
_MAX_HEAD = 1 << 20
_ROOM = 1 << 17
_SMALL = 4096
QUIET = 0.001
"""Seconds without a request after which the next one is sent at once: there is nothing to send it together with."""
MOST_UNREAD = 128 << 20
"""Bytes that may wait for a server that has stopped reading; more would only be work for a deadline that has passed."""
_STALLED = struct.pack("ll", 1, 0)
"""Seconds and microseconds (struct timeval) that a reply may wait for its caller to read; Zenoh waits as long."""
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred, unix(7)

Deliver = Callable[[int, bool, bytes, Buffer], None]


def address(fleet: str, key: str) -> str:
    """The abstract name of a key's door; hashed, as a name may have 107 bytes at most."""
    return "\0nearfar-" + hashlib.sha256(f"{fleet}\0{key}".encode()).hexdigest()[:40]


def _same_user(connection: socket.socket) -> bool:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid in (os.geteuid(), 0)


class _NotOurs(Exception):
    """What came is no frame of this protocol."""


class _Frames:
    """Cuts a stream of bytes into frames. Small ones come many to a read; a large one is read into its own memory."""

    __slots__ = ("_at", "_end", "_have", "_large", "_memory", "_take", "_view")

    def __init__(self, take: Callable[[int, int, bytes, Buffer], None]) -> None:
        """`take` gets (kind, correlation, head, body) of every frame."""
        self._take = take
        self._memory = bytearray(_ROOM)
        self._view = memoryview(self._memory)
        self._at = self._end = 0  # what lies between was read and not yet cut
        self._large: tuple[int, int, int, memoryview] | None = None
        self._have = 0

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._large is not None:
            return self._large[3][self._have :]
        return self._view[self._end :]

    def filled(self, count: int) -> None:
        """So many bytes were put into `room()`. Raises `_NotOurs`."""
        if self._large is not None:
            self._have += count
            kind, number, head_size, memory = self._large
            if self._have == len(memory):
                self._large = None
                self._take(kind, number, bytes(memory[:head_size]), memory[head_size:])
            return
        self._end += count
        while self._end - self._at >= _FRAME.size:
            kind, head_size, body_size, number = _FRAME.unpack_from(self._memory, self._at)
            if kind > _LAST or head_size > _MAX_HEAD or body_size > MAX_MESSAGE:
                raise _NotOurs
            start, size = self._at + _FRAME.size, head_size + body_size
            if start + size > _ROOM:  # would not fit even at the front: gets memory of its own
                self._begin_large(kind, number, head_size, size, start)
                return
            if start + size > self._end:
                break
            self._at = start + size
            middle = start + head_size
            view = self._view
            self._take(kind, number, bytes(view[start:middle]), bytes(view[middle : self._at]))
        if self._at == self._end:
            self._at = self._end = 0
        elif self._at > _ROOM // 2:  # keep room behind what is left
            rest = self._memory[self._at : self._end]
            self._memory[: len(rest)] = rest
            self._at, self._end = 0, len(rest)

    def _begin_large(self, kind: int, number: int, head_size: int, size: int, start: int) -> None:
        memory = memoryview(bytearray(size))
        have = self._end - start
        if have >= size:  # it lies whole behind smaller ones
            memory[:] = self._view[start : start + size]
            self._at = start + size
            rest = self._memory[self._at : self._end]
            self._memory[: len(rest)] = rest
            self._at, self._end = 0, len(rest)
            self._take(kind, number, bytes(memory[:head_size]), memory[head_size:])
            self.filled(0)
            return
        memory[:have] = self._view[start : self._end]
        self._at = self._end = 0
        self._large, self._have = (kind, number, head_size, memory), have


# -- the server's side: a thread per caller -----------------------------------------------------------------------


class _DoorCall:
    __slots__ = ("_caller", "_number", "body", "cancelled", "head", "received", "sender")

    patient = True  # the thread serves this one caller

    def __init__(self, caller: _Caller, number: int, head: bytes, body: Buffer) -> None:
        self._caller = caller
        self._number = number
        self.sender = caller.name
        self.head = head
        self.body = body
        self.received = time.monotonic()
        self.cancelled = False

    def reply(self, head: bytes, body: Sequence[Buffer] = (), *, last: bool = True) -> None:
        self._caller.reply(self._number, head, body, last)


class _Caller:
    """One connection to the door, read by a thread of its own; replies are written by whoever has one."""

    def __init__(self, connection: socket.socket, on_call: OnCall, gone: Callable[[_Caller], None]) -> None:
        self.name = f"door-{connection.fileno()}"
        self._socket = connection
        self._on_call = on_call
        self._gone = gone
        self._calls: dict[int, _DoorCall] = {}
        self._writing = threading.Lock()
        self._corked = False
        """Set while this thread works through what one read brought: its small replies then leave together."""
        self._out: list[Buffer] = []
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        # One caller that does not read must not hold up the worker that answers all the others.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _STALLED)

    def start(self) -> None:
        """Begin to read; once the door knows it, as a caller may leave at once."""
        self._thread.start()

    def _run(self) -> None:
        frames = _Frames(self._take)
        try:
            while count := self._socket.recv_into(frames.room()):
                self._corked = True
                frames.filled(count)
                self._corked = False
                self._flush()
        except (OSError, _NotOurs):
            pass
        finally:
            self.close()
            for call in tuple(self._calls.values()):
                call.cancelled = True
            self._calls.clear()
            self._gone(self)

    def _take(self, kind: int, number: int, head: bytes, body: Buffer) -> None:
        if kind == _CANCEL:
            call = self._calls.pop(number, None)
            if call is not None:
                call.cancelled = True
            return
        call = _DoorCall(self, number, head, body)
        self._calls[number] = call
        self._on_call(call)

    def reply(self, number: int, head: bytes, body: Sequence[Buffer], last: bool) -> None:
        if last:
            self._calls.pop(number, None)
        size = sum(map(len, body))
        frame = _FRAME.pack(_LAST if last else _MORE, len(head), size, number)
        if self._corked and size < _SMALL and threading.current_thread() is self._thread:
            self._out += (frame, head, *body)
            if len(self._out) > _SMALL // 64:
                self._flush()
            return
        if size < _SMALL:
            self._write(b"".join((frame, head, *body)))
        else:
            self._write(frame + head, *body)

    def _flush(self) -> None:
        """Send the replies that were held back; on the reading thread."""
        if self._out:
            out, self._out = self._out, []
            self._write(b"".join(out))

    def _write(self, *parts: Buffer) -> None:
        with self._writing:
            try:
                for part in parts:
                    self._socket.sendall(part)
            except OSError:  # the caller is gone, or does not read: nobody waits for this, nor for the rest of it
                self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Door:
    """Answers callers of one key on this machine."""

    def __init__(self, fleet: str, key: str, on_call: OnCall) -> None:
        """Raises `OSError` when the name is taken: another process serves this key, and is the one to be asked."""
        self._on_call = on_call
        self._callers: set[_Caller] = set()
        self._closed = False
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listening.bind(address(fleet, key))
            self._listening.listen(64)
        except OSError:
            self._listening.close()
            raise
        threading.Thread(target=self._accept, name="door", daemon=True).start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                # No descriptor left, say: callers wait in the queue, and a door that is listened at but never opened
                # would leave them there for good.
                if not self._closed:
                    time.sleep(0.05)
                continue
            try:
                if self._closed or not _same_user(connection):
                    connection.close()
                    continue
                caller = _Caller(connection, self._on_call, self._callers.discard)
                self._callers.add(caller)
            except OSError:  # it left at once
                connection.close()
                continue
            try:
                caller.start()
            except RuntimeError:  # no thread can be had for it: it asks over the mesh
                caller.close()
                self._callers.discard(caller)

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for caller in tuple(self._callers):
            caller.close()


# -- the caller's side: on its event loop ----------------------------------------------------------------------------


class Way(asyncio.BufferedProtocol):
    """A connection to somebody's door. When it is busy, what is sent in one round of the event loop leaves together."""

    def __init__(self, deliver: Deliver, lost: Callable[[], None]) -> None:
        self._deliver = deliver
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._frames = _Frames(self._take)
        self._out: list[Buffer] = []
        self._flushed = 0.0

    @property
    def open(self) -> bool:
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's transport writes

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._frames.room()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._frames.filled(nbytes)
        except _NotOurs:
            self.close()

    def _take(self, kind: int, number: int, head: bytes, body: Buffer) -> None:
        self._deliver(number, kind == _LAST, head, body)

    def send(self, number: int, head: bytes, body: Sequence[Buffer]) -> None:
        """Hand over a request; on the event loop, while `open`. Raises `Overloaded` when the server does not read."""
        if self._transport is not None and self._transport.get_write_buffer_size() > MOST_UNREAD:
            raise Overloaded("The service does not read what it is sent.", "Try again later.", 0.5)
        self._queue(_FRAME.pack(_CALL, len(head), sum(map(len, body)), number), head, *body)

    def cancel(self, number: int) -> None:
        self._queue(_FRAME.pack(_CANCEL, 0, 0, number))

    def _queue(self, *parts: Buffer) -> None:
        if not self._out:
            if self._loop.time() - self._flushed > QUIET:
                self._out += parts
                self._flush()
                return
            self._loop.call_soon(self._flush)
        self._out += parts

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._flushed = self._loop.time()
        if self._transport is None:
            return
        if sum(map(len, out)) < 65536:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def find(fleet: str, key: str, deliver: Deliver, lost: Callable[[], None]) -> Way | None:
    """A way to the key's server, or None when its door is not on this machine."""
    if not SUPPORTED:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(connection, address(fleet, key))
        if not _same_user(connection):
            raise PermissionError
        _, way = await loop.create_unix_connection(lambda: Way(deliver, lost), sock=connection)
    except OSError:
        connection.close()
        return None
    except asyncio.CancelledError:
        connection.close()
        raise
    return way
