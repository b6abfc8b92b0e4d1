"""What happens when in a live run: births of frames, outages, speeds and ways. Pure; the same luck as the testbed.

Moments are seconds of the scenario. Streams, ways and outages are those that the testbed's engine makes of the scenario
and the seed, so both play the same frames at the same moments and lose the same nodes.
"""

from __future__ import annotations

import fnmatch
import random
from collections.abc import Iterator
from typing import NamedTuple

from nearfar.simulate.baselines import Random
from nearfar.simulate.entrance import START
from nearfar.simulate.frames import Stream
from nearfar.simulate.run import Engine
from nearfar.simulate.scenario import Scenario
from nearfar.simulate.view import Gateway
from nearfar.simulate.world import FOREVER, Node, spells


class Birth(NamedTuple):
    """A frame that is due at a moment."""

    at: float
    stream: int
    number: int


class Down(NamedTuple):
    """A node goes: `how` is crash, cut or leave."""

    at: float
    node: str
    how: str


class Up(NamedTuple):
    """A node is back from the outage that began with `how`, and serves again at this moment."""

    at: float
    node: str
    how: str


class Pace(NamedTuple):
    """From now on inference on a node takes `factor` times as long as by its data sheet."""

    at: float
    node: str
    factor: float


class Reroute(NamedTuple):
    """From now on messages between a gateway and a node pass these links."""

    at: float
    gateway: str
    node: str
    links: tuple[str, ...]


class Rate(NamedTuple):
    """The cameras of a gateway send at another rate; it stands in the births already."""

    at: float
    gateway: str


Happening = Down | Up | Pace | Reroute | Rate


class Plan:
    """A scenario laid out in time."""

    def __init__(self, scenario: Scenario, seed: int | None = None) -> None:
        self.scenario = scenario
        layout = Engine(scenario, Random(), seed)
        self.seed = layout.seed
        self.nodes: list[Node] = layout.world.nodes
        self.gateways: list[Gateway] = layout.gateways
        self.streams: list[Stream] = layout.streams
        self.happenings: list[Happening] = sorted(self._happenings(), key=lambda happening: happening.at)

    def away_at_first(self) -> list[str]:
        """Nodes that join only later."""
        return [node.name for node in self.nodes if node.outages and node.outages[0].start <= 0]

    def ways(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """The links between each gateway and each node at the beginning."""
        return {
            (gateway.name, str(node.name)): tuple(link.name for link in gateway.paths[node.index])
            for gateway in self.gateways
            for node in self.nodes
        }

    def births(self, gateway: str) -> list[Birth]:
        """The frames of a gateway's streams in the order of their moments, as the engine lets them be born."""
        rates = self._rates(gateway)
        found: list[Birth] = []
        for stream in self.streams:
            if stream.gateway.name != gateway:
                continue
            luck = random.Random(f"{self.seed} stream {stream.id}")  # noqa: S311 - the testbed's own luck
            at, number = START + luck.random() * stream.period, 0
            while at < self.scenario.seconds:
                found.append(Birth(at, stream.id, number))
                rate = next(factor for since, factor in reversed(rates) if since <= at)
                at, number = at + stream.period / rate, number + 1
        return sorted(found)

    def most_frames(self) -> float:
        """Frames per second of all gateways together, where most are born."""
        moments = sorted(birth.at for gateway in self.gateways for birth in self.births(gateway.name))
        most, first = 0, 0
        for last, moment in enumerate(moments):
            while moments[first] < moment - 1.0:
                first += 1
            most = max(most, last - first + 1)
        return float(most)

    # -- what happens --------------------------------------------------------------------------------------------------

    def _happenings(self) -> Iterator[Happening]:
        for node in self.nodes:
            yield from _outages(node)
            yield from self._paces(node)
        for gateway in self.gateways:
            yield from (Rate(at, gateway.name) for at, _ in self._rates(gateway.name)[1:])
        yield from self._reroutes()

    def _paces(self, node: Node) -> Iterator[Pace]:
        scenario = self.scenario
        group = next(g for g in scenario.nodes if node.name.rpartition("-")[0] == g.name)
        turns: list[tuple[float, float]] = []
        for change in scenario.changes:
            if change.kind == "slow" and fnmatch.fnmatchcase(node.name, change.nodes):
                matching = [other for other in self.nodes if fnmatch.fnmatchcase(other.name, change.nodes)]
                start = change.at_s + matching.index(node) * change.stagger_s
                turns.append((start, change.factor))
                if change.for_s:
                    turns.append((start + change.for_s, 1 / change.factor))
        if group.interference is not None:
            luck = random.Random(f"{self.seed} interference {node.name}")  # noqa: S311 - the testbed's own luck
            other = group.interference
            for start, end in spells(luck, other.off_s, other.on_s, scenario.seconds):
                turns += [(start, other.factor), (end, 1 / other.factor)]
        factor = group.slowdown
        yield Pace(0.0, node.name, factor)
        for at, turn in sorted(turns):
            factor *= turn
            yield Pace(at, node.name, factor)

    def _rates(self, gateway: str) -> list[tuple[float, float]]:
        """(since when, how many times the usual rate) of a gateway's streams; the first one holds from the start."""
        turns: list[tuple[float, float]] = []
        for change in self.scenario.changes:
            if change.kind == "rate":
                for place, other in enumerate(self._of(change.clients)):
                    if other.name == gateway:
                        start = change.at_s + place * change.stagger_s
                        turns.append((start, change.factor))
                        if change.for_s:
                            turns.append((start + change.for_s, 1 / change.factor))
        rates = [(0.0, 1.0)]
        for at, turn in sorted(turns):
            rates.append((at, rates[-1][1] * turn))
        return rates

    def _reroutes(self) -> Iterator[Reroute]:
        usual = self.ways()
        for change in self.scenario.changes:
            if change.kind != "link":
                continue
            for place, gateway in enumerate(self._of(change.clients)):
                start = change.at_s + place * change.stagger_s
                for node in self.nodes:
                    if fnmatch.fnmatchcase(node.name, change.nodes):
                        own, *rest = usual[gateway.name, node.name]
                        yield Reroute(start, gateway.name, node.name, (change.link, *rest))
                        if change.for_s:
                            yield Reroute(start + change.for_s, gateway.name, node.name, (own, *rest))

    def _of(self, clients: str) -> list[Gateway]:
        return [gateway for gateway in self.gateways if fnmatch.fnmatchcase(gateway.group, clients)]


def _outages(node: Node) -> Iterator[Happening]:
    for outage in node.outages:
        yield Down(outage.start, node.name, outage.kind)
        if outage.end < FOREVER:
            yield Up(outage.end, node.name, outage.kind)
