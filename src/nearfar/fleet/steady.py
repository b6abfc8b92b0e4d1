"""A condition that one bad second does not move: it begins after several bad reports in a row and ends after more good
ones, below a lower threshold. So of any n reports at most 2 n / 9 + 2 change it, whatever they say.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from nearfar.types.units import Seconds

ENTER = 3
"""Bad reports in a row that begin it: at two reports a second, one bad second has two of them."""
LEAVE = 6
"""Good reports in a row that end it: 3 s. Longer than to begin, as what was bad is likely to be bad again."""
APART = Seconds(0.4)
"""Reports that come closer together than this count as one: a busy service reports up to twenty times a second."""


class Limit(NamedTuple):
    """`enter` and above is bad, `leave` and below is good, and between the two nothing changes."""

    enter: float
    leave: float


class Steady(msgspec.Struct, frozen=True, gc=False):
    """Whether it holds, and how many reports in a row have spoken against that."""

    on: bool = False
    run: int = 0
    at: Seconds = Seconds(-math.inf)
    """When the last report came that counted."""


OFF = Steady()


def follow(was: Steady, value: float, limit: Limit, at: Seconds, *, first: bool = False) -> Steady:
    """The condition after one more report. The first one ever is believed as it is: there was nothing before it.

    >>> state = OFF
    >>> for second, load in enumerate([0.9, 0.9, 0.1, 0.9, 0.9, 0.9]):
    ...     state = follow(state, load, Limit(0.5, 0.3), Seconds(second))
    >>> state.on
    True
    """
    against = value <= limit.leave if was.on else value >= limit.enter
    if first:
        return Steady(value >= limit.enter, 0, at)
    if not against:
        return was if not was.run else Steady(was.on, 0, at)
    if was.run and at - was.at < APART:
        return was
    run = was.run + 1
    if run >= (LEAVE if was.on else ENTER):
        return Steady(not was.on, 0, at)
    return Steady(was.on, run, at)
