"""Streams of HTTP clients whose requests overlap: their answers come in any order, their moves are told once."""

from __future__ import annotations

import asyncio

from nearfar.gateway.named import NamedStreams
from nearfar.placement.trail import Moved
from nearfar.types.ids import ServiceId, StreamId
from nearfar.types.request import Answer, Stages
from tests.client.scripted import MODEL, World, run

A, B = ServiceId("a/yard"), ServiceId("b/yard")


def test_an_answer_that_was_overtaken_moves_no_stream_back() -> None:
    async def body(world: World) -> None:
        named = NamedStreams(world.client)
        incumbents: list[ServiceId | None] = []
        late = asyncio.Event()

        async def ask(served_by: ServiceId, *, waits: bool = False, aside: bool = False) -> Answer:
            async def asked(*, stream: StreamId, incumbent: ServiceId | None) -> Answer:
                incumbents.append(incumbent)
                if waits:
                    await late.wait()
                return Answer([], served_by, "v", Stages(), aside=aside)

            return await named.asked("gate", MODEL, asked)

        await ask(A)
        overtaken = asyncio.create_task(ask(A, waits=True))
        await asyncio.sleep(0)
        await ask(B)
        late.set()
        await overtaken
        await ask(A, aside=True)
        await ask(B)
        assert incumbents == [None, A, A, B, B]
        (making,) = named._streams.values()
        trail = making.result().trail
        moves = [entry for entry in trail.entries() if isinstance(entry, Moved)]
        assert [(move.source, move.target) for move in moves] == [(A, B)] and trail.status().moved == 1
        await named.close()

    run(body)
