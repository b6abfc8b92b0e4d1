"""A second copy against the tail (Dean and Barroso, The Tail at Scale, CACM 56(2), 2013), within a bounded budget.

When the first service has not answered by the 95th percentile of what was expected of it, the same request goes to the
next best one as well, if that one can still keep the deadline; the first answer wins, the other copy is cancelled. An
inference has no effect, so a copy costs only work: at most a share of the requests are hedged, whatever happens.
"""

from __future__ import annotations

import msgspec

from nearfar.fleet.snapshot import Observed
from nearfar.placement.decide import Decision
from nearfar.placement.expectation import Expectation
from nearfar.types.units import Milliseconds, Seconds

SHARE = 0.05
"""Hedges for each request, at most, in the long run; the setting `placement.hedge_share`."""
MOST_SAVED = 10.0
"""Hedges that may be saved up: those of 200 requests at 5 %. A burst of trouble gets no more at once."""
_P95 = 2.0
"""Mean absolute deviations between mean and 95th percentile: 1.645 x sqrt(pi / 2) = 2.06 where it is normal."""
LEAST_WAIT = Milliseconds(5.0)
"""Hedging sooner than this after what was expected would answer the wake-ups of a thread, not trouble."""


class Budget(msgspec.Struct, frozen=True):
    """A token bucket: every request earns `share` of a hedge, and a hedge costs one.

    >>> budget = Budget(0.5).earn()
    >>> budget.affords, budget.spend().affords
    (True, False)
    """

    share: float = SHARE
    tokens: float = 1.0

    @property
    def affords(self) -> bool:
        return self.share > 0 and self.tokens >= 1.0

    def earn(self) -> Budget:
        """After a request was sent for the first time."""
        if self.tokens >= MOST_SAVED:
            return self
        return Budget(self.share, min(self.tokens + self.share, MOST_SAVED))

    def spend(self) -> Budget:
        """After a hedge was sent."""
        return Budget(self.share, self.tokens - 1.0)


def second_of(decision: Decision) -> Expectation | None:
    """What the best but the chosen one would take; None when there is none, or its policy does not say."""
    return next((r.expected for r in decision.ranking if r.service != decision.chosen), None)


def percentile(expected: Expectation, observed: Observed | None) -> Milliseconds:
    """The 95th percentile of the expected completion: what links and answers strayed by, added to the mean."""
    spread = 0.0 if observed is None else observed.spread
    return Milliseconds(expected.total + max(expected.margin, _P95 * spread, LEAST_WAIT))


def hedge_at(
    expected: Expectation, observed: Observed | None, second: Expectation | None, sent: Seconds, end: Seconds
) -> Seconds | None:
    """When a second copy may go to the next best service, which would need `second` for it; None when it cannot help.

    Not before the 95th percentile of the first, and as late as the deadline allows with twice the margin to spare: the
    longer it waits, the fewer copies are sent in vain, and the more of the budget is left for real trouble.
    """
    if second is None:
        return None
    p95 = sent + percentile(expected, observed) / 1000
    if p95 + second.total / 1000 > end:
        return None
    return Seconds(max(p95, end - (second.total + 2 * max(second.margin, LEAST_WAIT)) / 1000))
