"""Baselines that policies are compared with, and the clairvoyant bound. For the testbed; not built-in policies.

Random, round robin and least loaded see what every policy sees. The clairvoyant sees the truth instead.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from nearfar.fleet.snapshot import ServiceView, Snapshot
from nearfar.placement.policies.base import Ranked
from nearfar.types.ids import ServiceId
from nearfar.types.request import Request
from nearfar.types.units import Seconds


class Random:
    """Anyone who may take the request, evenly. No cost; the ranking is the order of a shuffle."""

    name = "random"
    sample: int | None = 2

    def rank(
        self,
        snapshot: Snapshot,
        request: Request,
        candidates: Sequence[ServiceView],
        now: Seconds,
        rng: random.Random,
    ) -> Sequence[Ranked]:
        order = list(candidates)
        first = int(rng.random() * len(order))
        order[0], order[first] = order[first], order[0]
        return [Ranked(view.report.service, 0.0) for view in order]


class RoundRobin:
    """The one after whom this gateway asked last, in the order of their ids; the first is drawn.

    It remembers whom it asked, so it is no pure function; a policy of the product must be one.
    """

    name = "round-robin"
    sample: int | None = None

    def __init__(self) -> None:
        self._last: dict[str, ServiceId] = {}

    def rank(
        self,
        snapshot: Snapshot,
        request: Request,
        candidates: Sequence[ServiceView],
        now: Seconds,
        rng: random.Random,
    ) -> Sequence[Ranked]:
        names = sorted(view.report.service for view in candidates)
        last = self._last.get(snapshot.me)
        if last is None:
            start = int(rng.random() * len(names))
        else:
            start = bisect_right(names, last) % len(names)
        self._last[snapshot.me] = names[start]
        return [Ranked(name, float(i)) for i, name in enumerate(names[start:] + names[:start])]


class LeastLoaded:
    """Cost: requests per worker, the larger of the reported ones and our own under way. Ties are drawn."""

    name = "least-loaded"
    sample: int | None = None

    def rank(
        self,
        snapshot: Snapshot,
        request: Request,
        candidates: Sequence[ServiceView],
        now: Seconds,
        rng: random.Random,
    ) -> Sequence[Ranked]:
        pending = snapshot.pending
        loads: list[tuple[float, float, ServiceView]] = []
        for view in candidates:
            report = view.report
            load = max(report.queued + report.in_flight, pending.get(report.service, 0)) / max(report.workers, 1)
            loads.append((load, rng.random(), view))
        loads.sort(key=lambda entry: entry[:2])
        return [Ranked(view.report.service, load) for load, _, view in loads]


class Bound:
    """Not a policy: the engine asks the world for the node that answers this very frame first, in truth.

    It knows every queue, and the service time and delays that the frame will meet, without waiting for telemetry. A
    frame that nobody can answer in time is not sent, so that it delays no other. It is greedy, frame by frame: the
    joint optimum over all frames may be better still.
    """

    name = ""
    sample: int | None = None
    deaths = False
    """Whether it knows what will happen, also: which nodes will die or leave before they answer."""


class Clairvoyant(Bound):
    """Knows the future, too."""

    name = "clairvoyant"
    deaths = True


class Omniscient(Bound):
    """Knows all that is true now, and nothing of deaths to come. What it sends to a node that dies is lost."""

    name = "omniscient"


BUILT_IN: Mapping[str, type[Random | RoundRobin | LeastLoaded | Bound]] = {
    "random": Random,
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "omniscient": Omniscient,
    "clairvoyant": Clairvoyant,
}
PER_FRAME = frozenset(("random", "round-robin", "least-loaded", "nearest", "weighted"))
"""Policies that take no notice of an incumbent: their streams are where they are answered, frame by frame."""
ORDER = ("random", "round-robin", "least-loaded", "nearest", "weighted", "predictive", "omniscient", "clairvoyant")
"""As they stand in tables."""
PLAYABLE = tuple(name for name in ORDER if name != Clairvoyant.name)
"""Those that can be played on real nodes, where nobody knows the future."""
