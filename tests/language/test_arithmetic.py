"""Arithmetic worked out again: what is read, what is right, and that no text is too strange."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.language.judge.arithmetic import LARGEST, Verdict, asked_for, claims, work_out
from tests.realdata import need_data


def verdicts(text: str) -> list[str]:
    return [claim.verdict.value for claim in claims(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She has 16 - 3 - 4 = 9 eggs left.", ["exact"]),
        ("She has 16 - 3 - 4 = 8 eggs left.", ["wrong"]),
        ("9 * $2 = $<<9*2=18>>18", ["exact"]),
        ("9 * $2 = $<<9*2=19>>19", ["wrong"]),
        ("He pays 1,200 + 300 = 1,500 dollars", ["exact"]),
        ("16 - 3 - 4 = 13 - 4 = 9", ["exact", "exact"]),
        ("2 miles / 4 miles per hour = 0.5 hours", ["exact"]),
        ("30 cycles/day * $1.20/task * 5 tasks = $180", ["exact"]),
        ("20% of 50 = 10 and 20% * 50 = 11", ["exact", "wrong"]),
        ("50 + 20% = 60", ["exact"]),
        ("1/4 * 100 = 25%", ["exact"]),
        ("3/5 = 60%", ["exact"]),
        ("60 x 3 = 180, 20 × 4 = 80, 9 ÷ 3 = 3, 5 − 2 = 3", ["exact"] * 4),
        ("10 \\* 15 = 150", ["exact"]),
        ("2 / 3 = 0.67", ["rounded"]),
        ("2 / 3 = 0.7", ["rounded"]),
        ("2 / 3 = 0.9", ["wrong"]),
        ("39 / 2 ≈ 20", ["rounded"]),
        ("2 * (3 + 4) = 14; 2(3 + 4) = 14; 2^3 = 8; 2**3 = 8", ["exact"] * 4),
        ("4 - 32 = -28", ["exact"]),
        ("- 5 * 3 = 15", ["exact"]),
        ("1. 5 * 3 = 15", ["exact"]),
    ],
)
def test_claims_are_found_and_worked_out(text: str, expected: list[str]) -> None:
    assert verdicts(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "There are 5 eggs.",
        "x = 5",
        "2x + 3 = 7",
        "2 * X = 8",
        "X / 4 = 3",
        "total = 15",
        "5 * twice 3 * 2 = 60",
        "30 * 2 minutes = 1 hour",
        "In week 6 = 30 + 8",
        "2 * 1000000 = 2 million",
        "7 / 0 = 3",
        "<<15+2",
        "8 + = 9",
        "= 9",
        "9 ^ 99 = 3",
    ],
)
def test_what_cannot_be_read_for_sure_is_no_claim(text: str) -> None:
    assert claims(text) == ()


def test_a_mark_and_its_line_count_once() -> None:
    found = claims("9 * 2 = <<9*2=18>>18")
    assert [(claim.operands, claim.operators, claim.marked) for claim in found] == [((9.0, 2.0), "*", True)]


def test_nesting_and_size_are_bounded() -> None:
    assert work_out("(" * 10 + "1" + ")" * 10) == 1.0
    assert work_out("(" * 5000 + "1" + ")" * 5000) is None
    assert work_out("-" * 5000 + "1") is None
    assert work_out("9" * 400) is None
    assert claims("1 + 1 = 3 " * 100_000)[0].verdict is Verdict.WRONG


@given(st.integers(-999, 999), st.integers(-999, 999), st.sampled_from("+-*"))
def test_right_sums_are_right_and_wrong_ones_wrong(a: int, b: int, operator: str) -> None:
    right = {"+": a + b, "-": a - b, "*": a * b}[operator]
    text = f"<<({a}) {operator} ({b})"
    assert verdicts(f"{text} = {right}>>") == ["exact"]
    assert verdicts(f"{text} = {right + 1}>>") == ["wrong"]


@given(st.lists(st.integers(1, 99), min_size=2, max_size=6), st.data())
def test_agrees_with_python_on_expressions(numbers: list[int], data: st.DataObject) -> None:
    from fractions import Fraction

    text, value = str(numbers[0]), Fraction(numbers[0])
    for number in numbers[1:]:
        operator = data.draw(st.sampled_from("+-*/"))
        text = f"({text}) {operator} {number}"
        value = {"+": value + number, "-": value - number, "*": value * number, "/": value / number}[operator]
    found = work_out(text)
    assert found is not None
    assert math.isclose(found, float(value), rel_tol=1e-9, abs_tol=1e-9)


def test_what_a_prompt_asks_for_is_worked_out() -> None:
    assert asked_for("What is 2 + 2?") == 4
    assert asked_for("2 + 2 =") == 4
    for other in ("What is 7?", "What is 2 + 2 in French?", "-5", "", "2026-11-25 + x"):
        assert asked_for(other) is None


def test_real_sums_of_many_steps() -> None:
    """BIG-Bench Hard, multistep arithmetic: nested, with negative numbers; each target is known."""
    examples = json.loads(need_data("routing", "bbh", "multistep_arithmetic_two.json").read_text())["examples"]
    assert len(examples) > 100
    assert [asked_for(one["input"]) for one in examples] == [float(one["target"]) for one in examples]


@given(st.text(alphabet="0123456789.,+-*/^()=%x$<>≈ \nabceX×÷of", max_size=300))
@settings(max_examples=500)
def test_no_text_breaks_it(text: str) -> None:
    for claim in claims(text):
        assert math.isfinite(claim.left)
        assert math.isfinite(claim.right)
        assert abs(claim.left) <= LARGEST
        assert claim.operators
    value = work_out(text)
    assert value is None or math.isfinite(value)


@given(st.text(max_size=200))
def test_no_unicode_breaks_it(text: str) -> None:
    claims(text)
    work_out(text)
