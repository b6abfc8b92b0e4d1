"""Asking a fleet that fails in every way: who is asked next, what the caller hears, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.client.client import SILENT_FIRST
from nearfar.errors import (
    DeadlineExceeded,
    InferenceError,
    InputError,
    MeshError,
    NearfarError,
    NoCandidate,
    Overloaded,
    TooLarge,
    UnknownModel,
    Unreachable,
)
from nearfar.mesh.base import Call
from nearfar.node import keys
from nearfar.placement.hedging import Budget
from nearfar.types.ids import ModelName, NodeId, node_of
from nearfar.types.request import Degrade, Qos, Request, Stages
from nearfar.types.tensor import DType
from nearfar.types.units import Milliseconds
from nearfar.types.wire import ReplyHead, TensorHead, decode_call, encode
from tests.client.scripted import MODEL, Script, Service, World, X, answers, fails, run, says, silent
from tests.waiting import until

ELSEWHERE = [
    Overloaded("full", retry_after=2.0),
    InferenceError("the engine says no"),
    Unreachable("it vanished"),
    MeshError("the way is gone"),
]


def dies(service: Service, _: Call) -> None:
    service.vanish()


@pytest.mark.parametrize("script", [*map(fails, ELSEWHERE), dies, says(b"\xc1junk"), says(b"")])
def test_the_next_one_is_asked_and_the_answer_says_what_was_tried(script: Script) -> None:
    async def body(world: World) -> None:
        bad, good = await world.add(script, answers)
        answer = await world.client.infer(MODEL, [X])
        assert answer.served_by == good.id and list(answer.outputs) == [X]
        (tried,) = answer.attempts
        assert tried.startswith(f"{bad.id}: ") and len(tried) > len(bad.id) + 2
        assert len(bad.calls) == 1 and not world.client.snapshot().pending

    run(body)


@pytest.mark.parametrize("error", [InputError("wrong shape"), TooLarge("too large")], ids=str)
def test_what_is_the_callers_fault_is_not_asked_elsewhere(error: NearfarError) -> None:
    async def body(world: World) -> None:
        _, other = await world.add(fails(error), answers)
        with pytest.raises(type(error), match=error.message):
            await world.client.infer(MODEL, [X])
        assert not other.calls and not world.client.snapshot().pending

    run(body)


def test_who_would_rather_be_refused_than_late_is_refused_before_anything_is_sent() -> None:
    async def body(world: World) -> None:
        a, b = await world.add(answers, answers)
        a.service_ms, b.service_ms = 300.0, 400.0
        late = Qos(Milliseconds(100.0), degrade=(Degrade.REFUSE,))
        await until(lambda: world.client.decide(Request(MODEL, "client", qos=late)).late, "both are known to be slow")
        with pytest.raises(NoCandidate, match="Nobody is expected to answer within 100 ms") as told:
            await world.client.infer(MODEL, [X], late)
        codes = {refusal["subject"]: refusal["code"] for refusal in told.value.refusals}
        assert codes == {a.id: "late", b.id: "late"} and not a.calls and not b.calls
        # Without the word it is sent, late or not.
        answer = await world.client.infer(MODEL, [X], Qos(Milliseconds(100.0)))
        assert answer.served_by == a.id

    run(body)


def test_a_promise_that_broke_keeps_new_requests_away() -> None:
    async def body(world: World) -> None:
        a, b = await world.add(answers, answers)
        qos = Qos(Milliseconds(5000.0))
        assert (await world.client.infer(MODEL, [X], qos)).served_by == a.id
        world.client.promise_broken(a.id, Milliseconds(5000.0), "9 of 90 answers late")
        assert (await world.client.infer(MODEL, [X], qos)).served_by == b.id
        (refusal,) = world.client.decide(Request(MODEL, "client", qos=qos)).refusals
        assert (refusal.subject, refusal.code) == (a.id, "unreliable")

    run(body)


def test_when_all_fail_every_refusal_is_told() -> None:
    async def body(world: World) -> None:
        await world.add(fails(InferenceError("no power")), fails(Unreachable("no way")), answers)
        last = world.services[2]
        last.vanish()
        await until(lambda: not world.client.snapshot().services[last.id].alive, "it is seen to be gone")
        with pytest.raises(NoCandidate, match=r"a/yard: no power; b/yard: no way") as told:
            await world.client.infer(MODEL, [X])
        reasons = {r["subject"]: (r["code"], r["reason"]) for r in told.value.refusals}
        assert reasons["a/yard"] == ("excluded", "no power")
        assert reasons["b/yard"] == ("excluded", "no way")
        assert reasons["c/yard"][0] == "disconnected"

    run(body)


def test_when_all_are_busy_it_says_when_to_come_back() -> None:
    async def body(world: World) -> None:
        await world.add(fails(Overloaded("full", retry_after=9.0)), fails(Overloaded("full", retry_after=3.0)))
        with pytest.raises(Overloaded, match="busy") as told:
            await world.client.infer(MODEL, [X])
        assert told.value.retry_after == 3.0

    run(body)


def test_an_unknown_model_has_a_nearest_name_and_an_empty_fleet_a_hint() -> None:
    async def body(world: World) -> None:
        with pytest.raises(NoCandidate, match="nearfar up"):
            await world.client.infer(MODEL, [X])
        await world.add(answers)
        with pytest.raises(UnknownModel, match="did you mean yard"):
            await world.client.infer(ModelName("yrad"), [X])
        with pytest.raises(NoCandidate, match="pinned") as told:
            await world.client.infer(MODEL, [X], Qos(node="elsewhere"))
        assert [(r["subject"], r["code"]) for r in told.value.refusals] == [("a/yard", "pinned")]

    run(body)


# -- deadlines and cancellation ---------------------------------------------------------------------------------------


def test_retries_share_one_deadline() -> None:
    """Each service takes a while to refuse; the budgets that they are told fall, and the last never gets its turn."""

    loops: list[asyncio.AbstractEventLoop] = []

    def slowly(service: Service, call: Call) -> None:
        asyncio.run_coroutine_threadsafe(later(call), loops[0])

    async def later(call: Call) -> None:
        await asyncio.sleep(0.15)
        fails(InferenceError("no"))(None, call)  # type: ignore[arg-type]

    async def body(world: World) -> None:
        loops.append(asyncio.get_running_loop())
        world.client.robust.budget = Budget(0)  # a hedge would be told its budget in between
        await world.add(slowly, slowly, slowly, slowly, slowly)
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await world.client.infer(MODEL, [X], Qos(deadline=Milliseconds(400.0)))
        budgets = [call_budget(s.calls[0]) for s in world.services if s.calls]
        assert budgets == sorted(budgets, reverse=True) and budgets[0] <= 400
        assert all(earlier - later >= 140 for earlier, later in itertools.pairwise(budgets))
        assert len(budgets) <= 3 and time.monotonic() - start >= 0.39

    run(body)


def call_budget(call: Call) -> float:
    return decode_call(call.head).budget_ms


def test_silence_ends_at_the_deadline_and_the_service_is_told_to_drop_the_work() -> None:
    async def body(world: World) -> None:
        (service,) = await world.add(silent)
        with pytest.raises(DeadlineExceeded):
            await world.client.infer(MODEL, [X], Qos(deadline=Milliseconds(50.0)))
        await until(lambda: service.calls[0].cancelled, "the service knows that nobody waits")
        assert not world.client.snapshot().pending

    run(body)


def test_a_caller_that_leaves_cancels_the_work_and_leaves_nothing_pending() -> None:
    async def body(world: World) -> None:
        (service,) = await world.add(silent)
        asking = [asyncio.create_task(world.client.infer(MODEL, [X])) for _ in range(5)]
        await until(lambda: len(service.calls) == 5, "all were asked")
        assert world.client.snapshot().pending == {service.id: 5}
        for task in asking:
            task.cancel()
        assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*asking, return_exceptions=True))
        await until(lambda: all(call.cancelled for call in service.calls), "the service knows that nobody waits")
        snapshot = world.client.snapshot()
        assert not snapshot.pending
        assert service.id not in snapshot.observed or snapshot.observed[service.id].failures == 0

    run(body)


def test_a_service_that_never_answers_in_time_is_left_out_for_a_while() -> None:
    async def body(world: World) -> None:
        world.client.robust.budget = Budget(0)  # no second copy may hide it
        bad, good = await world.add(silent, answers)
        late = 0
        for _ in range(20):
            try:
                await world.client.infer(MODEL, [X], Qos(deadline=Milliseconds(1000.0)))
            except DeadlineExceeded:
                late += 1
            if good.calls:
                break
        assert good.calls and late == len(bad.calls) <= 3
        view = world.client.snapshot().observed[bad.id]
        assert view.failures == late

    run(body)


# -- answers that make no sense --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        says(b""),
        says(b"\xc1"),
        says(b"\x93\x01\x02\x03", b"x"),
        says(encode(ReplyHead("v", Stages(), (TensorHead("y", DType.FLOAT32, (1, 4), 16),))), b"short"),
        says(encode(ReplyHead("v", Stages(), (TensorHead("y", DType.FLOAT32, (-1, 4), 16),))), bytes(16)),
        says(encode(ReplyHead("v", Stages(), (TensorHead("y", DType.FLOAT32, (2**40, 2**40), 16),))), bytes(16)),
    ],
)
def test_an_answer_that_cannot_be_read_is_the_services_fault(script: Script) -> None:
    async def body(world: World) -> None:
        (service,) = await world.add(script)
        with pytest.raises(MeshError, match=r"a/yard answered what cannot be read.*another version") as told:
            await world.client.infer(MODEL, [X])
        assert not isinstance(told.value, Unreachable)
        snapshot = world.client.snapshot()
        assert not snapshot.pending and snapshot.observed[service.id].failures == 1

    run(body)


@given(head=st.binary(max_size=60), body=st.binary(max_size=60))
@settings(deadline=None, max_examples=40)
def test_random_replies_raise_what_the_caller_can_handle(head: bytes, body: bytes) -> None:
    async def main(world: World) -> None:
        await world.add(says(head, body))
        with pytest.raises(NearfarError):
            await world.client.infer(MODEL, [X])
        with pytest.raises(NearfarError):
            await world.client.describe(MODEL)
        assert not world.client.snapshot().pending

    run(main)


@pytest.mark.parametrize("told", [b"", b"{}", b'{"manifest": "\xff"}'])
def test_a_description_that_cannot_be_read_is_an_error_of_the_mesh(told: bytes) -> None:
    async def body(world: World) -> None:
        await world.add(says(encode(ReplyHead("v", Stages())), told))
        with pytest.raises(MeshError, match="cannot be read"):
            await world.client.describe(MODEL)

    run(body)


def test_reports_that_cannot_be_read_are_counted_and_change_nothing() -> None:
    async def body(world: World) -> None:
        (service,) = await world.add(answers)
        for key in (keys.service_report_key(service.id), keys.node_report_key(NodeId("a"))):
            for junk in (b"", b"\xc1", b"\x80", b"{}", b"\xff" * 1000):
                service.mesh.publish(key, junk)
        await until(lambda: world.client.view.malformed == 10, "all are counted")
        assert world.healthy(service)
        assert (await world.client.infer(MODEL, [X])).served_by == service.id

    run(body)


# -- what is remembered ----------------------------------------------------------------------------------------------


def test_a_description_is_kept_while_the_service_lives_and_dropped_after_its_restart() -> None:
    async def body(world: World) -> None:
        (service,) = await world.add(answers)
        assert (await world.client.describe(MODEL)).manifest == "of first"
        assert (await world.client.describe(MODEL)).manifest == "of first"
        assert len(service.calls) == 1, "asked once"
        service.vanish()
        service.instance = "second"
        service.appear()

        def seen() -> bool:
            return world.client.snapshot().services[service.id].report.instance == "second"

        await until(seen, "the restart is seen")
        assert (await world.client.describe(MODEL)).manifest == "of second"
        assert len(world.client._descriptions) == 1, "what is known of the dead is dropped"

    run(body)


def test_waiting_for_a_model_ends_when_it_is_there_or_says_why_not() -> None:
    async def body(world: World) -> None:
        with pytest.raises(NoCandidate):
            await world.client.wait_for(MODEL, 0.1)
        waiting = asyncio.create_task(world.client.wait_for(MODEL, 30))
        await world.add(answers)
        await waiting

    run(body)


def test_a_request_that_ends_two_services_is_not_passed_on_to_a_third() -> None:
    """Else one input that crashes the engine would end every service of the fleet."""

    async def body(world: World) -> None:
        first, second, third = await world.add(dies, dies, answers)
        with pytest.raises(InferenceError, match="2 services died over this request"):
            await world.client.infer(MODEL, [X])
        assert (len(first.calls), len(second.calls), len(third.calls)) == (1, 1, 0)
        assert not world.client.snapshot().pending
        assert (await world.client.infer(MODEL, [X])).served_by == third.id  # another request is another matter

    run(body)


def test_services_behind_a_cut_are_no_deaths_of_the_request() -> None:
    """A client learns of a cut when leases run out: who lies behind it vanishes after it fell silent."""

    async def body(world: World) -> None:
        services = await world.add(silent, silent, answers)

        def heard_long_ago(service: Service) -> bool:
            return time.monotonic() - world.client.snapshot().services[service.id].heard > SILENT_FIRST

        asking = asyncio.create_task(world.client.infer(MODEL, [X]))
        for service in services[:2]:
            await until(lambda s=service: s.calls, "it is asked")  # type: ignore[misc]
            service.mute = True
            await until(lambda s=service: heard_long_ago(s), "it is silent")  # type: ignore[misc]
            service.vanish()
        assert (await asking).served_by == services[2].id

    run(body)


def test_labels_are_those_of_the_service_that_answered() -> None:
    async def body(world: World) -> None:
        fast, slow = await world.add(answers, answers)
        slow.instance = "other"
        answer = await world.client.infer(MODEL, [X], Qos(node=node_of(slow.id)))
        described = await world.client.described(answer)
        assert described is not None and described.manifest == "of other"
        assert not fast.calls
        slow.script = silent
        again = await world.client.described(answer, timeout=0.2)
        assert again is None or again.manifest == "of other"  # kept, or unknown: never the other one's

    run(body)
