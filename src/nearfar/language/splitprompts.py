"""What is asked of whom when a prompt is split. Pure: the arguments of a function are all that its prompt holds.

The functions for the far model of a private document take the question and nothing else, so that no caller can let a
byte of the document slip into them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

NOTHING = "NOTHING"
"""What the near model is asked to say of a part in which there is nothing to the point."""

Messages = list[Mapping[str, str]]


def body(messages: Messages, most_tokens: int, model: str = "auto") -> bytes:
    """The JSON of a chat completion, greedy."""
    made: Mapping[str, Any] = {
        "model": model, "messages": messages, "max_tokens": most_tokens, "temperature": 0, "stream": False,
    }  # fmt: skip
    return msgspec.json.encode(made)


def extract(question: str, part: str) -> Messages:
    """For the near model: what of this part helps to answer the question."""
    return [
        {
            "role": "system",
            "content": "You prepare notes for somebody who will answer a question without seeing the text. Copy every "
            "fact, name, number and condition from the text that bears on the question. Do not answer the question. "
            f"If nothing in the text bears on it, write {NOTHING}.",
        },
        {"role": "user", "content": f"Question: {question}\n\nText:\n{part}"},
    ]


def from_notes(question: str, notes: str) -> Messages:
    """For the far model: answer from the notes."""
    return [
        {
            "role": "system",
            "content": "Answer the question from the notes, which were taken from a longer text. If they do not hold "
            "the answer, say so.",
        },
        {"role": "user", "content": f"Notes:\n{notes}\n\nQuestion: {question}"},
    ]


def review(question: str, draft: str) -> Messages:
    """For the far model: say OK to a draft, or give the right answer. An OK costs one token instead of an answer."""
    return [
        {
            "role": "system",
            "content": "Check the draft answer. If it is right and complete, reply with the word OK and nothing else. "
            "Otherwise reply with the right answer and nothing else.",
        },
        {"role": "user", "content": f"Question: {question}\n\nDraft:\n{draft}"},
    ]


def plan(question: str) -> Messages:
    """For the far model: how to read a document that it never sees."""
    return [
        {
            "role": "system",
            "content": "Somebody will read a private document that you cannot see, part by part, to answer a question. "
            "Write at most six short instructions, one a line: what to look for, which terms and synonyms may stand "
            "there, how to combine what was found, which traps to avoid. Do not answer the question.",
        },
        {"role": "user", "content": f"Question: {question}"},
    ]


DEFAULT_PLAN = (
    "1. Note every passage that names what the question asks about, or a synonym of it.\n"
    "2. Note numbers with their units, dates and conditions.\n"
    "3. Where passages disagree, note both."
)
"""What the near model follows when no far model may be asked or it failed."""


def read(question: str, plan_text: str, part: str) -> Messages:
    """For the near model: read one part of the document by the plan."""
    return [
        {
            "role": "system",
            "content": "Read the part of a document by these instructions and write short notes for the question. If "
            f"nothing in it bears on the question, write {NOTHING}.\n\nInstructions:\n{plan_text}",
        },
        {"role": "user", "content": f"Question: {question}\n\nPart of the document:\n{part}"},
    ]


def conclude(question: str, plan_text: str, notes: str) -> Messages:
    """For the near model: the answer from its notes."""
    return [
        {
            "role": "system",
            "content": "Answer the question from your notes on a document, by these instructions. If the notes do not "
            f"hold the answer, say so.\n\nInstructions:\n{plan_text}",
        },
        {"role": "user", "content": f"Notes:\n{notes}\n\nQuestion: {question}"},
    ]


def joined(notes: Sequence[str]) -> str:
    """The notes that say something, one below the other; empty when none does."""
    told = [note.strip() for note in notes]
    return "\n".join(note for note in told if note and note.strip(".\"' ").upper() != NOTHING)
