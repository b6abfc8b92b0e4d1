"""The default: the service that is expected to answer first, held steady by hysteresis.

At scale a few candidates are drawn at random and the best of them is taken; that two draws already remove most of the
imbalance of one is the power of two choices (M. Mitzenmacher, IEEE Trans. Parallel Distrib. Syst. 12(10), 2001).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import msgspec

from nearfar.errors import SettingsError
from nearfar.fleet.snapshot import ServiceView, Snapshot
from nearfar.placement.expectation import expect, link_to
from nearfar.placement.policies.base import Ranked
from nearfar.types.ids import NodeId
from nearfar.types.request import Request
from nearfar.types.units import Milliseconds, Seconds


class Predictive:
    """Cost: expected completion in ms; those expected to miss the deadline come after all that keep it.

    `hysteresis`: an incumbent stays unless another is better by more than this share of the incumbent's time and by at
    least `least_gain`, or unless the incumbent would be late and another would not. `settled`: an incumbent that is
    expected within this share of the deadline, jitter included, stays whatever others offer; 0 switches that off.
    `tie`: within this share of the best, one is taken at random, so that gateways with the same snapshot do not all
    pick the same service. Raises `SettingsError` for a share outside 0 to 1, a negative gain or a sample below 2.
    """

    name = "predictive"

    def __init__(
        self,
        hysteresis: float = 0.2,
        least_gain: Milliseconds = Milliseconds(2.0),  # noqa: B008 - a float
        sample: int = 12,
        tie: float = 0.01,
        settled: float = 0.8,
        roomy: float = 0.4,
    ) -> None:
        shares = 0 <= hysteresis < 1 and 0 <= tie < 1 and 0 <= settled <= 1
        if not (shares and 0 <= least_gain < math.inf and sample >= 2):
            raise SettingsError(
                f"hysteresis={hysteresis}, least_gain={least_gain}, sample={sample}, tie={tie}, "
                f"settled={settled} are not usable.",
                "hysteresis, tie and settled lie in 0 to 1, least_gain is at least 0 ms, sample at least 2.",
            )
        self.hysteresis = hysteresis
        self.least_gain = least_gain
        self.sample: int | None = sample
        self.tie = tie
        self.settled = settled
        self.roomy = roomy

    def rank(
        self,
        snapshot: Snapshot,
        request: Request,
        candidates: Sequence[ServiceView],
        now: Seconds,
        rng: random.Random,
    ) -> Sequence[Ranked]:
        deadline = request.qos.deadline
        origin = NodeId(request.origin)
        ranked: list[Ranked] = []
        for view in candidates:
            expected = expect(snapshot, request, view, now, link_to(snapshot, origin, view, now))
            late = deadline is not None and expected.total + expected.margin > deadline
            ranked.append(Ranked(view.report.service, expected.total, late, expected))
        if len(ranked) == 1:
            return ranked
        ranked.sort(key=_order)
        best = ranked[0]
        incumbent = request.incumbent
        aside = False
        if incumbent is not None:
            for place, entry in enumerate(ranked):
                if entry.service == incumbent:
                    if place and self._stays(entry, best, deadline):
                        ranked.insert(0, ranked.pop(place))
                    if place == 0 or ranked[0] is entry:
                        return ranked
                    aside = self._passes(entry, best, deadline)
                    break
        near = best.cost * (1 + self.tie)
        ties = 1
        while ties < len(ranked) and ranked[ties].late == best.late and ranked[ties].cost <= near:
            ties += 1
        if ties > 1:
            ranked.insert(0, ranked.pop(int(rng.random() * ties)))
        if aside:
            ranked[0] = msgspec.structs.replace(ranked[0], aside=True)
        return ranked

    def _passes(self, incumbent: Ranked, best: Ranked, deadline: Milliseconds | None) -> bool:
        """Whether what speaks against the incumbent is only its queue: one frame goes elsewhere, the stream stays.

        A queue is gone in some frames, and with it the reason for the move; a slow machine or link stays.
        """
        expected = incumbent.expected
        if expected is None or deadline is None:
            return False
        idle = expected.total - expected.wait
        if idle + expected.margin > self.settled * deadline:
            return False
        return True

    def _stays(self, incumbent: Ranked, best: Ranked, deadline: Milliseconds | None) -> bool:
        # `best` is late only when all are, as those that keep the deadline come first.
        if incumbent.late and not best.late:
            return False
        expected = incumbent.expected
        if deadline is not None and expected is not None and expected.keeps(Milliseconds(self.roomy * deadline)):
            # The promise is kept with room to spare: a queue that is longer for one frame must not move a stream.
            return True
        return not incumbent.cost - best.cost > max(self.hysteresis * incumbent.cost, self.least_gain)


def _order(entry: Ranked) -> tuple[bool, float]:
    return entry.late, entry.cost
