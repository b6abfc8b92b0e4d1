"""How long a message takes: constant with jitter, a table of quantiles, the stable law, or a measured trace.

A link answers for a moment and a uniform number, so that two policies can be given the same luck. Messages run over
TCP: a lost packet is not lost to us, it costs one retransmission time-out. Streams do not contend for bandwidth here.
"""

from __future__ import annotations

import functools
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from statistics import NormalDist

from nearfar.placement.expectation import RTO_LEAST
from nearfar.simulate.scenario import LinkSpec
from nearfar.simulate.traces import read_trace

SHAPE, SCALE, LOCATION, CUT_MS = 1.6878, 0.0980, 1.0762, 920.0
"""A paper reports 5G round trips as stable with this shape and scale, mean 13.405 ms, sd 16.065 ms, and no more.
ASSUMED here: log10 of the milliseconds is stable with beta 0 and this location, cut at 920 ms. This fits the mean."""
_GRID = 2001
_DRAWS = 200_001


class Link:
    """One way to a node. `rtt(now, u)` in ms for the uniform number u; `bandwidth(now)` in bytes per second."""

    __slots__ = ("_grid", "_rates", "_rtts", "_steady", "loss", "name")

    def __init__(
        self,
        name: str,
        grid: Sequence[float],
        bandwidth: float,
        loss: float = 0.0,
        rtts: Sequence[float] = (),
        rates: Sequence[float] = (),
    ) -> None:
        self.name = name
        self._grid = grid
        self._steady = bandwidth
        self._rtts = rtts
        self._rates = rates
        self.loss = loss

    def rtt(self, now: float, u: float) -> float:
        """Round trip in milliseconds: the u-quantile, 0 <= u < 1, of what the link does at that moment."""
        grid = self._grid
        value = grid[int(u * len(grid))]
        if self._rtts:
            value += self._rtts[int(now) % len(self._rtts)]
        if u < self.loss:  # as likely as the loss, and the same for whoever has this luck
            value += RTO_LEAST
        return value

    def bandwidth(self, now: float) -> float:
        return self._rates[int(now) % len(self._rates)] if self._rates else self._steady


def make_link(name: str, spec: LinkSpec) -> Link:
    """A link of a scenario. Raises `InputError` when its trace cannot be read."""
    rate = spec.bandwidth_mbit * 125_000
    match spec.kind:
        case "constant":
            return Link(name, _jittered(spec.rtt_ms, spec.jitter_ms), rate, spec.loss)
        case "table":
            return Link(name, _interpolated(spec.quantiles), rate, spec.loss)
        case "stable":
            return Link(name, stable_quantiles(), rate, spec.loss)
        case "trace":
            trace = read_trace(spec.path)
            jitter = _jittered(0.0 if trace.rtts else spec.rtt_ms, spec.jitter_ms)
            return Link(name, jitter, rate, spec.loss, trace.rtts, trace.rates)


def _jittered(rtt: float, jitter: float) -> tuple[float, ...]:
    """Quantiles of rtt plus half-normal jitter whose standard deviation before folding is `jitter`."""
    if not jitter:
        return (rtt,)
    normal = NormalDist()
    return tuple(rtt + jitter * normal.inv_cdf(0.5 + (i + 0.5) / _GRID / 2) for i in range(_GRID))


def _interpolated(points: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    shares = [share for share, _ in points]
    values = [value for _, value in points]

    def at(u: float) -> float:
        right = bisect_right(shares, u)
        if right == 0:
            return values[0]
        if right == len(shares):
            return values[-1]
        span = shares[right] - shares[right - 1]
        part = (u - shares[right - 1]) / span if span else 0.0
        return values[right - 1] + part * (values[right] - values[right - 1])

    return tuple(at((i + 0.5) / _GRID) for i in range(_GRID))


def stable(shape: float, rng: random.Random) -> float:
    """A draw from the symmetric stable law of scale 1: Chambers, Mallows and Stuck, JASA 71(354), 1976.

    shape: 0 < shape <= 2, not 1; at 2 it is normal with variance 2.
    """
    angle = math.pi * (rng.random() - 0.5)
    wait = -math.log(1.0 - rng.random())
    return float(
        math.sin(shape * angle)
        / math.cos(angle) ** (1 / shape)
        * (math.cos((1 - shape) * angle) / wait) ** ((1 - shape) / shape)
    )


def stable_ms(rng: random.Random) -> float:
    """One round trip of the assumed 5G law, in milliseconds, at most `CUT_MS` (drawn again beyond)."""
    while True:
        exponent = LOCATION + SCALE * stable(SHAPE, rng)
        if exponent <= math.log10(CUT_MS):
            return float(10.0**exponent)


@functools.cache
def stable_quantiles() -> tuple[float, ...]:
    """The law as a grid of quantiles, from seeded draws: the same in every run."""
    rng = random.Random(1976)  # noqa: S311 - a simulation
    draws = sorted(stable_ms(rng) for _ in range(_DRAWS))
    return tuple(draws[int((i + 0.5) / _GRID * _DRAWS)] for i in range(_GRID))


LinkMaker = Callable[[str, LinkSpec], Link]
