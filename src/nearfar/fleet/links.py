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
_TRANSFERS = 8


class LinkEstimator:
    """One peer's link: smoothed round trip and its variation as in RFC 6298 section 2, loss, bandwidth.

    >>> link = LinkEstimator(NodeId("pi"))
    >>> link.add(Milliseconds(8.0), Seconds(1.0)); link.add(None, Seconds(2.0)); link.report()
    LinkReport(peer='pi', rtt=8.0, jitter=4.0, loss=0.5, bandwidth=None)
    """

    __slots__ = ("_bulk", "_jitter", "_lost", "_rtt", "last", "peer")

    def __init__(self, peer: NodeId) -> None:
        self.peer = peer
        self.last: Seconds | None = None
        """Moment of the last answered ping."""
        self._rtt: float | None = None
        self._jitter = 0.0
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
        else:  # RFC 6298: the variation first, with the old mean; alpha 1/8, beta 1/4
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
