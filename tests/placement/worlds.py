"""Random fleets for property tests: healthy and broken services, ghosts, far ends, loads, links, half of it unknown."""

from __future__ import annotations

from hypothesis import strategies as st

from nearfar.fleet.snapshot import LinkView, NodeView, Observed, ServiceView, Snapshot
from nearfar.types.ids import ModelName, NodeId, ServiceId
from nearfar.types.request import Privacy, Qos, Request
from nearfar.types.telemetry import ServiceState
from nearfar.types.units import Bytes, Milliseconds, Seconds
from tests.fleet.build import GIB, NOW, fleet, link, node_view, service_view, sid

NODES = [f"n{i}" for i in range(7)]
ODD = st.sampled_from([float("nan"), float("inf"), -1.0, 0.0])
"""What a broken or hostile node may send."""


@st.composite
def snapshots(draw: st.DrawFn, odd: bool = True) -> Snapshot:
    number = st.floats(0.1, 500) | ODD if odd else st.floats(0.1, 500)
    services: list[ServiceView] = []
    nodes: list[tuple[str, NodeView]] = []
    links: dict[str, LinkView] = {}
    pending: dict[str, int] = {}
    observed: dict[str, Observed] = {}
    for node in NODES[: draw(st.integers(1, 7))]:
        nodes.append(
            (
                node,
                node_view(
                    node,
                    alive=draw(st.booleans()),
                    cpu=draw(number),
                    memory_free=Bytes(draw(st.sampled_from([GIB, GIB // 100]))),
                    host=draw(st.sampled_from(["", "h1", node])),
                    models=(ModelName("yard"),) if draw(st.booleans()) else (),
                ),
            )
        )
        for model in draw(st.sampled_from([(), ("yard",), ("yard",), ("yard", "gate")])):
            name = f"{node}/{model}"
            services.append(
                service_view(
                    name,
                    alive=draw(st.sampled_from([True, True, True, False])),
                    age=draw(st.sampled_from([0.1, 0.4, 1.9, 2.1, 40.0])),
                    state=draw(st.sampled_from([ServiceState.READY] * 4 + [ServiceState.FAILED])),
                    runtime=draw(st.sampled_from(["onnx", "onnx", "remote"])),
                    queued=draw(st.integers(-1, 9)),
                    in_flight=draw(st.integers(0, 2)),
                    queue_limit=draw(st.sampled_from([0, 4, 64])),
                    workers=draw(st.integers(0, 4)),
                    service_ms=draw(number),
                    profile_ms=draw(number),
                )
            )
            if draw(st.booleans()):
                pending[name] = draw(st.integers(1, 8))
            if draw(st.booleans()):
                observed[name] = Observed(
                    ratio=draw(st.floats(0.25, 4)),
                    link=draw(st.none() | st.floats(0, 500).map(Milliseconds)),
                    moved=Bytes(draw(st.integers(0, 10**6))),
                    failures=draw(st.integers(0, 8)),
                    failed_at=Seconds(NOW - draw(st.floats(0, 60))),
                    answered_at=Seconds(NOW - draw(st.floats(0, 60))),
                    queued=draw(st.integers(0, 9)),
                    queued_at=Seconds(NOW - draw(st.floats(0, 1))),
                )
        if draw(st.booleans()):
            links[node] = link(
                draw(number),
                jitter=draw(number),
                loss=draw(st.floats(0, 1) | ODD if odd else st.floats(0, 1)),
                bandwidth=draw(st.none() | number),
                age=draw(st.sampled_from([1.0, 100.0])),
            )
    return fleet(
        *services,
        me=draw(st.sampled_from(["n0", "client"])),
        links=links,
        pending=pending,
        observed=observed,
        nodes=nodes,
    )


@st.composite
def requests(draw: st.DrawFn, privacy: Privacy | None = None) -> Request:
    some = st.sampled_from([ServiceId(sid(node)) for node in NODES])
    return Request(
        ModelName("yard"),
        origin=draw(st.sampled_from([*NODES[:3], "client"])),
        size=Bytes(draw(st.integers(0, 10**7))),
        qos=Qos(
            deadline=draw(st.none() | st.floats(1, 500).map(Milliseconds)),
            privacy=draw(st.sampled_from(list(Privacy))) if privacy is None else privacy,
            node=draw(st.sampled_from([None, None, None, NodeId("n1")])),
        ),
        incumbent=draw(st.none() | some),
        excluded=tuple(draw(st.lists(some, max_size=2))),
    )
