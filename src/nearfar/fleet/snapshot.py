"""The fleet at one moment: frozen values that placement, the dashboard and `/metrics` read.

The mappings are plain dicts for speed and are never changed once they stand in a snapshot; `reduce.fold` copies those
it touches. Every moment is the monotonic clock of the one who looks, so ages never compare clocks of two machines.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from nearfar.fleet.events import NEVER as NEVER
from nearfar.fleet.steady import OFF, Steady
from nearfar.fleet.unreliable import Unreliable
from nearfar.types.ids import ModelName, NodeId, ServiceId
from nearfar.types.telemetry import NodeReport, ServiceReport, ServiceState
from nearfar.types.units import Bytes, BytesPerSecond, Milliseconds, Ratio, Seconds

FRESH = Seconds(2.0)
"""Telemetry comes at 2 Hz: older than this means four reports in a row are missing."""

_READY = ServiceState.READY


class ServiceView(msgspec.Struct, frozen=True):
    """What is known of one service."""

    report: ServiceReport
    alive: bool = False
    """Its liveliness token is there. Only tokens set this: a late report never revives the dead."""
    heard: Seconds = NEVER
    """When the last report came."""
    since: Seconds = NEVER
    """When `alive` last changed."""
    instances: tuple[str, ...] = ()
    """Instances that reported, the current one first, at most four."""
    errors: Steady = OFF
    """More of its requests fail than usual."""
    broken: Steady = OFF
    """So many fail that it is not worth asking."""


class NodeView(msgspec.Struct, frozen=True):
    """What is known of one node; `report` is None between its token and its first telemetry."""

    report: NodeReport | None = None
    alive: bool = False
    heard: Seconds = NEVER
    since: Seconds = NEVER
    instances: tuple[str, ...] = ()
    hot: Steady = OFF
    throttled: Steady = OFF
    short: Steady = OFF
    """Of memory."""


class LinkView(msgspec.Struct, frozen=True, gc=False):
    """One direction of the link matrix, as its source last measured it. Loss is 0 to 1; bandwidth None is unknown."""

    rtt: Milliseconds
    jitter: Milliseconds = Milliseconds(0.0)
    loss: Ratio = Ratio(0.0)
    bandwidth: BytesPerSecond | None = None
    heard: Seconds = NEVER


class Observed(msgspec.Struct, frozen=True, gc=False):
    """How one service behaved towards this client; averages are exponential with weight `reduce.WEIGHT`."""

    ratio: float = 1.0
    """Service time measured by answers over the service time reported at that moment, 0.25 to 4."""
    link: Milliseconds | None = None
    """Mean time that answers spent outside the service; includes moving `moved` bytes. None before the first answer."""
    jitter: Milliseconds = Milliseconds(0.0)
    """Mean absolute deviation of `link`."""
    moved: Bytes = Bytes(0)
    """Mean bytes moved both ways by the requests behind `link`."""
    failures: int = 0
    """Failures in a row that are the service's or the network's fault."""
    error: str = ""
    """Code of the last such failure."""
    failed_at: Seconds = NEVER
    answered_at: Seconds = NEVER
    queued: int = 0
    """Requests that waited there when it last answered or refused; newer than its telemetry if `queued_at` is."""
    queued_at: Seconds = NEVER
    spread: Milliseconds = Milliseconds(0.0)
    """Mean absolute difference between when answers were due and when they came."""
    others: float = 0.0
    """Mean number of requests there that are not this client's, by reports, answers and refusals."""


class Snapshot(msgspec.Struct, frozen=True):
    """The fleet as `me` sees it. All of it is soft state: it is rebuilt from the mesh after a restart."""

    me: str
    """Id of who looks: a node, or a client that runs on none."""
    nodes: Mapping[NodeId, NodeView] = {}
    services: Mapping[ServiceId, ServiceView] = {}
    by_model: Mapping[ModelName, tuple[ServiceId, ...]] = {}
    """Services of each model, sorted; also those that are gone and not yet forgotten."""
    links: Mapping[tuple[NodeId, NodeId], LinkView] = {}
    """(source, destination) -> what the source measured."""
    pending: Mapping[ServiceId, int] = {}
    """Requests of this client that are under way; services with none are absent."""
    observed: Mapping[ServiceId, Observed] = {}
    unreliable: Mapping[ServiceId, Unreliable] = {}
    """Services at which a promise to this client's streams was broken; empty in the usual case."""
    owed: Mapping[ServiceId, tuple[Seconds, ...]] = {}
    """When the answers that this client waits for are due; services that owe none are absent."""
    missed: Mapping[ServiceId, Seconds] = {}
    """When the first answer was due that this client gave up on, with nothing heard from the service since."""


def freshness(view: ServiceView | NodeView, now: Seconds) -> Seconds:
    """Age of the last report in seconds; infinite when there was none."""
    return Seconds(now - view.heard)


_HEALTHY = (True, "", "")


def service_health(view: ServiceView, node: NodeView | None, now: Seconds) -> tuple[bool, str, str]:
    """Whether a service lives and says that it is well, else a code and the reason: `gone`, `disconnected`, `stale`,
    `starting`, `failed`, `self-test`, `stopping`. `health.health` also knows who is weak or quarantined.

    Healthy is: token present, telemetry at most `FRESH` old, state ready. The agent is not on the data path, so a
    service whose agent is gone stays healthy; `node` only tells a dead process from a dead machine.

    >>> from nearfar.types.ids import ServiceId, VariantId
    >>> report = ServiceReport(ServiceId("pi/yard"), NodeId("pi"), ModelName("yard"), VariantId("v"), "onnx", "cpu",
    ...     ServiceState.READY, "fastest here")
    >>> service_health(ServiceView(report, alive=True, heard=Seconds(10.0)), None, Seconds(13.1))
    (False, 'stale', 'no telemetry for 3.1 s')
    """
    report = view.report
    age = now - view.heard
    state = report.state
    if age <= FRESH:
        if state is ServiceState.STOPPING:  # its own reason says only why it ran
            return False, state.value, "it is being stopped"
        if state is not _READY:
            wrong = state is ServiceState.FAILED and report.self_test.passed is False
            code = "self-test" if wrong else state.value
            return False, code, f"{state.value}: {report.reason}" if report.reason else state.value
        if view.alive:
            return _HEALTHY
    if not view.alive:
        gone = "" if view.since == NEVER else f" for {now - view.since:.1f} s"
        if state is ServiceState.STOPPING:
            return False, "gone", f"it has been gone{gone}, after it said goodbye"
        if node is None or node.alive:
            return False, "gone", f"its process has not been on the mesh{gone}"
        if node.report is not None and node.report.leaving:
            return False, "gone", f"its node is gone{gone}, after it said goodbye"
        return False, "disconnected", f"its node is gone without a goodbye{gone}; it may come back as it was"
    if view.heard == NEVER:
        return False, "stale", "on the mesh, but no telemetry has come yet"
    return False, "stale", f"no telemetry for {age:.1f} s"
