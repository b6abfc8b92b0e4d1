"""What is true: nodes with their queues, speed, heat and outages. Gateways learn of it only through telemetry.

One service a node. A queue works as that of `node/worker.py`: bounded, first come first served, some workers; the
recent mean it reports is averaged as in `node/meter.py`.
"""

from __future__ import annotations

import fnmatch
import random
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from nearfar.simulate.devices import Device, Heat
from nearfar.simulate.links import Link, make_link
from nearfar.simulate.scenario import NodeGroup, Scenario
from nearfar.types.ids import ModelName, NodeId, ServiceId, VariantId, service_id
from nearfar.types.telemetry import DeviceInfo, NodeReport, ServiceReport, ServiceState
from nearfar.types.units import Bytes, Ratio

if TYPE_CHECKING:
    from nearfar.simulate.frames import Copy

MODEL = ModelName("ssd")
MEMORY = Bytes(4 << 30)
RECENT = 0.1
FORGET = 0.2
SOONEST = 0.05
"""Seconds between reports of a service whose queue grows or shrinks by much."""
FOREVER = float("inf")


class Outage(NamedTuple):
    """From `start` to `end` (seconds) the node is away; `kind` is crash, cut or leave."""

    start: float
    end: float
    kind: str


class Node:
    """One node and its service. Moments are virtual seconds, times milliseconds."""

    __slots__ = (
        "answered",
        "busy",
        "busy_since",
        "busy_time",
        "changed_at",
        "committed",
        "device",
        "heat",
        "heat_busy",
        "index",
        "info",
        "instance",
        "interference",
        "last_report",
        "leaving",
        "link",
        "name",
        "outage",
        "outages",
        "pieces",
        "queue",
        "queue_limit",
        "recent_ms",
        "said",
        "service",
        "site",
        "slow",
        "up",
        "was_answered",
        "was_busy",
        "was_told",
        "workers",
        "working",
    )  # fmt: skip

    def __init__(self, index: int, name: str, group: NodeGroup, device: Device, link: Link, site: int) -> None:
        self.index = index
        self.name = NodeId(name)
        self.service: ServiceId = service_id(self.name, MODEL)
        self.device = device
        self.link = link
        self.site = site
        self.workers = group.workers
        self.queue_limit = group.queue_limit
        self.heat = Heat(device, group.ambient_c)
        self.interference = 1.0
        self.slow = group.slowdown
        self.queue: deque[Copy] = deque()
        self.working: dict[int, Copy] = {}
        """Copies of frames that are worked on, numbered."""
        self.up = True
        self.leaving = False
        self.instance = 0
        self.outages: list[Outage] = []
        self.outage = 0
        """Index of the present outage, else of the next one."""
        self.changed_at = -FOREVER
        self.recent_ms = self.profile_ms
        self.answered = 0
        self.was_answered = 0
        self.busy_time = 0.0
        self.was_busy = 0.0
        self.was_told = 0.0
        self.heat_busy = 0.0
        self.said = 0
        self.last_report = -FOREVER
        self.committed = [0.0] * group.workers
        """For the clairvoyant: when each worker is done with all that was promised to it."""
        self.info = DeviceInfo({}, (), device.cores, MEMORY)
        self.pieces = 0

    @property
    def profile_ms(self) -> float:
        """What was measured at its start: the device alone, cool, without other work."""
        return self.device.mean_ms

    @property
    def factor(self) -> float:
        """How many times slower than its data sheet it is just now."""
        return self.slow * self.interference * (self.device.throttle_factor if self.heat.throttled else 1.0)

    @property
    def serving(self) -> bool:
        return self.up and not self.leaving

    def service_ms(self, z: float, size_factor: float) -> float:
        return self.device.service_ms(z) * size_factor * self.factor

    def next_death(self, now: float) -> float:
        """When it next stops answering what it holds; a node that leaves answers first and so does not die."""
        for outage in self.outages[self.outage :]:
            if outage.end > now and outage.kind != "leave":
                return outage.start
        return FOREVER

    def note_answer(self, took_ms: float) -> None:
        self.answered += 1
        self.busy_time += took_ms / 1000
        self.recent_ms += RECENT * (took_ms - self.recent_ms)

    def service_report(self) -> ServiceReport:
        """What the service says of itself now. An idle one forgets its busy spell, as the real meter does."""
        queued, in_flight = len(self.queue), len(self.working)
        if self.answered == self.was_answered and not queued and not in_flight:
            self.recent_ms += FORGET * (self.profile_ms - self.recent_ms)
        self.was_answered = self.answered
        self.said = queued
        state = ServiceState.STOPPING if self.leaving else ServiceState.READY
        return ServiceReport(
            self.service, self.name, MODEL, _VARIANT, "simulated", "cpu", state, "", str(self.instance), queued,
            in_flight, self.queue_limit, self.workers, self.answered, 0, 0, self.recent_ms, self.profile_ms,
        )  # fmt: skip

    def node_report(self, now: float) -> NodeReport:
        """Load over the time since the last one: inference on the workers' cores, and other work on the rest."""
        span = max(now - self.was_told, 1e-9)
        inference = min((self.busy_time - self.was_busy) / span / self.workers, 1.0)
        self.was_busy, self.was_told = self.busy_time, now
        other = 1 - 1 / self.interference
        cpu = Ratio(min(1.0, inference + other))
        return NodeReport(
            self.name, str(self.instance), "simulated", self.info, (MODEL,), cpu, MEMORY, None, "simulated"
        )


