"""Faults that need no statistics: each one caps the probability, whatever the learned part says.

The caps are set by hand, not learned: the rows that the default was trained on show none of these faults, so a learned
weight would be zero exactly where the fault is plainest. A user's own log can show how far they are right: `train.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import msgspec

from nearfar.language.answer import Answer
from nearfar.language.judge.arithmetic import asked_for
from nearfar.language.judge.final import final_answer
from nearfar.language.judge.formats import Form
from nearfar.language.prompt import Asked

_TRANSLATE = re.compile(
    r"\b(?:translat\w*|übersetz\w*|tradu\w*|in (?:English|German|French|Spanish|Italian|Portuguese|Dutch|Chinese"
    r"|Japanese|Korean|Russian|Arabic))\b",
    re.IGNORECASE,
)
LOOPS = 0.5
"""`repeated_share` or `loop_share` from here on is degenerate text; prose stays under 0.1, tables under 0.4."""
LONG = 40
"""Words; a shorter text may repeat itself with reason."""


class Finding(msgspec.Struct, frozen=True):
    code: str
    cap: float
    """The judged probability is at most this."""
    reason: str


def findings(asked: Asked, answer: Answer, values: Mapping[str, float], kept: Sequence[Form]) -> tuple[Finding, ...]:
    """Every plain fault of the answer, in a fixed order; empty when there is none."""
    text = answer.text.strip()
    found = []
    if not text and not answer.calls:
        found.append(Finding("empty", 0.01, "the answer is empty"))
    for form in kept:
        if not form.fulfilled:
            cap = 0.02 if form.certain else 0.3
            found.append(Finding(f"form-{form.name}", cap, f"asked for {form.name}: {form.reason}"))
    value = asked_for(asked.prompt)
    if value is not None and not _near(value, final_answer(text).number):
        found.append(Finding("sum", 0.05, f"the prompt is a sum that makes {value:.6g}, and it ends otherwise"))
    if values["refuses"]:
        found.append(Finding("refusal", 0.1, "it refuses"))
    if values["unknowing"]:
        found.append(Finding("unknowing", 0.25, "it says that it does not know, or that nobody can"))
    if values["cut_by_length"] == 1.0:
        found.append(Finding("cut", 0.2, "it was cut at the longest length allowed"))
    if answer.finish_reason == "content_filter":
        found.append(Finding("filtered", 0.05, "a filter took content away"))
    looping = max(values["repeated_share"], values["loop_share"])
    if looping >= LOOPS and len(text.split()) >= LONG:
        found.append(Finding("loop", 0.05, f"it repeats itself ({looping:.0%} of it)"))
    if values["other_language"] == 1.0 and not _TRANSLATE.search(asked.prompt):
        found.append(Finding("language", 0.2, "it is in another language than the question"))
    return tuple(found)


def _near(value: float, stated: float | None) -> bool:
    """As near as three decimals say."""
    return stated is not None and abs(value - stated) <= max(1e-9 * abs(value), 5e-4)


def lowest(found: Sequence[Finding]) -> float:
    """The cap of all together; infinite when there is none."""
    return min((finding.cap for finding in found), default=math.inf)
