"""Clients that leave or fall silent: their work is dropped, nothing is held for them, and it is counted as such."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import psutil
import pytest

from nearfar.errors import Cancelled
from nearfar.gateway import protocol, server
from nearfar.gateway.leaving import UntilLeft
from tests.fleetlab import Node, poll
from tests.gateway.raw import connection, count, infer_json, request, response
from tests.gateway.stub import gateway
from tests.waiting import until

SLOW = "/v2/models/slow/infer"
BODY = infer_json([1.0, 2.0, 3.0, 4.0])
JSON = {"Content-Type": "application/json"}


def slow_request() -> bytes:
    return request(SLOW, {"Content-Length": str(len(BODY)), **JSON}, BODY)


def in_flight(http: httpx.Client) -> bool:
    return "nearfar_in_flight 0.0" not in http.get("/metrics").text


def test_work_of_clients_that_left_is_not_done(house: Node, http: httpx.Client) -> None:
    def answered() -> int:
        return int((house.service_json("slow") or {})["answered"])

    def queued() -> int:
        return int((house.service_json("slow") or {})["queued"])

    http.post(SLOW, content=BODY)
    ok, cancelled = count(http, "slow", "ok"), count(http, "slow", "cancelled")
    poll(lambda: answered() >= ok, "the service has told of what it answered so far")
    before, leaving = answered(), 6
    with contextlib.ExitStack() as clients:
        sockets = [clients.enter_context(connection(house.url)) for _ in range(leaving)]
        for made in sockets:
            made.sendall(slow_request())
        poll(lambda: f"nearfar_in_flight {leaving}.0" in http.get("/metrics").text, "all are worked on", every=0.005)
    poll(lambda: not in_flight(http), "the gateway let go of all")
    assert count(http, "slow", "cancelled") == cancelled + leaving
    # The last in the queue: when it is answered, what stood before it was done or dropped.
    assert http.post(SLOW, content=BODY).status_code == 200
    poll(lambda: queued() == 0 and answered() > before, "the service reports that its queue is empty")
    done = answered() - before - 1
    assert done < leaving, "the service worked for clients that had left"
    assert count(http, "slow", "ok") == ok + 1


def test_a_client_that_leaves_in_the_middle_of_its_body(house: Node, http: httpx.Client) -> None:
    cancelled = count(http, "slow", "cancelled")
    with connection(house.url) as made:
        made.sendall(request(SLOW, {"Content-Length": "100000", **JSON}, BODY))
        poll(lambda: in_flight(http), "the gateway waits for the rest")
    poll(lambda: count(http, "slow", "cancelled") == cancelled + 1, "it is counted as cancelled")
    assert not in_flight(http)


def test_the_same_for_pictures(house: Node, http: httpx.Client) -> None:
    cancelled = count(http, "yard", "cancelled")
    with connection(house.url) as made:
        made.sendall(request("/v1/detect?model=yard", {"Content-Length": "1000", "Content-Type": "image/jpeg"}, b"abc"))
        poll(lambda: in_flight(http), "the gateway waits for the rest")
    poll(lambda: count(http, "yard", "cancelled") == cancelled + 1, "it is counted as cancelled")
    assert not in_flight(http)


def test_nothing_is_held_for_a_hundred_that_left(house: Node, http: httpx.Client) -> None:
    agent = psutil.Process(house.agent_pid)
    with connection(house.url) as made:  # the first one pays for what is made once
        made.sendall(slow_request())
    poll(lambda: not in_flight(http), "the first is gone")
    files, cancelled = agent.num_fds(), count(http, "slow", "cancelled")
    for _ in range(5):
        with contextlib.ExitStack() as clients:
            for made in [clients.enter_context(connection(house.url)) for _ in range(20)]:
                made.sendall(slow_request())
            poll(lambda: in_flight(http), "they are worked on", every=0.005)  # on a busy machine not all at once
        poll(lambda: not in_flight(http), "the gateway let go of all", every=0.005)
        assert http.post(SLOW, content=BODY).status_code == 200  # and with it the service's queue is empty again
    assert count(http, "slow", "cancelled") > cancelled
    poll(lambda: agent.num_fds() <= files + 2, "every connection is closed")


def test_two_requests_sent_at_once_are_answered_in_order(house: Node) -> None:
    other = infer_json([7.0])
    second = request("/v2/models/identity/infer", {"Content-Length": str(len(other))}, other)
    with connection(house.url) as made:
        made.sendall(slow_request() + second)
        status, _, body = response(made)
        assert status == 200 and b"[1.0,2.0,3.0,4.0]" in body
        status, _, body = response(made)
        assert status == 200 and b"[7.0]" in body


def test_a_connection_is_used_again_after_an_error(house: Node) -> None:
    with connection(house.url) as made:
        for _ in range(3):
            made.sendall(request(SLOW, {"Content-Length": "2"}, b"{}"))
            assert response(made)[0] == 400
            made.sendall(slow_request())
            assert response(made)[0] == 200


# -- the parts, without a node ----------------------------------------------------------------------------------------


def left_after(first: Awaitable[object]) -> Callable[[], Awaitable[dict[str, str]]]:
    async def receive() -> dict[str, str]:
        await first
        return {"type": "http.disconnect"}

    return receive


def run(work: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await work

    return asyncio.run(main())


def test_work_that_is_done_first_is_not_disturbed() -> None:
    async def main() -> str:
        never = asyncio.get_running_loop().create_future()
        with UntilLeft(left_after(never)):
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # a cancellation that was late would come here
        return "done"

    assert run(main()) == "done"


def test_work_is_cancelled_when_the_client_leaves() -> None:
    async def main() -> bool:
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.05, gone.set_result, None)
        try:
            with UntilLeft(left_after(gone)):
                await asyncio.Event().wait()
        except Cancelled:
            task = asyncio.current_task()
            return task is not None and task.cancelling() == 0
        return False

    assert run(main())


def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def main() -> None:
        never = asyncio.get_running_loop().create_future()
        with UntilLeft(left_after(never)):
            await asyncio.Event().wait()

    async def outer() -> bool:
        task = asyncio.create_task(main())
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return task.cancelled()

    assert run(outer())


async def never(*_: object) -> None:
    """Instead of the sweep."""
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"POST /v2/mod",
        b"POST /v2/models/a/infer HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /v2/models/a/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc",
        b"POST /v2/models/a/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
    ids=repr,
)
def test_a_client_that_falls_silent_is_let_go(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SILENCE", 0.2)
    monkeypatch.setattr(server, "SWEEP_EVERY", 0.02)

    async def main() -> bytes:
        async with gateway() as (made, state):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(made.url.rpartition(":")[2]))
            writer.write(begun)
            answer = await asyncio.wait_for(reader.read(), 20)
            writer.close()
            await until(lambda: state.in_flight == 0, "its place is free")
            return answer

    assert run(main()).startswith(b"HTTP/1.1 408 Request Timeout\r\n")


def test_a_client_that_is_slow_but_not_silent_is_heard_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = b"POST /v2/models/a/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    hours = itertools.count(0.0, 29.0)  # by the gateway's clock half a minute passes between any two bytes
    heard: list[float] = []

    def received(self: Any, data: bytes) -> None:
        original(self, data)
        heard.append(len(data))
        self._heard = next(hours)
        self.expire(self._heard + 28.0)

    original = protocol.BoundedProtocol.data_received
    monkeypatch.setattr(protocol.BoundedProtocol, "data_received", received)
    monkeypatch.setattr(server.Gateway, "_sweep", never)

    async def main() -> bytes:
        async with gateway() as (made, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(made.url.rpartition(":")[2]))
            for at, byte in enumerate(sent):
                writer.write(bytes([byte]))
                await until(lambda at=at: sum(heard) == at + 1, "the byte is heard")  # type: ignore[misc]
            line = await asyncio.wait_for(reader.readline(), 20)
            writer.close()
            return line

    assert run(main()) == b"HTTP/1.1 400 Bad Request\r\n"


def test_between_requests_a_connection_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SILENCE", 0.05)
    monkeypatch.setattr(server, "SWEEP_EVERY", 0.01)

    async def main() -> list[int]:
        async with gateway() as (made, _):
            host, port = "127.0.0.1", int(made.url.rpartition(":")[2])
            with socket.create_connection((host, port)) as raw:
                raw.setblocking(False)
                loop = asyncio.get_running_loop()
                told = []
                for _ in range(2):
                    await loop.sock_sendall(raw, request("/v2", {}, method="GET"))
                    told.append(len(await loop.sock_recv(raw, 65536)))
                    await asyncio.sleep(0.2)
                return told

    assert all(size > 0 for size in run(main()))
