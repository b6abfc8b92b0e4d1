"""What one gateway knows: its own snapshot, made by the real reducer from events that arrive late, as on the mesh."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

from nearfar.fleet.events import Event, LinkMeasured
from nearfar.fleet.links import LinkEstimator
from nearfar.fleet.reduce import fold, prune
from nearfar.fleet.snapshot import Snapshot
from nearfar.placement.hedging import Budget
from nearfar.simulate.links import Link
from nearfar.simulate.world import Node
from nearfar.types.ids import NodeId
from nearfar.types.units import Bytes, Milliseconds, Seconds

PRUNE_EVERY = 5.0
BULK_SIZE = Bytes(128 * 1024)
BULK_EVERY = 30.0
PING_TIMEOUT = 2.0
ANSWER = 1024
"""Bytes of an answer."""


class Gateway:
    """Decides for its streams from its own snapshot. `paths[i]` are the links that lead to node i."""

    def __init__(self, name: str, group: str, nodes: Sequence[Node], access: Link | None, seed: int) -> None:
        self.name = name
        self.group = group
        self.node_id = NodeId(name)
        self.access = access
        self.site = 0
        self.paths: list[tuple[Link, ...]] = [()] * len(nodes)
        self.overrides: dict[int, Link] = {}
        self.rate = 1.0
        self.changed_at = -1e9
        self.rng = random.Random(f"{seed} {name}")  # noqa: S311 - a simulation
        self.hedges = Budget()
        self.luck = random.Random(f"{seed} pings {name}")  # noqa: S311
        self._snapshot = Snapshot(name)
        self._incoming: list[tuple[float, int, Event]] = []
        self._own: list[Event] = []
        self._count = 0
        self._next_prune = 0.0
        self._links: dict[int, LinkEstimator] = {}
        self._next_bulk: dict[int, float] = {}

    def route(self, nodes: Sequence[Node], backhaul: Link | None) -> None:
        """Where its messages pass now; after a change of site or of a link."""
        for node in nodes:
            way = [self.overrides.get(node.index, node.link)]
            if self.access is not None:
                way.append(self.access)
            if backhaul is not None and node.site != self.site:
                way.append(backhaul)
            self.paths[node.index] = tuple(way)

    # -- what is true of its links ------------------------------------------------------------------------------------

    def rtt_ms(self, node: Node, now: float, u: float) -> float:
        total = 0.0
        for link in self.paths[node.index]:
            total += link.rtt(now, u)
        return total

    def up_s(self, node: Node, now: float, u: float, size: int) -> float:
        """Seconds that `size` bytes need to the node, or from it: both ways are alike."""
        path = self.paths[node.index]
        total = 0.0
        slowest = 1e30
        for link in path:
            total += link.rtt(now, u)
            rate = link.bandwidth(now)
            if rate < slowest:
                slowest = rate
        return total / 2000 + size / slowest

    def delay_s(self, node: Node, now: float) -> float:
        """Seconds that a small message usually needs."""
        return self.rtt_ms(node, now, 0.5) / 2000

    # -- what it learns ------------------------------------------------------------------------------------------------

    def hear(self, event: Event, at: float) -> None:
        """Something of the mesh that is known here from `at` on, which is also the event's own moment."""
        self._count += 1
        heapq.heappush(self._incoming, (at, self._count, event))

    def add(self, event: Event) -> None:
        """An event of its own requests: known at once."""
        self._own.append(event)

    def snapshot(self, now: float) -> Snapshot:
        incoming = self._incoming
        events: list[Event] = []
        while incoming and incoming[0][0] <= now:
            events.append(heapq.heappop(incoming)[2])
        if self._own:
            if events:
                events += self._own
                events.sort(key=_moment)
            else:
                events = self._own
            self._own = []
        snapshot = fold(self._snapshot, events)
        if now >= self._next_prune:
            self._next_prune = now + PRUNE_EVERY
            snapshot = prune(snapshot, Seconds(now))
        self._snapshot = snapshot
        return snapshot

    def ping(self, node: Node, now: float) -> None:
        """One ping, and bulk now and then, as the prober does; what comes of it is known when the answer is there."""
        link = self._links.get(node.index)
        if link is None:
            link = self._links[node.index] = LinkEstimator(node.name)
        rtt = self.rtt_ms(node, now, self.luck.random())
        at = now + (rtt / 1000 if node.up else PING_TIMEOUT)
        link.add(Milliseconds(rtt) if node.up else None, Seconds(at))
        if node.up and now >= self._next_bulk.get(node.index, 0.0):
            self._next_bulk[node.index] = now + BULK_EVERY
            took = 1000 * self.up_s(node, now, 0.5, BULK_SIZE) + self.rtt_ms(node, now, 0.5) / 2
            link.add_bulk(BULK_SIZE, Milliseconds(took))
        report = link.report()
        if report is not None:
            self.hear(LinkMeasured(self.node_id, report, Seconds(at)), at)

    def forget(self, node: Node) -> None:
        """The prober starts anew with a node that was away."""
        self._links.pop(node.index, None)
        self._next_bulk.pop(node.index, None)


def _moment(event: Event) -> float:
    return event.at
