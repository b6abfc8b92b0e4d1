from __future__ import annotations

import inspect

import pytest
from hypothesis import given

from nearfar.fleet import health as health_module
from nearfar.fleet.snapshot import Observed, ServiceView, Snapshot
from nearfar.placement import decide as decide_module
from nearfar.placement import filters, late
from nearfar.placement.filters import absent, refuse
from nearfar.placement.refusal import CODES, Refusal
from nearfar.types.ids import ModelName, NodeId
from nearfar.types.request import Privacy, Qos, Request
from nearfar.types.telemetry import ServiceState
from nearfar.types.units import Bytes, Seconds
from tests.fleet.build import GIB, NOW, fleet, node_view, service_view, sid
from tests.placement.worlds import requests, snapshots

REQUEST = Request(ModelName("yard"), "here")


def verdict(view: ServiceView, request: Request = REQUEST, **world: object) -> Refusal | None:
    return refuse(fleet(view, **world), request, view, NOW)  # type: ignore[arg-type]


def code(view: ServiceView, request: Request = REQUEST, **world: object) -> str:
    refusal = verdict(view, request, **world)
    return refusal.code if refusal else ""


def test_a_healthy_service_may_take_it() -> None:
    assert verdict(service_view("pi/yard")) is None


def test_health_speaks_first() -> None:
    assert code(service_view("pi/yard", alive=False)) == "gone"
    assert code(service_view("pi/yard", age=3.1)) == "stale"
    assert code(service_view("pi/yard", state=ServiceState.STARTING)) == "starting"
    refusal = verdict(service_view("pi/yard", age=3.1), Request(ModelName("yard"), "here", excluded=(sid("pi"),)))
    assert refusal == Refusal("pi/yard", "stale", "no telemetry for 3.1 s")


def test_who_failed_this_request_is_not_asked_again() -> None:
    assert code(service_view("pi/yard"), Request(ModelName("yard"), "here", excluded=(sid("pi"),))) == "excluded"


def test_a_pinned_request_goes_nowhere_else() -> None:
    pinned = Request(ModelName("yard"), "here", qos=Qos(node="pi"))
    assert code(service_view("pi/yard"), pinned) == ""
    assert code(service_view("desk/yard"), pinned) == "pinned"


@pytest.mark.parametrize(
    ("privacy", "name", "runtime", "refused"),
    [
        (Privacy.LOCAL, "here/yard", "onnx", False),
        (Privacy.LOCAL, "pi/yard", "onnx", True),
        (Privacy.LOCAL, "here/yard", "remote", True),  # the process is here, the data would not be
        (Privacy.FLEET, "pi/yard", "onnx", False),
        (Privacy.FLEET, "pi/yard", "remote", True),
        (Privacy.ANY, "pi/yard", "remote", False),
    ],
)
def test_privacy(privacy: Privacy, name: str, runtime: str, refused: bool) -> None:
    request = Request(ModelName("yard"), "here", qos=Qos(privacy=privacy))
    assert code(service_view(name, runtime=runtime), request) == ("private" if refused else "")


def test_local_on_the_same_machine_but_another_node_is_refused() -> None:
    nodes = [(name, node_view(name, host="box")) for name in ("pi", "here")]
    request = Request(ModelName("yard"), "here", qos=Qos(privacy=Privacy.LOCAL))
    assert code(service_view("pi/yard"), request, nodes=nodes) == "private"


def test_a_service_that_lies_about_its_node_gets_no_local_data() -> None:
    request = Request(ModelName("yard"), "here", qos=Qos(privacy=Privacy.LOCAL))
    assert code(service_view("pi/yard", node=NodeId("here")), request) == "private"


def test_a_full_queue() -> None:
    assert code(service_view("pi/yard", queued=8, queue_limit=8)) == "queue-full"
    assert code(service_view("pi/yard", queued=7, queue_limit=8)) == ""
    assert code(service_view("pi/yard", queued=99, queue_limit=0)) == ""


