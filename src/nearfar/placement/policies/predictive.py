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
from nearfar.fleet.health import degraded
from nearfar.fleet.snapshot import ServiceView, Snapshot
from nearfar.placement.expectation import Expectation, expect, link_to
from nearfar.placement.policies.base import Ranked
from nearfar.types.ids import NodeId, ServiceId
from nearfar.types.request import Request
from nearfar.types.units import Milliseconds, Seconds


class Predictive:
    """Cost: expected completion in ms; those expected to miss the deadline come after all that keep it, and among
    equals in that those that are degraded after the others.

    `hysteresis`: an incumbent stays unless another is better by more than this share of the incumbent's time and by at
    least `least_gain`, or unless the incumbent would be late and another would not. `settled`: an incumbent that is
    expected within this share of the deadline, jitter included, stays whatever others offer; 0 switches that off.
    Neither holds a request that carries a `forecast`: its stream's monitor saw the promise threatened at the incumbent,
    which then counts with what is forecast of it.
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
        shares = 0 <= hysteresis < 1 and 0 <= tie < 1 and 0 <= settled <= 1 and 0 <= roomy <= 1
        if not (shares and 0 <= least_gain < math.inf and sample >= 2):
            raise SettingsError(
                f"hysteresis={hysteresis}, least_gain={least_gain}, sample={sample}, tie={tie}, "
                f"settled={settled}, roomy={roomy} are not usable.",
                "hysteresis, tie, settled and roomy lie in 0 to 1, least_gain is at least 0 ms, sample at least 2.",
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
        incumbent, forecast = request.incumbent, request.forecast
        ranked: list[Ranked] = []
        for view in candidates:
            expected = expect(snapshot, request, view, now, link_to(snapshot, origin, view, now))
            late = deadline is not None and expected.total + expected.margin > deadline
            weak = degraded(view, snapshot.nodes.get(view.report.node), now) is not None
            if forecast is not None and view.report.service == incumbent:
                ranked.append(_foreseen(incumbent, expected, late, forecast, deadline, weak))
            else:
                ranked.append(Ranked(view.report.service, expected.total, late, expected, degraded=weak))
        if len(ranked) == 1:
            return ranked
        ranked.sort(key=_order)
        best = ranked[0]
        aside = False
        if incumbent is not None:
            for place, entry in enumerate(ranked):
                if entry.service == incumbent:
                    verdict = "stay" if place == 0 else self._verdict(entry, best, deadline, forecast is not None)
                    if verdict == "stay":
                        ranked.insert(0, ranked.pop(place))
                        return ranked
                    aside = verdict == "aside"
                    break
        near = best.cost * (1 + self.tie)
        ties = 1
        for entry in ranked[1:]:
            if entry.cost > near or entry.late is not best.late or entry.degraded is not best.degraded:
                break
            ties += 1
        if ties > 1:
            ranked.insert(0, ranked.pop(int(rng.random() * ties)))
        if aside:
            ranked[0] = msgspec.structs.replace(ranked[0], aside=True)
        return ranked

    def _verdict(self, incumbent: Ranked, best: Ranked, deadline: Milliseconds | None, threatened: bool) -> str:
        """`stay`, `aside` (this request goes to the best one, the stream stays) or `move`.

        A queue is gone some frames later, and with it the reason for a move; a slow machine or link stays slow. So a
        stream moves only when its incumbent would not do even without its queue. `best` is late only when all are.
        """
        if threatened and not best.late:
            # The stream's monitor sees its promise in danger here: nothing holds it to a worse place.
            return "move" if incumbent.late or incumbent.cost - best.cost > self.least_gain else "stay"
        if incumbent.degraded and not best.degraded and not best.late:
            return "move"
        expected = incumbent.expected
        gain = incumbent.cost - best.cost
        clear = gain > max(self.hysteresis * incumbent.cost, self.least_gain)
        if deadline is None or expected is None:
            return "move" if clear else "stay"
        whole = expected.total + expected.margin
        idle = whole - expected.wait
        queue_only = idle <= self.settled * deadline
        if incumbent.late and not best.late:
            return "aside" if queue_only else "move"
        if not clear or whole <= self.roomy * deadline:
            return "stay"
        if not queue_only:
            return "move"
        gain -= expected.wait
        slower = gain > max(self.hysteresis * (incumbent.cost - expected.wait), self.least_gain)
        # Slower, but it keeps the promise with room to spare: no reason to carry a stream's state elsewhere.
        return "stay" if slower and whole <= self.settled * deadline else "aside"


def _foreseen(
    service: ServiceId,
    expected: Expectation,
    late: bool,
    forecast: Milliseconds,
    deadline: Milliseconds | None,
    weak: bool,
) -> Ranked:
    """The incumbent of a stream whose monitor sees trouble there: the worse of both expectations."""
    cost = max(expected.total, forecast)
    note = f"its stream forecasts {forecast:.1f} ms there"
    return Ranked(service, cost, late or (deadline is not None and cost > deadline), expected, note, degraded=weak)


def _order(entry: Ranked) -> tuple[bool, bool, float]:
    return entry.late, entry.degraded, entry.cost
