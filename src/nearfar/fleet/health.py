"""How a service is, in one word with a code and a reason, and every threshold by which that is decided.

Pure: `health(snapshot, service, now)`. What needs more than one report to be believed (heat, memory, errors) is
counted by the reducer, which calls `follow_service` and `follow_node` for each. docs/explanation-health.md has the
table.
"""

from __future__ import annotations

from enum import StrEnum

from nearfar.fleet.snapshot import FRESH, NEVER, NodeView, Observed, ServiceView, Snapshot, service_health
from nearfar.fleet.steady import OFF, Limit, Steady, follow
from nearfar.types.ids import ServiceId
from nearfar.types.units import Seconds, show_bytes

# -- thresholds, each with its reason ---------------------------------------------------------------------------------

HOT = Limit(85.0, 80.0)
"""Degrees Celsius of the hottest sensor. A Raspberry Pi's firmware slows down between 80 and 85 degrees and a Coral
from 85 on; boards with a higher limit (Jetson 97, x86 100) come near it. A fan that switches moves less than 5."""
THROTTLED = Limit(1.0, 0.0)
"""What the firmware or the kernel says: yes or no."""
MEMORY_USED = Limit(0.95, 0.92)
"""Share of the node's memory. Less than 5 % free is about 200 MB of 4 GB: the page cache is gone, and what is loaded
next makes it swap. The filter `memory` refuses at 98 %, at once."""
ERRORS = Limit(0.10, 0.05)
"""Share of a service's last requests that failed by its own fault. One failure of ten costs its callers a second
attempt each time; one of a hundred is everyday life."""
BROKEN = Limit(0.50, 0.25)
"""When every other request fails, a caller is better off with anybody else, or with a reason at once."""
QUARANTINE = 3
"""So many failures in a row, seen by this client, keep a service out for a while."""
BACKOFF = Seconds(2.0)
"""Quarantine after the third failure in a row; doubled by each further one."""
LONGEST_BACKOFF = Seconds(30.0)


class Health(StrEnum):
    """From the best to the worst; `READY` and `DEGRADED` may be asked."""

    READY = "ready"
    DEGRADED = "degraded"
    """May be asked, and ranks behind those that are ready and keep the deadline."""
    STARTING = "starting"
    STOPPING = "stopping"
    QUARANTINED = "quarantined"
    """It answers nonsense, or fails too often."""
    FAILED = "failed"
    STALE = "stale"
    DISCONNECTED = "disconnected"
    """Its node vanished with all it had and without a goodbye: not dead for sure, and it may come back as it was."""
    GONE = "gone"

    @property
    def may_be_asked(self) -> bool:
        return self is Health.READY or self is Health.DEGRADED


_OF_CODE = {"self-test": Health.QUARANTINED}
_READY = (Health.READY, "", "")


def health(snapshot: Snapshot, service: ServiceId, now: Seconds) -> tuple[Health, str, str]:
    """The state of a service, a stable code that says which threshold or event made it so, and a phrase for people.

    Code and reason are empty for a service that is ready. One that nobody has heard of is gone.
    """
    view = snapshot.services.get(service)
    if view is None:
        return Health.GONE, "gone", "nobody has heard of it"
    node = snapshot.nodes.get(view.report.node)
    well, code, reason = service_health(view, node, now)
    if not well:
        return _OF_CODE.get(code) or Health(code), code, reason
    out = quarantined(view, snapshot.observed.get(service), snapshot.pending.get(service, 0), now)
    if out is not None:
        return Health.QUARANTINED, *out
    weak = degraded(view, node, now)
    if weak is not None:
        return Health.DEGRADED, *weak
    return _READY


def quarantined(view: ServiceView, observed: Observed | None, pending: int, now: Seconds) -> tuple[str, str] | None:
    """Code and reason when a service that lives must be left alone: `error-rate`, or `quarantined` by this client."""
    if view.broken.on:
        rate = view.report.error_rate
        return "error-rate", f"{rate:.0%} of its last requests failed by its own fault; tried again when it has rested"
    if observed is not None and observed.failures >= QUARANTINE:
        left = observed.failed_at + backoff(observed.failures) - now
        if left > 0:
            return (
                "quarantined",
                f"{observed.failures} failures in a row ({observed.error}); tried again in {left:.1f} s",
            )
        if pending:
            # One request probes it; a gateway's whole load must not jump at a service that just failed.
            return "quarantined", f"{observed.failures} failures in a row; one request is probing it"
    return None


