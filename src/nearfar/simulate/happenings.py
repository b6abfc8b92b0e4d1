"""What happens besides frames: telemetry, pings, outages, interference, heat, and the changes of the scenario."""

from __future__ import annotations

import fnmatch
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nearfar.errors import Unreachable
from nearfar.fleet.events import (
    NodeAppeared,
    NodeReported,
    NodeVanished,
    ServiceAppeared,
    ServiceReported,
    ServiceVanished,
)
from nearfar.simulate.baselines import Bound
from nearfar.simulate.scenario import Change
from nearfar.simulate.view import Gateway
from nearfar.simulate.world import SOONEST, Node, spells
from nearfar.types.units import Seconds

if TYPE_CHECKING:
    from nearfar.simulate.frames import Copy
    from nearfar.simulate.run import Engine

PHASES = 10
"""Reports and pings are spread over their period in so many batches."""
FIRST_PINGS = (0.02, 0.04, 0.06)
"""Seconds after a node appeared; as the prober does."""
DRAIN_LOOK = 0.05


def begin(engine: Engine) -> None:
    """Put everything that does not depend on decisions into the engine's calendar."""
    scenario, world = engine.scenario, engine.world
    for node in world.nodes:
        if node.outages and node.outages[0].start <= 0:
            node.up = False
        else:
            engine.at(0.0, _announce, engine, node)
        for number, outage in enumerate(node.outages):
            engine.at(outage.start, _down, engine, node, number)
            if outage.end <= scenario.seconds:
                engine.at(outage.end, _up, engine, node, number)
    for node, group in zip(world.nodes, world.groups, strict=True):
        if group.interference is not None:
            rng = random.Random(f"{engine.seed} interference {node.name}")  # noqa: S311 - a simulation
            spell = spells(rng, group.interference.off_s, group.interference.on_s, scenario.seconds)
            _next_spell(engine, node, spell, group.interference.factor)
    every = scenario.telemetry
    for phase in range(PHASES):
        engine.at(every.services_s * (1 + phase / PHASES), _services_tick, engine, phase)
        if not _blind(engine):
            engine.at(every.nodes_s * (1 + phase / PHASES), _nodes_tick, engine, phase)
            engine.at(every.links_s * (1 + phase / PHASES), _links_tick, engine, phase)
    for change in scenario.changes:
        _plan(engine, change)
    for group_of_clients in scenario.clients:
        if group_of_clients.mobile:
            for gateway in engine.gateways:
                if gateway.group == group_of_clients.name:
                    engine.at(gateway.luck.uniform(0.5, 1) * group_of_clients.dwell_s, _travel, engine, gateway,
                              group_of_clients.dwell_s)  # fmt: skip


def _blind(engine: Engine) -> bool:
    """The bounds need no telemetry."""
    return isinstance(engine.policy, Bound)


# -- telemetry ---------------------------------------------------------------------------------------------------------


def _services_tick(engine: Engine, phase: int) -> None:
    period = engine.scenario.telemetry.services_s
    for node in engine.world.nodes[phase::PHASES]:
        if not node.up:
            continue
        if node.device.rise_c:
            load = (node.busy_time - node.heat_busy) / period / node.workers
            node.heat_busy = node.busy_time
            if node.heat.step(engine.now, load):
                _changed(engine, node)
        report(engine, node)
    engine.at(engine.now + period, _services_tick, engine, phase)


def report(engine: Engine, node: Node) -> None:
    """The service's own report, to every gateway."""
    if _blind(engine):
        return
    now = engine.now
    node.last_report = now
    told = node.service_report()
    for gateway in engine.gateways:
        at = now + gateway.delay_s(node, now)
        gateway.hear(ServiceReported(told, Seconds(at)), at)


