"""Placeholders: there and back again without a difference, whole or in pieces, and nothing left to be found."""

from __future__ import annotations

import json
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.language.privacy.detector import find
from nearfar.language.privacy.findings import Finding, Kind
from nearfar.language.privacy.redact import LEAST_EVERYWHERE, MOST_VALUES, CannotRedact, Redaction, redact
from nearfar.language.replies import StreamRestorer, restored

VALUES = (
    "ada@example.org", "bob (at) example (dot) com", "+49 30 1234567", "DE89 3704 0044 0532 0130 00",
    "4111 1111 1111 1111", "203.0.113.7", "password: hunter2", "my PIN is 1234", "patient: John Doe\n",
    "ssn = 078-05-1120", "born 3 May 1985",
    "2001:db8::8a2e:370:7334", "<EMAIL_1>", "<PHONE_2>", "<", "<EMAIL_", "1>",
    "Adresse: Weg 5, 12345 Berlin\n",
    "John Doe", "hunter2", '{"password": "hunter2", "to": "ada@example.org"}', "\u200b", "＠", "tel: ",
    "0171/", "1234567", ": ", "=",
)  # fmt: skip
"""Pieces that a text is put together from: values, their halves, and what looks like a placeholder."""
texts = st.lists(st.sampled_from(VALUES) | st.text(st.characters(codec="utf-8"), max_size=5), max_size=12).map(" ".join)
glued = st.lists(st.sampled_from(VALUES) | st.text("<>_1EMAIL \n:", max_size=4), max_size=12).map("".join)
conversations = st.lists(texts | glued, min_size=1, max_size=4)


@given(conversations)
def test_there_and_back_again_is_the_same_and_nothing_is_left_to_find(given_texts: list[str]) -> None:
    try:
        redacted, redaction = redact(given_texts, find)
    except CannotRedact:
        return  # allowed: it stays near then; the next test says that this is rare
    assert [redaction.restore(text) for text in redacted] == given_texts
    for text in redacted:
        assert find(text) == ()
        assert not redaction.occurs_in(text)
    for name in redaction.placeholders:
        assert all(name not in text for text in given_texts)


def test_ordinary_conversations_can_be_redacted() -> None:
    for value in VALUES:
        for frame in ("{}", "Please write to {} at once", "{} {}", "a\n{}\nb", "({})"):
            redacted, redaction = redact([frame.format(value, value)], find)
            assert redaction.restore(redacted[0]) == frame.format(value, value)


def test_the_same_value_has_the_same_placeholder_everywhere() -> None:
    texts = ["To ada@example.org", "from bob@example.org", "ada@example.org again"]
    redacted, redaction = redact(texts, find)
    assert redacted == ["To <EMAIL_1>", "from <EMAIL_2>", "<EMAIL_1> again"]
    assert redaction.placeholders == ("<EMAIL_1>", "<EMAIL_2>")


def test_a_conversation_that_goes_on_keeps_its_placeholders() -> None:
    begun = ["I am ada@example.org", "Hello", "and this is bob@example.org"]
    first, _ = redact(begun, find)
    second, _ = redact([*begun, "and carol@example.org"], find)
    assert second[:3] == first


def test_a_value_that_one_rule_found_is_replaced_where_no_rule_would() -> None:
    redacted, redaction = redact(["patient: John Doe", "What did John Doe's doctor say?", "xJohn Doex"], find)
    assert redacted == ["patient: <NAME_1>", "What did <NAME_1>'s doctor say?", "x<NAME_1>x"]
    assert len("abc") < LEAST_EVERYWHERE <= len("John")
    assert redaction.restore(redacted[1]) == "What did John Doe's doctor say?"


def test_a_placeholder_that_stands_there_already_is_not_given_out() -> None:
    redacted, redaction = redact(["<EMAIL_1> is not ada@example.org"], find)
    assert redacted == ["<EMAIL_1> is not <EMAIL_2>"]
    assert redaction.restore("<EMAIL_1> <EMAIL_2> <EMAIL_3>") == "<EMAIL_1> ada@example.org <EMAIL_3>"


def test_a_text_may_be_a_finding_from_end_to_end() -> None:
    redacted, redaction = redact(["Jane Roe", "who is Jane Roe?"], find, {0: Kind.NAME})
    assert redacted == ["<NAME_1>", "who is <NAME_1>?"]
    assert redaction.restore(redacted[0]) == "Jane Roe"


def test_too_many_values_and_rules_that_never_rest_are_refused() -> None:
    with pytest.raises(CannotRedact, match=str(MOST_VALUES)):
        redact([" ".join(f"user{n}@example.org" for n in range(MOST_VALUES + 1))], find)
    redact([" ".join(f"user{n}@example.org" for n in range(MOST_VALUES))], find)

    def restless(text: str) -> tuple[Finding, ...]:
        return (Finding(0, 1, Kind.NAME, 1.0),) if text else ()

    with pytest.raises(CannotRedact):
        redact(["abcdefghijklmnop"], restless)


# -- in pieces ---------------------------------------------------------------------------------------------------------

