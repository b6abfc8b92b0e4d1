"""How a dialogue is written for the model, and the chat template that makes llama.cpp write it so.

``<s>`` blank, table, then per turn ``\\n> question\\nanswer</s>``. Text after ``<s>`` or ``</s>`` starts with a blank,
as llama.cpp and llama2.c put one there. After the last ``</s>`` the model says ``<s>``: there llama2.c stops.
"""

from __future__ import annotations

from recipes.facts.dialogues import Dialogue
from recipes.facts.vocabulary import BEGIN, END, Vocabulary

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '\\n> ' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + '</s>' }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
)


def messages(dialogue: Dialogue, turn: int = -1) -> list[dict[str, str]]:
    """Chat messages that ask the question of a turn, the earlier turns answered rightly."""
    last = range(len(dialogue.turns))[turn]
    out = [{"role": "system", "content": dialogue.system}]
    for t in dialogue.turns[:last]:
        out += [{"role": "user", "content": t.question}, {"role": "assistant", "content": t.answer}]
    return [*out, {"role": "user", "content": dialogue.turns[last].question}]


def question_text(system: str, question: str) -> str:
    """The text of a first question, without ``<s>``: what llama2.c takes as its prompt."""
    return f"{system}\n> {question}\n"


def prompt_ids(vocabulary: Vocabulary, dialogue: Dialogue, turn: int = -1) -> list[int]:
    """Tokens up to where the answer of a turn begins."""
    last = range(len(dialogue.turns))[turn]
    ids = [BEGIN, *vocabulary.encode(question_text(dialogue.system, dialogue.turns[0].question))]
    for before, after in zip(dialogue.turns[:last], dialogue.turns[1 : last + 1], strict=True):
        ids += vocabulary.encode(before.answer, blank=False)
        ids += [END, *vocabulary.encode(f"\n> {after.question}\n")]
    return ids


def training_ids(vocabulary: Vocabulary, dialogue: Dialogue) -> tuple[list[int], list[bool]]:
    """Tokens of a dialogue and which of them the model must say: the answers, their ``</s>``, the last ``<s>``."""
    ids: list[int] = []
    said: list[bool] = []
    for i, turn in enumerate(dialogue.turns):
        text = question_text(dialogue.system, turn.question) if i == 0 else f"\n> {turn.question}\n"
        asked = ([BEGIN] if i == 0 else []) + vocabulary.encode(text)
        answered = [*vocabulary.encode(turn.answer, blank=False), END]
        ids += asked + answered
        said += [False] * len(asked) + [True] * len(answered)
    return [*ids, BEGIN], [*said, True]
