"""Small fleets for tests, written in the terms a test cares about."""

from __future__ import annotations

from typing import Any

from nearfar.fleet.snapshot import LinkView, NodeView, Observed, ServiceView, Snapshot
from nearfar.types.ids import ModelName, NodeId, ServiceId, VariantId, service_id
from nearfar.types.telemetry import DeviceInfo, NodeReport, ServiceReport, ServiceState
from nearfar.types.units import Bytes, BytesPerSecond, Milliseconds, Ratio, Seconds

NOW = Seconds(100.0)
GIB = 1 << 30


def node_report(node: str, **changes: Any) -> NodeReport:
    given: dict[str, Any] = {
        "instance": "n1",
        "version": "1",
        "device": DeviceInfo({}, (), changes.pop("cores", 4.0), Bytes(4 * GIB)),
        "models": (),
        "cpu": Ratio(0.1),
        "memory_free": Bytes(2 * GIB),
        "temperature": None,
        "temperature_reason": "no sensor",
    }
    return NodeReport(node=NodeId(node), **{**given, **changes})


def service_report(name: str, **changes: Any) -> ServiceReport:
    """`name` is `node/model`."""
    node, _, model = name.partition("/")
    given: dict[str, Any] = {
        "node": NodeId(node),
        "model": ModelName(model),
        "variant": VariantId("int8"),
        "runtime": "onnx",
        "unit": "cpu",
        "state": ServiceState.READY,
        "reason": "fastest here",
        "instance": "s1",
        "service_ms": 20.0,
    }
    return ServiceReport(service=ServiceId(name), **{**given, **changes})


def service_view(name: str, *, alive: bool = True, age: float = 0.2, **changes: Any) -> ServiceView:
    report = service_report(name, **changes)
    return ServiceView(report, alive, Seconds(NOW - age), Seconds(NOW - 50), (report.instance,))


def node_view(node: str, *, alive: bool = True, age: float = 0.2, **changes: Any) -> NodeView:
    return NodeView(node_report(node, **changes), alive, Seconds(NOW - age), Seconds(NOW - 50), ("n1",))


def link(
    rtt: float, *, jitter: float = 0.0, loss: float = 0.0, bandwidth: float | None = 1e9, age: float = 1.0
) -> LinkView:
    return LinkView(
        Milliseconds(rtt),
        Milliseconds(jitter),
        Ratio(loss),
        None if bandwidth is None else BytesPerSecond(bandwidth),
        Seconds(NOW - age),
    )


def fleet(
    *services: ServiceView,
    me: str = "here",
    links: dict[str, LinkView] | None = None,
    pending: dict[str, int] | None = None,
    observed: dict[str, Observed] | None = None,
    nodes: list[tuple[str, NodeView]] | None = None,
) -> Snapshot:
    """A snapshot; each service gets a healthy node unless `nodes` has one, `links` go from `me` to the named node."""
    all_nodes = {view.report.node: node_view(view.report.node) for view in services}
    all_nodes.update({NodeId(name): view for name, view in nodes or []})
    by_model: dict[ModelName, list[ServiceId]] = {}
    for view in services:
        by_model.setdefault(view.report.model, []).append(view.report.service)
    return Snapshot(
        me,
        all_nodes,
        {view.report.service: view for view in services},
        {model: tuple(sorted(ids)) for model, ids in by_model.items()},
        {(NodeId(me), NodeId(there)): view for there, view in (links or {}).items()},
        {ServiceId(name): count for name, count in (pending or {}).items()},
        {ServiceId(name): seen for name, seen in (observed or {}).items()},
    )


def sid(node: str, model: str = "yard") -> ServiceId:
    return service_id(NodeId(node), ModelName(model))
