"""The grammar: tables of facts, questions about them, and the one right answer to each.

    python -m recipes.facts.dialogues --seed 1 --count 5        # look at some

``dialogue(part, seed, index)`` is a pure function. The parts: ``train``; ``weak`` (training, too: more of what was
hardly learnt, see ``WEAK``); ``tables`` (tables never seen), ``names``
(every name held out), ``phrasings`` (every phrasing held out), ``both`` (names and phrasings) and ``turns`` (two to
four questions about one table). Parts never share a random stream, so their tables do not meet.

A table is one line, ``[title] name: value; name: value``; a system message holds one or two. What the table cannot
answer is answered ``UNKNOWN``, always in the same words, so that a program can see it and ask elsewhere.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from random import Random

from recipes.facts import words as w
from recipes.facts.phrasings import PREFIXES, SEEN, SUFFIXES, UNSEEN

UNKNOWN = "I don't know."
TRAINING = ("train", "weak")
PARTS = (*TRAINING, "tables", "names", "phrasings", "both", "turns")
KINDS = {
    "stock": 30,
    "places": 9,
    "temperature": 8,
    "humidity": 4,
    "state": 9,
    "hours": 9,
    "birthday": 7,
    "event": 7,
    "phone": 8,
    "price": 10,
    "age": 6,
    "desk": 6,
}
"""Kinds of tables and how often each comes."""

LISTS = {
    "places": ("things",),
    "temperature": ("rooms",),
    "humidity": ("rooms",),
    "state": ("devices",),
    "hours": ("shops",),
    "birthday": ("people",),
    "event": ("events",),
    "phone": ("people",),
    "price": ("food", "supplies"),
    "age": ("people",),
    "desk": ("people",),
}
CONFUSABLE = ({"places", "desk"}, {"event", "birthday", "hours"}, {"stock", "price"})
"""Kinds whose questions are too alike to say that one cannot answer the other's."""

LATER = 37_888
"""From this training dialogue on, twice as many questions cannot be answered: to see that a name is absent is learnt
only once names are looked up well, and then needs examples."""

WEAK = {"stock": 30, "places": 5, "temperature": 12, "humidity": 3, "state": 28, "hours": 6, "birthday": 4, "event": 4,
        "phone": 14, "price": 13, "age": 10, "desk": 4}  # fmt: skip
"""``KINDS`` of the part ``weak``, in which also looking up backwards, yes or no, and what is most or least are asked
several times as often, a table is made to be compared more often, and numbers that are absent look like those there."""

VAGUE = ("{k}", "and {k}", "and the {k}", "what about the {k}", "{k}, where", "{k}, when", "find {k}", "find the {k}")
"""Phrasings that fit any kind: never used to ask for what a kind cannot answer."""


@dataclass(frozen=True, slots=True)
class Table:
    """Facts of one kind. ``entries``: name and value, in the order written."""

    kind: str
    title: str
    entries: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """As the model reads it."""
        return f"[{self.title}] " + "; ".join(f"{name}: {value}" for name, value in self.entries)


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, its answer, and what was asked (``intent``; ``unknown.*`` when the answer is ``UNKNOWN``)."""

    question: str
    answer: str
    intent: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The system message and the turns."""

    system: str
    turns: tuple[Turn, ...]


