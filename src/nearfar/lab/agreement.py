"""Whether the testbed and the live lab say the same: rates that agree, and policies in the same order. Pure.

Counts of frames are noisy: of n frames of which a share p is late, another run of the same finds p +- z sqrt(p(1-p)/n)
(the normal approximation of the binomial law; the rule of three bounds p when nothing was late). Frames in one queue
are late together, so this is the least that chance does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from nearfar.simulate.measures import Summary

Z = 1.96
"""95 of 100 runs lie within."""
RELATIVE = 0.25
"""The share by which rates may differ."""
A_STALL = 10
"""Frames by which they may always differ: real machines stall, and one of 0.4 s at 24 frames/s makes so many late."""


def noise(one: Summary, other: Summary) -> float:
    """By how much the violation rates of two runs of the same thing may differ by chance alone.

    >>> class S: frames = 400
    >>> a, b = S(), S(); a.violation_rate = b.violation_rate = 0.2
    >>> round(noise(a, b), 4)
    0.0554
    """
    n = min(one.frames, other.frames)
    if not n:
        return 1.0
    p = min(max((one.violation_rate + other.violation_rate) / 2, 3 / n), 0.5)
    return Z * math.sqrt(2 * p * (1 - p) / n)


class Verdict(msgspec.Struct, frozen=True):
    """One policy in both; rates of frames without an answer in time."""

    policy: str
    simulated: float
    live: float
    allowed: float
    """How far they may be apart: a quarter of the simulated one, at least what chance or a stall may do."""

    @property
    def agrees(self) -> bool:
        return abs(self.live - self.simulated) <= self.allowed


def verdicts(simulated: Sequence[Summary], live: Sequence[Summary]) -> list[Verdict]:
    """One a policy that was played in both, in the order of `live`."""
    known = {summary.policy: summary for summary in simulated}
    found = []
    for played in live:
        if (other := known.get(played.policy)) is not None:
            stall = A_STALL / max(min(other.frames, played.frames), 1)
            allowed = max(RELATIVE * other.violation_rate, noise(other, played), stall)
            found.append(Verdict(played.policy, other.violation_rate, played.violation_rate, allowed))
    return found


def disorder(simulated: Sequence[Summary], live: Sequence[Summary]) -> list[tuple[str, str]]:
    """Pairs (better, worse) of the testbed that the lab saw the other way round, both by more than noise."""
    played = {summary.policy: summary for summary in live}
    both = [summary for summary in simulated if summary.policy in played]
    found = []
    for better in both:
        for worse in both:
            ahead = worse.violation_rate - better.violation_rate > noise(better, worse)
            one, other = played[better.policy], played[worse.policy]
            if ahead and one.violation_rate - other.violation_rate > noise(one, other):
                found.append((better.policy, worse.policy))
    return found
