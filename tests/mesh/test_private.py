"""A request that may not leave this machine takes the door or is not sent; over Zenoh every subscriber would see it."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from nearfar.errors import Unreachable
from nearfar.mesh import zenoh as over_zenoh
from nearfar.mesh.base import Call
from nearfar.mesh.door import SUPPORTED
from nearfar.mesh.zenoh import ZenohMesh
from nearfar.mesh.zenoh_options import ZenohOptions
from tests.waiting import until


@pytest.mark.skipif(not SUPPORTED, reason="doors are Unix sockets with abstract names: Linux only")
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("door", [True, False])
def test_a_private_request_takes_the_door_or_is_not_sent(
    door: bool, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Call] = []

    def answer(call: Call) -> None:
        calls.append(call)
        call.reply(b"done", [call.body])

    async def nobody(*_: object) -> None:
        return None

    async def ask(mesh: ZenohMesh, word: bytes, private: bool) -> list[tuple[bytes, bytes]]:
        if streamed:
            pieces = mesh.stream("x/secret", b"", [word], 10, private=private)
            return [(piece.head, bytes(piece.body)) async for piece in pieces]
        reply = await mesh.request("x/secret", b"", [word], 10, private=private)
        return [(reply.head, bytes(reply.body))]

    async def body() -> None:
        fleet = f"t{uuid.uuid4().hex[:8]}"
        a = ZenohMesh(ZenohOptions(fleet=fleet, discover=False))
        b = ZenohMesh(ZenohOptions(fleet=fleet, discover=False, join=a.endpoints))
        try:
            b.serve("x/secret", answer)
            await until(lambda: a.alive("x/secret"), "it is alive")
            if door:
                assert await ask(a, b"secret", True) == [(b"done", b"secret")]
                assert [call.patient for call in calls] == [True]  # as only calls through a door are
                return
            monkeypatch.setattr(over_zenoh, "find", nobody)
            with pytest.raises(Unreachable, match="may not leave this machine"):
                await ask(a, b"secret", True)
            await ask(a, b"open", False)  # not private: over Zenoh, and behind the other if it was sent
            assert [bytes(call.body) for call in calls] == [b"open"]
        finally:
            await b.close()
            await a.close()

    asyncio.run(body())
