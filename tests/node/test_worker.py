"""A service's queue and its workers: every call is answered, refused or dropped, and no call ends the service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nearfar.errors import InferenceError, MeshError, TooLarge
from nearfar.node.worker import Description
from nearfar.runtimes.base import OutputForms
from nearfar.types.tensor import DType, Tensor, TensorSpec
from nearfar.types.wire import CallHead, Operation, TensorHead, encode, tensors_of
from tests.node.calls import FakeCall, Gate, Scripted, infer, pool
from tests.waiting import until_now


def test_an_answer_carries_the_outputs_and_the_stages() -> None:
    with pool(Scripted()) as (made, meter):
        call = infer()
        made.accept(call)
        head = call.answer
        (output,) = tensors_of(head.tensors, call.replies[0][1])
        assert output == Tensor.of("y", np.arange(4, dtype=np.float32).reshape(1, 4))
        assert head.failure is None and head.variant == "v"
        assert head.stages.inference > 0 and head.stages.queue >= 0
        until_now(lambda: meter.in_flight == 0, "the work is over")
        assert (meter.answered, meter.failed, meter.refused) == (1, 0, 0)


def test_describe_says_what_the_model_is() -> None:
    with pool(Scripted()) as (made, _):
        call = FakeCall(encode(CallHead(Operation.DESCRIBE)))
        made.accept(call)
        assert call.code == ""
        assert msgspec.json.decode(call.replies[0][1], type=Description).inputs == Scripted.inputs


def test_a_full_queue_refuses_at_once_and_the_others_are_answered() -> None:
    gate = Gate()
    with pool(Scripted(gate), limit=3) as (made, meter):
        calls = [infer() for _ in range(4)]
        made.accept(calls[0])
        assert gate.inside.acquire(timeout=20)  # it left the queue: three places
        for call in calls[1:]:
            made.accept(call)
        refused = [infer() for _ in range(5)]
        for call in refused:
            made.accept(call)
            assert call.replies, "refused at once, on the caller's thread"
            failure = call.answer.failure
            assert failure is not None and failure.code == "overloaded" and failure.retry_after >= 0.05
        assert meter.refused == 5 and meter.queued == 3
        gate.open.set()
        assert [call.code for call in calls] == [""] * 4


def test_cancelled_work_is_dropped_without_an_answer() -> None:
    gate, loaded = Gate(), Scripted()
    loaded._script = gate
    with pool(loaded) as (made, _):
        first, left, last = infer(), infer(), infer()
        for call in (first, left, last):
            made.accept(call)
        left.cancelled = True
        gate.open.set()
        assert first.code == "" and last.code == ""
        assert left.replies == [] and loaded.calls == 2


def test_a_deadline_that_passed_in_the_queue_costs_no_inference() -> None:
    loaded = Scripted()
    with pool(loaded) as (made, meter):
        late = infer(age=1.0, budget_ms=500.0)
        early = infer(age=1.0, budget_ms=60_000.0)
        made.accept(late)
        made.accept(early)
        assert late.code == "deadline-exceeded" and early.code == ""
        assert loaded.calls == 1 and meter.failed == 1


@given(head=st.binary(max_size=200), body=st.binary(max_size=64))
@settings(deadline=None, max_examples=150)
def test_random_bytes_are_answered_with_a_failure(head: bytes, body: bytes) -> None:
    with pool(Scripted()) as (made, _):
        call, after = FakeCall(head, body), infer()
        made.accept(call)
        made.accept(after)
        assert call.code == "invalid-input" and after.code == ""


sizes = st.integers(-(2**40), 2**40)
heads = st.builds(
    TensorHead,
    name=st.sampled_from(["x", "y", ""]),
    dtype=st.sampled_from(list(Tensor.raw("x", b"").dtype.__class__)),
    shape=st.lists(sizes, max_size=4).map(tuple) | st.just((1, 4)),
    nbytes=sizes | st.just(16),
)


@given(tensors=st.lists(heads, max_size=3).map(tuple), body=st.binary(max_size=64), image=st.booleans())
@settings(deadline=None, max_examples=150)
def test_heads_that_lie_are_answered_with_a_failure(tensors: tuple[TensorHead, ...], body: bytes, image: bool) -> None:
    operation = Operation.SEE if image else Operation.INFER
    with pool(Scripted()) as (made, _):
        picture = ("encoded", -1, 2**40) if image else None
        call = FakeCall(encode(CallHead(operation, tensors=tensors, image=picture)), body)
        made.accept(call)
        honest = not image and len(tensors) == 1 and len(body) >= 16 and tensors[0].shape == (1, 4)
        assert call.code == "invalid-input" or honest


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InferenceError("the engine says no"), "inference"),
        (ValueError("a bug in a decoder"), "inference"),
        (MemoryError(), "inference"),
        (KeyError("x"), "inference"),
    ],
)
@pytest.mark.parametrize("patient", [False, True])
def test_whatever_an_engine_raises_becomes_a_failure_and_the_next_call_is_answered(
    error: Exception, code: str, patient: bool
) -> None:
    def script(number: int, x: NDArray[Any]) -> NDArray[Any]:
        if number == 1:
            raise error
        return x

    with pool(Scripted(script), profile_ms=0.0) as (made, meter):
        bad, good = infer(patient=patient), infer(patient=patient)
        made.accept(bad)
        made.accept(good)
        assert bad.code == code and good.code == ""
        failure = bad.answer.failure
        assert failure is not None and failure.message
        assert meter.failed == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda x: x[:, :3], "float32[1x3]"),
        (lambda x: x[0], "float32[4]"),
        (lambda x: x[..., None], "float32[1x4x1]"),
        (lambda x: x.astype(np.float64), "float64[1x4]"),
        (lambda x: x.astype(x.dtype.newbyteorder()), "float32[1x4]"),
    ],
)
def test_an_output_that_the_file_does_not_promise_is_a_failure_and_never_an_answer(
    wrong: Callable[[NDArray[Any]], NDArray[Any]], told: str
) -> None:
    with pool(Scripted(lambda number, x: wrong(x) if number == 1 else x)) as (made, meter):
        bad, good = infer(), infer()
        made.accept(bad)
        made.accept(good)
        failure = bad.answer.failure
        assert failure is not None and failure.code == "inference" and told in failure.message
        assert good.code == "" and meter.failed == 1


def test_outputs_are_counted_and_an_open_shape_promises_nothing() -> None:
    promised = (TensorSpec("y", DType.FLOAT32, (-1, 4)), TensorSpec("z", DType.INT64, ()))
    y, z = np.zeros((3, 4), np.float32), np.zeros((7, 2), np.int64)
    OutputForms(promised).check([y, z])
    wrong: list[list[NDArray[Any]]] = [[y], [y, z, z], []]
    for outputs in wrong:
        with pytest.raises(InferenceError, match="outputs, the model has 2"):
            OutputForms(promised).check(outputs)


@pytest.mark.parametrize(
    ("error", "told"), [(TooLarge("600 MB"), "too-large"), (MeshError("the way is gone"), "mesh"), (OSError(), None)]
)
@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("patient", [False, True])
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_answer_that_cannot_be_sent_does_not_end_the_worker(
    error: Exception, told: str | None, always: bool, patient: bool
) -> None:
    def fail(attempt: int) -> None:
        if attempt == 1 or always:
            raise error

    with pool(Scripted(), profile_ms=0.0) as (made, meter):
        unlucky, after = infer(patient=patient), infer(patient=patient)
        unlucky.on_reply = fail
        made.accept(unlucky)
        made.accept(after)
        assert after.code == ""
        if always or told is None:
            assert unlucky.replies == []
        else:
            assert unlucky.code == told
        until_now(lambda: meter.in_flight == 0 and made.longest(1e9) == 0, "nothing counts as under way")


def test_how_long_the_present_call_takes_is_known() -> None:
    gate = Gate()
    with pool(Scripted(gate)) as (made, _):
        assert made.longest(1e9) == 0
        made.accept(infer())
        assert gate.inside.acquire(timeout=20)
        since = made._workers[0].busy_since
        assert since is not None and made.longest(since + 60) == pytest.approx(60)
        gate.open.set()
        until_now(lambda: made.longest(1e9) == 0, "nothing is worked on")


def test_closing_answers_what_waits() -> None:
    with pool(Scripted()) as (made, _):
        calls = [infer() for _ in range(4)]
        for call in calls:
            made.accept(call)
    assert [call.code for call in calls] == [""] * 4


def test_a_patient_call_is_worked_on_at_once_unless_the_engine_is_busy() -> None:
    gate = Gate()
    with pool(Scripted(gate), profile_ms=0.0) as (made, meter):
        made.accept(infer())
        assert gate.inside.acquire(timeout=20)
        waiting = infer(patient=True)
        made.accept(waiting)  # returns: the engine is taken, it queues
        assert not waiting.replies
        gate.open.set()
        assert waiting.code == ""
        until_now(lambda: not made._workers[0]._engine.busy.locked(), "nothing is worked on")
        meter._recent_ms = 0.0  # the gate made it slow, and slow ones queue
        at_once = infer(patient=True)
        made.accept(at_once)
        assert at_once.replies
