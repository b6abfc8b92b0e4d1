"""The cascade: who is asked, what is told, and that nothing private is ever asked far, whatever fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import Cancelled, InferenceError, InputError, NearfarError, Overloaded
from nearfar.language.answer import Answer, read_answer
from nearfar.language.cascade import CascadeOptions, Outcome, cascade, chunks
from nearfar.language.judge.model import default
from nearfar.types.request import Privacy

QUESTION = "Ann has 3 boxes of 12 eggs and eats 4. How many eggs are left?"
RIGHT = "She has 3 * 12 = 36 eggs, so 36 - 4 = 32 are left.\n#### 32"
WRONG = "She has 3 * 12 = 48 eggs, so 48 - 4 = 42.5 are left.\n#### 42.5"
BODY = json.dumps({"model": "auto", "messages": [{"role": "user", "content": QUESTION}]}).encode()
OPTIONS = CascadeOptions(0.5)


class Model:
    """Answers with what it was given, in turn, and keeps the bodies it got."""

    def __init__(self, *answers: str | NearfarError) -> None:
        self.answers, self.bodies = answers, list[bytes]()

    async def __call__(self, body: bytes) -> Answer:
        said = self.answers[min(len(self.bodies), len(self.answers) - 1)]
        self.bodies.append(body)
        await asyncio.sleep(0)
        if isinstance(said, NearfarError):
            raise said
        raw = {"choices": [{"message": {"content": said}, "finish_reason": "stop", "logprobs": {"content": []}}],
               "usage": {"prompt_tokens": 30, "completion_tokens": 10}}  # fmt: skip
        answer = read_answer(json.dumps(raw).encode())
        return Answer(answer.text, "stop", None, 30, 10, (), answer.raw, "x", 0.5)


def run(near: Model, far: Model | None, privacy: Privacy = Privacy.ANY, body: bytes = BODY,
        options: CascadeOptions = OPTIONS) -> Outcome:  # fmt: skip
    return asyncio.run(cascade(body, near, far, default(), options, privacy))


def test_a_good_answer_stays_and_far_is_not_asked() -> None:
    near, far = Model(RIGHT), Model("42")
    found = run(near, far)
    assert (found.where, found.escalated, found.answer.text, far.bodies) == ("near", False, RIGHT, [])
    assert (found.near_in, found.near_out, found.far_in, found.cost) == (30, 10, 0, 0.5)
    assert "not under the threshold 0.50" in found.reasons[0]


def test_a_poor_answer_is_escalated_with_the_callers_own_body() -> None:
    near, far = Model(WRONG), Model("#### 32")
    found = run(near, far)
    assert (found.where, found.escalated, found.answer.text) == ("far", True, "#### 32")
    assert (found.near_in, found.far_in, found.cost) == (30, 30, 1.0)
    assert found.samples == (WRONG,)
    sent = json.loads(far.bodies[0])
    assert sent == {**json.loads(BODY), "stream": False}, "neither the near answer nor the judgement travels"


@pytest.mark.parametrize("privacy", [Privacy.LOCAL, Privacy.FLEET])
def test_what_is_private_stays_however_poor(privacy: Privacy) -> None:
    far = Model("42")
    found = run(Model(WRONG), far, privacy)
    assert (found.where, found.escalated, far.bodies) == ("near", False, [])
    assert any("private" in reason for reason in found.reasons)


def test_privacy_defaults_to_the_fleet() -> None:
    far = Model("42")
    asyncio.run(cascade(BODY, Model(WRONG), far, default(), OPTIONS))
    assert far.bodies == []


def test_without_a_far_end_the_near_answer_stands() -> None:
    found = run(Model(WRONG), None)
    assert (found.where, found.escalated) == ("near", False)
    assert any("no far end" in reason for reason in found.reasons)


def test_failures() -> None:
    down = InferenceError("It broke.", "Look.")
    found = run(Model(down), Model("far"))
    assert (found.where, found.escalated, found.judgement) == ("far", True, None)
    found = run(Model(WRONG), Model(Overloaded("Full.", "Wait.")))
    assert (found.where, found.escalated, found.answer.text) == ("near", True, WRONG)
    assert any("overloaded" in reason for reason in found.reasons)
    with pytest.raises(InferenceError):
        run(Model(down), Model("far"), Privacy.FLEET)
    with pytest.raises(Overloaded):
        run(Model(down), Model(Overloaded("Full.", "Wait.")))


def test_when_nobody_waits_nothing_more_is_asked() -> None:
    far = Model("42")
    with pytest.raises(Cancelled):
        run(Model(Cancelled("Gone.")), far)
    assert far.bodies == []
    with pytest.raises(Cancelled):
        run(Model(WRONG), Model(Cancelled("Gone.")))


def test_thresholds_at_the_ends() -> None:
    assert run(Model(""), Model("far"), options=CascadeOptions(0.0)).where == "near"
    assert run(Model(RIGHT), Model("far"), options=CascadeOptions(1.01)).where == "far"


def test_samples_are_taken_when_it_is_undecided_only() -> None:
    near = Model(RIGHT)
    found = run(near, None, options=CascadeOptions(0.5, samples=4, undecided=0.0))
    assert (len(near.bodies), found.samples) == (1, (RIGHT,))
    near = Model(RIGHT, RIGHT, WRONG, InferenceError("It broke."))
    found = run(near, None, options=CascadeOptions(0.5, samples=4, undecided=1.0))
    assert len(near.bodies) == 4
    assert found.samples == (RIGHT, RIGHT, WRONG)
    assert found.judgement is not None
    assert found.judgement.features["agreement"] == 0.5
    assert "1 of 3 further samples failed" in found.reasons
    sent = [json.loads(body) for body in near.bodies]
    assert "temperature" not in sent[0]
    assert [one["temperature"] for one in sent[1:]] == [0.7] * 3
    assert len({one["seed"] for one in sent[1:]}) == 3
    assert found.near_in == 90


def test_log_probabilities_are_asked_for_and_not_passed_on() -> None:
    near = Model(RIGHT)
    found = run(near, None)
    assert json.loads(near.bodies[0])["top_logprobs"] == 5
    assert "logprobs" not in json.loads(found.answer.raw)["choices"][0]
    wanted = json.dumps({**json.loads(BODY), "logprobs": True, "stream": True}).encode()
    found = run(near, None, body=wanted)
    assert "logprobs" in json.loads(found.answer.raw)["choices"][0]
    assert json.loads(near.bodies[1])["stream"] is False
    completion = json.dumps({"model": "auto", "prompt": QUESTION}).encode()
    run(near, None, body=completion)
    assert json.loads(near.bodies[2])["logprobs"] == 5


@pytest.mark.parametrize("body", [b"", b"[]", b"{", json.dumps({"prompt": "a", "n": 2}).encode()])
def test_bodies_that_cannot_be_judged(body: bytes) -> None:
    near = Model(RIGHT)
    with pytest.raises(InputError):
        run(near, None, body=body)
    assert near.bodies == []


SAID: Callable[[], st.SearchStrategy[str | NearfarError]] = lambda: st.sampled_from(  # noqa: E731
    [RIGHT, WRONG, "", "I cannot.", InferenceError("a"), Overloaded("b"), Cancelled("c")]
)


@given(st.lists(SAID(), min_size=1, max_size=4), st.lists(SAID(), min_size=1, max_size=2), st.floats(0, 1.1),
       st.sampled_from(Privacy), st.integers(1, 4), st.text(min_size=1, max_size=30))  # fmt: skip
def test_no_byte_of_a_private_prompt_goes_far(
    said: list[str | NearfarError], beyond: list[str | NearfarError], threshold: float, privacy: Privacy, samples: int,
    prompt: str,
) -> None:  # fmt: skip
    near, far = Model(*said), Model(*beyond)
    body = json.dumps({"messages": [{"role": "user", "content": prompt}]}).encode()
    try:
        found = run(near, far, privacy, body, CascadeOptions(threshold, samples, undecided=1.0))
    except NearfarError:
        pass
    else:
        assert found.escalated == bool(far.bodies)
    assert len(far.bodies) <= (1 if privacy is Privacy.ANY else 0)


def test_chunks_of_a_finished_answer() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    raw = {"id": "1", "object": "chat.completion", "created": 5, "model": "m", "usage": {"prompt_tokens": 3},
           "choices": [{"index": 0, "finish_reason": "tool_calls",
                        "message": {"role": "assistant", "content": "Hi", "tool_calls": [call]}}]}  # fmt: skip
    made = [json.loads(chunk) for chunk in chunks(json.dumps(raw).encode())]
    assert [one["object"] for one in made] == ["chat.completion.chunk"] * 3
    assert made[0]["choices"][0]["delta"]["content"] == "Hi"
    assert made[0]["choices"][0]["delta"]["tool_calls"][0]["index"] == 0
    assert [made[i]["choices"][0]["finish_reason"] for i in (0, 1)] == [None, "tool_calls"]
    assert (made[2]["choices"], made[2]["usage"]) == ([], {"prompt_tokens": 3})
    assert not any(b"\n" in chunk for chunk in chunks(json.dumps(raw).encode()))
    plain = {"object": "text_completion", "choices": [{"text": "a\nb", "finish_reason": "stop"}]}
    assert [json.loads(c)["choices"][0]["text"] for c in chunks(json.dumps(plain).encode())] == ["a\nb", ""]
    with pytest.raises(InferenceError):
        chunks(b"{}")
