"""What every mesh must do, run over each implementation. Each test runs on its own event loop and its own mesh."""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from nearfar.errors import DeadlineExceeded, MeshError, TooLarge, Unreachable
from nearfar.mesh import exchange
from nearfar.mesh.base import Call, Mesh
from nearfar.mesh.impaired import ImpairedMesh, Impairment
from nearfar.mesh.memory import Ether, MemoryMesh
from nearfar.mesh.zenoh import ZenohMesh
from nearfar.mesh.zenoh_options import ZenohOptions
from tests.waiting import until

Pair = tuple[Mesh, Mesh]


@asynccontextmanager
async def memory_pair() -> AsyncIterator[Pair]:
    ether = Ether()
    a, b = MemoryMesh(ether), MemoryMesh(ether)
    try:
        yield a, b
    finally:
        await a.close()
        await b.close()
        ether.close()


@asynccontextmanager
async def impaired_pair() -> AsyncIterator[Pair]:
    async with memory_pair() as (a, b):
        far = ImpairedMesh(b, Impairment(delay_ms=3, jitter_ms=1))
        try:
            yield a, far
        finally:
            await far.close()


@asynccontextmanager
async def zenoh_pair() -> AsyncIterator[Pair]:
    fleet = f"t{uuid.uuid4().hex[:8]}"
    a = ZenohMesh(ZenohOptions(fleet=fleet, discover=False, lease_ms=1000))
    b = ZenohMesh(ZenohOptions(fleet=fleet, discover=False, lease_ms=1000, join=a.endpoints))
    try:
        yield a, b
    finally:
        await b.close()
        await a.close()


PAIRS = {"memory": memory_pair, "impaired": impaired_pair, "zenoh": zenoh_pair}


@pytest.fixture(params=sorted(PAIRS))
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[Mesh, Mesh], Awaitable[None]]], None]:
    """Runs a coroutine function with two connected participants."""

    def go(body: Callable[[Mesh, Mesh], Awaitable[None]]) -> None:
        async def main() -> None:
            async with PAIRS[request.param]() as (a, b), asyncio.timeout(60):
                await body(a, b)

        asyncio.run(main())

    return go


Run = Callable[[Callable[[Mesh, Mesh], Awaitable[None]]], None]


def echo(call: Call) -> None:
    call.reply(b"re:" + call.head, [call.body])


def test_a_request_is_answered_by_its_server(run: Run) -> None:
    async def body(a: Mesh, b: Mesh) -> None:
        b.serve("x/echo", echo)
        await until(lambda: a.alive("x/echo"), "echo is alive")
        reply = await a.request("x/echo", b"head", [b"one", b"two"], 10)
        assert (reply.head, bytes(reply.body)) == (b"re:head", b"onetwo")

    run(body)


@pytest.mark.parametrize("size", [0, 1, 1000, 100_000, 3_000_000])
def test_a_body_of_any_size_arrives_bit_equal(run: Run, size: int) -> None:
    data = os.urandom(size)

    async def body(a: Mesh, b: Mesh) -> None:
        b.serve("x/echo", echo)
        await until(lambda: a.alive("x/echo"), "echo is alive")
        assert bytes((await a.request("x/echo", b"", [memoryview(data)], 30)).body) == data

    run(body)


def test_many_requests_at_once_get_their_own_answers(run: Run) -> None:
    async def body(a: Mesh, b: Mesh) -> None:
        b.serve("x/echo", echo)
        await until(lambda: a.alive("x/echo"), "echo is alive")
        replies = await asyncio.gather(*(a.request("x/echo", str(i).encode(), [b""], 30) for i in range(300)))
        assert [r.head for r in replies] == [f"re:{i}".encode() for i in range(300)]

    run(body)


def test_nobody_there_fails_at_once(run: Run) -> None:
    async def body(a: Mesh, _: Mesh) -> None:
        with pytest.raises(Unreachable, match="Nobody serves x/nothing"):
            await a.request("x/nothing", b"", [b""], 1000)

    run(body)


