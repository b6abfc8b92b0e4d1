"""What is counted while a scenario is played, and the summary that comes of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from nearfar.simulate.frames import Frame, Outcome
from nearfar.simulate.world import Node
from nearfar.types.histogram import Histogram

BUCKETS = 120
"""Points of a time series."""


class Summary(msgspec.Struct, frozen=True):
    """One scenario under one policy. Latencies in milliseconds, of frames that were answered, also late."""

    scenario: str
    policy: str
    seed: int
    seconds: float
    """Virtual seconds that were played; fewer than asked for when interrupted."""
    asked_s: float
    """Virtual seconds of the scenario; the points of the time series divide them evenly."""
    complete: bool
    frames: int
    in_time: int
    late: int
    lost: int
    violation_rate: float
    """(late + lost) / frames."""
    lost_by: dict[str, int]
    """Why frames were lost, by the code of the last error."""
    attempts: int
    """Requests sent, among them those sent again elsewhere."""
    moves: int
    """Times that a stream's answers began to come from another service."""
    flaps: int
    """Moves back to the service left within the scenario's `flap_s`, without a true change at an end or on the way."""
    unprovoked_moves: int
    """Moves without a true change at an end or on the way since the stream's last move."""
    true_changes: int
    """Nodes that died, came, left, slowed or sped up, and links and rates that changed."""
    latency_ms: dict[str, float | None]
    balance: float | None
    """Jain's index over the busy shares of all nodes: 1 is even, 1/n is one node doing everything."""
    busiest: float
    """Busy share of the busiest node."""
    energy_j: float | None
    """Joules of busy boards by published power; None where no busy node's is published."""
    energy_covered: float
    """Share of all busy time for which power is published."""
    events: int
    wall_s: float
    hedges: int = 0
    """Second copies sent because the first one took longer than the 95th percentile of what was expected."""
    asked_again: int = 0
    """Copies sent because the service first asked had fallen silent."""
    suspected: int = 0
    """Requests over which a service was found silent."""
    suspected_wrongly: int = 0
    """Those of them whose node was there after all: a lost packet, a slow link."""
    asides: int = 0
    """Frames sent elsewhere by the way because of a queue at the stream's service."""
    rescued: int = 0
    """Frames sent to the target of a move under way because the owner would have been late."""
    planned: int = 0
    """Moves after the target had answered copies; with `unplanned` all moves of policies that keep an incumbent."""
    unplanned: int = 0
    """Moves at once: the service was gone, refused or failed."""
    aborted: int = 0
    """Moves that were begun and given up."""
    shadows: int = 0
    """Copies of frames sent to the target of a move; also in `attempts`."""
    levels: dict[str, int] = {}
    """How often streams' monitors entered each level."""
    options: dict[str, float] = {}
    series: dict[str, list[float]] = {}


class Measures:
    """Counters of one run. Every frame is counted once, at its end."""

    def __init__(self, seconds: float) -> None:
        self.frames = 0
        self.ended = 0
        self.outcomes: Counter[Outcome] = Counter()
        self.lost_by: Counter[str] = Counter()
        self.attempts = 0
        self.moves = 0
        self.flaps = 0
        self.unprovoked = 0
        self.hedges = 0
        self.asked_again = 0
        self.suspected = 0
        self.suspected_wrongly = 0
        self.asides = 0
        self.rescued = 0
        self.planned = 0
        self.unplanned = 0
        self.aborted = 0
        self.shadows = 0
        self.levels: Counter[str] = Counter()
        self.changes = 0
        self.latency = Histogram()
        self._seconds = seconds
        self._sent = [0] * BUCKETS
        self._bad = [0] * BUCKETS
        self._moved = [0] * BUCKETS

    def _bucket(self, at: float) -> int:
        return min(int(at / self._seconds * BUCKETS), BUCKETS - 1)

    def end(self, frame: Frame, outcome: Outcome, now: float, code: str = "") -> None:
        """Raises `AssertionError` when the frame ended before: that would be a fault of the engine."""
        assert not frame.ended, "a frame ends once"
        frame.ended = True
        self.ended += 1
        self.outcomes[outcome] += 1
        bucket = self._bucket(frame.born)
        self._sent[bucket] += 1
        if outcome is not Outcome.IN_TIME:
            self._bad[bucket] += 1
        if outcome is Outcome.LOST:
            self.lost_by[code or "unknown"] += 1
        else:
            self.latency.add((now - frame.born) * 1000)

    def moved(self, now: float) -> None:
        self.moves += 1
        self._moved[self._bucket(now)] += 1

    def summary(
        self,
        scenario: str,
        policy: str,
        seed: int,
        seconds: float,
        complete: bool,
        nodes: Sequence[Node],
        events: int,
        wall_s: float,
    ) -> Summary:
        late, lost = self.outcomes[Outcome.LATE], self.outcomes[Outcome.LOST]
        shares = [node.busy_time / seconds / node.workers for node in nodes] if seconds else [0.0]
        busy = sum(node.busy_time for node in nodes)
        known = [(node.busy_time, node.device.active_w) for node in nodes if node.device.active_w is not None]
        covered = sum(time for time, _ in known)
        return Summary(
            scenario=scenario,
            policy=policy,
            seed=seed,
            seconds=seconds,
            asked_s=self._seconds,
            complete=complete,
            frames=self.frames,
            in_time=self.outcomes[Outcome.IN_TIME],
            late=late,
            lost=lost,
            violation_rate=(late + lost) / self.ended if self.ended else 0.0,
            lost_by=dict(sorted(self.lost_by.items())),
            attempts=self.attempts,
            moves=self.moves,
            flaps=self.flaps,
            unprovoked_moves=self.unprovoked,
            true_changes=self.changes,
            latency_ms={name: _finite(self.latency.quantile(q)) for name, q in _QUANTILES}
            | {"mean": _finite(self.latency.mean())},
            balance=jain(shares),
            busiest=max(shares),
            energy_j=sum(time * watts for time, watts in known if watts) if covered else None,
            energy_covered=covered / busy if busy else 0.0,
            events=events,
            wall_s=wall_s,
            hedges=self.hedges,
            asked_again=self.asked_again,
            suspected=self.suspected,
            suspected_wrongly=self.suspected_wrongly,
            asides=self.asides,
            rescued=self.rescued,
            planned=self.planned,
            unplanned=self.unplanned,
            aborted=self.aborted,
            shadows=self.shadows,
            levels=dict(sorted(self.levels.items())),
            series={
                "sent": [float(n) for n in self._sent],
                "violations": [float(n) for n in self._bad],
                "moves": [float(n) for n in self._moved],
                "latency_bounds_ms": [float(b) for b in _BOUNDS],
                "latency_at_most": [float(n) for n in self.latency.at_most(_BOUNDS)],
            },
        )


_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99))
_BOUNDS = [round(10 ** (i / 20), 3) for i in range(81)]


def _finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def jain(shares: Sequence[float]) -> float | None:
    """Jain's fairness index (Jain, Chiu, Hawe 1984); None when nobody worked.

    >>> jain([1.0, 1.0]), jain([1.0, 0.0]), jain([0.0])
    (1.0, 0.5, None)
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else None


def as_json(summary: Summary, series: bool = False) -> dict[str, Any]:
    """Plain values; the time series only when asked for."""
    plain: dict[str, Any] = msgspec.to_builtins(summary)
    if not series:
        plain.pop("series")
    return plain