class Grammar:
    """What a part may draw from, and its random stream."""

    def __init__(self, part: str, seed: int, index: int) -> None:
        self.rng = Random(f"facts/{part}/{seed}/{index}")  # str seeds are hashed with SHA-512: the same everywhere
        self.part = part
        self.names = w.HELD if part in ("names", "both") else w.TRAINING
        self.phrasings = UNSEEN if part in ("phrasings", "both") else SEEN
        known, made = {"names": (1.0, 0.0), "both": (1.0, 0.0)}.get(part, (0.4, 0.3))
        self.weak = part == "weak"
        self.later = self.weak or (part == "train" and index >= LATER)
        style = self.rng.random()
        self.made_up = 0.0 if style < known else 1.0 if style < known + made else 0.5

    # -- tables

    def name(self, kind: str, lists: tuple[str, ...]) -> str:
        if self.rng.random() < self.made_up:
            plural = kind in ("stock", "price") and self.rng.random() < 0.7
            return w.made_up(self.rng, lists == ("people",), plural)
        return self.rng.choice(self.names[self.rng.choice(lists)])

    def value_maker(self, kind: str) -> str:
        """A style for all values of a table, so that a table looks like one hand wrote it."""
        if kind == "stock":
            return self.rng.choice(("count", "count", "units", "mixed", "mixed"))
        if kind == "price":
            return self.rng.choice(("EUR", "USD", "CHF", "GBP"))
        if kind == "temperature":
            return self.rng.choice(("whole", "tenths"))
        if kind == "phone":
            return self.rng.choice(("2", "3", "3", "4", "5"))
        return ""

    def value(self, kind: str, style: str) -> str:
        rng = self.rng
        if kind == "stock":
            count = rng.choice((rng.randrange(0, 13), rng.randrange(1, 13), rng.randrange(100), rng.randrange(1000)))
            if self.later and rng.random() < 0.06:
                count = 0
            if style == "count" or (style == "mixed" and rng.random() < 0.5):
                return str(count)
            unit = rng.choice(w.UNITS)
            return f"{count * 10 if unit in ('g', 'ml') and count else max(count, 2)} {unit}"
        if kind == "temperature":
            degrees = rng.randrange(-20, 40)
            return f"{degrees}.{rng.randrange(10)} C" if style == "tenths" else f"{degrees} C"
        if kind == "price":
            return f"{rng.choice((rng.randrange(10), rng.randrange(100)))}.{rng.randrange(20) * 5:02d} {style}"
        if kind == "hours":
            if rng.random() < 0.08:
                return "closed"
            minutes = ("", "", "", ":30", ":15", ":45")
            first = f"{rng.randrange(5, 13)}{rng.choice(minutes)}"
            return f"{first} to {rng.randrange(13, 24)}{rng.choice(minutes)}"
        simple = {
            "places": lambda: rng.choice(w.PLACES.split(", ")),
            "humidity": lambda: f"{rng.randrange(20, 99)} %",
            "state": lambda: rng.choice(w.STATES.split(", ")),
            "birthday": lambda: f"{rng.randrange(1, 29)} {rng.choice(w.MONTHS)}",
            "event": lambda: f"{rng.choice(w.DAYS)} {rng.randrange(7, 21)}:{rng.choice(('00', '15', '30', '45'))}",
            "phone": lambda: str(rng.randrange(10 ** (int(style) - 1), 10 ** int(style))),
            "age": lambda: str(rng.randrange(2, 99)),
            "desk": lambda: rng.choice((f"room {rng.randrange(1, 400)}", f"room {rng.randrange(1, 9)}", "the lab")),
        }
        return simple[kind]()

    def table(self, kind: str, size: int, avoid: frozenset[str] = frozenset()) -> Table:
        """A table of up to ``size`` entries whose names differ from each other and from ``avoid``."""
        title = self.rng.choice(w.TITLES[kind].split(", "))
        if kind == "stock":
            lists: tuple[str, ...] = self.rng.choice((("food",), ("supplies",), ("food", "supplies")))
        else:
            lists = LISTS[kind]
        style = self.value_maker(kind)
        if self.weak and kind == "stock" and size <= 6 and self.rng.random() < 0.4:
            style = "count"  # of which one is most
        entries: dict[str, str] = {}
        taken = set(avoid)
        for _ in range(4 * size):
            name = self.name(kind, lists)
            if any(alike(name, other) for other in taken):
                continue
            taken.add(name)
            entries[name] = self.value(kind, style)
            if len(entries) == size:
                break
        return Table(kind, title, tuple(entries.items()))

    # -- questions

    def ask(self, intent: str, table: Table, name: str = "", value: str = "", vague: bool = True) -> str:
        """A question of an intent in one of its phrasings, dressed as people write."""
        rng = self.rng
        choices = [p for p in self.phrasings[intent] if vague or p not in VAGUE]
        text = rng.choice(choices)
        small = intent in ("hello", "thanks", "off")
        if not small and rng.random() < 0.3:
            text = rng.choice(PREFIXES) + text
        if not small and rng.random() < 0.1:
            text += rng.choice(SUFFIXES)
        if rng.random() < 0.06:
            before, mark, after = text.partition("{k}")
            text = w.typo(rng, before) + mark + after if "{" not in before else text
        if name and rng.random() < 0.12:
            name = w.SYNONYMS.get(name, name)
        elif len(name) > 4 and rng.random() < 0.05:
            name = w.typo(rng, name)
        text = text.replace("{k}", name).replace("{t}", table.title).replace("{v}", value)
        if rng.random() < 0.7:
            text = text[:1].upper() + text[1:]
        elif rng.random() < 0.3:
            text = text.lower()
        return text + rng.choice(("?", "?", "?", "", "", "." if intent != "off" else "?"))

    def turn(self, tables: tuple[Table, ...]) -> Turn:
        """One question about the tables: mostly one that they answer."""
        rng = self.rng
        table = rng.choice(tables)
        draw = rng.random()
        if draw < 0.02 and len(tables) == 1:
            return Turn(self.ask("hello", table), f"Hello. Ask me about {table.title}.", "hello")
        if draw < 0.03:
            return Turn(self.ask("thanks", table), "You are welcome.", "thanks")
        if draw < 0.05:
            return Turn(self.ask("off", table), UNKNOWN, "unknown.off")
        if draw < (0.12 if self.later else 0.08):
            return self.wrong_kind(tables)
        if draw < (0.32 if self.weak else 0.44 if self.later else 0.24):
            return self.absent(tables, table)
        choices = self.intents(table, len(tables) == 1)
        intent = rng.choices(choices, [self.weight(i) for i in choices])[0] if self.weak else rng.choice(choices)
        if intent == "list":
            return Turn(self.ask("list", table), f"I know about {joined([n for n, _ in table.entries])}.", "list")
        if intent.endswith(("most", "least")):
            name, value = extreme(table, intent.endswith("most"))
            full = intent if "." in intent else f"stock.{intent}"
            return Turn(self.ask(intent, table), answer(full, name, value), full)
        name, value = rng.choice(table.entries)
        if self.weak and intent == "phone.who" and [v for _, v in table.entries].count(value) > 1:
            intent = "phone.what"  # two have this number
        if intent == "phone.who":
            return Turn(self.ask(intent, table, value=value), answer(intent, name, value), intent)
        asked = value
        if intent == "state.is" and rng.random() < 0.5:
            asked = rng.choice(w.STATES.split(", "))
        return Turn(self.ask(intent, table, name, asked), answer(intent, name, value, asked), intent)

    def weight(self, intent: str) -> float:
        """How often the part ``weak`` asks an intent, to the others of the same table."""
        if intent.endswith(("most", "least")):
            return 10.0
        return {"phone.who": 2.5, "state.is": 5.0}.get(intent, 1.0)

    def intents(self, table: Table, alone: bool) -> list[str]:
        """What may be asked, the usual more often than the rest."""
        usual = [i for i in SEEN if i.startswith(f"{table.kind}.") and not i.endswith(("most", "least"))]
        rest = ["list"] if alone and len(table.entries) <= 7 else []
        if alone and len(table.entries) <= 6 and extreme(table, True)[0] and extreme(table, False)[0]:
            prefix = "" if table.kind == "stock" else f"{table.kind}."
            rest += [i for i in (f"{prefix}most", f"{prefix}least") if i in SEEN]
        return usual * (1 if not rest else max(1, 8 // len(usual))) + rest

    def absent(self, tables: tuple[Table, ...], table: Table) -> Turn:
        """A question of the right kind about a name that is in none of the tables, or about another title."""
        there = [name for t in tables for name, _ in t.entries]
        usual = [i for i in SEEN if i.startswith(f"{table.kind}.") and not i.endswith(("most", "least"))]
        intent = self.rng.choice(usual)
        if intent == "phone.who":
            value = str(self.rng.randrange(10, 9999))
            if self.weak and self.rng.random() < 0.7:
                value = self.near([v for _, v in table.entries])
            if value not in [v for _, v in table.entries]:
                return Turn(self.ask(intent, table, value=value), UNKNOWN, "unknown.absent")
            intent = "phone.what"
        elsewhere = [p for p in self.phrasings[intent] if "{t}" in p]
        if elsewhere and self.rng.random() < 0.1:  # the name is there, but the question is about another place
            title = self.rng.choice([t for t in w.TITLES[table.kind].split(", ") if t not in [x.title for x in tables]])
            text = self.rng.choice(elsewhere).replace("{t}", title).replace("{k}", self.rng.choice(table.entries)[0])
            return Turn(f"{text[:1].upper()}{text[1:]}?", UNKNOWN, "unknown.title")
        lists = LISTS.get(table.kind, ("food", "supplies"))
        for _ in range(50):
            name = self.name(table.kind, lists)
            if not any(alike(name, other) for other in there):
                asked = self.rng.choice(w.STATES.split(", "))
                return Turn(self.ask(intent, table, name, asked), UNKNOWN, "unknown.absent")
        return Turn(self.ask("off", table), UNKNOWN, "unknown.off")  # a short list of held out names is used up

    def near(self, numbers: list[str]) -> str:
        """A number of as many digits, which often differs from one of ``numbers`` in one digit only."""
        digits = list(self.rng.choice(numbers))
        for place in range(len(digits)) if self.rng.random() < 0.5 else (self.rng.randrange(len(digits)),):
            digits[place] = self.rng.choice("123456789")
        return "".join(digits)

    def wrong_kind(self, tables: tuple[Table, ...]) -> Turn:
        """A question about a name that is there, but about something that no table says."""
        table = self.rng.choice(tables)
        shut = {t.kind for t in tables}
        for group in CONFUSABLE:
            if group & shut:
                shut |= group
        people = LISTS.get(table.kind) == ("people",)
        kinds = [k for k in KINDS if k not in shut and (LISTS.get(k) == ("people",)) == people]
        if not kinds:
            return self.absent(tables, table)
        kind = self.rng.choice(kinds)
        usual = [i for i in SEEN if i.startswith(f"{kind}.") and not i.endswith(("most", "least", "who", "is", "any"))]
        name, _ = self.rng.choice(table.entries)
        return Turn(self.ask(self.rng.choice(usual), table, name, vague=False), UNKNOWN, "unknown.kind")


def alike(a: str, b: str) -> bool:
    """Too near each other to stand in one table: the same but for its ending, or one part of the other."""
    a, b = (w.SYNONYMS.get(x, x).lower() for x in (a, b))
    if a[:4] == b[:4] and abs(len(a) - len(b)) < 3 and sum(x != y for x, y in zip(a, b, strict=False)) < 3:
        return True
    return f" {a.rstrip('s')}" in f" {b}" or f" {b.rstrip('s')}" in f" {a}"


def amount(value: str) -> float:
    """The number a value starts with."""
    return float(value.split()[0])


def extreme(table: Table, most: bool) -> tuple[str, str]:
    """The entry with the largest or smallest number; names are empty when there is none or more than one."""
    if table.kind not in ("stock", "temperature", "price", "age") or len(table.entries) < 2:
        return "", ""
    if table.kind == "stock" and not all(value.isdigit() for _, value in table.entries):
        return "", ""
    ordered = sorted(table.entries, key=lambda entry: amount(entry[1]), reverse=most)
    if amount(ordered[0][1]) == amount(ordered[1][1]):
        return "", ""
    return ordered[0]


def joined(names: list[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def answer(intent: str, name: str, value: str, asked: str = "") -> str:
    """The one right answer to a question that the table answers."""
    kind, _, what = intent.partition(".")
    if kind == "stock" and what in ("how", "any"):
        held = f"{value} {name}" if value.isdigit() else f"{value} of {name}"
        if what == "how":
            return f"You have {held}."
        return f"{'No' if amount(value) == 0 else 'Yes'}, you have {held}."
    if kind == "hours":
        first, _, last = value.partition(" to ")
        if not last:
            return f"The {name} is closed."
        verb = {"open": f"opens at {first}", "close": f"closes at {last}", "both": f"is open from {value}"}[what]
        return f"The {name} {verb}."
    if intent == "state.is":
        return f"{'Yes' if asked == value else 'No'}, the {name} is {value}."
    return {
        "stock.most": f"You have the most {name}, {value}.",
        "stock.least": f"You have the fewest {name}, {value}.",
        "places.where": f"You find the {name} {value}.",
        "temperature.what": f"The {name} has {value}.",
        "temperature.most": f"The {name} is the warmest with {value}.",
        "temperature.least": f"The {name} is the coldest with {value}.",
        "humidity.what": f"The {name} has {value}.",
        "state.what": f"The {name} is {value}.",
        "birthday.when": f"{name}'s birthday is on {value}.",
        "event.when": f"The {name} is on {value}.",
        "phone.what": f"{name}'s number is {value}.",
        "phone.who": f"{value} is the number of {name}.",
        "price.what": f"The price of {name} is {value}.",
        "price.most": f"The {name} are the most expensive with {value}.",
        "price.least": f"The {name} are the cheapest with {value}.",
        "age.how": f"{name} is {value}.",
        "age.most": f"{name} is the oldest with {value}.",
        "age.least": f"{name} is the youngest with {value}.",
        "desk.where": f"{name} is in {value}.",
    }[intent]


def dialogue(part: str, seed: int, index: int, turns: int = 0) -> Dialogue:
    """Dialogue number ``index`` of a part. ``turns``: how many questions; 0 for what the part has."""
    if part not in PARTS:
        raise ValueError(f"part {part!r} is none of {', '.join(PARTS)}")
    grammar = Grammar(part, seed, index)
    rng = grammar.rng
    kinds = WEAK if part == "weak" else KINDS
    kind = rng.choices(tuple(kinds), tuple(kinds.values()))[0]
    # a held-out list is short: leave a name for the question about what is absent
    size = rng.randrange(2, 7 if part in ("names", "both") else 10)
    if part == "weak" and kind in ("stock", "temperature", "price", "age", "phone", "state") and rng.random() < 0.6:
        size = rng.randrange(2, 7)  # may be compared, and is easier to learn with
    tables: tuple[Table, ...] = (grammar.table(kind, size),)
    if rng.random() < 0.12:
        others = [k for k in KINDS if k != kind and not any({k, kind} <= group for group in CONFUSABLE)]
        names = frozenset(name for name, _ in tables[0].entries)
        tables = (tables[0], grammar.table(rng.choice(others), rng.randrange(2, 5), names))
    if not turns:
        turns = {"train": rng.choice((1, 2, 3, 4, 5, 6)), "turns": rng.randrange(2, 5)}.get(part, 1)
        if part == "weak":
            turns = rng.randrange(1, 13)
    return Dialogue(" ".join(t.text for t in tables), tuple(grammar.turn(tables) for _ in range(turns)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Show dialogues of the grammar.")
    parser.add_argument("--part", choices=PARTS, default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=5)
    args = parser.parse_args()
    for index in range(args.count):
        shown = dialogue(args.part, args.seed, index)
        print(shown.system)
        for turn in shown.turns:
            print(f"  > {turn.question}\n    {turn.answer}    ({turn.intent})")


if __name__ == "__main__":
    main()
