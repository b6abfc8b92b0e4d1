"""Who takes part: the gateways and streams of a scenario, made before the first moment."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from nearfar.simulate.frames import Stream
from nearfar.simulate.stream import Guard
from nearfar.simulate.view import Gateway

if TYPE_CHECKING:
    from nearfar.simulate.run import Engine

START = 3.0
"""Seconds before the first frame, in which telemetry and pings come in."""


def enter(engine: Engine) -> None:
    """Put gateways and streams into the engine, and the first frame of each stream into its calendar."""
    backhaul = engine.world.links.get(engine.scenario.sites.backhaul)
    rates = [change.factor for change in engine.scenario.changes if change.kind == "rate"]
    most_rate = math.prod(max(factor, 1 / factor) for factor in rates)
    for group in engine.scenario.clients:
        access = engine.world.links[group.access] if group.access else None
        gateways = [
            Gateway(f"{group.name}-gw{i}", group.name, engine.world.nodes, access, engine.seed)
            for i in range(group.gateways)
        ]
        for i, gateway in enumerate(gateways):
            gateway.site = i % engine.scenario.sites.count
            gateway.route(engine.world.nodes, backhaul)
        engine.gateways += gateways
        for i in range(group.streams):
            number = len(engine.streams)
            stream = Stream(
                number, gateways[i % len(gateways)], 1 / group.fps, group.deadline_ms / 1000,
                int(group.size_kb * 1000), group.large,
                random.Random(f"{engine.seed} stream {number}"),  # noqa: S311
            )  # fmt: skip
            if engine.guarded:
                stream.guard = Guard(stream, engine.measures, engine.went_over, most_rate)
            engine.streams.append(stream)
            engine.at(START + stream.rng.random() * stream.period, engine.born, stream, 0)