def test_a_deadline_is_kept_and_the_server_is_told(run: Run) -> None:
    async def body(a: Mesh, b: Mesh) -> None:
        calls: list[Call] = []
        b.serve("x/slow", calls.append)
        await until(lambda: a.alive("x/slow"), "slow is alive")
        with pytest.raises(DeadlineExceeded):
            await a.request("x/slow", b"", [b""], 0.2)
        await until(lambda: calls and calls[0].cancelled, "the server knows")
        with pytest.raises(DeadlineExceeded):
            await a.request("x/slow", b"", [b""], 0)

    run(body)


def test_cancelling_the_task_cancels_the_call(run: Run) -> None:
    async def body(a: Mesh, b: Mesh) -> None:
        calls: list[Call] = []
        b.serve("x/slow", calls.append)
        await until(lambda: a.alive("x/slow"), "slow is alive")
        task = asyncio.create_task(a.request("x/slow", b"", [b""], 100))
        await until(lambda: calls, "the call arrived")
        assert not calls[0].cancelled
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: calls[0].cancelled, "the server knows")

    run(body)


def test_a_server_that_leaves_fails_its_callers(run: Run) -> None:
    async def body(a: Mesh, b: Mesh) -> None:
        calls: list[Call] = []
        handle = b.serve("x/slow", calls.append)
        await until(lambda: a.alive("x/slow"), "slow is alive")
        task = asyncio.create_task(a.request("x/slow", b"", [b""], 100))
        await until(lambda: calls, "the call arrived")
        handle.close()
        with pytest.raises(Unreachable, match="vanished"):
            await task
        await until(lambda: not a.alive("x/slow"), "its token is withdrawn")  # a door may close before the token goes
        handle.close()

    run(body)


def test_a_stream_gives_every_reply_in_order(run: Run) -> None:
    def count(call: Call) -> None:
        for i in range(20):
            call.reply(str(i).encode(), [b"x" * i], last=i == 19)

    async def body(a: Mesh, b: Mesh) -> None:
        b.serve("x/count", count)
        await until(lambda: a.alive("x/count"), "count is alive")
        got = [(m.head, len(m.body)) async for m in a.stream("x/count", b"", [b""], 30)]
        assert got == [(str(i).encode(), i) for i in range(20)]

    run(body)


def test_a_stream_that_is_cut_does_not_look_complete(run: Run) -> None:
    async def body(a: Mesh, b: Mesh) -> None:
        calls: list[Call] = []
        handle = b.serve("x/part", calls.append)
        await until(lambda: a.alive("x/part"), "part is alive")

        async def consume(into: list[bytes]) -> None:
            async for message in a.stream("x/part", b"", [b""], 100):
                into.append(message.head)

        got: list[bytes] = []
        task = asyncio.create_task(consume(got))
        await until(lambda: calls, "the call arrived")
        calls[0].reply(b"first", last=False)
        await until(lambda: got == [b"first"], "the first reply")
        handle.close()
        with pytest.raises(Unreachable):
            await task

    run(body)


def test_what_is_published_reaches_who_subscribed(run: Run) -> None:
    async def body(a: Mesh, b: Mesh) -> None:
        got: list[tuple[str, bytes]] = []
        a.subscribe("report/*/one", lambda key, data: got.append((key, data)))

        async def repeat() -> None:
            while not got:
                b.publish("report/n1/two", b"no")
                b.publish("report/n1/one", b"yes")
                await asyncio.sleep(0.01)

        await asyncio.wait_for(repeat(), 20)
        assert got[0] == ("report/n1/one", b"yes")
        assert all(key == "report/n1/one" for key, _ in got)

    run(body)


