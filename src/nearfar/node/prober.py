"""Measures the way to every other node: pings for round trip, jitter and loss, now and then bulk for bandwidth."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable

from nearfar.errors import DeadlineExceeded, MeshError
from nearfar.fleet.links import LinkEstimator
from nearfar.mesh.base import Call, Mesh
from nearfar.node import keys
from nearfar.types.ids import NodeId
from nearfar.types.telemetry import LinkReport
from nearfar.types.units import Bytes, Milliseconds, Seconds

EVERY = 1.0
"""Seconds between pings to one node."""
FIRST_PINGS = 3
TIMEOUT = 2.0
BULK_EVERY = 30.0
BULK_SIZE = 128 * 1024
"""Bytes of a bandwidth probe: 0.04 % of a 10 Mbit/s link at this pace."""


def answer_ping(call: Call) -> None:
    """What a node does with a ping: acknowledge it at once."""
    call.reply(b"")


class Prober:
    """Keeps one estimator per node; `links` is what is known now."""

    def __init__(self, mesh: Mesh, on_measured: Callable[[LinkReport], None] | None = None) -> None:
        self._mesh = mesh
        self._estimators: dict[NodeId, LinkEstimator] = {}
        self._tasks: dict[NodeId, asyncio.Task[None]] = {}
        self._on_measured = on_measured

    def links(self) -> tuple[LinkReport, ...]:
        reports = (estimator.report() for estimator in self._estimators.values())
        return tuple(report for report in reports if report is not None)

    def follow(self, nodes: Iterable[NodeId]) -> None:
        """Probe exactly these nodes from now on. On the event loop."""
        wanted = set(nodes)
        for node in wanted - self._tasks.keys():
            self._estimators[node] = LinkEstimator(node)
            self._tasks[node] = asyncio.create_task(self._probe(node), name=f"probe {node}")
        for node in self._tasks.keys() - wanted:
            self._tasks.pop(node).cancel()
            del self._estimators[node]

    async def _probe(self, node: NodeId) -> None:
        estimator = self._estimators[node]
        sent = 0
        next_bulk = 0.0
        while True:
            took = await self._ping(node, b"")
            estimator.add(took, Seconds(time.monotonic()))
            sent += 1
            if sent >= FIRST_PINGS and took is not None and time.monotonic() >= next_bulk:
                next_bulk = time.monotonic() + BULK_EVERY
                bulk = await self._ping(node, bytes(BULK_SIZE))
                if bulk is not None:
                    estimator.add_bulk(Bytes(BULK_SIZE), bulk)
            report = estimator.report()
            if report is not None and self._on_measured is not None:
                self._on_measured(report)
            await asyncio.sleep(EVERY if sent >= FIRST_PINGS else 0.02)

    async def _ping(self, node: NodeId, body: bytes) -> Milliseconds | None:
        start = time.perf_counter()
        try:
            await self._mesh.request(keys.ping_key(node), b"", [body], TIMEOUT)
        except (MeshError, DeadlineExceeded):
            return None
        return Milliseconds((time.perf_counter() - start) * 1000)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        self.follow(())
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
