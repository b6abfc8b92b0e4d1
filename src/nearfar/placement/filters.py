"""May this service take this request at all? A fixed chain; the first filter that says no gives the reason.

health -> excluded -> pinned node -> privacy -> compute (queue) -> memory -> quarantine -> silence. That a
model is present at all is decided before the chain, as a node without a service for it has no service to look at.
"""

from __future__ import annotations

from nearfar.fleet.reduce import QUARANTINE
from nearfar.fleet.snapshot import FRESH, ServiceView, Snapshot, service_health
from nearfar.placement.refusal import Refusal
from nearfar.placement.silence import silent
from nearfar.types.ids import node_of, service_id
from nearfar.types.request import Privacy, Request
from nearfar.types.telemetry import ServiceState
from nearfar.types.units import Seconds, show_bytes

LEAST_MEMORY = 0.02
"""A node with a smaller share of its memory free is about to swap or to kill a process."""
FAR_RUNTIMES = frozenset({"remote"})
"""Runtimes that hand the data to somebody's API, wherever their own process runs."""
BACKOFF = Seconds(2.0)
"""Quarantine after the third failure in a row; doubled by each further one."""
LONGEST_BACKOFF = Seconds(30.0)

_ANY = Privacy.ANY
_LOCAL = Privacy.LOCAL
_READY = ServiceState.READY


def refuse(snapshot: Snapshot, request: Request, view: ServiceView, now: Seconds) -> Refusal | None:
    """None when the service may take the request, else the first reason against it."""
    report = view.report
    service = report.service
    node = snapshot.nodes.get(report.node)
    if not view.alive or now - view.heard > FRESH or report.state is not _READY:  # spares the healthy a call
        healthy, code, reason = service_health(view, node, now)
        if not healthy:
            return Refusal(service, code, reason)

    if service in request.excluded:
        return Refusal(service, "excluded", "already failed this request")

    qos = request.qos
    if qos.node is not None and report.node != qos.node:
        return Refusal(service, "pinned", f"the request is pinned to node {qos.node}")

    if qos.privacy is not _ANY:
        if report.runtime in FAR_RUNTIMES:
            return Refusal(service, "private", f"privacy is {qos.privacy.value} and this service asks a far end")
        # Both names of the node must agree: the id says where data would be sent, the report who claims to be there.
        if qos.privacy is _LOCAL and (report.node != request.origin or node_of(service) != request.origin):
            return Refusal(service, "private", f"privacy is local and the data is on {request.origin}")

    pending = snapshot.pending.get(service, 0)
    observed = snapshot.observed.get(service)
    limit = report.queue_limit
    if limit > 0:
        queued = report.queued
        if observed is not None and observed.queued_at > view.heard:
            queued = observed.queued
        # Mine under way are partly in the reported queue already: the larger of both, never their sum.
        waiting = max(queued, pending - report.workers)
        if waiting >= limit:
            return Refusal(service, "queue-full", f"its queue is full ({waiting} of {limit} places)")

    if node is not None and node.report is not None and now - node.heard <= FRESH:
        free, total = node.report.memory_free, node.report.device.memory
        if free < total * LEAST_MEMORY:
            return Refusal(service, "memory", f"node {report.node} has {show_bytes(free)} of {show_bytes(total)} left")

    if observed is not None and observed.failures >= QUARANTINE:
        left = observed.failed_at + backoff(observed.failures) - now
        if left > 0:
            reason = f"{observed.failures} failures in a row ({observed.error}); tried again in {left:.1f} s"
            return Refusal(service, "quarantined", reason)
        if pending:
            # One request probes it; a gateway's whole load must not jump at a service that just failed.
            return Refusal(service, "quarantined", f"{observed.failures} failures in a row; one request is probing it")

    if (snapshot.missed or snapshot.owed) and silent(snapshot, view, now):
        return Refusal(service, "silent", "it owes an answer, and nothing has been heard from it since")
    return None


def backoff(failures: int) -> Seconds:
    """How long a service stays out after so many failures in a row: 2 s, 4 s, 8 s, 16 s, then 30 s.

    >>> [backoff(n) for n in (2, 3, 4, 6, 7, 1000)]
    [0.0, 2.0, 4.0, 16.0, 30.0, 30.0]
    """
    if failures < QUARANTINE:
        return Seconds(0.0)
    return Seconds(min(BACKOFF * 2.0 ** min(failures - QUARANTINE, 10), LONGEST_BACKOFF))


def absent(snapshot: Snapshot, request: Request) -> list[Refusal]:
    """One refusal for every node without a service for the model. O(nodes)."""
    model = request.model
    refusals: list[Refusal] = []
    for node, view in snapshot.nodes.items():
        if service_id(node, model) in snapshot.services:
            continue
        if not view.alive:
            refusals.append(Refusal(node, "gone", "the node is gone"))
            continue
        stored = view.report is not None and model in view.report.models
        has = f"has {model} in its store but does not serve it" if stored else f"does not serve {model}"
        refusals.append(Refusal(node, "not-served", f"{has}; run `nearfar up --model {model}` there"))
    return refusals