def test_own_requests_fill_the_queue_without_being_counted_twice() -> None:
    view = service_view("pi/yard", queued=5, queue_limit=8, workers=1)
    assert code(view, pending={"pi/yard": 6}) == ""
    assert code(view, pending={"pi/yard": 9}) == "queue-full"


def test_a_refusal_by_the_service_counts_until_newer_telemetry() -> None:
    full = {"pi/yard": Observed(queued=8, queued_at=Seconds(NOW - 0.1))}
    assert code(service_view("pi/yard", queue_limit=8, age=0.3), observed=full) == "queue-full"
    assert code(service_view("pi/yard", queue_limit=8, age=0.05), observed=full) == ""


def test_memory_is_looked_at_while_the_nodes_telemetry_is_fresh() -> None:
    tight = Bytes(4 * GIB // 100)
    refusal = verdict(service_view("pi/yard"), nodes=[("pi", node_view("pi", memory_free=tight))])
    assert refusal == Refusal("pi/yard", "memory", "node pi has 41.0 MiB of 4.0 GiB left")
    assert code(service_view("pi/yard"), nodes=[("pi", node_view("pi", memory_free=tight, age=5.0))]) == ""
    assert code(service_view("pi/yard"), nodes=[("pi", node_view("pi", memory_free=Bytes(GIB // 10)))]) == ""


def quarantine(failures: int, ago: float, pending: int = 0) -> str:
    observed = {"pi/yard": Observed(failures=failures, failed_at=Seconds(NOW - ago), error="unreachable")}
    return code(service_view("pi/yard"), observed=observed, pending={"pi/yard": pending} if pending else {})


def test_quarantine_starts_at_the_third_failure_and_doubles_to_a_limit() -> None:
    assert quarantine(2, 0.0) == ""
    assert (quarantine(3, 1.9), quarantine(3, 2.1)) == ("quarantined", "")
    assert (quarantine(4, 3.9), quarantine(4, 4.1)) == ("quarantined", "")
    assert (quarantine(60, 29.9), quarantine(60, 30.1)) == ("quarantined", "")


def test_one_request_probes_a_service_that_leaves_quarantine() -> None:
    assert quarantine(3, 2.1, pending=0) == ""
    assert quarantine(3, 2.1, pending=1) == "quarantined"


def test_nodes_without_the_model_say_what_to_type() -> None:
    nodes = [
        ("bare", node_view("bare")),
        ("stocked", node_view("stocked", models=(ModelName("yard"),))),
        ("cut", node_view("cut", alive=False)),
        ("left", node_view("left", alive=False, leaving=True)),
    ]
    assert absent(fleet(service_view("pi/yard"), nodes=nodes), REQUEST, NOW) == [
        Refusal("bare", "not-served", "does not serve yard; run `nearfar up --model yard` there"),
        Refusal(
            "stocked",
            "not-served",
            "has yard in its store but does not serve it; run `nearfar models serve yard` there",
        ),
        Refusal("cut", "disconnected", "the node is gone without a goodbye for 50.0 s; it may come back as it was"),
        Refusal("left", "gone", "the node is gone for 50.0 s, after it said goodbye"),
    ]


@given(snapshots(), requests())
def test_every_refusal_has_a_documented_code_and_a_reason(snapshot: Snapshot, request: Request) -> None:
    for view in snapshot.services.values():
        refusal = refuse(snapshot, request, view, NOW)
        if refusal is not None:
            assert refusal.code in CODES and refusal.reason and refusal.subject == view.report.service
            assert set(refusal.as_mapping()) == {"subject", "code", "reason"}


def test_every_documented_code_is_used() -> None:
    sources = "".join(map(inspect.getsource, (filters, decide_module, late, health_module)))
    from_health = {
        "gone",
        "stale",
        "disconnected",
        "self-test",
        *(s.value for s in ServiceState if s is not ServiceState.READY),
    }
    assert all(f'"{known}"' in sources for known in set(CODES) - from_health)
    assert from_health <= set(CODES)
