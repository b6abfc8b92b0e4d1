"""The self-test of a language service: what counts as another answer, and what follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nearfar.errors import InferenceError
from nearfar.node.talktest import TextQuestion, TextTester, _answer, compare
from nearfar.runtimes.text import LoadedText
from nearfar.types.telemetry import ServiceState
from tests.node.test_talk import call, fake, pool
from tests.waiting import until_now

EVERY = 0.01


def answer(*tokens: tuple[str, float], top: dict[str, float] | None = None) -> Any:
    """An answer of tokens, each with what else could have come."""
    others = [{"token": token, "logprob": logprob} for token, logprob in (top or {}).items()]
    content = [{"token": token, "logprob": logprob, "top_logprobs": others} for token, logprob in tokens]
    text = "".join(token for token, _ in tokens)
    return _answer.decode(json.dumps({"choices": [{"text": text, "logprobs": {"content": content}}]}).encode())


def vector(*values: float) -> Any:
    return _answer.decode(json.dumps({"data": [{"embedding": values}]}).encode())


FIRST = answer((" a", -0.1), (" b", -0.7), top={" b": -0.7, " c": -0.8, " d": -3.0})


@pytest.mark.parametrize(
    ("now", "right"),
    [
        (answer((" a", -0.2), (" b", -0.7)), True),
        (answer((" a", -0.1), (" c", -0.75)), True),
        (answer((" a", -0.1), (" d", -0.75)), False),
        (answer((" a", -0.1), (" x", -0.1)), False),
        (answer((" x", -0.1), (" b", -0.1)), False),
        (answer((" a", -0.1)), False),
        (_answer.decode(b"{}"), False),
    ],
)
def test_another_text_is_wrong_unless_two_tokens_were_as_good_as_tied(now: Any, right: bool) -> None:
    assert (compare(FIRST, now) == "") == right


@pytest.mark.parametrize(
    ("now", "right"),
    [
        (answer((" a", -0.1), (" c", -0.75)), True),
        (answer((" a", -0.1), (" x", -0.8)), True),
        (answer((" a", -0.1), (" c", -1.2)), False),
        (answer((" x", -0.6), (" b", -0.7)), False),
        (answer((" a", -0.1)), False),
    ],
)
def test_an_engine_that_tells_of_the_best_token_only_may_tie_too(now: Any, right: bool) -> None:
    assert (compare(answer((" a", -0.1), (" b", -0.7)), now, alone=True) == "") == right


@pytest.mark.parametrize(
    ("now", "right"),
    [
        (vector(1.0, 0.01), True),
        (vector(2.0, 0.0), True),
        (vector(0.0, 1.0), False),
        (vector(0.0, 0.0), False),
        (vector(1.0), False),
        (_answer.decode(b"{}"), False),
    ],
)
def test_a_vector_is_compared_by_its_direction(now: Any, right: bool) -> None:
    assert (compare(vector(1.0, 0.0), now) == "") == right


@pytest.mark.parametrize("embedding", [False, True])
def test_a_sound_engine_passes(tmp_path: Path, embedding: bool) -> None:
    question = TextQuestion(fake(tmp_path, embedding=embedding), embedding, "m")
    assert question.ask() == ""
    assert question.result("").passed


@pytest.mark.parametrize(("fault", "says"), [("wrong", "token 1"), ("fail", "3 times in a row"), ("garble", "3 times")])
def test_a_fault_is_noticed(tmp_path: Path, fault: str, says: str) -> None:
    flag = tmp_path / "fault"
    question = TextQuestion(fake(tmp_path, fault_file=str(flag)), False, "m", failed=2)
    flag.write_text(fault)
    wrong = question.ask()
    assert says in wrong
    assert question.result(wrong).failed == 3
    assert "nearfar models remove m" in str(question.error(wrong))


def test_an_engine_that_cannot_be_read_at_the_start_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(InferenceError):
        TextQuestion(fake(tmp_path, fault="garble"), False, "m")


def test_it_goes_on_asking_is_counted_as_no_call_and_a_wrong_answer_refuses_every_other(tmp_path: Path) -> None:
    flag = tmp_path / "fault"
    loaded = fake(tmp_path, fault_file=str(flag))
    question = TextQuestion(loaded, False, "m")
    told = []
    with pool(loaded) as (made, meter):

        def wrong(error: Any) -> None:
            made.broken = error
            told.append(error)

        tester = TextTester(question, made.probe, EVERY, meter, wrong)
        calls = calls_of(loaded)
        until_now(lambda: calls_of(loaded) > calls + 3, "it is asked again and again")
        assert tester.error is None
        assert meter.answered == 0
        assert meter.report().self_test.passed
        flag.write_text("wrong")
        until_now(lambda: tester.error, "it is noticed")
        until_now(lambda: told, "and told")
        assert meter.state is ServiceState.FAILED
        asked = call({"messages": [{"role": "user", "content": "Hi"}]})
        made.accept(asked)
        assert asked.code == "self-test"
        tester.close()


def test_it_gives_way_to_requests_until_three_periods_have_passed(tmp_path: Path) -> None:
    loaded = fake(tmp_path)
    question = TextQuestion(loaded, False, "m")
    with pool(loaded) as (made, meter):
        meter.count_in()  # somebody is always there
        put: list[Any] = []
        tester = TextTester(question, put.append, 3600.0, meter, lambda _: None)
        tester.close()
        assert not put
        tester = TextTester(question, made.probe, EVERY, meter, lambda _: None)
        calls = calls_of(loaded)
        until_now(lambda: calls_of(loaded) > calls, "asked all the same, when it is overdue")
        tester.close()
        meter.count_out()


def calls_of(loaded: LoadedText) -> int:
    calls: int = loaded.calls  # type: ignore[attr-defined]
    return calls
