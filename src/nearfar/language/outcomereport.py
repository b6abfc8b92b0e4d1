"""What routing did, in numbers: where prompts went, what was saved, and what other ways would have brought.

Nobody knows what the model that was not asked would have answered, so the other ways are estimates, made so:

- quality of a near answer: its calibrated probability (the judge's where there is one, else the router's), or what
  people said of it (-1 counts 0, 1 counts 1); of a far answer: `far_quality`, unless somebody said otherwise;
- tokens of a call that was not made: those that the model which did answer read and wrote;
- cost of a call that was not made: these tokens at `Prices`. Cost of what was done is what was recorded.
- random: the same share of far answers, drawn without looking; its quality and cost are the expected ones.

Pure. Prompts without any probability count in numbers and costs; `unknown` says how many the quality leaves out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from nearfar.language.outcomes import Record


class Prices(msgspec.Struct, frozen=True):
    """For one token, in the fleet's currency."""

    far_in: float
    far_out: float
    near_in: float = 0.0
    near_out: float = 0.0


class Way(msgspec.Struct, frozen=True):
    """What one way of routing brings: cost of all prompts, mean quality (0 to 1; None when nothing is known of it)."""

    cost: float
    quality: float | None
    far_share: float
    estimated: bool = True


class Report(msgspec.Struct, frozen=True):
    prompts: int
    decisions: Mapping[str, int]
    """How many were decided `near`, `far`, `split`, `cascade`, `cache`."""
    answered: Mapping[str, int]
    escalated: int
    refused: int
    """Should have gone far, and the budget did not allow it."""
    private: int
    saved: float
    """Against always-far; negative when routing cost more."""
    tokens_saved: int
    """Far tokens that splits saved, read and written."""
    feedback: int
    """How many answers somebody spoke of."""
    good: int
    unknown: int
    ways: Mapping[str, Way]
    """`routed`, `always-near`, `always-far`, `random`."""


def report(records: Iterable[Record], prices: Prices, far_quality: float = 0.95) -> Report:
    """Sum up. `far_quality` (0 to 1) is an assumption until feedback says it; a report shows it beside the figures."""
    kept = [record for record in records if record.answered != "none"]
    chances = [record.near_chance for record in kept if record.near_chance is not None]
    known = [record for record in kept if _quality(record, far_quality) is not None]
    qualities = [quality for record in kept if (quality := _quality(record, far_quality)) is not None]
    far = sum(record.answered == "far" for record in kept)
    share = far / len(kept) if kept else 0.0
    near_quality = _mean(chances)
    near_cost = sum(_cost(record, prices.near_in, prices.near_out) for record in kept)
    far_cost = sum(_cost(record, prices.far_in, prices.far_out) for record in kept)
    spent = sum(record.cost for record in kept)
    mixed = None if near_quality is None else share * far_quality + (1 - share) * near_quality
    ways = {
        "routed": Way(spent, _mean(qualities), share, estimated=any(r.feedback is None for r in kept)),
        "always-near": Way(near_cost, near_quality, 0.0),
        "always-far": Way(far_cost, far_quality if kept else None, 1.0),
        "random": Way(share * far_cost + (1 - share) * near_cost, mixed, share),
    }
    return Report(
        prompts=len(kept),
        decisions=dict(sorted(Counter(record.decision for record in kept).items())),
        answered=dict(sorted(Counter(record.answered for record in kept).items())),
        escalated=sum(record.escalated for record in kept),
        refused=sum(record.refused for record in kept),
        private=sum(record.privacy.value != "any" for record in kept),
        saved=far_cost - spent,
        tokens_saved=sum(record.saved_in + record.saved_out for record in kept),
        feedback=sum(record.feedback is not None for record in kept),
        good=sum(record.feedback is not None and record.feedback > 0 for record in kept),
        unknown=len(kept) - len(known),
        ways=ways,
    )


def _quality(record: Record, far_quality: float) -> float | None:
    if record.feedback is not None:
        return (record.feedback + 1) / 2
    return far_quality if record.answered == "far" else record.near_chance


def _cost(record: Record, price_in: float, price_out: float) -> float:
    """Of one call with what the answering model read and wrote."""
    far = record.answered == "far"
    read = (record.far_in if far else record.near_in) + record.saved_in
    written = record.far_out if far else record.near_out
    return read * price_in + written * price_out


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
