"""What a client knows of the fleet: listens on the mesh, queues events, folds them when a snapshot is asked for."""

from __future__ import annotations

import random
import time
from collections import deque

import msgspec

from nearfar.fleet.events import (
    Event,
    LinkMeasured,
    NodeAppeared,
    NodeReported,
    NodeVanished,
    ServiceAppeared,
    ServiceReported,
    ServiceVanished,
)
from nearfar.fleet.reduce import fold, prune
from nearfar.fleet.snapshot import Snapshot
from nearfar.fleet.steady import LEAVE
from nearfar.mesh.base import Handle, Mesh
from nearfar.node import keys
from nearfar.types.ids import NodeId
from nearfar.types.telemetry import LinkReport, NodeReport, ServiceReport
from nearfar.types.units import Seconds

PRUNE_EVERY = 5.0


class FleetView:
    """The current snapshot of one client. Events may be added from any thread; snapshots are taken on one."""

    def __init__(self, mesh: Mesh, me: str) -> None:
        self._snapshot = Snapshot(me)
        self._events: deque[Event] = deque()
        self._reports: dict[str, deque[Event]] = {}
        """The newest reports of each node, service and link: as many as its conditions are counted by (`steady.py`)."""
        self._instances: dict[NodeId, set[str]] = {}
        self._next_prune = 0.0
        self._service_reports = msgspec.msgpack.Decoder(ServiceReport)
        self._node_reports = msgspec.msgpack.Decoder(NodeReport)
        self.malformed = 0
        """Reports that could not be read, from a newer version or a stranger."""
        self._handles: list[Handle] = [
            mesh.subscribe(keys.SERVICE_REPORTS, self._on_service_report),
            mesh.subscribe(keys.NODE_REPORTS, self._on_node_report),
            mesh.watch(keys.SERVICES, self._on_service),
            mesh.watch(keys.NODES, self._on_node),
        ]
        self.random = random.Random()  # noqa: S311 - spreads load, keeps no secret

    def add(self, event: Event) -> None:
        self._events.append(event)

    def snapshot(self, now: Seconds) -> Snapshot:
        """The fleet at this moment of the monotonic clock."""
        if self._events or self._reports:
            events: list[Event] = []
            while self._events:
                events.append(self._events.popleft())
            reports, self._reports = self._reports, {}
            for kept in reports.values():
                events += list(kept)
            self._snapshot = fold(self._snapshot, events)
        if now >= self._next_prune:
            self._next_prune = now + PRUNE_EVERY
            self._snapshot = prune(self._snapshot, now)
        return self._snapshot

    def _keep(self, key: str, event: Event) -> None:
        kept = self._reports.get(key)
        if kept is None:
            kept = self._reports[key] = deque(maxlen=LEAVE)
        kept.append(event)

    def measured(self, report: LinkReport) -> None:
        """A link from here, measured by our own prober."""
        event = LinkMeasured(NodeId(self._snapshot.me), report, Seconds(time.monotonic()))
        self._reports[f"link/{report.peer}"] = deque((event,), 1)

    def _on_service_report(self, key: str, payload: bytes) -> None:
        try:
            event = ServiceReported(self._service_reports.decode(payload), Seconds(time.monotonic()))
            self._keep(f"{key}/{event.report.instance}", event)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self.malformed += 1

    def _on_node_report(self, key: str, payload: bytes) -> None:
        try:
            event = NodeReported(self._node_reports.decode(payload), Seconds(time.monotonic()))
            self._keep(f"{key}/{event.report.instance}", event)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self.malformed += 1

    def _on_service(self, key: str, alive: bool) -> None:
        service, now = keys.service_of(key), Seconds(time.monotonic())
        self.add(ServiceAppeared(service, now) if alive else ServiceVanished(service, now))

    def _on_node(self, key: str, alive: bool) -> None:
        _, name, instance = key.split("/")
        node, now = NodeId(name), Seconds(time.monotonic())
        living = self._instances.setdefault(node, set())
        (living.add if alive else living.discard)(instance)
        if living:  # a forerunner's token that runs out late says nothing of its successor
            self.add(NodeAppeared(node, now))
        else:
            self._instances.pop(node, None)
            self.add(NodeVanished(node, now))

    def close(self) -> None:
        for handle in self._handles:
            handle.close()
