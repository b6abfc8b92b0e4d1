"""What the judge looks at: each feature on answers whose value is known, and NaN where nothing is known."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import InferenceError
from nearfar.language.answer import Answer, TokenChance, read_answer
from nearfar.language.judge import wording
from nearfar.language.judge.certainty import certainty
from nearfar.language.judge.features import NAMES, observe
from nearfar.language.judge.final import agreement, final_answer
from nearfar.language.judge.formats import forms
from nearfar.language.judge.schema import misfit
from nearfar.language.prompt import Asked, asked

QUESTION = "Ann has 3 boxes of 12 eggs and eats 4. How many eggs are left?"
RIGHT = "There are 3 * 12 = 36 eggs, and 36 - 4 = 32 are left.\n#### 32"


def seen(answer: str, question: str = QUESTION, **more: Any) -> dict[str, float]:
    return observe(Asked(question), Answer(answer, **more))


# -- reading answers and bodies ----------------------------------------------------------------------------------------


def test_both_forms_of_an_answer_are_read_with_their_log_probabilities() -> None:
    token = {"token": "a", "logprob": -0.1, "top_logprobs": [{"token": "a", "logprob": -0.1}]}
    chat = {
        "choices": [{"message": {"content": "a"}, "finish_reason": "stop", "logprobs": {"content": [token]}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    plain = {
        "choices": [{"text": "a", "logprobs": {"token_logprobs": [None, -0.1], "top_logprobs": [None, {"a": -0.1}]}}]
    }
    one, two = read_answer(json.dumps(chat).encode()), read_answer(json.dumps(plain).encode())
    assert one.chances == two.chances == (TokenChance(-0.1, (-0.1,)),)
    assert (one.tokens_in, one.tokens_out, one.finish_reason) == (3, 1, "stop")
    assert (two.tokens_in, two.finish_reason) == (0, "")


@pytest.mark.parametrize("data", [b"", b"{}", b'{"choices": []}', b'{"choices": [3]}', b"[]", b'{"choices":[{"x":1}]}'])
def test_a_broken_answer_is_never_an_empty_one(data: bytes) -> None:
    with pytest.raises(InferenceError):
        read_answer(data)


def test_the_last_question_and_what_stands_before_it() -> None:
    body = {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "One?"}, {"type": "image_url"}]},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": "Two?"},
        ],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
    }
    found = asked(body)
    assert (found.prompt, found.before) == ("Two?", "Be short.\nOne?\n1")
    assert (found.schema, found.wants_json) == ({"type": "object"}, True)
    assert asked({"prompt": ["a", "b"]}).prompt == "a\nb"
    assert asked({}).prompt == asked({"messages": "?"}).prompt == ""


# -- certainty, samples ------------------------------------------------------------------------------------------------


def test_certainty_of_a_sure_and_an_unsure_model() -> None:
    sure = certainty([TokenChance(0.0, (0.0, -30.0))] * 3)
    assert sure["mean_logprob"] == sure["min_logprob"] == sure["doubtful_share"] == 0
    assert sure["entropy"] == pytest.approx(0, abs=1e-6)
    even = certainty([TokenChance(math.log(0.5), (math.log(0.5), math.log(0.5))), TokenChance(-1.0)])
    assert even["entropy"] == pytest.approx(math.log(2))
    assert (even["min_logprob"], even["doubtful_share"]) == (-1.0, 0.5)


def test_without_log_probabilities_there_is_nothing_to_go_by() -> None:
    assert all(math.isnan(value) for value in certainty(None).values())
    assert all(math.isfinite(value) for value in certainty([TokenChance(-9999.0, (float("nan"),))]).values())


def test_samples_agree_by_their_final_answers() -> None:
    assert agreement(["so 4", "#### 4", "The answer is 4.0", "5"]) == pytest.approx(2 / 3)
    assert agreement(["(B)", "The answer is B.", "B) because"]) == 1.0 or final_answer("B) because").kind == "text"
    assert math.isnan(agreement(["4"]))


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("#### 1,234", "number", "1234"),
        ("#### -5", "number", "-5"),
        ("so \\boxed{42}", "number", "42"),
        ("The final answer is: **7**", "number", "7"),
        ("The answer is (C).", "letter", "C"),
        ("B", "letter", "B"),
        ("First 3, then 8 apples.", "number", "8"),
        ("It is the  Red one.", "text", "it is red one"),
        ("", "text", ""),
    ],
)
def test_final_answers(text: str, kind: str, said: str) -> None:
    found = final_answer(text)
    assert (found.kind, found.text) == (kind, said)


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_a_sound_answer_and_its_flaws() -> None:
    good = seen(RIGHT)
    assert (good["wrong_claims"], good["unused_share"], good["used_share"], good["is_last_result"]) == (0, 0, 1, 1)
    assert (good["same_order"], good["fraction_for_count"], good["unsourced_share"]) == (1, 0, 0)
    wrong = seen(RIGHT.replace("36 - 4 = 32", "36 - 4 = 31"))
    assert wrong["wrong_claims"] == pytest.approx(math.log(2))
    assert wrong["is_last_result"] == 0
    assert seen("3 * 12 = 36\n#### 36")["used_share"] == pytest.approx(2 / 3)
    assert seen("3 * 77 = 231\n#### 231")["unsourced_share"] == 0.5
    assert seen("12 / 8 = 1.5\n#### 1.5")["fraction_for_count"] == 1
    assert seen("#### -3")["negative"] == 1
    assert seen("#### 500000")["far_off"] == 3


def test_numbers_without_evidence_are_missing_not_zero() -> None:
    words = seen("Some are left, I would say.")
    for name in ("wrong_claims", "used_share", "size", "same_order", "agreement", "cut_by_length", "form_kept"):
        assert math.isnan(words[name]), name


# -- wording -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["I cannot help with that.", "I'm sorry, but I can’t.", "As an AI language model, I"])
def test_refusals(text: str) -> None:
    assert wording.refusal(text)["refuses"] == 1


@pytest.mark.parametrize(
    "text", ["The can of paint is blue.", "She said she could not come. It is 4.", "AI is a field."]
)
def test_what_is_no_refusal(text: str) -> None:
    assert wording.refusal(text)["refuses"] == 0


def test_unknowing_and_hedging() -> None:
    assert wording.refusal("I don't know.")["unknowing"] == 1
    assert wording.refusal("It is not possible to determine the age.")["unknowing"] == 1
    assert wording.refusal("It might be 4, or perhaps 5.")["hedges"] > wording.refusal("It is 4.")["hedges"] == 0


def test_a_loop_is_told_from_prose() -> None:
    assert wording.repetition("I like cats and dogs. " * 30)["repeated_share"] > 0.9
    assert wording.repetition("\n".join(["the same line again"] * 9))["loop_share"] > 0.8
    assert wording.repetition(RIGHT)["repeated_share"] < 0.1
    assert wording.repetition("") == {"repeated_share": 0, "loop_share": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("It is 15 + ", 1.0), ("<<15+2", 1.0), ("and so the", 1.0), ("", 1.0), ("It is 4.", 0.0), ("#### 4\n\n", 0.0),
     ("```py\nx = 1", 1.0), ("they went hom", 0.5)],
)  # fmt: skip
def test_open_ends(text: str, expected: float) -> None:
    assert wording.truncation(text, "")["ends_open"] == expected


def test_the_finish_reason_is_missing_until_it_is_stated() -> None:
    assert math.isnan(wording.truncation("a", "")["cut_by_length"])
    assert wording.truncation("a", "length")["cut_by_length"] == 1
    assert wording.truncation("a", "stop")["cut_by_length"] == 0


def test_another_language() -> None:
    english, german = (
        "What is the name of the city that you live in?",
        "Die Stadt ist nicht sehr alt und der Fluss ist ruhig.",
    )
    assert wording.language(english, german)["other_language"] == 1
    assert wording.language(english, "The name of the city is Rome and it is old.")["other_language"] == 0
    assert wording.language(english, "Столица этой страны очень красивая")["other_language"] == 1
    assert math.isnan(wording.language(english, "42")["other_language"])


def test_an_echo() -> None:
    assert wording.overlap(QUESTION, QUESTION)["echo_share"] == 1
    assert wording.overlap(QUESTION, RIGHT)["echo_share"] < 0.5


# -- forms -------------------------------------------------------------------------------------------------------------

EGGS = {"type": "object", "properties": {"eggs": {"type": "integer", "minimum": 0}}, "required": ["eggs"],
        "additionalProperties": False}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kept"),
    [('{"eggs": 6}', True), ('{"eggs": "six"}', False), ('{"eggs": -1}', False), ("{}", False), ('{"eggs": 6', False),
     ('{"eggs": 6, "x": 1}', False), ('Sure: {"eggs": 6}', False), ("", False)],
)  # fmt: skip
def test_a_stated_schema(text: str, kept: bool) -> None:
    (form,) = forms(Asked("How many?", schema=EGGS, wants_json=True), Answer(text))
    assert (form.fulfilled, form.certain, bool(form.reason)) == (kept, True, not kept)


@pytest.mark.parametrize(
    ("question", "good", "bad"),
    [
        ("Return valid JSON with the name.", '```json\n{"name": 1}\n```', "The name is Ann."),
        ("Which?\nA. red\nB. blue\nAnswer:", "B. blue", "It depends on what you prefer"),
        ("Answer with a single letter.", "C", "They are both right."),
        ("Answer yes or no: is it blue?", "Yes, it is.", "It is blue."),
        ("Give me a bulleted list of fruits", "- apple\n- pear", "Apples are nice."),
        ("Write a Python function that adds", "```python\ndef f(a, b):\n    return a + b\n```", "Adding is easy."),
    ],
)
def test_forms_read_from_words(question: str, good: str, bad: str) -> None:
    assert [form.fulfilled for form in forms(Asked(question), Answer(good))] == [True]
    assert [form.fulfilled for form in forms(Asked(question), Answer(bad))] == [False]
    assert not any(form.certain for form in forms(Asked(question), Answer(bad)))


def test_a_call_of_a_tool_owes_no_text() -> None:
    question = Asked("Weather?", tools=("weather",))
    assert forms(question, Answer("", calls=("weather",)))[0].fulfilled
    assert not forms(question, Answer("", calls=("rm",)))[0].fulfilled


def test_the_schema_checker_knows_what_it_says_it_knows() -> None:
    def fits(value: Any, schema: Any) -> bool:
        return not misfit(value, schema)

    assert not fits(True, {"type": "integer"})
    assert fits(2.0, {"type": "integer"})
    assert not fits(1, {"enum": [True]})
    assert fits([1, "a"], {"prefixItems": [{"type": "integer"}], "items": {"type": "string"}})
    assert not fits([1, 1], {"uniqueItems": True})
    assert not fits(5, {"oneOf": [{"type": "integer"}, {"minimum": 1}]})
    assert fits(5, {"anyOf": [{"type": "string"}, {"minimum": 1}]})
    assert not fits(5, {"not": {"type": "integer"}})
    assert not fits("abc", {"maxLength": 2})
    assert not fits(5, {"allOf": [{"multipleOf": 2}]})
    tree = {"$defs": {"t": {"type": "object", "additionalProperties": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}
    assert fits({"a": {"b": {}}}, tree)
    assert misfit({"a": {"b": 3}}, tree) == "$.a.b is not object"
    assert fits(1, {"$ref": "#"}), "a loop ends, and counts as fitting"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["type", "items", "properties", "anyOf", "not", "$ref", "enum", "minimum", "a"]), inner,
        max_size=4,
    ),
    max_leaves=15,
)  # fmt: skip


@given(
    JSON,
    st.dictionaries(st.sampled_from(["type", "items", "oneOf", "required", "maximum", "$ref", "prefixItems"]), JSON),
)
def test_no_schema_breaks_the_checker(value: Any, schema: dict[str, Any]) -> None:
    assert isinstance(misfit(value, schema), str)


@given(st.text(max_size=400), st.text(max_size=400), st.sampled_from(["", "stop", "length"]))
def test_no_text_breaks_the_features(question: str, answer: str, finish: str) -> None:
    values = observe(Asked(question, wants_json=len(answer) % 2 == 0), Answer(answer, finish))
    assert tuple(values) == NAMES
    assert all(math.isnan(value) or math.isfinite(value) for value in values.values())


def test_a_million_digits_are_a_number_like_any_other() -> None:
    values = seen("9" * 100_000 + " * 2 = 4", question="9" * 100_000)
    assert all(math.isnan(value) or math.isfinite(value) for value in values.values())
