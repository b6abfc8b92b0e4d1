"""From ping samples and timed transfers to a link report. Pure: the caller pings, and passes results and moments in."""

from __future__ import annotations

from collections import deque

from nearfar.types.ids import NodeId
from nearfar.types.telemetry import LinkReport
from nearfar.types.units import Bytes, BytesPerSecond, Milliseconds, Ratio, Seconds

WINDOW = 50
"""Loss is the share of the last so many pings that had no answer."""
BULK = Bytes(64 * 1024)
"""Smaller transfers say more of latency than of bandwidth and are not counted."""
STRAYS, LEAST_STRAY = 4.0, Milliseconds(5.0)
"""A ping strays when it is further from the mean than so many variations (RFC 6298's time-out) and so many ms."""
_TRANSFERS = 8


class LinkEstimator:
    """One peer's link: smoothed round trip and its variation as in RFC 6298 section 2, loss, bandwidth.

    >>> link = LinkEstimator(NodeId("pi"))
    >>> link.add(Milliseconds(8.0), Seconds(1.0)); link.add(None, Seconds(2.0)); link.report()
    LinkReport(peer='pi', rtt=8.0, jitter=4.0, loss=0.5, bandwidth=None)
    """

    __slots__ = ("_bulk", "_jitter", "_lost", "_rtt", "_stray", "last", "peer")

    def __init__(self, peer: NodeId) -> None:
        self.peer = peer
        self.last: Seconds | None = None
        """Moment of the last answered ping."""
        self._rtt: float | None = None
        self._jitter = 0.0
        self._stray: float | None = None
        self._lost: deque[bool] = deque(maxlen=WINDOW)
        self._bulk: deque[tuple[int, float]] = deque(maxlen=_TRANSFERS)

    def add(self, rtt: Milliseconds | None, at: Seconds) -> None:
        """One ping: its round trip, or None when no answer came. A negative or NaN round trip counts as lost."""
        answered = rtt is not None and 0 <= rtt < float("inf")
        self._lost.append(not answered)
        if rtt is None or not answered:
            return
        self.last = at
        if self._rtt is None:
            self._rtt, self._jitter = float(rtt), rtt / 2
            return
        stray, self._stray = self._stray, None
        away = rtt - self._rtt
        strays = abs(away) > max(STRAYS * self._jitter, LEAST_STRAY)
        if strays and stray is not None and (stray > self._rtt) == (away > 0):
            # Two in a row on the same side: the way is another one now. An average would need ten pings to see that.
            self._rtt = (stray + rtt) / 2
            return
        if stray is not None:
            self._average(stray)
        if strays:
            self._stray = float(rtt)  # held back: alone it is an outlier; the next ping says
        else:
            self._average(rtt)

    def _average(self, rtt: float) -> None:
        """RFC 6298: the variation first, with the old mean; alpha 1/8, beta 1/4."""
        assert self._rtt is not None
        self._jitter += (abs(self._rtt - rtt) - self._jitter) / 4
        self._rtt += (rtt - self._rtt) / 8

    def add_bulk(self, size: Bytes, took: Milliseconds) -> None:
        """A timed transfer and its acknowledgement; one round trip is taken off the time. Small ones are ignored."""
        if size < BULK or not took > 0:
            return
        # Never below a tenth: a transfer faster than the smoothed round trip must not become infinite bandwidth.
        self._bulk.append((size, max(took - (self._rtt or 0.0), took / 10)))

    def report(self) -> LinkReport | None:
        """What is known now; None before the first answered ping, as there is no round trip to state."""
        if self._rtt is None:
            return None
        bandwidth = None
        if self._bulk:
            # Total bytes over total time: a short burst weighs no more than its bytes.
            bandwidth = BytesPerSecond(1e3 * sum(b for b, _ in self._bulk) / sum(t for _, t in self._bulk))
        loss = sum(self._lost) / len(self._lost)
        return LinkReport(self.peer, Milliseconds(self._rtt), Milliseconds(self._jitter), Ratio(loss), bandwidth)
