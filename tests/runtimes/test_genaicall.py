"""What OpenVINO GenAI is asked and how its tokens become text; needs no engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nearfar.errors import InputError
from nearfar.runtimes.genaicall import Answer, Writing, grammar_for, logprobs_of, read
from nearfar.types.wire import Operation

CHAT, COMPLETE = Operation.CHAT, Operation.COMPLETE


def asked(operation: Operation = COMPLETE, **body: Any) -> Any:
    base: dict[str, Any] = {"prompt": "secret"} if operation is COMPLETE else {}
    return read(operation, json.dumps({**base, **body}).encode(), slots=2, alternatives=1)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"lora": [{"name": "bard"}]}, "lora"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"best_of": 2}, "best_of"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": 5}, "top_logprobs above 1"),
        ({"logprobs": True, "top_logprobs": 2}, "top_logprobs above 1"),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(body: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        asked(**body)
    assert "llama.cpp" in caught.value.hint
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        {"echo": False, "suffix": None, "lora": [], "logit_bias": {}, "best_of": 1, "grammar": ""},
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {"logprobs": 1},
        {"logprobs": True},
        {"user": "somebody", "metadata": {}},
    ],
)
def test_what_asks_for_nothing_more_is_taken(body: dict[str, Any]) -> None:
    asked(**body)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"n": 3}, "2 slots"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"response_format": {"type": "xml"}}, "xml"),
        ({"response_format": {"type": "json_schema"}}, "json_schema.schema"),
        ({"json_schema": {"type": "integer", "minimum": 3}}, "minimum"),
    ],
)
def test_values_that_it_cannot_have_are_named(body: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        grammar_for(asked(**body))


def test_a_schema_becomes_a_grammar_and_its_absence_none() -> None:
    assert grammar_for(asked()) is None
    assert 'root ::= "{"' in str(grammar_for(asked(json_schema={"properties": {"a": {}}, "required": ["a"]})))
    assert "root ::=" in str(grammar_for(asked(response_format={"type": "json_object"})))


def test_a_content_in_parts_becomes_one_text_and_a_picture_is_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (message,) = asked(CHAT, messages=[{"role": "user", "content": parts}]).messages
    assert message.plain() == {"role": "user", "content": "ab"}
    (message,) = asked(CHAT, messages=[{"role": "user", "content": [{"type": "image_url"}]}]).messages
    with pytest.raises(InputError, match="no text"):
        message.plain()


def decode(tokens: list[int]) -> str:
    """Tokens are bytes; half a character is left out, as the engine does."""
    return bytes(tokens).decode("utf-8", "ignore")


def written(text: str, stops: list[str], step: int = 1) -> tuple[list[str], Writing]:
    writing = Writing(decode, stops)
    data, parts = text.encode(), []
    for at in range(0, len(data), step):
        parts.append(writing.add(list(data[at : at + step])))
        if writing.reason:
            return parts, writing
    parts.append(writing.end("length"))
    return parts, writing


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_a_character_comes_whole_and_nothing_is_lost(step: int) -> None:
    text = "naïve €5 🥚 ende"
    parts, writing = written(text, [], step)
    assert "".join(parts) == text
    assert writing.tokens == len(text.encode())
    assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize(
    ("text", "stops", "said", "reason"),
    [
        ("one END two", ["END"], "one ", "stop"),
        ("one EN two", ["END"], "one EN two", "length"),
        ("one EN", ["END"], "one EN", "length"),
        ("aab", ["ab"], "a", "stop"),
        ("abcabd", ["abd", "zz"], "abc", "stop"),
        ("x\n\ny", ["\n\n", "\n"], "x", "stop"),
        ("grüße", ["ß"], "grü", "stop"),
    ],
)
def test_no_part_of_a_stop_text_is_said(text: str, stops: list[str], said: str, reason: str, step: int) -> None:
    parts, writing = written(text, stops, step)
    assert ("".join(parts), writing.reason) == (said, reason)


def test_log_probabilities_are_numbers_of_json() -> None:
    told = logprobs_of([65, 66], [float("-inf"), 0.5], decode)["content"]
    assert [entry["token"] for entry in told] == ["A", "B"]
    assert [entry["logprob"] for entry in told] == [-104.0, 0.0]
    assert all(entry["top_logprobs"][0]["token"] == entry["token"] for entry in told)


@pytest.mark.parametrize("operation", [CHAT, COMPLETE])
@pytest.mark.parametrize("usage", [True, False])
def test_the_last_chunks_say_why_it_ended_and_how_much_it_was(operation: Operation, usage: bool) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]} if operation is CHAT else {}
    request = asked(operation, **body, stream=True, stream_options={"include_usage": usage})
    _, writing = written("abc", [])
    chunks = [json.loads(piece) for piece in Answer("m", operation, request, 4).closing([writing], whole=False)]
    assert chunks[0]["choices"][0]["finish_reason"] == "length"
    assert len(chunks) == 1 + usage
    assert chunks[-1]["timings"]["predicted_n"] == 3
    if usage:
        assert chunks[-1]["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
