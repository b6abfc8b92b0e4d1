"""Services at which this client's streams had a promise broken: out for a while, then probed back in.

As Algorithm 1 of the heterogeneous-edge literature asks: a node that cannot guarantee the quality of service becomes
unreachable for new requests for a while. Pure, as all of this room; `placement/filters.py` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from nearfar.types.ids import ServiceId
from nearfar.types.units import Milliseconds, Seconds

FIRST_OUT = Seconds(5.0)
"""How long a service is out after it broke a promise; doubled while it repeats."""
LONGEST_OUT = Seconds(60.0)
FORGIVEN_AFTER = Seconds(120.0)
"""A promise broken longer ago than this does not count as repeated."""
UNRELIABLE_MOST = 1024


class Unreliable(msgspec.Struct, frozen=True, gc=False):
    """What a service did not keep. Only requests that ask for as little time are kept from it."""

    times: int
    """How often within `FORGIVEN_AFTER` of the time before."""
    at: Seconds
    deadline: Milliseconds
    reason: str
    probed: bool = False
    """A request was answered there since: it may be asked again."""

    @property
    def until(self) -> Seconds:
        return Seconds(self.at + kept_out(self.times))


def kept_out(times: int) -> Seconds:
    """How long a service stays out that broke a promise so many times.

    >>> [kept_out(n) for n in (1, 2, 3, 4, 5, 1000)]
    [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    """
    return Seconds(min(LONGEST_OUT, FIRST_OUT * 2.0 ** min(max(times, 1) - 1, 10)))


def broken(old: Unreliable | None, deadline: Milliseconds, reason: str, at: Seconds) -> Unreliable:
    """After one more promise was broken there."""
    if old is None or at - old.at > FORGIVEN_AFTER:
        return Unreliable(1, at, deadline, reason)
    return Unreliable(old.times + 1, at, max(deadline, old.deadline), reason)


def answered(old: Unreliable, at: Seconds) -> Unreliable:
    """After an answer in time: one that comes when its time is over is the probe that brings it back."""
    if old.probed or at < old.until:
        return old
    return msgspec.structs.replace(old, probed=True)


def failed(old: Unreliable, at: Seconds) -> Unreliable:
    """After a failure that is the service's: a probe that fails keeps it out for twice as long."""
    if old.probed or at < old.until:
        return old
    return Unreliable(old.times + 1, at, old.deadline, old.reason)


def fewer(known: Mapping[ServiceId, Unreliable]) -> dict[ServiceId, Unreliable]:
    """The newer half, when there are too many to be kept."""
    newest = sorted(known.items(), key=lambda entry: entry[1].at, reverse=True)
    return dict(newest[: UNRELIABLE_MOST // 2])