def degraded(view: ServiceView, node: NodeView | None, now: Seconds) -> tuple[str, str] | None:
    """Code and reason when a service is weak: `throttled`, `hot`, `memory-short`, `errors`. Cheap when it is not."""
    if view.errors.on:
        return "errors", f"{view.report.error_rate:.0%} of its last requests failed by its own fault"
    if node is None or not (node.throttled.on or node.hot.on or node.short.on) or now - node.heard > FRESH:
        return None  # what a silent agent said last may long be over
    return node_weakness(node)


def node_weakness(node: NodeView) -> tuple[str, str] | None:
    """What makes every service of a node weak."""
    report = node.report
    if report is None:
        return None
    if node.throttled.on:
        return "throttled", f"its processor is held back: {report.throttled_reason}"
    if node.hot.on:
        heat = "" if report.temperature is None else f"{report.temperature:.0f} °C "
        return "hot", f"its node is hot: {heat}({report.temperature_reason})"
    if node.short.on:
        free, total = show_bytes(report.memory_free), show_bytes(report.device.memory)
        return "memory-short", f"its node has {free} of {total} of memory left"
    return None


def node_health(view: NodeView, now: Seconds) -> tuple[Health, str, str]:
    """As `health`, for a node: ready, degraded, starting, stale, disconnected or gone."""
    if not view.alive:
        since = "" if view.since == NEVER else f" for {now - view.since:.1f} s"
        if view.report is not None and view.report.leaving:
            return Health.GONE, "gone", f"gone{since}, after it said goodbye"
        return Health.DISCONNECTED, "disconnected", f"gone without a goodbye{since}; it may come back as it was"
    if view.report is None:
        return Health.STARTING, "starting", "on the mesh, but no telemetry has come yet"
    if view.report.leaving:
        return Health.STOPPING, "stopping", "it said goodbye"
    if now - view.heard > FRESH:
        return Health.STALE, "stale", f"no telemetry for {now - view.heard:.1f} s"
    weak = node_weakness(view)
    return (Health.DEGRADED, *weak) if weak is not None else _READY


def backoff(failures: int) -> Seconds:
    """How long a service stays out after so many failures in a row: 2 s, 4 s, 8 s, 16 s, then 30 s.

    >>> [backoff(n) for n in (2, 3, 4, 6, 7, 1000)]
    [0.0, 2.0, 4.0, 16.0, 30.0, 30.0]
    """
    if failures < QUARANTINE:
        return Seconds(0.0)
    return Seconds(min(BACKOFF * 2.0 ** min(failures - QUARANTINE, 10), LONGEST_BACKOFF))


# -- what the reducer counts -------------------------------------------------------------------------------------------


def follow_service(view: ServiceView, before: ServiceView | None) -> ServiceView:
    """The view with its conditions after the report in it. Those of an older instance say nothing of a new process."""
    first = before is None or before.heard == NEVER or before.instances[:1] != view.instances[:1]
    rate, at = view.report.error_rate, view.heard
    if rate < ERRORS.enter and (before is None or first or (before.errors is OFF and before.broken is OFF)):
        return view  # as nearly always: nothing was wrong, and nothing is
    was = view if before is None or first else before
    errors = follow(was.errors, rate, ERRORS, at, first=first)
    broken = follow(was.broken, rate, BROKEN, at, first=first)
    if _same(errors, view.errors) and _same(broken, view.broken):
        return view
    return ServiceView(view.report, view.alive, view.heard, view.since, view.instances, errors, broken)


def follow_node(view: NodeView, before: NodeView) -> NodeView:
    """The view with its conditions after the report in it."""
    report, at = view.report, view.heard
    if report is None:
        return view
    first = before.report is None
    heat = report.temperature if report.temperature is not None else float("-inf")
    total = report.device.memory
    used = 1 - report.memory_free / total if total > 0 else 0.0
    hot = follow(before.hot, heat, HOT, at, first=first)
    throttled = follow(before.throttled, float(report.throttled is True), THROTTLED, at, first=first)
    short = follow(before.short, used, MEMORY_USED, at, first=first)
    if _same(hot, view.hot) and _same(throttled, view.throttled) and _same(short, view.short):
        return view
    return NodeView(report, view.alive, view.heard, view.since, view.instances, hot, throttled, short)


def _same(one: Steady, other: Steady) -> bool:
    return one is other or (not one.on and not one.run and not other.on and not other.run)