def test_watch_tells_who_is_alive_now_and_who_comes_and_goes(run: Run) -> None:
    async def body(a: Mesh, b: Mesh) -> None:
        early = b.announce("node/early")
        seen: list[tuple[str, bool]] = []
        await until(lambda: a.alive("node/early"), "early is alive")
        a.watch("node/*", lambda key, alive: seen.append((key, alive)))
        await until(lambda: ("node/early", True) in seen, "early is seen")
        late = b.announce("node/late")
        b.announce("other/late")
        await until(lambda: ("node/late", True) in seen, "late is seen")
        early.close()
        await until(lambda: ("node/early", False) in seen, "early has left")
        assert ("node/late", False) not in seen
        assert all(key.startswith("node/") for key, _ in seen)
        late.close()
        await until(lambda: ("node/late", False) in seen, "late has left")

    run(body)


def test_a_participant_may_ask_itself(run: Run) -> None:
    async def body(a: Mesh, _: Mesh) -> None:
        a.serve("x/self", echo)
        await until(lambda: a.alive("x/self"), "self is alive")
        assert (await a.request("x/self", b"h", [b"b"], 10)).head == b"re:h"

    run(body)


def test_replies_may_come_from_any_thread(run: Run) -> None:
    def later(call: Call) -> None:
        threading.Thread(target=lambda: call.reply(b"threaded", [b"!"])).start()

    async def body(a: Mesh, b: Mesh) -> None:
        b.serve("x/thread", later)
        await until(lambda: a.alive("x/thread"), "thread is alive")
        assert (await a.request("x/thread", b"", [b""], 10)).head == b"threaded"

    run(body)


def test_closing_fails_what_waits_and_refuses_what_comes(run: Run) -> None:
    async def body(a: Mesh, b: Mesh) -> None:
        calls: list[Call] = []
        b.serve("x/slow", calls.append)
        await until(lambda: a.alive("x/slow"), "slow is alive")
        task = asyncio.create_task(a.request("x/slow", b"", [b""], 100))
        await until(lambda: calls, "the call arrived")
        await a.close()
        with pytest.raises(Unreachable):
            await task
        with pytest.raises(MeshError):
            await a.request("x/slow", b"", [b""], 1)
        await a.close()

    run(body)


def test_a_message_over_the_limit_is_refused_not_lost(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_MESSAGE", 1000)

    async def body(a: Mesh, b: Mesh) -> None:
        b.serve("x/echo", echo)
        await until(lambda: a.alive("x/echo"), "echo is alive")
        with pytest.raises(TooLarge):
            await a.request("x/echo", b"", [b"x" * 1001], 10)

    run(body)


def test_nothing_is_left_pending_after_a_burst_of_failures(run: Run) -> None:
    async def body(a: Mesh, b: Mesh) -> None:
        b.serve("x/never", lambda call: None)
        b.serve("x/echo", echo)
        await until(lambda: a.alive("x/never") and a.alive("x/echo"), "both are alive")
        results = await asyncio.gather(
            *(a.request("x/never", b"", [b""], 0.3) for _ in range(50)), return_exceptions=True
        )
        assert all(isinstance(r, DeadlineExceeded) for r in results)
        assert (await a.request("x/echo", b"after", [b""], 10)).head == b"re:after"

    run(body)


def test_a_key_is_alive_until_its_last_holder_leaves(run: Run) -> None:
    """A restarted service announces itself before its forerunner's token has run out: nobody may see it vanish."""

    async def body(a: Mesh, b: Mesh) -> None:
        seen: list[tuple[str, bool]] = []
        a.watch("node/*", lambda key, alive: seen.append((key, alive)))
        old, new = b.announce("node/x"), a.announce("node/x")
        await until(lambda: ("node/x", True) in seen, "x is seen")
        marker = b.announce("node/marker")
        await until(lambda: ("node/marker", True) in seen, "all three tokens have arrived")
        old.close()
        marker.close()
        await until(lambda: ("node/marker", False) in seen, "the marker has left after the old token")
        assert seen.count(("node/x", True)) == 1
        assert ("node/x", False) not in seen
        assert a.alive("node/x")
        new.close()
        await until(lambda: ("node/x", False) in seen, "x has left")

    run(body)
