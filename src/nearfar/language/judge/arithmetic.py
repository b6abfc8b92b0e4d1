"""Arithmetic that an answer claims, worked out again: `16 - 3 - 4 = 9`, chains, `$`, `%`, units, `<<9*2=18>>`.

A small parser of its own: no text ever becomes code. Work grows linearly with the text, numbers stay finite floats,
nesting is bounded; what it cannot read for sure (algebra, a missing operand) is no claim, so it counts neither way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import pairwise

import msgspec

MOST_CHARACTERS = 20_000
"""Of an answer that are looked at; what comes after is not checked."""
MOST_OF_A_SUM = 1000
"""Characters of a prompt that is nothing but arithmetic."""
MOST_TOKENS = 200
"""Of one side of an equation."""
MOST_DEPTH = 20
LARGEST = 1e15
"""Beyond it float64 does not hold every whole number, so a difference of one could not be seen."""
UNIT_WORDS = 4
"""Words that may stand between a number and what comes after it: `4 miles per hour * 2`."""

_MARK = re.compile(r"<<([^<>\n]{1,200})>>")
_TOKEN = re.compile(
    r"(?P<number>\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?P<percent>\s?%)?(?P<tail>[a-zA-Z]\b(?!/))?"
    r"|(?P<unit>/\s?[a-zA-Z]+)"
    r"|(?P<word>[^\W\d_]+(?:'[a-z]+)?)"
    r"|(?P<equal>[=≈])"
    r"|(?P<operator>\*\*|[-+*/^×÷·−–])"
    r"|(?P<open>\()|(?P<close>\))"
    r"|(?P<skip>[\s$€£\\]+)"
    r"|(?P<other>.)",
    re.DOTALL,
)
_BARE = re.compile(
    r"(?:what is|what's|how much is|calculate|compute|evaluate)?[\s:]*([-+(\d][-+*/^×÷().,%\d\s]*)[\s=?.]*",
    re.IGNORECASE,
)
_PLAIN = {"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "**": "^"}
_TIMES = frozenset({"x", "X", "times"})
_UNITS_OF_ONE_LETTER = frozenset("mgshlkdLKMBCFVWJNA")
"""A single letter right behind a number is a unit or scale if it is one of these; else it is a variable: `2x`."""

_SCALES = frozenset({"hundred", "thousand", "million", "billion", "trillion", "dozen", "k"})
_FACTORS = (3, 4, 7, 10, 12, 16, 24, 30, 52, 60, 100, 365, 1000, 1440, 3600, 5280)
"""Between units of time, length, weight, volume and money that people mix."""


class Verdict(StrEnum):
    EXACT = "exact"
    ROUNDED = "rounded"
    """Right as far as the digits that are stated go: 2 / 3 = 0.67."""
    WRONG = "wrong"


class Token(msgspec.Struct, frozen=True, array_like=True):
    kind: str
    """number, percent, word, operator, open, close, variable, other"""
    text: str
    value: float = 0.0
    decimals: int = 0


class Claim(msgspec.Struct, frozen=True):
    """Two sides of an equals sign, of which at least one has an operator."""

    left: float
    right: float
    verdict: Verdict
    operands: tuple[float, ...]
    """The numbers that were worked with, in their order."""
    operators: str = ""
    """Those of the side that was worked out, each one character: `+-*/^`."""
    marked: bool = False
    """It stood in `<<...>>`."""


def claims(text: str) -> tuple[Claim, ...]:
    """Every claim in the text, in its order; those in `<<...>>` come where their line comes.

    >>> [(c.left, c.right, c.verdict.value) for c in claims("She sells 16 - 3 - 4 = 9 eggs, 9 * $2 = $19 a day.")]
    [(9.0, 9.0, 'exact'), (18.0, 19.0, 'wrong')]
    >>> [c.verdict.value for c in claims("20% of 50 = 10, so 3 * (2 + 1) = 6 + 3 = 9 and 2 / 3 = 0.67; 2x = 8")]
    ['exact', 'exact', 'exact', 'rounded']
    """
    found: list[Claim] = []
    for line in text[:MOST_CHARACTERS].splitlines():
        marks = [claim for mark in _MARK.finditer(line) for claim in _claims(mark[1], marked=True)]
        plain = list(_claims(_MARK.sub("", line), marked=False))
        told = {(c.left, c.right, c.operands) for c in marks}
        found += [c for c in plain if (c.left, c.right, c.operands) not in told] + marks
    return tuple(found)


def work_out(text: str) -> float | None:
    """The value of an expression such as `3 * (2 + 1.5)`; None when it is none, or not finite.

    >>> work_out("3 * (2 + 1)"), work_out("2 +"), work_out("1 / 0")
    (9.0, None, None)
    """
    tokens = [token for token in _tokens(text) if token.kind != "word"]
    return _value(tokens)


def asked_for(prompt: str) -> float | None:
    """The value of a prompt that is nothing but arithmetic, such as `What is 2 + 2?` or `((4 - 1) * 7) =`; else None.

    >>> asked_for("What is 12 * (3 + 1)?"), asked_for("What is 2 apples + 2 pears?"), asked_for("What is 7?")
    (48.0, None, None)
    """
    prompt = prompt.strip()
    found = _BARE.fullmatch(prompt) if len(prompt) <= MOST_OF_A_SUM else None
    if found is None or not any(token.kind == "operator" for token in _tokens(found[1])[1:]):
        return None
    return work_out(found[1])


def _tokens(text: str) -> list[Token]:
    found: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind, piece = match.lastgroup or "other", match[0]
        if match["number"]:
            digits = match["number"].replace(",", "")
            decimals = len(digits.partition(".")[2])
            value, tail = float(digits), match["tail"] or ""
            found.append(Token("percent" if match["percent"] else "number", piece, value, decimals))
            if tail in _TIMES:  # `3x4` is a product, `3x` alone a variable: decided where the next token is known
                found.append(Token("times", tail))
            elif tail and tail not in _UNITS_OF_ONE_LETTER:
                found.append(Token("variable", tail))
        elif kind == "word":
            found.append(Token("times" if piece in _TIMES else "word", piece))
        elif kind == "unit":
            found.append(Token("word", piece))
        elif kind == "operator":
            found.append(Token("operator", _PLAIN.get(piece, piece)))
        elif kind != "skip":
            found.append(Token(kind, piece))
    return _products(found)


def _products(tokens: Sequence[Token]) -> list[Token]:
    """`x`, `times`, and `of` behind a percentage become `*` where operands stand on both sides."""
    made: list[Token] = []
    for i, token in enumerate(tokens):
        of = token.kind == "word" and token.text == "of" and bool(made) and made[-1].kind == "percent"
        if token.kind == "times" or of:
            after = tokens[i + 1].kind if i + 1 < len(tokens) else ""
            before = made[-1].kind if made else ""
            sides = before in ("number", "percent", "close", "word") and after in ("number", "percent", "open")
            other = "word" if of else "variable"
            made.append(Token("operator", "*") if sides else Token(other, token.text))
        else:
            made.append(token)
    return made


def _claims(text: str, *, marked: bool) -> Iterator[Claim]:
    if "=" not in text and "≈" not in text:
        return
    sides: list[list[Token]] = [[]]
    for token in _tokens(text):
        if token.kind == "equal":
            sides.append([])
        else:
            sides[-1].append(token)
    for before, after in pairwise(sides):
        left, right = _behind(before), _ahead(after)
        claim = _compare(left, right, marked) if left and right else None
        if claim is not None:
            yield claim


def _behind(tokens: Sequence[Token]) -> list[Token] | None:
    """The longest expression that ends where the equals sign stands; None when it is none, or part of more."""
    taken: list[Token] = []
    at = len(tokens) - 1
    while at >= 0 and len(taken) < MOST_TOKENS:
        skipped = 0
        while at >= 0 and tokens[at].kind == "word" and skipped < UNIT_WORDS:
            at, skipped = at - 1, skipped + 1
        if at < 0 or tokens[at].kind not in ("number", "percent", "close"):
            return None  # an operator without its operand, a variable, the end of a sentence
        start = _opening(tokens, at) if tokens[at].kind == "close" else at
        if start is None:
            return None
        taken[:0] = [token for token in tokens[start : at + 1] if token.kind != "word"]
        at = start - 1
        before = tokens[at].kind if at >= 0 else ""
        if before == "operator":
            if at == 0 and tokens[at].text == "-":
                break  # the dash of a list
            taken.insert(0, tokens[at])
            at -= 1
        elif before == "variable" or (before in ("number", "close") and tokens[start].kind != "open"):
            return None
        elif before in ("number", "close"):
            taken.insert(0, Token("operator", "*"))  # 2(3 + 4)
        else:
            back = at
            while back >= 0 and at - back < UNIT_WORDS and tokens[back].kind == "word":
                back -= 1
            cut = back < at and back > 0 and tokens[back].kind == "operator"
            return None if cut else taken  # `5 * twice 3 * 2`: what stands behind the word is not the whole
    return taken or None


def _ahead(tokens: Sequence[Token]) -> list[Token] | None:
    """The longest expression that begins behind the equals sign."""
    taken: list[Token] = []
    at, count = 0, len(tokens)
    if at < count and tokens[at].kind == "operator" and tokens[at].text == "-":
        taken, at = [tokens[at]], 1
    while at < count and len(taken) < MOST_TOKENS:
        if tokens[at].kind == "open":
            end = _closing(tokens, at)
        else:
            end = at if tokens[at].kind in ("number", "percent") else None
        if end is None:
            return None
        taken += [token for token in tokens[at : end + 1] if token.kind != "word"]
        at, words = end + 1, 0
        if at < count and tokens[at].kind == "word" and tokens[at].text.lower() in _SCALES:
            return None
        while at < count and tokens[at].kind == "word" and words < UNIT_WORDS:
            at, words = at + 1, words + 1
        if at >= count or tokens[at].kind not in ("operator", "variable"):
            return taken
        if tokens[at].kind == "variable" or at + 1 >= count:
            return None
        if tokens[at].text == "-" and tokens[at + 1].kind == "word":
            return taken  # a dash between thoughts
        taken.append(tokens[at])
        at += 1
    return None


def _opening(tokens: Sequence[Token], close: int) -> int | None:
    depth = 0
    for at in range(close, max(-1, close - MOST_TOKENS), -1):
        depth += {"close": 1, "open": -1}.get(tokens[at].kind, 0)
        if depth == 0:
            return at
    return None


def _closing(tokens: Sequence[Token], start: int) -> int | None:
    depth = 0
    for at in range(start, min(len(tokens), start + MOST_TOKENS)):
        depth += {"open": 1, "close": -1}.get(tokens[at].kind, 0)
        if depth == 0:
            return at
    return None


def _compare(left: list[Token], right: list[Token], marked: bool) -> Claim | None:
    if not any(token.kind == "operator" for token in (*left, *right[1:])):
        return None
    a, b = _value(left), _value(right)
    if a is None or b is None:
        return None
    single = [token for token in right if token.kind in ("number", "percent")]
    readings = [b]
    if len(single) == 1 and single[0].kind == "percent":
        readings.append(b * 100)  # `1 / 4 * 100 = 25%`
    decimals = single[0].decimals if len(single) == 1 else 6
    verdict = min((_verdict(a, reading, decimals) for reading in readings), key=list(Verdict).index)
    label = len(left) == 1 and len(right) > 1  # `week 6 = 30 + 7`
    if verdict is Verdict.WRONG and not marked and (label or _converts(a, b)):
        return None
    worked = left if len(left) > 1 else right
    operands = tuple(token.value for token in worked if token.kind in ("number", "percent"))
    operators = "".join(token.text for token in worked if token.kind == "operator")
    return Claim(a, b, verdict, operands, operators, marked)


def _verdict(worked: float, stated: float, decimals: int) -> Verdict:
    off = abs(worked - stated)
    if off <= 1e-9 * max(1.0, abs(worked)):
        return Verdict.EXACT
    last_digit = 10.0**-decimals
    return Verdict.ROUNDED if off < last_digit * (1 + 1e-9) and not worked.is_integer() else Verdict.WRONG


def _converts(a: float, b: float) -> bool:
    """Whether the two may be the same in other units: `30 * 2 minutes = 1 hour` is no mistake."""
    if a == 0 or b == 0:
        return False
    ratio = max(abs(a / b), abs(b / a))
    return any(math.isclose(ratio, factor, rel_tol=1e-6) for factor in _FACTORS)


def _value(tokens: Sequence[Token]) -> float | None:
    """Precedence climbing over at most `MOST_TOKENS` tokens; None for anything that is not a whole expression."""
    if not tokens or len(tokens) > MOST_TOKENS:
        return None
    try:
        value, _, end = _sum(tokens, 0, 0)
    except (_Unreadable, ZeroDivisionError, OverflowError):
        return None
    return value if end == len(tokens) and math.isfinite(value) and abs(value) <= LARGEST else None


class _Unreadable(Exception):
    """It is no expression."""


def _sum(tokens: Sequence[Token], at: int, depth: int) -> tuple[float, bool, int]:
    """(value, whether it is one bare percentage, where it ended)."""
    value, percent, at = _product(tokens, at, depth)
    while at < len(tokens) and tokens[at].text in ("+", "-") and tokens[at].kind == "operator":
        sign = 1.0 if tokens[at].text == "+" else -1.0
        other, relative, at = _product(tokens, at + 1, depth)
        value += sign * (value * other if relative and not percent else other)  # 50 + 20% is 60, as on a calculator
        percent = percent and relative
    return value, percent, at


def _product(tokens: Sequence[Token], at: int, depth: int) -> tuple[float, bool, int]:
    value, percent, at = _power(tokens, at, depth)
    while at < len(tokens) and (tokens[at].text in ("*", "/") or tokens[at].kind == "open"):
        implied = tokens[at].kind == "open"
        divide = tokens[at].text == "/"
        other, _, at = _power(tokens, at if implied else at + 1, depth)
        value, percent = (value / other if divide else value * other), False
    return value, percent, at


def _power(tokens: Sequence[Token], at: int, depth: int) -> tuple[float, bool, int]:
    value, percent, at = _operand(tokens, at, depth)
    if at < len(tokens) and tokens[at].text == "^":
        exponent, _, at = _operand(tokens, at + 1, depth)
        if abs(exponent) > 64 or (value < 0 and not exponent.is_integer()):
            raise _Unreadable
        value, percent = value**exponent, False
    return value, percent, at


def _operand(tokens: Sequence[Token], at: int, depth: int) -> tuple[float, bool, int]:
    if at >= len(tokens) or depth > MOST_DEPTH:
        raise _Unreadable
    token = tokens[at]
    if token.kind in ("number", "percent"):
        percent = token.kind == "percent"
        return (token.value / 100 if percent else token.value), percent, at + 1
    if token.kind == "operator" and token.text in ("-", "+"):
        value, percent, at = _operand(tokens, at + 1, depth + 1)
        return (-value if token.text == "-" else value), percent, at
    if token.kind == "open":
        value, _, at = _sum(tokens, at + 1, depth + 1)
        if at < len(tokens) and tokens[at].kind == "close":
            return value, False, at + 1
    raise _Unreadable