def queue_changed(engine: Engine, node: Node) -> None:
    """Report sooner when the queue has grown or shrunk by much, as the real reporter does."""
    if abs(len(node.queue) - node.said) >= max(4, node.said // 2) and engine.now - node.last_report >= SOONEST:
        report(engine, node)


def _nodes_tick(engine: Engine, phase: int) -> None:
    for node in engine.world.nodes[phase::PHASES]:
        if node.up:
            _report_node(engine, node)
    engine.at(engine.now + engine.scenario.telemetry.nodes_s, _nodes_tick, engine, phase)


def _report_node(engine: Engine, node: Node) -> None:
    now = engine.now
    told = node.node_report(now)
    for gateway in engine.gateways:
        at = now + gateway.delay_s(node, now)
        gateway.hear(NodeReported(told, Seconds(at)), at)


def _links_tick(engine: Engine, phase: int) -> None:
    now = engine.now
    for gateway in engine.gateways:
        for node in engine.world.nodes[phase::PHASES]:
            if node.up or now - node.outages[node.outage].start < engine.scenario.lease_s:
                gateway.ping(node, now)  # the prober follows whoever has a token
    engine.at(now + engine.scenario.telemetry.links_s, _links_tick, engine, phase)


# -- outages -----------------------------------------------------------------------------------------------------------


def _announce(engine: Engine, node: Node) -> None:
    """Tokens and first telemetry of a node that is there now, and the first pings to it."""
    if _blind(engine):
        return
    now = engine.now
    for gateway in engine.gateways:
        at = now + gateway.delay_s(node, now)
        gateway.hear(NodeAppeared(node.name, Seconds(at)), at)
        gateway.hear(ServiceAppeared(node.service, Seconds(at)), at)
        gateway.forget(node)
        for later in FIRST_PINGS:
            engine.at(now + later, _first_ping, engine, gateway, node)
    report(engine, node)
    _report_node(engine, node)


def _first_ping(engine: Engine, gateway: Gateway, node: Node) -> None:
    gateway.ping(node, engine.now)


def _vanish(engine: Engine, node: Node, after_s: float) -> None:
    now = engine.now
    for gateway in engine.gateways:
        at = now + after_s + gateway.delay_s(node, now)
        gateway.hear(NodeVanished(node.name, Seconds(at)), at)
        gateway.hear(ServiceVanished(node.service, Seconds(at)), at)


def _down(engine: Engine, node: Node, number: int) -> None:
    outage = node.outages[number]
    node.outage = number
    _changed(engine, node)
    if outage.kind == "leave" and node.up:
        node.leaving = True
        report(engine, node)
        _leave_when_empty(engine, node)
        return
    node.up = False
    held = [*node.working.values(), *node.queue]
    node.working.clear()
    node.queue.clear()
    for copy in held:
        engine.swallowed(copy)
    _vanish(engine, node, engine.scenario.lease_s if outage.kind == "cut" else 0.0)


def _leave_when_empty(engine: Engine, node: Node) -> None:
    """Answer what waits, then go."""
    if not node.leaving:
        return
    if node.queue or node.working:
        engine.at(engine.now + DRAIN_LOOK, _leave_when_empty, engine, node)
        return
    node.leaving = node.up = False
    _vanish(engine, node, 0.0)


def missing(engine: Engine, copy: Copy) -> None:
    """A request that a cut node swallowed fails when the node's token is seen to be gone, if it lasts so long."""
    node = copy.node
    start = node.outages[node.outage].start
    seen = start + engine.scenario.lease_s + copy.frame.stream.gateway.delay_s(node, engine.now)
    engine.at(max(seen, engine.now), engine.failed, copy, Unreachable.code)


def _up(engine: Engine, node: Node, number: int) -> None:
    if node.outages[number].kind != "cut":
        node.instance += 1  # a new process, that knows nothing of what was
        node.recent_ms = node.profile_ms
    node.up = True
    node.leaving = False
    node.outage = number + 1
    node.committed = [engine.now] * node.workers
    _changed(engine, node)
    _announce(engine, node)


# -- conditions --------------------------------------------------------------------------------------------------------


def _changed(engine: Engine, node: Node) -> None:
    node.changed_at = engine.now
    engine.measures.changes += 1


def _next_spell(engine: Engine, node: Node, spell: Iterator[tuple[float, float]], factor: float) -> None:
    found = next(spell, None)
    if found is not None:
        engine.at(found[0], _interfere, engine, node, factor)
        engine.at(found[1], _calm, engine, node, spell, factor)


def _interfere(engine: Engine, node: Node, factor: float) -> None:
    node.interference = factor
    _changed(engine, node)


def _calm(engine: Engine, node: Node, spell: Iterator[tuple[float, float]], factor: float) -> None:
    node.interference = 1.0
    _changed(engine, node)
    _next_spell(engine, node, spell, factor)


def _plan(engine: Engine, change: Change) -> None:
    """Slow nodes, rates and links; outages stand in the nodes already."""
    if change.kind == "slow":
        for place, node in enumerate(engine.world.matching(change.nodes)):
            start = change.at_s + place * change.stagger_s
            engine.at(start, _slow, engine, node, change.factor)
            if change.for_s:
                engine.at(start + change.for_s, _slow, engine, node, 1 / change.factor)
    if change.kind not in ("rate", "link"):
        return
    gateways = [g for g in engine.gateways if fnmatch.fnmatchcase(g.group, change.clients)]
    for place, gateway in enumerate(gateways):
        start = change.at_s + place * change.stagger_s
        if change.kind == "rate":
            engine.at(start, _rate, engine, gateway, change.factor)
            if change.for_s:
                engine.at(start + change.for_s, _rate, engine, gateway, 1 / change.factor)
        else:
            engine.at(start, _relink, engine, gateway, change.nodes, change.link)
            if change.for_s:
                engine.at(start + change.for_s, _relink, engine, gateway, change.nodes, "")


def _slow(engine: Engine, node: Node, factor: float) -> None:
    node.slow *= factor
    _changed(engine, node)


def _rate(engine: Engine, gateway: Gateway, factor: float) -> None:
    gateway.rate *= factor
    _conditions(engine, gateway)


def _relink(engine: Engine, gateway: Gateway, nodes: str, link: str) -> None:
    """Messages to these nodes pass another link; an empty name restores their own."""
    for node in engine.world.matching(nodes):
        if link:
            gateway.overrides[node.index] = engine.world.links[link]
        else:
            gateway.overrides.pop(node.index, None)
    _route(engine, gateway)


def _travel(engine: Engine, gateway: Gateway, dwell: float) -> None:
    gateway.site = (gateway.site + 1) % engine.scenario.sites.count
    _route(engine, gateway)
    engine.at(engine.now + dwell, _travel, engine, gateway, dwell)


def _route(engine: Engine, gateway: Gateway) -> None:
    gateway.route(engine.world.nodes, engine.world.links.get(engine.scenario.sites.backhaul))
    _conditions(engine, gateway)


def _conditions(engine: Engine, gateway: Gateway) -> None:
    gateway.changed_at = engine.now
    engine.measures.changes += 1
