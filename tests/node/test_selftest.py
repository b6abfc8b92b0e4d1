"""The question whose answer is known: asked through the engine of every request, counted as none, and final."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nearfar.errors import InferenceError, SelfTestFailed
from nearfar.node.meter import ERROR_LEAST, Meter
from nearfar.node.selftest import TRIES, Question, SelfTester, first_test
from nearfar.node.worker import Description, Engine, Pool
from nearfar.runtimes import known_answer
from nearfar.types.telemetry import ServiceState
from tests.node.calls import FakeCall, Gate, Scripted, infer, pool, spec
from tests.waiting import until_now


class Fault:
    """A script that answers x until it is switched to something else."""

    def __init__(self) -> None:
        self.spoil: Any = lambda x: x
        self.questions = 0

    def __call__(self, _: int, x: NDArray[Any]) -> NDArray[Any]:
        self.questions += 1
        return np.asarray(self.spoil(x))


def recorded() -> str:
    loaded = Scripted()
    shapes = known_answer.shapes_of(loaded.inputs)
    return known_answer.encode(known_answer.learn(loaded.infer, loaded.inputs, shapes, "test"))


@contextmanager
def service(script: Any, every: float = 0.05, answer: str | None = None) -> Iterator[tuple[Pool, Meter, SelfTester]]:
    loaded = Scripted(script)
    engine = Engine(loaded, None, 1.0)
    meter = Meter(spec(queue_limit=64), 5.0)
    meter.start(5.0)
    question = first_test([engine], recorded() if answer is None else answer, meter, failed=0)
    made = Pool([engine], meter, Description("", "v", "fake", loaded.inputs, loaded.outputs), 64, lambda: None)
    tester = SelfTester(question, [engine], every, meter, lambda: None)
    try:
        yield made, meter, tester
    finally:
        tester.close()
        made.close(patience=10)


def test_it_is_asked_again_and_again_and_is_no_request() -> None:
    fault = Fault()
    with service(fault) as (_, meter, tester):
        until_now(lambda: fault.questions > 4, "it is asked some times")
        report = meter.report()
        assert (report.answered, report.failed, report.in_flight, report.queued) == (0, 0, 0, 0)
        assert all(not summary.counts for summary in report.stages.values()) and report.service_ms == 5.0
        assert report.self_test.passed and "recorded" in report.self_test.reason and tester.error is None


@pytest.mark.parametrize("answer", [None, ""], ids=["recorded", "its own first"])
def test_a_wrong_answer_ends_it_at_once(answer: str | None) -> None:
    fault = Fault()
    with service(fault, answer=answer) as (made, meter, tester):
        made.accept(call := infer())
        assert call.code == ""
        fault.spoil = np.zeros_like
        until_now(lambda: tester.error is not None, "it is noticed")
        made.accept(late := infer())
        assert late.code == SelfTestFailed.code, "callers ask elsewhere after this one"
        report = meter.report()
        assert report.state is ServiceState.FAILED and "self-test" in report.reason
        assert report.self_test.passed is False and report.self_test.failed == 1
        asked = fault.questions
        made.accept(infer())
        assert fault.questions == asked, "the engine is not used any more"
        told = "its recorded answer" if answer is None else "its own first answer"
        assert tester.error is not None and told in str(tester.error)
        assert issubclass(SelfTestFailed, InferenceError), "which is what clients try another service after"


def test_what_waits_when_it_fails_is_refused_so_that_it_is_asked_elsewhere() -> None:
    gate = Gate()
    spoiled = threading.Event()

    def script(n: int, x: NDArray[Any]) -> NDArray[Any]:
        if n == 1:
            return x
        gate(n, x)
        return np.zeros_like(x) if spoiled.is_set() else x

    calls: list[FakeCall] = []
    with service(script, every=0.01) as (made, _, tester):
        gate.inside.acquire()  # the question is being answered, and holds the engine
        for _ in range(5):
            calls.append(infer())
            made.accept(calls[-1])
        spoiled.set()
        gate.open.set()
        until_now(lambda: tester.error is not None, "it is noticed")
        assert [call.code for call in calls] == [SelfTestFailed.code] * 5, "none of them got zeros"


def test_it_gives_way_to_requests_but_not_for_ever() -> None:
    """A queue that is never empty: the question is put off, and asked after three periods at the latest."""
    fault = Fault()
    stop = threading.Event()
    with service(fault, every=0.2) as (made, meter, tester):
        first = fault.questions

        def load() -> None:
            while not stop.is_set():
                calls = [infer() for _ in range(8)]
                for call in calls:
                    made.accept(call)
                until_now(lambda c=calls: all(one.replies for one in c[:-2]), "most are answered")  # type: ignore[misc]

        busy = threading.Thread(target=load)
        busy.start()
        try:
            fault.spoil = lambda x: x if x.shape == (1, 4) and x[0, 3] == 3 else np.zeros_like(x)  # right for requests
            until_now(lambda: tester.error is not None, "it is asked all the same", 60.0)
        finally:
            stop.set()
            busy.join()
        assert meter.answered > 0 and fault.questions > first


def test_a_start_with_a_wrong_answer_is_no_start() -> None:
    for spoil in (np.zeros_like, lambda x: x * -3, lambda x: np.full_like(x, np.nan)):
        fault = Fault()
        fault.spoil = spoil
        meter = Meter(spec(), 1.0)
        with pytest.raises(SelfTestFailed, match=r"answered wrongly.*recorded answer.*self_test_every_ms"):
            first_test([Engine(Scripted(fault), None, 1.0)], recorded(), meter, 0)
        first_test([Engine(Scripted(fault), None, 1.0)], "", meter, 0)  # nothing to compare with: it says so
        assert "its own first answer" in meter.report().self_test.reason


def test_failures_are_counted_since_the_start_of_the_node() -> None:
    meter = Meter(spec(), 1.0)
    first_test([Engine(Scripted(), None, 1.0)], recorded(), meter, failed=3)
    assert meter.report().self_test.failed == 3


def test_an_inference_that_fails_is_tried_again_before_it_counts_as_wrong() -> None:
    def script(n: int, x: NDArray[Any]) -> NDArray[Any]:
        if n < TRIES:
            raise InferenceError("the device was busy")
        return x

    engine = Engine(Scripted(script), None, 1.0)
    assert Question(engine, recorded()).ask(engine) == ""

    def never(_: int, x: NDArray[Any]) -> NDArray[Any]:
        raise InferenceError("the device is gone")

    engine = Engine(Scripted(never), None, 1.0)
    assert "the device is gone" in Question(engine, recorded()).ask(engine)


def test_a_model_to_which_the_question_cannot_be_put_serves_without_it() -> None:
    def script(n: int, x: NDArray[Any]) -> NDArray[Any]:
        raise InferenceError("only batches of 8")

    meter = Meter(spec(), 1.0)
    engine = Engine(Scripted(script), None, 1.0)
    question = first_test([engine], "", meter, 0)
    told = meter.report().self_test
    assert told.passed is None and "only batches of 8" in told.reason
    SelfTester(question, [engine], 0.01, meter, lambda: None).close()
    first_test([Engine(Scripted(), None, 1.0)], "not an answer", meter, 0)  # of a newer version, or damaged
    assert meter.report().self_test.passed


# -- every answer, and the error rate --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda x: np.concatenate([x, x], 1), "Output 'y' is float32[1x8], but the file states y float32[?x4]"),
        (lambda x: x.astype(np.float64), "Output 'y' is float64[1x4]"),
        (lambda x: x[0], "Output 'y' is float32[4]"),
    ],
)
def test_an_answer_of_another_form_is_never_delivered(spoil: Any, told: str) -> None:
    with pool(Scripted(lambda _, x: np.asarray(spoil(x)))) as (made, meter):
        made.accept(call := infer())
        assert call.code == InferenceError.code and call.answer.failure is not None
        assert told in call.answer.failure.message and call.replies[0][1] == b""
        assert (meter.answered, meter.failed) == (0, 1)


def test_an_output_too_few_is_never_delivered() -> None:
    loaded = Scripted()
    loaded.outputs = (*Scripted.outputs, *Scripted.outputs)  # type: ignore[assignment]
    with pool(loaded) as (made, _):
        made.accept(call := infer())
        assert call.answer.failure is not None and "1 outputs, the model has 2" in call.answer.failure.message


def test_the_error_rate_is_of_the_last_requests_and_only_of_the_services_own_fault() -> None:
    def script(n: int, x: NDArray[Any]) -> NDArray[Any]:
        if n % 4 == 0:
            raise InferenceError("every fourth")
        return x

    with pool(Scripted(script), limit=64) as (made, meter):
        for number in range(2 * ERROR_LEAST):
            made.accept(call := infer())
            assert call.code in ("", "inference")
            wrong = FakeCall(b"\xc1 nonsense")
            made.accept(wrong)
            assert wrong.code == "invalid-input"
            if number < ERROR_LEAST - 1:
                assert meter.report().error_rate == 0.0, "too few to tell"
        assert meter.report().error_rate == pytest.approx(0.25)
        assert meter.failed == 5 + 2 * ERROR_LEAST
        assert meter.error_rate(time.monotonic() + 31) == 0.0, "what is old is forgotten: it must be tried again"
