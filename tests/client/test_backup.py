"""Second copies: the tail, silence, refusals at the door; who wins, what counts, and that nothing is left behind."""

from __future__ import annotations

import asyncio

import pytest

from nearfar.cli.story import lines
from nearfar.client.trail import Trail
from nearfar.errors import DeadlineExceeded
from nearfar.mesh.base import Call
from nearfar.placement.hedging import Budget
from nearfar.placement.trail import Decided, Hedged
from nearfar.types.ids import StreamId, node_of
from nearfar.types.request import FRAME, Privacy, Qos, Request
from nearfar.types.units import Milliseconds
from nearfar.types.wire import decode_call
from tests.client.scripted import MODEL, Service, World, X, answers, fails, run, silent
from tests.waiting import until

DEADLINE = Qos(deadline=Milliseconds(5000.0))


def mute(service: Service) -> None:
    """As a cut cable: no answer and no report, and nobody is told that it is gone."""
    service.script = silent
    service._reporting.cancel()


def test_a_second_service_answers_when_the_first_takes_too_long_and_the_stream_stays() -> None:
    async def body(world: World) -> None:
        slow, quick = await world.add(silent, answers)
        answer = await world.client.infer(MODEL, [X], DEADLINE)
        assert answer.served_by == quick.id and answer.aside and not answer.attempts
        assert len(slow.calls) == len(quick.calls) == 1
        await until(lambda: slow.calls[0].cancelled, "the first copy is cancelled")
        counts = world.client.robust.counts
        # One that a busy machine keeps from reporting has fallen silent, and is not waited for until it is slow.
        assert (counts.requests, counts.hedges + counts.asked_again, counts.won) == (1, 1, 1)
        snapshot = world.client.snapshot()
        assert not snapshot.pending and not snapshot.owed
        assert slow.id not in snapshot.observed or snapshot.observed[slow.id].failures == 0, "no failure of the first"

    run(body)


def test_the_budget_of_the_second_copy_is_what_is_left() -> None:
    async def body(world: World) -> None:
        slow, quick = await world.add(silent, answers)
        await world.client.infer(MODEL, [X], DEADLINE)
        first, second = (decode_call(s.calls[0].head).budget_ms for s in (slow, quick))
        assert 0 < second < first <= 5000

    run(body)


def test_without_budget_or_switched_off_nobody_else_is_asked() -> None:
    async def body(world: World) -> None:
        slow, quick = await world.add(silent, answers)
        for budget in (Budget(0.0, 10.0), Budget(0.001, 0.0)):
            world.client.robust.budget = budget
            with pytest.raises(DeadlineExceeded):
                await world.client.infer(MODEL, [X], Qos(deadline=Milliseconds(300.0)))
        assert len(slow.calls) == 2 and not quick.calls and not world.client.robust.counts.hedges

    run(body)


def test_what_may_not_travel_is_not_hedged() -> None:
    """Pinned or private: a second copy passes the same filters."""

    async def body(world: World) -> None:
        slow, quick = await world.add(silent, answers)
        world.client.robust.budget = Budget(1.0, 10.0)
        with pytest.raises(DeadlineExceeded):
            await world.client.infer(MODEL, [X], Qos(Milliseconds(300.0), node=node_of(slow.id)))
        world.client.me = node_of(slow.id)
        with pytest.raises(DeadlineExceeded):
            await world.client.infer(MODEL, [X], Qos(Milliseconds(300.0), Privacy.LOCAL))
        assert len(slow.calls) >= 1 and not quick.calls

    run(body)


def test_a_service_that_falls_silent_is_noticed_by_its_missing_answer_and_asked_no_more() -> None:
    """No deadline, so no hedge: only the silence makes the client ask another."""

    async def body(world: World) -> None:
        first, second = await world.add(answers, answers)
        assert (await world.client.infer(MODEL, [X])).served_by == first.id
        mute(first)
        asked = len(first.calls)
        answer = await world.client.infer(MODEL, [X])
        assert answer.served_by == second.id and answer.aside
        assert world.client.robust.counts.asked_again == 1 and not world.client.robust.counts.hedges
        again = await world.client.infer(MODEL, [X])
        assert again.served_by == second.id, "new requests avoid it"
        assert len(first.calls) == asked + 1
        codes = {r.subject: r.code for r in world.client.decide(Request(MODEL, world.client.me)).refusals}
        assert codes[first.id] in ("silent", "stale")
        assert not world.client.snapshot().pending

    run(body)


