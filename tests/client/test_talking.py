"""Language calls of a client: elsewhere while nothing was delivered, a clear cut once something was."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from nearfar.client.talking import TextRequest
from nearfar.errors import DeadlineExceeded, InferenceError, InputError, NoCandidate, Overloaded, StreamCut
from nearfar.mesh.base import Call
from nearfar.node.worker import refuse
from nearfar.types.request import Privacy, Qos, Stages
from nearfar.types.units import Milliseconds
from nearfar.types.wire import Operation, ReplyHead, TextContext, decode_call, encode
from tests.client.scripted import MODEL, Script, Service, World, fails, run, silent
from tests.waiting import until

LAST = encode(ReplyHead("v", Stages(0.0, 0.0, 1.0, 2.0)))


def whole(service: Service, call: Call) -> None:
    call.reply(LAST, [b'{"by": "%s"}' % service.id.encode()])


def pieces(*lines: bytes, end: bool = True) -> Script:
    def script(service: Service, call: Call) -> None:
        for line in lines:
            call.reply(b"", [line], last=False)
        if end:
            call.reply(LAST)

    return script


def request(*, streamed: bool = False, **qos: object) -> TextRequest:
    return TextRequest(Operation.CHAT, MODEL, b"{}", Qos(**qos), TextContext(streamed=streamed))  # type: ignore[arg-type]


async def heard(world: World, **qos: object) -> list[bytes]:
    lines = []
    async with aclosing(world.client.text.stream(request(streamed=True, **qos))) as stream:
        async for piece in stream:
            lines.append(piece.lines)
    return [line for line in lines if line]


def test_a_whole_answer_says_who_gave_it_and_where_the_time_went() -> None:
    async def body(world: World) -> None:
        (first,) = await world.add(whole)
        reply = await world.client.text.ask(request())
        assert bytes(reply.body) == b'{"by": "a/yard"}'
        assert reply.served_by == first.id
        assert reply.stages.inference == 2.0
        assert not reply.attempts

    run(body)


def test_the_call_carries_how_far_it_may_travel() -> None:
    async def body(world: World) -> None:
        (service,) = await world.add(whole)
        await world.client.text.ask(request(privacy=Privacy.FLEET))
        head = decode_call(service.calls[0].head)
        assert head.text is not None
        assert head.text.privacy is Privacy.FLEET
        assert head.budget_ms == 0
        await world.client.text.ask(request(deadline=Milliseconds(5000.0)))
        assert 0 < decode_call(service.calls[1].head).budget_ms <= 5000

    run(body)


@pytest.mark.parametrize("error", [Overloaded("full", "x"), InferenceError("broke", "x")])
@pytest.mark.parametrize("streamed", [False, True])
def test_what_fails_before_anything_came_is_asked_elsewhere(error: Exception, streamed: bool) -> None:
    async def body(world: World) -> None:
        first, second = await world.add(fails(error), pieces(b"1") if streamed else whole)  # type: ignore[arg-type]
        if streamed:
            assert await heard(world) == [b"1"]
        else:
            reply = await world.client.text.ask(request())
            assert reply.served_by == second.id
            assert reply.attempts[0].startswith(f"{first.id}: ")
        assert len(first.calls) == 1

    run(body)


@pytest.mark.parametrize("streamed", [False, True])
def test_what_the_caller_did_wrong_is_not_tried_elsewhere(streamed: bool) -> None:
    async def body(world: World) -> None:
        _, second = await world.add(fails(InputError("no", "x")), whole)
        with pytest.raises(InputError):
            await (heard(world) if streamed else world.client.text.ask(request()))
        assert not second.calls

    run(body)


def test_pieces_come_in_their_order_and_the_last_one_has_the_stages() -> None:
    async def body(world: World) -> None:
        await world.add(pieces(b"1", b"2", b"3"))
        got = [piece async for piece in world.client.text.stream(request(streamed=True))]
        assert [piece.lines for piece in got if piece.lines] == [b"1", b"2", b"3"]
        assert [piece.last is not None for piece in got] == [False] * (len(got) - 1) + [True]

    run(body)


def test_what_fails_after_the_first_piece_is_a_cut_that_names_its_service_and_is_not_asked_elsewhere() -> None:
    def breaks(service: Service, call: Call) -> None:
        call.reply(b"", [b"1"], last=False)
        refuse(call, InferenceError("broke", "x"), "v", 0)

    async def body(world: World) -> None:
        first, second = await world.add(breaks, pieces(b"2"))
        with pytest.raises(StreamCut) as caught:
            await heard(world)
        assert caught.value.service == first.id
        assert isinstance(caught.value.cause, InferenceError)
        assert not second.calls

    run(body)


def test_a_service_that_dies_in_the_middle_cuts_the_stream() -> None:
    async def body(world: World) -> None:
        (first,) = await world.add(pieces(b"1", end=False))
        got = []
        with pytest.raises(StreamCut):
            async with aclosing(world.client.text.stream(request(streamed=True))) as stream:
                async for piece in stream:
                    got.append(piece.lines)
                    first.vanish()
        assert got == [b"1"]

    run(body)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_deadline_without_an_answer_is_told(streamed: bool) -> None:
    async def body(world: World) -> None:
        await world.add(silent)
        with pytest.raises((DeadlineExceeded, NoCandidate)):
            if streamed:
                await heard(world, deadline=Milliseconds(150.0))
            else:
                await world.client.text.ask(request(deadline=Milliseconds(150.0)))

    run(body)


def test_a_deadline_is_that_of_the_first_piece_and_leaves_no_trace_in_the_task() -> None:
    async def body(world: World) -> None:
        (service,) = await world.add(pieces(b"1", end=False))
        stream = world.client.text.stream(request(streamed=True, deadline=Milliseconds(300.0)))
        async with aclosing(stream):
            assert (await anext(stream)).lines == b"1"
            asyncio.get_running_loop().call_later(0.6, service.calls[0].reply, LAST)
            assert (await anext(stream)).last is not None, "later than the deadline"
        service.script = silent
        with pytest.raises((DeadlineExceeded, NoCandidate)):
            await heard(world, deadline=Milliseconds(100.0))
        task = asyncio.current_task()
        assert task is not None and not task.cancelling()

    run(body)


def test_whoever_stops_waiting_himself_is_not_told_of_a_deadline() -> None:
    async def body(world: World) -> None:
        (service,) = await world.add(pieces(b"1", end=False))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await heard(world, deadline=Milliseconds(60_000.0))
        await until(lambda: service.calls[0].cancelled, "the service knows")
        service.script = silent
        task = asyncio.create_task(heard(world, deadline=Milliseconds(100.0)))
        await until(lambda: len(service.calls) == 2, "it waits")
        asyncio.get_running_loop().call_later(0.1, task.cancel)  # in about the same moment
        with pytest.raises((asyncio.CancelledError, DeadlineExceeded, NoCandidate)):
            await task

    run(body)


def test_a_service_that_falls_silent_in_the_middle_cuts_the_stream() -> None:
    def stalls(service: Service, call: Call) -> None:
        call.reply(b"", [b"1"], last=False)
        service.mute = True

    async def body(world: World) -> None:
        (first,) = await world.add(stalls)
        with pytest.raises(StreamCut) as caught:
            await heard(world)
        assert caught.value.service == first.id and "silent" in str(caught.value.cause)
        task = asyncio.current_task()
        assert task is not None and not task.cancelling()

    run(body)


def test_a_caller_that_leaves_is_told_to_the_service() -> None:
    async def body(world: World) -> None:
        (service,) = await world.add(pieces(b"1", end=False))
        async with aclosing(world.client.text.stream(request(streamed=True))) as stream:
            assert (await anext(stream)).lines == b"1"
        await until(lambda: service.calls[0].cancelled, "the service knows")
        task = asyncio.create_task(world.client.text.ask(request()))
        service.script = silent
        await until(lambda: len(service.calls) == 2, "the second call has come")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: service.calls[1].cancelled, "the service knows")
        assert world.client.snapshot().pending.get(service.id, 0) == 0

    run(body)
