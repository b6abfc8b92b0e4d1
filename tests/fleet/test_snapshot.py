from __future__ import annotations

import msgspec
import pytest

from nearfar.fleet.snapshot import FRESH, NEVER, NodeView, ServiceView, Snapshot, freshness, service_health
from nearfar.types.telemetry import ServiceState
from nearfar.types.units import Seconds
from tests.fleet.build import NOW, node_view, service_report, service_view


def test_healthy_needs_token_telemetry_and_ready() -> None:
    assert service_health(service_view("pi/yard"), node_view("pi"), NOW) == (True, "", "")


def test_telemetry_is_fresh_up_to_the_limit_and_not_beyond() -> None:
    assert service_health(service_view("pi/yard", age=FRESH), None, NOW)[0]
    assert service_health(service_view("pi/yard", age=3.1), None, NOW) == (False, "stale", "no telemetry for 3.1 s")


def test_a_token_without_telemetry_is_not_healthy() -> None:
    view = ServiceView(service_report("pi/yard"), True, NEVER, NOW)
    assert service_health(view, None, NOW)[:2] == (False, "stale")
    assert freshness(view, NOW) == float("inf")


@pytest.mark.parametrize("state", [ServiceState.STARTING, ServiceState.FAILED])
def test_a_state_carries_its_reason_with_or_without_a_token(state: ServiceState) -> None:
    for alive in (True, False):
        view = service_view("pi/yard", alive=alive, state=state, reason="restarts in 4 s")
        assert service_health(view, None, NOW) == (False, state.value, f"{state.value}: restarts in 4 s")


def test_one_that_stops_does_not_tell_why_it_ran() -> None:
    view = service_view("pi/yard", state=ServiceState.STOPPING, reason="int8 is the best precision here")
    assert service_health(view, None, NOW) == (False, "stopping", "it is being stopped")


def test_gone_tells_a_dead_process_from_a_dead_node() -> None:
    view = service_view("pi/yard", alive=False, age=9)
    assert "process" in service_health(view, node_view("pi"), NOW)[2]
    told = "its node is gone without a goodbye for 50.0 s; it may come back as it was"
    assert service_health(view, node_view("pi", alive=False), NOW) == (False, "disconnected", told)
    told = "its node is gone for 50.0 s, after it said goodbye"
    assert service_health(view, node_view("pi", alive=False, leaving=True), NOW) == (False, "gone", told)
    stopped = service_view("pi/yard", alive=False, age=9, state=ServiceState.STOPPING)
    told = "it has been gone for 50.0 s, after it said goodbye"
    assert service_health(stopped, node_view("pi", alive=False), NOW) == (False, "gone", told)


def test_an_agent_that_is_gone_does_not_make_its_living_service_unhealthy() -> None:
    assert service_health(service_view("pi/yard"), NodeView(), NOW)[0]


def test_a_snapshot_is_frozen_and_starts_empty() -> None:
    snapshot = Snapshot("me")
    assert not (snapshot.nodes or snapshot.services or snapshot.by_model or snapshot.pending)
    with pytest.raises(AttributeError):
        snapshot.me = "other"  # type: ignore[misc]


def test_a_snapshot_can_be_shown_as_json() -> None:
    snapshot = Snapshot("me", services={service_report("pi/yard").service: service_view("pi/yard")})
    assert msgspec.json.decode(msgspec.json.encode(snapshot))["services"]["pi/yard"]["alive"] is True


def test_freshness_is_the_age() -> None:
    assert freshness(service_view("pi/yard", age=0.25), Seconds(NOW)) == pytest.approx(0.25)
