"""How sure the model was of its tokens: from the log-probabilities that an OpenAI-compatible service returns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nearfar.language.answer import TokenChance

FLOOR = -20.0
"""Natural log; a token of probability 2e-9 and one of 0 (some services write -9999) tell the same."""
DOUBTFUL = math.log(0.5)


def certainty(chances: Sequence[TokenChance] | None) -> dict[str, float]:
    """Features `mean_logprob`, `min_logprob`, `doubtful_share` (tokens under a probability of one half) and
    `entropy` (nats; mean over tokens of the entropy of the `top_logprobs`, the rest of the mass as one more outcome).

    NaN where there is nothing to go by: no log-probabilities, or none of the likeliest tokens.
    """
    if not chances:
        return {"mean_logprob": math.nan, "min_logprob": math.nan, "doubtful_share": math.nan, "entropy": math.nan}
    values = [_bounded(chance.logprob) for chance in chances]
    spreads = [_entropy(chance.top) for chance in chances if chance.top]
    return {
        "mean_logprob": sum(values) / len(values),
        "min_logprob": min(values),
        "doubtful_share": sum(value < DOUBTFUL for value in values) / len(values),
        "entropy": sum(spreads) / len(spreads) if spreads else math.nan,
    }


def _bounded(logprob: float) -> float:
    return FLOOR if math.isnan(logprob) else min(0.0, max(FLOOR, logprob))


def _entropy(top: Sequence[float]) -> float:
    shares = [math.exp(_bounded(value)) for value in top]
    total = sum(shares)
    shares = [share / total for share in shares] if total > 1 else [*shares, 1 - total]
    return -sum(share * math.log(share) for share in shares if share > 0)