_VARIANT = VariantId("simulated")


class World:
    """All nodes and links of a scenario. What is random is drawn from the seed, the same for every policy."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.links: dict[str, Link] = {name: make_link(name, spec) for name, spec in scenario.links.items()}
        self.nodes: list[Node] = []
        self.groups: list[NodeGroup] = []
        for group in scenario.nodes:
            device = scenario.device(group.device)
            for number in range(group.count):
                index = len(self.nodes)
                site = index % scenario.sites.count
                self.nodes.append(Node(index, f"{group.name}-{number}", group, device, self.links[group.link], site))
                self.groups.append(group)
        self.by_service = {node.service: node for node in self.nodes}
        for node, group in zip(self.nodes, self.groups, strict=True):
            node.outages = _merged([*self._planned(node), *_churned(group, scenario.seconds, seed, node.name)])
        self.by_speed = sorted(self.nodes, key=lambda node: (node.device.mean_ms, node.index))

    def matching(self, pattern: str) -> list[Node]:
        return [node for node in self.nodes if fnmatch.fnmatchcase(node.name, pattern)]

    def _planned(self, node: Node) -> Iterator[Outage]:
        for change in self.scenario.changes:
            if change.kind in ("crash", "cut", "leave") and fnmatch.fnmatchcase(node.name, change.nodes):
                start = change.at_s + self.matching(change.nodes).index(node) * change.stagger_s
                yield Outage(start, start + change.for_s if change.for_s else FOREVER, change.kind)


def spells(rng: random.Random, off_s: float, on_s: float, until: float) -> Iterator[tuple[float, float]]:
    """(start, end) of the on spells of a two-state process with exponential times, off at 0."""
    at = rng.expovariate(1 / off_s)
    while at < until:
        end = at + rng.expovariate(1 / on_s)
        yield at, end
        at = end + rng.expovariate(1 / off_s)


def _churned(group: NodeGroup, until: float, seed: int, name: str) -> Iterator[Outage]:
    churn = group.churn
    if churn is None:
        return
    rng = random.Random(f"{seed} churn {name}")  # noqa: S311 - a simulation
    for start, end in spells(rng, churn.up_s, churn.down_s, until):
        luck = rng.random()
        yield Outage(
            start, end, "crash" if luck < churn.crash else "cut" if luck < churn.crash + churn.cut else "leave"
        )


def _merged(outages: list[Outage]) -> list[Outage]:
    """In order, without overlap: an outage that begins in another is swallowed by it."""
    merged: list[Outage] = []
    for outage in sorted(outages):
        if not merged or outage.start >= merged[-1].end:
            merged.append(outage)
        elif outage.end > merged[-1].end:
            merged[-1] = merged[-1]._replace(end=outage.end)
    return merged
