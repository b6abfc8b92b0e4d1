"""A second copy against the tail (Dean and Barroso, The Tail at Scale, CACM 56(2), 2013), within a bounded budget.

When the first service has not answered by the 95th percentile of what was expected of it, the same request goes to the
next best one as well, if that one can still keep the deadline; the first answer wins, the other copy is cancelled. An
inference has no effect, so a copy costs only work: at most a share of the requests are hedged, whatever happens.
"""

from __future__ import annotations

import msgspec

from nearfar.fleet.snapshot import Observed
from nearfar.placement.expectation import Expectation
from nearfar.types.units import Milliseconds, Seconds

SHARE = 0.05
"""Hedges for each request, at most, in the long run; the setting `placement.hedge_share`."""
MOST_SAVED = 10.0
"""Hedges that may be saved up: those of 200 requests at 5 %. A burst of trouble gets no more at once."""
_P95 = 2.0
"""Mean absolute deviations between mean and 95th percentile: 1.645 x sqrt(pi / 2) = 2.06 where it is normal."""
_LEAST_WAIT = Milliseconds(5.0)
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
        return Budget(self.share, min(self.tokens + self.share, MOST_SAVED))

    def spend(self) -> Budget:
        """After a hedge was sent."""
        return Budget(self.share, self.tokens - 1.0)


def percentile(expected: Expectation, observed: Observed | None) -> Milliseconds:
    """The 95th percentile of the expected completion: what links and answers strayed by, added to the mean."""
    spread = 0.0 if observed is None else observed.spread
    return Milliseconds(expected.total + max(expected.margin, _P95 * spread, _LEAST_WAIT))


def hedge_at(expected: Expectation, observed: Observed | None, sent: Seconds, end: Seconds | None) -> Seconds | None:
    """When a second copy may go out; None without a deadline, or when that would be past it."""
    if end is None:
        return None
    at = Seconds(sent + percentile(expected, observed) / 1000)
    return at if at < end else None
