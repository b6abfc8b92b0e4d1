"""The switch's mind: which frame leaves where and when. Pure but for the luck it is given; `switch.py` moves the bytes.

Each pair of hosts has a way over links of the scenario. A frame takes half a round trip of each, and its bytes the time
of the slowest; nothing overtakes, as on one connection. What is lost is lost: the hosts' own TCP sends it again.
Messages of one pair wait for each other, those of different pairs do not, as in the testbed.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Mapping, Sequence

from nearfar.simulate.links import Link

Way = tuple[Link, ...]

_OURS = b"\x02\x6e\x66\x00\x00"
"""A locally administered address (IEEE 802); the last byte counts the hosts from 1."""


def hardware_address(port: int) -> str:
    """
    >>> hardware_address(0)
    '02:6e:66:00:00:01'
    """
    return ":".join(f"{byte:02x}" for byte in (*_OURS, port + 1))


class Fabric:
    """Ports are numbered from 0. Moments are those of one clock, in seconds."""

    def __init__(self, ports: int, links: Mapping[str, Link], luck: random.Random) -> None:
        self._ports = ports
        self._links = links
        self._luck = luck
        self._ways: dict[tuple[int, int], Way] = {}
        self._free: dict[tuple[int, int], float] = {}
        """When the way has put its last frame's bytes on the line."""
        self._last: dict[tuple[int, int], float] = {}
        """When the last frame of a way arrives."""
        self._cut: set[int] = set()
        self._flying: list[tuple[float, int, int, int, bytes]] = []
        self._count = 0
        self.begun = 0.0
        """The moment at which the scenario began: what a trace does counts from there."""
        self.passed = 0
        self.lost = 0

    def join(self, one: int, other: int, links: Sequence[str]) -> None:
        """Lead both ways between two ports over these links from now on; without any they are as near as can be."""
        way = tuple(self._links[name] for name in links)
        self._ways[one, other] = self._ways[other, one] = way

    def cut(self, port: int, cut: bool = True) -> None:
        """A silent black hole, also for what is on its way; no cable is seen to be out."""
        (self._cut.add if cut else self._cut.discard)(port)

    def take(self, source: int, frame: bytes, now: float) -> None:
        """An Ethernet frame came from a port."""
        if source in self._cut or len(frame) < 14:
            return
        target = frame[5] - 1 if frame[:5] == _OURS else -1
        if 0 <= target < self._ports:
            self._send(source, target, frame, now)
        elif frame[0] & 1:  # to all, or to a group
            for port in range(self._ports):
                self._send(source, port, frame, now)

    def _send(self, source: int, target: int, frame: bytes, now: float) -> None:
        if source == target or target in self._cut:
            return
        pair = (source, target)
        arrives = now
        way = self._ways.get(pair, ())
        if way:
            u = self._luck.random()
            since = now - self.begun
            rtt, rate = 0.0, float("inf")
            for link in way:
                if u < link.loss:
                    self.lost += 1
                    return
                rtt += link.rtt(since, u)
                rate = min(rate, link.bandwidth(since))
            self._free[pair] = max(now, self._free.get(pair, 0.0)) + len(frame) / rate
            arrives = self._free[pair] + rtt / 2000
        arrives = self._last[pair] = max(arrives, self._last.get(pair, 0.0))
        self._count += 1
        heapq.heappush(self._flying, (arrives, self._count, source, target, frame))

    def due(self, now: float) -> Iterator[tuple[int, bytes, float]]:
        """(port, frame, seconds that it is late) of all that has arrived by now, in order."""
        while self._flying and self._flying[0][0] <= now:
            arrives, _, source, target, frame = heapq.heappop(self._flying)
            if not self._cut & {source, target}:
                self.passed += 1
                yield target, frame, now - arrives

    def next_at(self) -> float | None:
        """When the next frame arrives."""
        return self._flying[0][0] if self._flying else None
