"""Numbers in an answer: whether its arithmetic holds, where its numbers come from, whether its result is plausible."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import combinations

from nearfar.language.judge.arithmetic import MOST_CHARACTERS, Claim, Verdict
from nearfar.language.judge.final import Final, numbers

_COUNTS = re.compile(r"\bhow many\b", re.IGNORECASE)
_RATIO = re.compile(r"%|\b(?:percent|half|third|quarter|twice|times|fraction|ratio|average|per)\b|\d/\d", re.IGNORECASE)
_COMPARISON = re.compile(r"\b(?:more|less|fewer|older|younger|taller|shorter|longer|faster|slower)\b", re.IGNORECASE)
_BACKWARDS = re.compile(r"\b(?:before|initially|originally|at first|start(?:ed)?)\b", re.IGNORECASE)
MOST_NUMBERS, MOST_OPERANDS = 100, 500
"""Of a prompt and of an answer that are compared with each other: the work is their product."""
KNOWN = frozenset({0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 12.0, 24.0, 30.0, 52.0, 60.0, 100.0, 365.0, 1000.0})
"""Numbers that need no source: small ones, and those of clocks, calendars and percentages."""


ARITHMETIC = ("wrong_claims", "wrong_share", "rounded_share", "claims", "unsourced_share", "unused_share",
              "multiplied_share", "added_share", "same_order")  # fmt: skip
NUMBERS = ("used_share", "size", "far_off", "fraction_for_count", "negative", "repeats_given", "is_last_result",
           "decimals")  # fmt: skip


def arithmetic(prompt: str, found: Sequence[Claim]) -> dict[str, float]:
    """`wrong_claims` (log of 1 + how many are wrong), `wrong_share`, `rounded_share`, `claims` (log of 1 + how many),
    `unsourced_share` (operands that stand neither in the prompt nor as an earlier result, nor are commonly known),
    `unused_share` (results that nothing later works with, the last one aside), `multiplied_share` and `added_share` (of
    the operators), `same_order` (of the pairs of prompt numbers that it works with, those that it takes up in the
    prompt's order; NaN without such a pair).

    `found` are the answer's claims; all is NaN when there are none.
    """
    if not found:
        return dict.fromkeys(ARITHMETIC, math.nan)
    wrong = sum(claim.verdict is Verdict.WRONG for claim in found)
    given = numbers(prompt, words=True)
    unsourced, unused = _sources(given, found)
    operators = "".join(claim.operators for claim in found)
    return {
        "wrong_claims": math.log1p(wrong),
        "wrong_share": wrong / len(found),
        "rounded_share": sum(claim.verdict is Verdict.ROUNDED for claim in found) / len(found),
        "claims": math.log1p(len(found)),
        "unsourced_share": unsourced,
        "unused_share": unused,
        "multiplied_share": operators.count("*") / max(1, len(operators)),
        "added_share": operators.count("+") / max(1, len(operators)),
        "same_order": _same_order(given[:MOST_NUMBERS], [x for claim in found for x in claim.operands][:MOST_OPERANDS]),
    }


def _same_order(given: Sequence[float], operands: Sequence[float]) -> float:
    places = [next((i for i, operand in enumerate(operands) if _same(operand, one)), None) for one in given]
    known = [place for place in places if place is not None]
    pairs = [a < b for a, b in combinations(known, 2) if a != b]
    return sum(pairs) / len(pairs) if pairs else math.nan


def _sources(given: Sequence[float], found: Sequence[Claim]) -> tuple[float, float]:
    given = given[:MOST_NUMBERS]
    known = [*given, *KNOWN, *(value / 100 for value in given), *(1 - value / 100 for value in given)]
    total = unsourced = 0
    results: list[float] = []
    used: set[int] = set()
    for claim in found[:MOST_NUMBERS]:
        for operand in claim.operands:
            total += 1
            source = next((i for i, value in enumerate(results) if _same(value, operand)), None)
            if source is not None:
                used.add(source)
            elif not any(_same(value, operand) for value in known):
                unsourced += 1
        if not any(_same(value, claim.right) for value in results):
            results.append(claim.right)
    open_results = len(results) - 1
    unused = sum(i not in used for i in range(open_results)) / open_results if open_results > 0 else 0.0
    return (unsourced / total if total else 0.0), unused


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)


def plausibility(prompt: str, answer: str, final: Final, found: Sequence[Claim]) -> dict[str, float]:
    """What the final number looks like against the prompt's numbers: `used_share` (of the prompt's numbers, those that
    the answer's arithmetic or text takes up), `size` (log10 of the final number over the largest of the prompt, from -4
    to 4), `far_off` (its absolute value beyond 1), `fraction_for_count` (asked "how many", answered with no whole
    number), `negative`, `repeats_given` (it is one of the prompt's numbers), `is_last_result` (the last claim's) and
    `decimals` (0 to 6).

    NaN when the prompt has no number or the answer does not end in one.
    """
    given = numbers(prompt, words=True)[:MOST_NUMBERS]
    if not given or final.number is None:
        return dict.fromkeys(NUMBERS, math.nan)
    value = final.number
    taken = {*numbers(answer, words=True), *(operand for claim in found for operand in claim.operands)}
    distinct = set(given)
    used = sum(any(_same(one, other) for other in taken) for one in distinct) / len(distinct)
    largest = max(given) or 1.0
    size = max(-4.0, min(4.0, math.log10(max(abs(value), 1e-9) / largest)))
    return {
        "used_share": used,
        "size": size,
        "far_off": max(0.0, abs(size) - 1.0),
        "fraction_for_count": float(bool(_COUNTS.search(prompt)) and not value.is_integer()),
        "negative": float(value < 0),
        "repeats_given": float(any(_same(abs(value), one) for one in given)),
        "is_last_result": float(_same(abs(value), abs(found[-1].right))) if found else math.nan,
        "decimals": float(min(6, len(f"{value:.6g}".partition(".")[2]))),
    }


def demand(prompt: str) -> dict[str, float]:
    """How much the prompt itself asks for: `prompt_words`, `prompt_numbers`, `ratios` (words of proportion),
    `questions` (question marks), `comparisons` (`more`, `fewer`, `older`, ...): each the log of 1 + how many; and
    `backwards` (0 or 1: it speaks of before, initially, at first, so the result may have to be undone)."""
    prompt = prompt[:MOST_CHARACTERS]
    return {
        "prompt_words": math.log1p(len(prompt.split())),
        "prompt_numbers": math.log1p(len(numbers(prompt, words=True))),
        "ratios": math.log1p(len(_RATIO.findall(prompt))),
        "questions": math.log1p(prompt.count("?")),
        "comparisons": math.log1p(len(_COMPARISON.findall(prompt))),
        "backwards": float(bool(_BACKWARDS.search(prompt))),
    }
