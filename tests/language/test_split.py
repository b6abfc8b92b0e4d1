"""Splitting: when it pays, what each side gets to see, and that a private document stays near."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import Cancelled, InferenceError, InputError
from nearfar.language import splitprompts as prompts
from nearfar.language.answer import Answer
from nearfar.language.chunking import chunks
from nearfar.language.split import Kind, SplitOptions, condense, decide, draft, privately
from nearfar.language.tokens import estimate
from nearfar.types.request import Privacy

QUESTION = "When does the contract end?"
SENTENCE = "The parties agree that the goods are delivered to the yard on Monday. "
SMALL = SplitOptions(near_context=600, notes=60, answer=50)


class Model:
    """Answers by a function of the text it was sent, and keeps what that was."""

    def __init__(self, says: Callable[[str], str | Exception], usage: bool = False) -> None:
        self.says, self.usage, self.texts = says, usage, list[str]()

    async def __call__(self, body: bytes) -> Answer:
        messages = json.loads(body)["messages"]
        text = "\n".join(message["content"] for message in messages)
        self.texts.append(text)
        said = self.says(text)
        if isinstance(said, Exception):
            raise said
        return Answer(said, "stop", tokens_in=estimate(text) if self.usage else 0, cost=1.0)


def run(work: Any) -> Any:
    return asyncio.run(work)


# -- whether it pays ---------------------------------------------------------------------------------------------------


def test_a_short_prompt_is_not_split_and_the_reason_is_told() -> None:
    found = decide(QUESTION, SENTENCE, Privacy.ANY, near_chance=0.1)
    assert found.kind is Kind.NONE
    assert "under 30%" in found.reason
    assert found.saved == 0


def test_a_long_context_is_condensed() -> None:
    found = decide(QUESTION, SENTENCE * 1500, Privacy.ANY, near_chance=0.1)
    assert found.kind is Kind.CONDENSE
    assert found.split_cost < found.whole_cost
    assert found.saved == pytest.approx(1 - found.split_cost / found.whole_cost)


def test_a_draft_pays_when_the_near_model_is_mostly_right() -> None:
    assert decide(QUESTION, "", Privacy.ANY, near_chance=0.9).kind is Kind.DRAFT
    assert decide(QUESTION, "", Privacy.ANY, near_chance=0.2).kind is Kind.NONE


def test_too_long_for_the_near_model() -> None:
    options = SplitOptions(near_context=600, most_parts=3)
    assert decide(QUESTION, SENTENCE * 500, Privacy.ANY, 0.9, options).kind is Kind.NONE
    assert decide(QUESTION, SENTENCE * 500, Privacy.FLEET, 0.9, options).kind is Kind.NONE
    with pytest.raises(InputError, match="parts"):
        run(privately(QUESTION, SENTENCE * 500, Model(lambda _: "x"), None, Privacy.ANY, options))


@pytest.mark.parametrize("privacy", [Privacy.LOCAL, Privacy.FLEET])
def test_private_prompts_are_read_near_or_not_split(privacy: Privacy) -> None:
    assert decide(QUESTION, "", privacy, 0.9).kind is Kind.NONE
    assert decide(QUESTION, SENTENCE, privacy, 0.9).kind is Kind.NONE
    assert decide(QUESTION, SENTENCE * 1500, privacy, 0.9).kind is Kind.PRIVATELY


# -- forward -----------------------------------------------------------------------------------------------------------


def leaked(secret: str, allowed: str, seen: str, length: int = 8) -> list[str]:
    """Pieces of the secret of this length that were seen and stand nowhere in what may be seen."""
    pieces = {secret[i : i + length] for i in range(len(secret) - length + 1)}
    return [piece for piece in pieces if piece in seen and piece not in allowed]


def instructions(made: Callable[..., prompts.Messages], *count: str) -> str:
    return "\n".join(message["content"] for message in made(*count))


def test_the_far_model_gets_only_what_the_near_one_noted() -> None:
    context = SENTENCE * 60 + "The contract ends on 3 May 2031. " + SENTENCE * 60
    near = Model(lambda text: "Ends 3 May 2031." if "3 May 2031" in text else "NOTHING")
    far = Model(lambda _: "On 3 May 2031.", usage=True)
    found = run(condense(QUESTION, context, near, far, Privacy.ANY, SMALL))
    assert found.answer.text == "On 3 May 2031."
    assert (found.where, found.kind, found.measured) == ("far", Kind.CONDENSE, False)
    assert len(near.texts) > 3
    assert "NOTHING" not in far.texts[0]
    assert leaked(context, QUESTION + "Ends 3 May 2031." + instructions(prompts.from_notes, "", ""), far.texts[0]) == []
    assert found.whole_in == estimate(QUESTION) + estimate(context) + 8
    assert found.saved_in == found.whole_in - found.far_in > 1000
    assert found.cost == len(near.texts) + 1


def test_notes_of_a_private_text_are_private() -> None:
    near, far = Model(lambda _: "note"), Model(lambda _: "x")
    for work in (condense(QUESTION, SENTENCE, near, far, Privacy.FLEET), draft(QUESTION, near, far, Privacy.LOCAL)):
        with pytest.raises(InputError, match="private"):
            run(work)
    assert near.texts == far.texts == []


def test_without_a_note_the_far_model_is_not_asked_another_question() -> None:
    far = Model(lambda _: "x")
    with pytest.raises(InputError, match="nothing"):
        run(condense(QUESTION, SENTENCE * 99, Model(lambda _: " Nothing. "), far, Privacy.ANY, SMALL))
    assert far.texts == []


def test_notes_with_a_hole_are_not_used() -> None:
    far = Model(lambda _: "x")
    near = Model(lambda _: InferenceError("It broke.") if len(near.texts) == 3 else "note")
    with pytest.raises(InferenceError):
        run(condense(QUESTION, SENTENCE * 99, near, far, Privacy.ANY, SMALL))
    assert far.texts == []


def test_a_draft_is_approved_or_replaced() -> None:
    near = Model(lambda _: "It ends in May, as the third part of the contract says in its second line.")
    found = run(draft(QUESTION, near, Model(lambda _: "OK."), Privacy.ANY))
    assert (found.where, found.answer.text[:6]) == ("near", "It end")
    assert found.saved_out > 0 > found.saved_in
    found = run(draft(QUESTION, near, Model(lambda _: "In June."), Privacy.ANY))
    assert (found.where, found.answer.text, found.saved_out) == ("far", "In June.", 0)
    found = run(draft(QUESTION, near, Model(lambda _: InferenceError("It broke.")), Privacy.ANY))
    assert (found.where, "stands" in found.reasons[0]) == ("near", True)


# -- the reverse -------------------------------------------------------------------------------------------------------


def test_the_near_model_reads_by_the_plan_of_the_far_one() -> None:
    document = SENTENCE * 60 + "The contract ends on 3 May 2031. " + SENTENCE * 60
    far = Model(lambda _: "Look for an end, a term, an expiry.")
    near = Model(lambda text: "Ends 3 May 2031." if "3 May 2031" in text else "NOTHING")
    found = run(privately(QUESTION, document, near, far, Privacy.ANY, SMALL))
    assert (found.where, found.answer.text) == ("near", "Ends 3 May 2031.")
    assert all("Look for an end" in text for text in near.texts)
    assert far.texts == ["\n".join(m["content"] for m in prompts.plan(QUESTION))]
    assert "1 to the point" in found.reasons[-1]
    read = "".join(text.partition("Part of the document:\n")[2] for text in near.texts[:-1])
    assert read == document, "every byte was read, once"


def test_a_private_question_is_planned_near() -> None:
    far = Model(lambda _: "x")
    found = run(privately(QUESTION, SENTENCE, Model(lambda _: "y"), far, Privacy.FLEET, SMALL))
    assert far.texts == []
    assert "by itself" in found.reasons[0]


def test_a_plan_that_fails_is_replaced_and_a_caller_that_is_gone_is_not_served() -> None:
    near = Model(lambda _: "y")
    found = run(privately(QUESTION, SENTENCE, near, Model(lambda _: InferenceError("a")), Privacy.ANY, SMALL))
    assert "default plan" in found.reasons[0]
    assert prompts.DEFAULT_PLAN in near.texts[0]
    with pytest.raises(Cancelled):
        run(privately(QUESTION, SENTENCE, near, Model(lambda _: Cancelled("a")), Privacy.ANY, SMALL))


def test_notes_that_are_too_long_are_noted_again_and_it_ends() -> None:
    near = Model(lambda text: text[-400:])  # a model that does not shorten
    found = run(privately(QUESTION, SENTENCE * 300, near, None, Privacy.ANY, SMALL))
    assert any("once more" in reason for reason in found.reasons)
    assert max(estimate(text) for text in near.texts) < SMALL.near_context


WORDS = st.text(alphabet="abcdefgh 0123\n.", min_size=0, max_size=400)


@given(WORDS, WORDS, st.sampled_from(Privacy), st.booleans())
@settings(max_examples=150)
def test_no_piece_of_a_private_document_reaches_the_far_model(
    question: str, document: str, privacy: Privacy, fails: bool
) -> None:
    """Whatever the near model says, even the document itself."""
    far = Model(lambda _: InferenceError("It broke.") if fails else "Plan: read.")
    near = Model(lambda text: text)
    with contextlib.suppress(InputError):
        run(privately(question, document, near, far, privacy, SMALL))
    seen = "\n".join(far.texts)
    assert leaked(document, f"Question: {question}" + instructions(prompts.plan, ""), seen) == []
    assert bool(far.texts) == (privacy is Privacy.ANY)


@given(WORDS, WORDS, WORDS, st.sampled_from(Privacy))
@settings(max_examples=150)
def test_forward_only_the_notes_go_far(question: str, context: str, note: str, privacy: Privacy) -> None:
    far = Model(lambda _: "x")
    with contextlib.suppress(InputError):
        run(condense(question, context, Model(lambda _: note), far, privacy, SMALL))
    allowed = "\n".join((question, prompts.joined([note] * 9), instructions(prompts.from_notes, "", "")))
    seams = instructions(prompts.from_notes, question, prompts.joined([note] * len(chunks(context, 64))))
    assert leaked(context, allowed + seams, "\n".join(far.texts)) == []
    assert privacy is Privacy.ANY or far.texts == []


# -- parts and tokens --------------------------------------------------------------------------------------------------


@given(st.text(max_size=2000), st.integers(64, 300))
def test_parts_make_up_the_document_and_fit(document: str, most: int) -> None:
    parts = chunks(document, most)
    assert "".join(parts) == document
    assert all(part and estimate(part) <= most for part in parts)


def test_parts_end_where_a_reader_pauses() -> None:
    text = "\n\n".join(SENTENCE * 3 for _ in range(20))
    assert all(part.endswith("\n\n") for part in chunks(text, 120)[:-1])
    with pytest.raises(InputError):
        chunks(text, 10)


def test_tokens_by_the_stated_rule() -> None:
    assert estimate("") == 0
    assert estimate("internationalisation") == 4
    assert estimate("1234567") == 3
    assert estimate("a, b") == 3
    assert estimate("東京") == 2