def test_a_silent_service_that_reports_again_is_asked_again() -> None:
    async def body(world: World) -> None:
        first, second = await world.add(answers, answers)
        await world.client.infer(MODEL, [X])
        mute(first)
        assert (await world.client.infer(MODEL, [X])).served_by == second.id
        first.script = answers
        first._reporting = asyncio.create_task(first._report())
        await until(lambda: not world.client.snapshot().missed, "it is heard")
        assert (await world.client.infer(MODEL, [X])).served_by == first.id

    run(body)


def test_a_service_that_is_slow_but_reports_is_not_taken_for_silent() -> None:
    async def body(world: World) -> None:
        first, second = await world.add(silent, answers)
        asking = asyncio.create_task(world.client.infer(MODEL, [X]))
        await until(lambda: bool(first.calls), "it was asked")
        heard = world.client.snapshot().services[first.id].heard
        await until(lambda: world.client.snapshot().services[first.id].heard > heard + 0.6, "it goes on reporting")
        assert not second.calls and not asking.done()
        answers(first, first.calls[0])
        assert (await asking).served_by == first.id

    run(body)


def test_who_refuses_at_the_door_what_would_be_late_leaves_time_for_another() -> None:
    async def body(world: World) -> None:
        bad, good = await world.add(fails(DeadlineExceeded("9 requests wait")), answers)
        answer = await world.client.infer(MODEL, [X], DEADLINE)
        assert answer.served_by == good.id and answer.aside and "9 requests wait" in answer.attempts[0]
        snapshot = world.client.snapshot()
        assert snapshot.observed[bad.id].failures == 0, "that is no failure of the service"
        good.script = bad.script
        with pytest.raises(DeadlineExceeded, match="9 requests wait"):
            await world.client.infer(MODEL, [X], DEADLINE)

    run(body)


def test_when_the_first_copy_fails_while_a_second_is_under_way_the_second_is_awaited() -> None:
    async def body(world: World) -> None:
        first, second, third = await world.add(silent, silent, answers)
        asking = asyncio.create_task(world.client.infer(MODEL, [X], DEADLINE))
        await until(lambda: bool(second.calls), "a second copy is under way")
        first.vanish()
        await until(lambda: not world.client.snapshot().services[first.id].alive, "the first is gone")
        answers(second, second.calls[0])
        assert (await asking).served_by == second.id and not third.calls
        assert not world.client.snapshot().pending

    run(body)


def test_a_caller_that_leaves_cancels_every_copy() -> None:
    async def body(world: World) -> None:
        services = await world.add(silent, silent)
        asking = asyncio.create_task(world.client.infer(MODEL, [X], DEADLINE))
        await until(lambda: all(s.calls for s in services), "both copies are under way")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not world.client.snapshot().pending and not world.client.snapshot().owed
        calls: list[Call] = [s.calls[0] for s in services]
        await until(lambda: all(call.cancelled for call in calls), "both services know that nobody waits")

    run(body)


def test_a_second_copy_is_told_to_who_listens_and_stands_in_the_trail() -> None:
    """`nearfar explain` must say why another service was asked for this frame: the first one was silent, no more."""

    async def body(world: World) -> None:
        slow, quick = await world.add(silent, answers)
        trail = Trail(StreamId("cam"), MODEL)
        await trail.start()
        world.client.listeners.add(trail)
        FRAME.set(7)
        answer = await world.client.infer(MODEL, [X], DEADLINE, stream=StreamId("cam"))
        assert answer.served_by == quick.id
        (told,) = [entry for entry in trail.entries() if isinstance(entry, Hedged)]
        assert (told.service, told.first, told.frame) == (quick.id, slow.id, 7) and 0 < told.waited_ms < 5000
        second = [entry for entry in trail.entries() if isinstance(entry, Decided)][-1]
        assert second.excluded == (slow.id,) and "]aside[/]" in next(lines(second))
        await trail.close()

    run(body)
