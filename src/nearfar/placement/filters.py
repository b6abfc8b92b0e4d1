"""May this service take this request at all? A fixed chain; the first filter that says no gives the reason.

health -> excluded -> pinned node -> privacy -> cost -> slow -> far -> compute (queue) -> memory -> quarantine ->
silence -> unreliable.
That a model is present at all is decided before the chain, as a node without a service for it has no service to look at
(`absent`).
"""

from __future__ import annotations

from nearfar.fleet.health import QUARANTINE, node_health, quarantined
from nearfar.fleet.snapshot import FRESH, ServiceView, Snapshot, service_health
from nearfar.placement.refusal import Refusal
from nearfar.placement.silence import silent
from nearfar.types.ids import ServiceId, node_of, service_id
from nearfar.types.request import Degrade, Privacy, Request
from nearfar.types.telemetry import ServiceState
from nearfar.types.units import Seconds, show_bytes

LEAST_MEMORY = 0.02
"""A node with a smaller share of its memory free is about to swap or to kill a process."""
FAR_RUNTIMES = frozenset({"remote"})
"""Runtimes that hand the data to somebody's API, wherever their own process runs."""
RESERVE = frozenset({"far", "unreliable"})
"""Refusals that `decide` takes back when nobody else keeps the deadline: late, or dear, may be better than nothing."""

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
        return Refusal(service, "excluded", "was asked for this request already")

    qos = request.qos
    if qos.node is not None and report.node != qos.node:
        return Refusal(service, "pinned", f"the request is pinned to node {qos.node}")

    if qos.privacy is not _ANY:
        if report.runtime in FAR_RUNTIMES:
            return Refusal(service, "private", f"privacy is {qos.privacy.value} and this service asks a far end")
        # Both names of the node must agree: the id says where data would be sent, the report who claims to be there.
        if qos.privacy is _LOCAL and (report.node != request.origin or node_of(service) != request.origin):
            return Refusal(service, "private", f"privacy is local and the data is on {request.origin}")

    if qos.max_cost is not None and report.cost > qos.max_cost:
        reason = f"one request costs {report.cost:g} there, and at most {qos.max_cost:g} is allowed"
        return Refusal(service, "cost", reason)
    if qos.tokens_per_s is not None and report.text is not None:
        speed = report.text.decode_per_s
        if 0 < speed < qos.tokens_per_s:  # 0: it has not written yet
            reason = f"it writes {speed:.3g} tokens a second, and at least {qos.tokens_per_s:g} are wanted"
            return Refusal(service, "slow", reason)
    if qos.degrade and Degrade.FAR in qos.degrade and (report.runtime in FAR_RUNTIMES or report.cost > 0):
        return Refusal(service, "far", "it is far or costs money, and is asked only when nothing near is in time")

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

    if view.broken.on or (observed is not None and observed.failures >= QUARANTINE):  # spares the healthy a call
        out = quarantined(view, observed, pending, now)
        if out is not None:
            return Refusal(service, *out)
    if (service in snapshot.owed or service in snapshot.missed) and silent(snapshot, view, now):
        return Refusal(service, "silent", "it owes an answer, and nothing has been heard from it since")
    return _unreliable(snapshot, request, service, pending, now) if snapshot.unreliable else None


def _unreliable(snapshot: Snapshot, request: Request, service: ServiceId, pending: int, now: Seconds) -> Refusal | None:
    """Kept out are requests with a deadline that is no longer than the one that was not kept."""
    known, deadline = snapshot.unreliable.get(service), request.qos.deadline
    if known is None or known.probed or deadline is None or deadline > known.deadline:
        return None
    left = known.until - now
    if left > 0:
        reason = f"it broke a promise of {known.deadline:g} ms ({known.reason}); tried again in {left:.1f} s"
        return Refusal(service, "unreliable", reason)
    if pending:
        return Refusal(service, "unreliable", f"it broke a promise of {known.deadline:g} ms; one request is probing it")
    return None


def absent(snapshot: Snapshot, request: Request, now: Seconds) -> list[Refusal]:
    """One refusal for every node without a service for the model. O(nodes)."""
    model = request.model
    refusals: list[Refusal] = []
    for node, view in snapshot.nodes.items():
        if service_id(node, model) in snapshot.services:
            continue
        if not view.alive:
            _, code, reason = node_health(view, now)
            refusals.append(Refusal(node, code, f"the node is {reason}"))
            continue
        stored = view.report is not None and model in view.report.models
        if stored:
            reason = f"has {model} in its store but does not serve it; run `nearfar models serve {model}` there"
        else:
            reason = f"does not serve {model}; run `nearfar up --model {model}` there"
        refusals.append(Refusal(node, "not-served", reason))
    return refusals
