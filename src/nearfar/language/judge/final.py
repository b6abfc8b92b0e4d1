"""The final answer of a longer text, in a form in which two answers can be compared, and the numbers in a text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import msgspec

_NUMBER = re.compile(r"(?<![\w.])[-−]?[$€£]?\s?(\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)")
_WORDS = {
    "one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0, "six": 6.0, "seven": 7.0, "eight": 8.0,
    "nine": 9.0, "ten": 10.0, "eleven": 11.0, "twelve": 12.0, "thirteen": 13.0, "fourteen": 14.0, "fifteen": 15.0,
    "sixteen": 16.0, "eighteen": 18.0, "twenty": 20.0, "thirty": 30.0, "forty": 40.0, "fifty": 50.0, "sixty": 60.0,
    "hundred": 100.0, "dozen": 12.0, "twice": 2.0, "double": 2.0, "doubled": 2.0, "half": 0.5, "third": 1 / 3,
    "triple": 3.0, "thrice": 3.0, "quarter": 0.25, "quarters": 0.25, "thirds": 1 / 3, "fourth": 0.25, "fifth": 0.2,
}  # fmt: skip
LARGEST = 1e300
"""What is larger counts as this; a text may hold a million digits."""
_WORD = re.compile(r"\b(?:" + "|".join(_WORDS) + r")\b", re.IGNORECASE)
_STATED = re.compile(
    r"####\s*(?P<mark>[^\n]+)|\\boxed\{(?P<box>[^{}]{1,80})\}"
    r"|\b(?:answer|result|option)\s*(?:is|are|would be|:)[\s:]*(?P<said>[^\n]{1,80})",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\(?\b([A-J])\b\)?[.):]?")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


class Final(msgspec.Struct, frozen=True):
    """`kind` is `number`, `letter` or `text`; `marked` when the answer says itself which is the final one."""

    kind: str
    text: str
    number: float | None = None
    marked: bool = False


def numbers(text: str, *, words: bool = False) -> tuple[float, ...]:
    """The numbers in a text in their order, without sign; with `words` also `three`, `twice`, `half`, `dozen`.

    >>> numbers("She sells 1,200 eggs at $2.50, twice a day.", words=True)
    (1200.0, 2.5, 2.0)
    """
    found = [(m.start(), _float(m[1])) for m in _NUMBER.finditer(text)]
    if words:
        found += [(m.start(), _WORDS[m[0].lower()]) for m in _WORD.finditer(text)]
    return tuple(value for _, value in sorted(found))


def _float(digits: str) -> float:
    return min(float(digits.replace(",", "")), LARGEST)


def final_answer(text: str) -> Final:
    """What the text ends in: a number behind `####`, in `\\boxed{}` or behind "the answer is", a letter of a choice,
    else the last number, else the last line in normal form.

    >>> final_answer("9 * 2 = 18\\n#### $18").number, final_answer("The answer is (B).").text
    (18.0, 'B')
    >>> final_answer("It is the  Red one.").text
    'it is red one'
    """
    *_, stated = None, *_STATED.finditer(text)  # the last one counts
    if stated is not None:
        piece = stated["mark"] or stated["box"] or stated["said"]
        found = _read(piece, first=True)
        if found is not None:
            return msgspec.structs.replace(found, marked=True)
    stripped = text.strip()
    if letter := _LETTER.fullmatch(stripped):
        return Final("letter", letter[1])
    last = next((line for line in reversed(stripped.splitlines()) if line.strip()), "")
    found = _read(text, first=False) if numbers(text) else None
    return found or Final("text", normal(last))


def _read(piece: str, *, first: bool) -> Final | None:
    piece = piece.strip().strip("*_` ")
    if first and (letter := _LETTER.match(piece)) and not numbers(piece):
        return Final("letter", letter[1])
    hits = list(_NUMBER.finditer(piece))
    if not hits:
        return Final("text", normal(piece)) if first and normal(piece) else None
    hit = hits[0] if first else hits[-1]
    value = _float(hit[1])
    value = -value if hit[0].lstrip()[0] in "-−" and value else value
    return Final("number", f"{value:.6g}", value)


def normal(text: str) -> str:
    """Lower case, without accents of width, punctuation and articles, single spaces; at most 200 characters."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join(c if c.isalnum() else " " for c in folded[:1000])
    return " ".join(_ARTICLES.sub(" ", letters).split())[:200]


def agreement(answers: Sequence[str]) -> float:
    """The share of the other answers that end as the first one does, which is the one that would be given.

    Self-consistency (Wang et al., 2023), used to judge and not to vote. NaN for fewer than two answers: nothing to
    compare.

    >>> agreement(["#### 4", "so it is 4", "#### 5"])
    0.5
    """
    ends = [(final.kind, final.text) for final in map(final_answer, answers)]
    return (ends.count(ends[0]) - 1) / (len(ends) - 1) if len(ends) > 1 else float("nan")
