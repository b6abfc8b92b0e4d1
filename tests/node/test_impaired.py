"""A bad link: what arrives is whole, in order and never too early; what is cut off is told in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import DeadlineExceeded, MeshError
from nearfar.mesh.base import Call
from nearfar.mesh.impaired import RESEND, ImpairedMesh, Impairment, _Lane
from nearfar.mesh.memory import Ether, MemoryMesh
from tests.waiting import until, until_now

KEY = "service/n/m"
Body = Callable[[MemoryMesh, ImpairedMesh], Awaitable[None]]


@asynccontextmanager
async def pair(link: Impairment) -> AsyncIterator[tuple[MemoryMesh, ImpairedMesh]]:
    ether = Ether()
    near, far = MemoryMesh(ether), ImpairedMesh(MemoryMesh(ether), link)
    try:
        async with asyncio.timeout(60):
            yield near, far
    finally:
        await near.close()
        await far.close()
        ether.close()


def run(link: Impairment, body: Body) -> None:
    async def main() -> None:
        async with pair(link) as (near, far):
            await body(near, far)

    asyncio.run(main())


def echo(call: Call) -> None:
    call.reply(call.head, [call.body])


async def served(near: MemoryMesh, far: ImpairedMesh, on_call: Callable[[Call], None] = echo) -> None:
    far.serve(KEY, on_call)
    await until(lambda: near.alive(KEY), "the server is seen")


def test_a_round_trip_pays_the_delay_twice() -> None:
    async def body(near: MemoryMesh, far: ImpairedMesh) -> None:
        await served(near, far)
        start = time.monotonic()
        await near.request(KEY, b"", [b""], 30)
        assert time.monotonic() - start >= 0.08
        near.serve("service/near/m", echo)
        await until(lambda: far.alive("service/near/m"), "the other server is seen")
        start = time.monotonic()
        await far.request("service/near/m", b"", [b""], 30)
        assert time.monotonic() - start >= 0.08

    run(Impairment(delay_ms=40), body)


def test_bandwidth_delays_by_size_and_the_next_waits_its_turn() -> None:
    async def body(near: MemoryMesh, far: ImpairedMesh) -> None:
        await served(near, far)
        start = time.monotonic()
        await asyncio.gather(*(near.request(KEY, b"", [bytes(5000)], 30) for _ in range(4)))
        assert time.monotonic() - start >= 0.2  # 20 kB at 100 kB/s, one way at least

    run(Impairment(bandwidth=100_000.0), body)


def test_a_lost_request_is_sent_again_and_a_lost_report_is_not() -> None:
    async def body(near: MemoryMesh, far: ImpairedMesh) -> None:
        await served(near, far)
        start = time.monotonic()
        await near.request(KEY, b"", [b""], 30)
        assert time.monotonic() - start >= 2 * RESEND
        heard: list[bytes] = []
        near.subscribe("report/*", lambda _, payload: heard.append(payload))
        far.publish("report/x", b"lost")
        far.set(Impairment())
        far.publish("report/x", b"kept")
        await until(lambda: b"kept" in heard, "the second report came")
        assert heard == [b"kept"]

    run(Impairment(loss=1.0), body)


def test_a_cut_is_silent_until_the_deadline_and_heals() -> None:
    async def body(near: MemoryMesh, far: ImpairedMesh) -> None:
        await served(near, far)
        near.serve("service/near/m", echo)
        await until(lambda: far.alive("service/near/m"), "both are seen")
        far.cut()
        for mesh, key in ((near, KEY), (far, "service/near/m")):
            with pytest.raises(DeadlineExceeded, match="did not answer in 50 ms"):
                await mesh.request(key, b"", [b""], 0.05)
            with pytest.raises(DeadlineExceeded):
                async for _ in mesh.stream(key, b"", [b""], 0.05):
                    pytest.fail("an answer through a cut")
        far.cut(False)
        assert (await near.request(KEY, b"again", [b""], 30)).head == b"again"

    run(Impairment(delay_ms=1), body)


def test_a_stream_that_is_cut_in_the_middle_does_not_look_complete() -> None:
    async def body(near: MemoryMesh, far: ImpairedMesh) -> None:
        calls: list[Call] = []
        near.serve("service/near/m", calls.append)
        await until(lambda: far.alive("service/near/m"), "the server is seen")
        got: list[bytes] = []

        async def read() -> None:
            async for message in far.stream("service/near/m", b"", [b""], 0.5):
                got.append(message.head)

        reading = asyncio.create_task(read())
        await until(lambda: calls, "the call came")
        calls[0].reply(b"one", last=False)
        await until(lambda: got == [b"one"], "the first part came")
        far.cut()
        calls[0].reply(b"two", last=True)
        with pytest.raises(DeadlineExceeded):
            await reading
        assert got == [b"one"]

    run(Impairment(delay_ms=1), body)


@given(st.lists(st.tuples(st.integers(0, 2000), st.booleans()), max_size=60), st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_order_is_kept_whatever_the_link_does(messages: list[tuple[int, bool]], seed: int) -> None:
    lane = _Lane(Impairment(delay_ms=0.5, jitter_ms=2.0, bandwidth=1e7, loss=0.2), seed)
    arrived: list[int] = []
    kept = 0
    for number, (size, droppable) in enumerate(messages):
        lane.pass_through(size, lambda n=number: arrived.append(n), droppable=droppable)  # type: ignore[misc]
        kept += not droppable
    try:
        until_now(lambda: len([n for n in arrived if not messages[n][1]]) == kept, "all that must arrive has")
    finally:
        lane.close()
    assert arrived == sorted(arrived)


@pytest.mark.parametrize("error", [MeshError("gone"), RuntimeError("Event loop is closed")])
def test_one_that_is_gone_does_not_stop_the_link_for_the_others(error: Exception) -> None:
    lane = _Lane(Impairment(delay_ms=1), 0)
    arrived: list[str] = []

    def fail() -> None:
        raise error

    lane.pass_through(1, fail)
    lane.pass_through(1, lambda: arrived.append("after"))
    try:
        until_now(lambda: arrived, "the next message arrives")
    finally:
        lane.close()


def test_no_link_at_all_is_none() -> None:
    assert not Impairment()
    assert all((Impairment(delay_ms=1), Impairment(jitter_ms=1), Impairment(bandwidth=1), Impairment(loss=0.1)))
