"""Doors between processes of one machine: frames however they are cut, callers that lie, die or are strangers."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import Unreachable
from nearfar.mesh import door
from nearfar.mesh.base import MAX_MESSAGE, Buffer, Call, Message
from nearfar.mesh.door import _CALL, _FRAME, _LAST, _MAX_HEAD, _ROOM, Door, Way, _Frames, _NotOurs, address, find
from nearfar.mesh.exchange import Exchange
from tests.waiting import until, until_now

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="doors are abstract Unix sockets, which Linux has")

KEY = "service/n/m"
Frame = tuple[int, int, bytes, bytes]
sizes = st.integers(0, 300) | st.sampled_from([4095, 65536, _ROOM - 24, _ROOM - 23, _ROOM, _ROOM + 1, 3 * _ROOM])
frames = st.tuples(st.integers(0, 3), st.integers(0, 2**64 - 1), st.binary(max_size=80), sizes)


def packed(kind: int, number: int, head: bytes, body: bytes) -> bytes:
    return _FRAME.pack(kind, len(head), len(body), number) + head + body


def feed(stream: bytes, cuts: list[int], take: Callable[[int, int, bytes, Buffer], None]) -> None:
    """Hand a stream over as a socket does: at most what was asked for, and in pieces of the given sizes."""
    cutter = _Frames(take)
    at = 0
    turn = 0
    while at < len(stream):
        room = cutter.room()
        assert len(room) > 0
        count = min(len(room), cuts[turn % len(cuts)], len(stream) - at)
        room[:count] = stream[at : at + count]
        at += count
        turn += 1
        cutter.filled(count)


@given(st.lists(frames, max_size=12), st.lists(st.sampled_from([1, 7, 24, 100, 4096, 70_000, 10**6]), min_size=1))
@settings(deadline=None, max_examples=60)
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    sent: list[tuple[int, int, bytes, int]], cuts: list[int]
) -> None:
    whole = [(kind, number, head, os.urandom(size)) for kind, number, head, size in sent]
    if sum(len(frame[3]) for frame in whole) > 100_000:
        cuts = [max(cut, 1000) for cut in cuts]
    got: list[Frame] = []
    feed(b"".join(packed(*frame) for frame in whole), cuts, lambda k, n, h, b: got.append((k, n, h, bytes(b))))
    assert got == whole


@pytest.mark.parametrize(
    ("kind", "head", "body"),
    [(_CALL, _MAX_HEAD + 1, 0), (_CALL, 2**32 - 1, 0), (_CALL, 0, MAX_MESSAGE + 1), (_LAST, 0, 2**64 - 1), (77, 1, 1)],
)
def test_lengths_and_kinds_that_nobody_sends_are_refused_before_memory_is_taken(
    kind: int, head: int, body: int
) -> None:
    with pytest.raises(_NotOurs):
        feed(_FRAME.pack(kind, head, body, 1) + bytes(100), [50], lambda *_: pytest.fail("taken"))


@given(st.binary(min_size=24, max_size=2000), st.integers(1, 500))
@settings(deadline=None)
def test_random_bytes_are_cut_or_refused(data: bytes, cut: int) -> None:
    with suppress(_NotOurs):
        feed(data, [cut], lambda *_: None)


# -- real sockets ---------------------------------------------------------------------------------------------------


class Server:
    """A door that answers with what came; calls whose head is `hold` wait in `held`."""

    def __init__(self) -> None:
        self.fleet = f"t{uuid.uuid4().hex}"
        self.held: list[Call] = []
        self.door = Door(self.fleet, KEY, self._on_call)

    def _on_call(self, call: Call) -> None:
        if call.head == b"hold":
            self.held.append(call)
        else:
            call.reply(b"re:" + call.head, [call.body])

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(30)
        connection.connect(address(self.fleet, KEY))
        return connection

    def works(self) -> bool:
        with self.connect() as caller:
            caller.sendall(packed(_CALL, 5, b"hello", b"body"))
            return received(caller, 1) == [(_LAST, 5, b"re:hello", b"body")]


def received(connection: socket.socket, count: int) -> list[Frame]:
    got: list[Frame] = []
    cutter = _Frames(lambda k, n, h, b: got.append((k, n, h, bytes(b))))
    while len(got) < count and (size := connection.recv_into(cutter.room())):
        cutter.filled(size)
    return got


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.door.close()


def test_a_caller_that_dies_in_the_middle_of_a_frame_harms_nobody(server: Server) -> None:
    large = packed(_CALL, 1, b"x", bytes(500_000))
    for cut in (1, 23, 24, 25, 200_000):
        with server.connect() as caller:
            caller.sendall(large[:cut])
    assert server.works()
    until_now(lambda: not server.door._callers, "the door has forgotten the dead")


def test_the_work_of_a_caller_that_dies_is_cancelled(server: Server) -> None:
    with server.connect() as caller:
        caller.sendall(packed(_CALL, 1, b"hold", b""))
        until_now(lambda: server.held, "the call came")
        assert not server.held[0].cancelled
    until_now(lambda: server.held[0].cancelled, "the call is cancelled")
    server.held[0].reply(b"too late", [bytes(10), bytes(100_000)])
    assert server.works()


@pytest.mark.parametrize("junk", [b"\xff" * 24, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", bytes(23) + b"\x01"])
def test_a_caller_that_speaks_something_else_is_hung_up_on(server: Server, junk: bytes) -> None:
    with server.connect() as caller:
        caller.sendall(junk + _FRAME.pack(99, 0, 0, 0))
        with pytest.raises(ConnectionError):  # a reset when we wrote more than it read, else an end
            while caller.recv(1000):
                pass
            raise ConnectionResetError
    assert server.works()


def test_somebody_elses_process_is_not_let_in(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(door, "_CREDENTIALS", _Strange())
        with server.connect() as caller:
            assert caller.recv(10) == b"", "hung up on"
        assert asyncio.run(find(server.fleet, KEY, lambda *_: None, lambda: None)) is None, "nor does a caller trust it"
    assert server.works()


class _Strange:
    """Credentials of another user, as the kernel would give them."""

    size = door._CREDENTIALS.size

    def unpack(self, _: bytes) -> tuple[int, int, int]:
        return (1, 54321, 54321)


def test_a_name_that_is_taken_is_an_error_and_leaves_the_first_alone(server: Server) -> None:
    with pytest.raises(OSError, match="in use"):
        Door(server.fleet, KEY, lambda _: None)
    assert server.works()


def test_when_no_descriptor_is_left_the_door_opens_again_later(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    listening = server.door._listening
    failures = 3

    class Starved:
        def accept(self) -> tuple[socket.socket, object]:
            nonlocal failures
            if failures:
                failures -= 1
                raise OSError(24, "Too many open files")
            return listening.accept()

        def __getattr__(self, name: str) -> object:
            return getattr(listening, name)

    monkeypatch.setattr(server.door, "_listening", Starved())
    assert server.works()  # the thread is inside the real accept; from its next turn on it is starved
    assert server.works()
    assert failures == 0


@contextmanager
def threads_end() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    until_now(lambda: not (set(threading.enumerate()) - before), "every thread of the door ended")


def test_a_closed_door_fails_its_callers_and_ends_its_threads() -> None:
    async def body(server: Server) -> None:
        lost = asyncio.Event()
        replies: list[bytes] = []
        way = await find(server.fleet, KEY, lambda n, last, head, b: replies.append(head), lost.set)
        assert isinstance(way, Way) and way.open
        way.send(1, b"one", [bytes(300_000)])
        await until(lambda: replies == [b"re:one"], "the answer came")
        server.door.close()
        await asyncio.wait_for(lost.wait(), 20)
        assert getattr(way, "open") is False  # noqa: B009 - mypy takes it to be as it was above
        way.send(2, b"two", [b""])
        way.cancel(2)
        await asyncio.sleep(0)
        assert await find(server.fleet, KEY, lambda *_: None, lambda: None) is None

    with threads_end():
        asyncio.run(body(Server()))


def test_a_server_that_sends_nonsense_loses_its_callers(server: Server) -> None:
    async def body() -> None:
        lost = asyncio.Event()
        fleet = f"t{uuid.uuid4().hex}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(address(fleet, KEY))
            listening.listen()
            way = await find(fleet, KEY, lambda *_: pytest.fail("delivered"), lost.set)
            assert way is not None
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"\xee" * 100)
                await asyncio.wait_for(lost.wait(), 20)

    asyncio.run(body())


def test_a_caller_that_does_not_read_is_let_go_and_the_others_are_answered(server: Server) -> None:
    """As a stopped process: its socket fills up, and the thread that answers must not wait for it for ever."""
    with server.connect() as stalled:
        stalled.sendall(packed(_CALL, 1, b"hold", b""))
        until_now(lambda: server.held, "the call came")
        server.held[0].reply(b"", [bytes(30_000_000)])  # returns, though nobody reads
        assert server.works()
        until_now(lambda: not server.door._callers, "the door has let it go")


def test_what_a_server_said_last_is_read_before_it_counts_as_gone() -> None:
    """Its token may vanish for us before our loop, which was busy, has read the socket."""

    async def body() -> None:
        fleet = uuid.uuid4().hex
        called: list[Call] = []
        opened = Door(fleet, KEY, called.append)
        exchange = Exchange(lambda *_: None, lambda *_: None, lambda _: frozenset({"one"}), lambda *sent: near(*sent))
        way = await find(fleet, KEY, exchange.deliver_now, lambda: None)
        assert way is not None

        def near(_: str, number: int, head: bytes, parts: Sequence[Buffer]) -> bool:
            way.send(number, head, parts)
            return True

        answers = [asyncio.create_task(exchange.request(KEY, b"", [b""], 20.0)) for _ in range(2)]
        await until(lambda: len(called) == 2, "it is asked")
        called[0].reply(b"head", [b"body"])  # no turn of our loop from here on
        opened.close()
        exchange.lost(KEY, "one")
        answered, vanished = await asyncio.gather(*answers, return_exceptions=True)
        assert isinstance(answered, Message) and bytes(answered.body) == b"body"
        assert isinstance(vanished, Unreachable) and vanished.vanished

    asyncio.run(body())