REDACTION = Redaction({"<EMAIL_1>": "ada@example.org", "<EMAIL_12>": 'q"\n', "<PHONE_1>": "<EMAIL_1>"})
answers = st.lists(
    st.sampled_from(["<EMAIL_1>", "<EMAIL_12>", "<PHONE_1>", "<EMAIL_3>", "<", "<EM", "_1>", "<<", "1>", "x", "é"]),
    max_size=10,
).map("".join)


@given(answers, st.lists(st.integers(0, 60), max_size=8), st.booleans())
def test_in_pieces_is_the_same_as_whole_for_every_split(answer: str, cuts: list[int], in_json: bool) -> None:
    restorer = REDACTION.restorer(in_json=in_json)
    places = sorted({0, len(answer), *(min(cut, len(answer)) for cut in cuts)})
    shown = [restorer.feed(answer[a:b]) for a, b in pairwise(places)]
    assert "".join(shown) + restorer.finish() == REDACTION.restore(answer, in_json=in_json)


def test_every_single_split_of_a_long_answer() -> None:
    answer = "a <b> <EMAIL_1>, <EMAIL_12><PHONE_1> <EMAIL_ <EMAIL_1"
    whole = REDACTION.restore(answer)
    for first in range(len(answer) + 1):
        for second in range(first, len(answer) + 1):
            restorer = REDACTION.restorer()
            pieces = (answer[:first], answer[first:second], answer[second:])
            assert "".join(map(restorer.feed, pieces)) + restorer.finish() == whole


def test_only_what_may_become_a_placeholder_is_held_back() -> None:
    restorer = REDACTION.restorer()
    assert restorer.feed("a < b") == "a < b"
    assert restorer.feed("x<EMAIL") == "x"
    assert restorer.feed("_1") == ""
    assert restorer.feed(">!") == "ada@example.org!"
    assert restorer.feed("<PHONE_2") == "<PHONE_2"
    assert restorer.feed("<EMAIL_1") == ""
    assert restorer.finish() == "<EMAIL_1"
    assert restorer.finish() == ""


def test_in_the_arguments_of_a_tool_a_value_is_written_as_json_writes_it() -> None:
    restored = REDACTION.restore('{"to": "<EMAIL_12>"}', in_json=True)
    assert json.loads(restored) == {"to": 'q"\n'}


def test_values_are_put_back_into_all_that_a_model_writes() -> None:
    message = {"content": "To <EMAIL_1>.", "reasoning_content": "Ask <EMAIL_1>", "refusal": None}
    told = json.loads(restored(json.dumps({"choices": [{"message": message}]}).encode(), REDACTION))
    assert told["choices"][0]["message"] == {
        "content": "To ada@example.org.", "reasoning_content": "Ask ada@example.org", "refusal": None,
    }  # fmt: skip
    restorer = StreamRestorer(REDACTION)
    deltas = [{"reasoning_content": "Ask <EMA"}, {"reasoning_content": "IL_1>, "}, {"content": "To <EM"}, None]
    pieces = []
    for place, delta in enumerate(deltas):
        choice = {"index": 0, "delta": delta, "finish_reason": "stop" if place == 3 else None}
        pieces.append(json.loads(restorer.feed(json.dumps({"choices": [choice]}).encode()))["choices"][0]["delta"])
    assert "".join(piece.get("reasoning_content", "") for piece in pieces) == "Ask ada@example.org, "
    assert "".join(piece.get("content", "") for piece in pieces) == "To <EM"


def test_arguments_that_are_cut_inside_of_a_placeholder_lose_nothing() -> None:
    restorer = StreamRestorer(REDACTION)

    def fed(finish: str | None, *pieces: tuple[int, str]) -> dict[int, str]:
        calls = [{"index": at, "function": {"arguments": text}} for at, text in pieces]
        chunk = {"choices": [{"index": 0, "delta": {"tool_calls": calls} if calls else {}, "finish_reason": finish}]}
        told = json.loads(restorer.feed(json.dumps(chunk).encode()))["choices"][0]["delta"].get("tool_calls") or ()
        texts: dict[int, str] = {}
        for call in told:
            texts[call["index"]] = texts.get(call["index"], "") + call["function"]["arguments"]
        return texts

    assert fed(None, (0, '{"to": "<EMAIL_1'), (1, '{"to": "<EMAIL_12>"}')) == {0: '{"to": "', 1: '{"to": "q\\"\\n"}'}
    assert fed("length") == {0: "<EMAIL_1"}
    assert fed("length") == {}


def test_a_redaction_shows_and_encodes_no_value() -> None:
    assert repr(REDACTION) == "Redaction(<EMAIL_1>, <EMAIL_12>, <PHONE_1>)"
    assert "ada" not in f"{REDACTION} {REDACTION.restorer()!r}"
    with pytest.raises(TypeError):
        msgspec.json.encode(REDACTION)
    restorer = REDACTION.restorer()
    restorer.feed("<EMAIL_1")
    assert repr(restorer) == "Restorer(holds 8 characters)"
