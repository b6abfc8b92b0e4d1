"""The grammar says the same every time, keeps what is held out apart, and is right about its own tables."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.facts import words
from recipes.facts.dialogues import PARTS, TRAINING, UNKNOWN, Table, alike, answer, dialogue, extreme
from recipes.facts.phrasings import PREFIXES, SEEN, SUFFIXES, UNSEEN
from recipes.facts.prompt import messages

ENTRY = re.compile(r"([^;:\[\]]+): ([^;\[\]]+)(?:;|$| \[)")
MEASURED = "3d5e9b337caf297e3fa08b8c620b4a932b62e7589559cc703510352874d84945"
FINGERPRINT = """
import hashlib
from recipes.facts.dialogues import PARTS, dialogue
text = repr([dialogue(part, 3, i) for part in PARTS for i in range(40)])
print(hashlib.sha256(text.encode()).hexdigest())
"""


def entries(system: str) -> dict[str, str]:
    """Names and values of a system message."""
    return {name.strip(): value.strip() for name, value in ENTRY.findall(re.sub(r"\[[^]]*\]", ";", system))}


def test_every_process_makes_the_same_dialogues() -> None:
    here = hashlib.sha256(repr([dialogue(p, 3, i) for p in PARTS for i in range(40)]).encode()).hexdigest()
    root = Path(__file__).parents[2]
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
        run = subprocess.run(
            [sys.executable, "-c", FINGERPRINT], env=environment, cwd=root, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == here


def test_seeds_indices_and_parts_differ() -> None:
    made = [dialogue(p, s, i).system for p in PARTS for s in (0, 1) for i in range(50)]
    assert len(set(made)) == len(made)


def test_the_questions_that_were_measured_are_still_the_same() -> None:
    """Whoever changes them makes every figure written down so far incomparable."""
    made = [dialogue(part, 900, i) for part in PARTS if part not in TRAINING for i in range(200)]
    assert hashlib.sha256(repr(made).encode()).hexdigest() == MEASURED


@pytest.mark.parametrize("part", TRAINING)
def test_training_holds_no_held_out_name(part: str) -> None:
    titles = {title for kind in words.TITLES.values() for title in kind.split(", ")}  # a room may be a title, too
    tails = {n.split()[-1] for known in words.TRAINING.values() for n in known}  # mower is held out, lawn mower not
    for i in range(4000):
        d = dialogue(part, 1, i)
        assert not words.HELD_OUT.intersection(entries(d.system)), d.system
        for turn in d.turns:
            if turn.intent == "unknown.absent":
                hidden = words.HELD_OUT - titles - tails
                named = [n for n in hidden if re.search(rf"\b{re.escape(n)}(?:'s)?[?.,]*$", turn.question)]
                assert not named, turn


def test_the_test_of_names_asks_only_held_out_ones() -> None:
    for part in ("names", "both"):
        for i in range(500):
            assert entries(dialogue(part, 900, i).system).keys() <= words.HELD_OUT


def test_no_held_out_phrasing_is_one_of_training_even_dressed() -> None:
    dressed = {p + s + x for seen in SEEN.values() for s in seen for p in ("", *PREFIXES) for x in ("", *SUFFIXES)}
    held = [u for unseen in UNSEEN.values() for u in unseen]
    assert dressed.isdisjoint(held)
    assert all(len(UNSEEN[intent]) >= 2 for intent in SEEN)
    assert len(held) >= 80


def test_tables_of_tests_are_none_of_training() -> None:
    training = {dialogue(part, 1, i).system for part in TRAINING for i in range(4000)}
    for part in PARTS[len(TRAINING) :]:
        assert training.isdisjoint(dialogue(part, 900, i).system for i in range(500))


@given(st.sampled_from(PARTS), st.integers(0, 10**6))
def test_what_is_answered_stands_in_the_table(part: str, index: int) -> None:
    d = dialogue(part, 5, index)
    known = entries(d.system)
    assert known
    assert len(d.turns) >= 1
    for turn in d.turns:
        assert turn.question.strip() == turn.question
        assert "{" not in turn.question
        assert "\n" not in turn.question + turn.answer
        if turn.intent.startswith("unknown."):
            assert turn.answer == UNKNOWN
        elif turn.intent == "list":
            assert all(name in turn.answer for name in known)
        elif turn.intent not in ("hello", "thanks"):
            said = [name for name, value in known.items() if name in turn.answer and part_of(value, turn.answer)]
            assert said, (d.system, turn)


def part_of(value: str, text: str) -> bool:
    """A value, or the half of opening hours that was asked for, stands in an answer."""
    return value in text or (" to " in value and any(half in text for half in value.split(" to ")))


def test_more_is_asked_of_what_was_hardly_learnt() -> None:
    asked = {part: Counter(t.intent for i in range(1500) for t in dialogue(part, 4, i).turns) for part in TRAINING}
    shares = {part: {k: n / count.total() for k, n in count.items()} for part, count in asked.items()}
    for intent in ("phone.who", "state.is", "stock.most", "price.least"):
        assert shares["weak"][intent] > 2 * shares["train"][intent]


def test_who_has_a_number_is_asked_only_when_one_has_it() -> None:
    asked = 0
    for i in range(3000):
        d = dialogue("weak", 4, i)
        values = list(entries(d.system).values())
        for turn in d.turns:
            if turn.intent == "phone.who":
                asked += 1
                assert values.count(turn.answer.split()[0]) == 1, (d.system, turn)
    assert asked > 500


@given(st.integers(0, 10**6))
def test_names_of_a_table_are_told_apart(index: int) -> None:
    names = list(entries(dialogue("train", 5, index).system))
    for i, name in enumerate(names):
        assert not any(alike(name, other) for other in names[:i]), names


@pytest.mark.parametrize(
    ("intent", "name", "value", "asked", "expected"),
    [
        ("stock.how", "eggs", "6", "", "You have 6 eggs."),
        ("stock.how", "milk", "2 bottles", "", "You have 2 bottles of milk."),
        ("stock.any", "eggs", "0", "", "No, you have 0 eggs."),
        ("hours.open", "bakery", "7 to 18:30", "", "The bakery opens at 7."),
        ("hours.close", "bakery", "7 to 18:30", "", "The bakery closes at 18:30."),
        ("hours.close", "bakery", "closed", "", "The bakery is closed."),
        ("state.is", "door", "open", "open", "Yes, the door is open."),
        ("state.is", "door", "open", "locked", "No, the door is open."),
        ("birthday.when", "Anna", "3 May", "", "Anna's birthday is on 3 May."),
    ],
)
def test_answers(intent: str, name: str, value: str, asked: str, expected: str) -> None:
    assert answer(intent, name, value, asked) == expected


def test_the_extreme_entry_is_the_only_one() -> None:
    table = Table("stock", "fridge", (("eggs", "6"), ("pears", "12"), ("figs", "2")))
    assert extreme(table, True) == ("pears", "12")
    assert extreme(table, False) == ("figs", "2")
    assert extreme(Table("stock", "fridge", (("eggs", "6"), ("pears", "6"))), True) == ("", "")
    assert extreme(Table("stock", "fridge", (("eggs", "6"), ("milk", "1 l"))), True) == ("", "")


def test_messages_hold_the_turns_before() -> None:
    d = next(d for d in (dialogue("turns", 1, i) for i in range(9)) if len(d.turns) > 1)
    said = messages(d)
    assert [m["role"] for m in said[:3]] == ["system", "user", "assistant"]
    assert said[-1] == {"role": "user", "content": d.turns[-1].question}
    assert messages(d, 0) == said[:2]


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match="none of"):
        dialogue("test", 0, 0)
