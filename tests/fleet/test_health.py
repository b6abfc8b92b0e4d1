"""States with hysteresis: what enters, what leaves, and that nothing flaps."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.fleet import health as health_module
from nearfar.fleet.events import (
    Event,
    NodeAppeared,
    NodeReported,
    NodeVanished,
    RequestAnswered,
    RequestFailed,
    ServiceAppeared,
    ServiceReported,
    ServiceVanished,
)
from nearfar.fleet.health import BROKEN, ERRORS, HOT, MEMORY_USED, Health, degraded, health, node_health
from nearfar.fleet.reduce import fold
from nearfar.fleet.snapshot import FRESH, Snapshot
from nearfar.fleet.steady import APART, ENTER, LEAVE, OFF, Limit, Steady, follow
from nearfar.types.ids import NodeId
from nearfar.types.request import Stages
from nearfar.types.telemetry import SelfTest, ServiceState
from nearfar.types.units import Bytes, Seconds
from tests.fleet.build import GIB, node_report, service_report, sid

PI = sid("pi")
START = 10.0
HALF = 0.5
BAD, GOOD = 0.2, 0.0
NODE_CAUSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hot": ({"temperature": HOT.enter, "temperature_reason": "cpu"}, {"temperature": HOT.leave}),
    "throttled": ({"throttled": True, "throttled_reason": "the firmware says so"}, {"throttled": False}),
    "memory-short": (
        {"memory_free": Bytes(int(4 * GIB * 0.99 * (1 - MEMORY_USED.enter)))},
        {"memory_free": Bytes(int(4 * GIB * 1.01 * (1 - MEMORY_USED.leave)))},
    ),
}


class World:
    """One node with one service that reports twice a second; `now` is the moment of the last event."""

    def __init__(self) -> None:
        self.now = Seconds(START)
        self.snapshot = Snapshot("here")
        self.happen(NodeAppeared(NodeId("pi"), self.now), ServiceAppeared(PI, self.now))
        self.report()

    def happen(self, *events: Event) -> None:
        self.snapshot = fold(self.snapshot, events)

    def report(self, node: dict[str, Any] | None = None, **service: Any) -> Health:
        self.now = Seconds(self.now + HALF)
        self.happen(
            NodeReported(node_report("pi", **(node or {})), self.now),
            ServiceReported(service_report("pi/yard", **service), self.now),
        )
        return self.state

    @property
    def state(self) -> Health:
        return health(self.snapshot, PI, self.now)[0]

    @property
    def code(self) -> str:
        return health(self.snapshot, PI, self.now)[1]


# -- hysteresis --------------------------------------------------------------------------------------------------------


def changes(states: Iterable[object]) -> int:
    seen = list(states)
    return sum(a != b for a, b in pairwise(seen))


rates = st.lists(
    st.sampled_from([0.0, 0.03, 0.07, 0.1, 0.2, 0.4, 0.6, 1.0, float("nan")]) | st.floats(0, 1), max_size=80
)


@given(rates)
def test_health_changes_no_more_often_than_the_hysteresis_promises(reports: list[float]) -> None:
    world = World()
    states = [world.state] + [world.report(error_rate=rate) for rate in reports]
    # Two conditions, raised and broken: each change needs ENTER or LEAVE reports of its own.
    most = 2 * (2 * (len(reports) + ENTER) // (ENTER + LEAVE) + 1)
    assert changes(states) <= most
    assert set(states) <= {Health.READY, Health.DEGRADED, Health.QUARANTINED}


@given(st.lists(st.booleans(), max_size=60), st.floats(0.01, 2.0))
def test_one_condition_changes_at_most_twice_in_nine_reports(bad: list[bool], apart: float) -> None:
    state, at, states = OFF, 0.0, [False]
    for is_bad in bad:
        at += apart
        state = follow(state, float(is_bad), Limit(1.0, 0.0), Seconds(at))
        states.append(state.on)
    assert changes(states) <= 2 * (len(bad) + LEAVE) // (ENTER + LEAVE) + 1
    # However fast reports come: to begin and to end again takes so long.
    assert changes(states) <= 2 * (at / ((ENTER + LEAVE - 2) * APART) + 1)


@given(st.floats(0, 1) | st.just(float("inf")) | st.just(float("nan")), st.booleans())
def test_one_report_changes_nothing(rate: float, bad_before: bool) -> None:
    world = World()
    usual = BAD if bad_before else GOOD
    for _ in range(ENTER + 1):
        before = world.report(error_rate=usual)
    assert before is (Health.DEGRADED if bad_before else Health.READY)
    assert world.report(error_rate=rate) is before
    assert world.report(error_rate=usual) is before


def test_one_bad_second_moves_nothing_and_a_longer_one_does() -> None:
    world = World()
    assert [world.report(error_rate=BAD) for _ in range(ENTER - 1)] == [Health.READY] * (ENTER - 1)
    world.report()
    for _ in range(ENTER - 1):
        world.report(error_rate=BAD)
    assert world.state is Health.READY
    assert world.report(error_rate=BAD) is Health.DEGRADED
    assert world.code == "errors"
    assert [world.report() for _ in range(LEAVE)] == [Health.DEGRADED] * (LEAVE - 1) + [Health.READY]


def test_between_the_thresholds_a_condition_stays_as_it_is() -> None:
    between = (ERRORS.enter + ERRORS.leave) / 2
    world = World()
    assert {world.report(error_rate=between) for _ in range(20)} == {Health.READY}
    for _ in range(ENTER):
        world.report(error_rate=ERRORS.enter)
    assert {world.report(error_rate=between) for _ in range(20)} == {Health.DEGRADED}


def test_reports_that_come_at_once_count_as_one() -> None:
    state = OFF
    for number in range(50):
        state = follow(state, 1.0, Limit(1.0, 0.0), Seconds(1 + number * 0.01))
    assert not state.on and state.run == 2
    assert follow(state, 0.0, Limit(1.0, 0.0), Seconds(1.51)).run == 0, "one that contradicts always counts"


def test_the_first_report_is_believed_as_it_is() -> None:
    """A look from the command line hears one report and must not call a hot node well."""
    snapshot = Snapshot("here")
    events: list[Event] = [NodeAppeared(NodeId("pi"), Seconds(1.0)), ServiceAppeared(PI, Seconds(1.0))]
    events += [NodeReported(node_report("pi", temperature=95.0), Seconds(1.1))]
    events += [ServiceReported(service_report("pi/yard"), Seconds(1.1))]
    assert health(fold(snapshot, events), PI, Seconds(1.2))[:2] == (Health.DEGRADED, "hot")


# -- what enters and what leaves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", NODE_CAUSES)
def test_a_weak_node_degrades_its_services_and_says_why(cause: str) -> None:
    weak, well = NODE_CAUSES[cause]
    world = World()
    for _ in range(ENTER):
        world.report(weak)
    state, code, reason = health(world.snapshot, PI, world.now)
    assert (state, code) == (Health.DEGRADED, cause) and reason
    assert node_health(world.snapshot.nodes[NodeId("pi")], world.now)[:2] == (Health.DEGRADED, cause)
    assert state.may_be_asked
    for _ in range(LEAVE):
        world.report(well)
    assert world.state is Health.READY


def test_what_a_silent_agent_said_last_does_not_count_for_ever() -> None:
    world = World()
    for _ in range(ENTER):
        world.report({"throttled": True})
    view, node = world.snapshot.services[PI], world.snapshot.nodes[NodeId("pi")]
    assert degraded(view, node, world.now) is not None
    assert degraded(view, node, Seconds(world.now + FRESH + 0.1)) is None
    assert degraded(view, None, world.now) is None


def test_a_service_of_which_half_fails_is_left_alone_until_it_has_rested() -> None:
    world = World()
    for _ in range(ENTER):
        world.report(error_rate=BROKEN.enter)
    state, code, reason = health(world.snapshot, PI, world.now)
    assert (state, code) == (Health.QUARANTINED, "error-rate") and "50%" in reason
    assert not state.may_be_asked
    # Nobody asks it, so its window runs empty and it reports no errors.
    assert [world.report() for _ in range(LEAVE)][-1] is Health.READY


def test_a_new_process_does_not_inherit_the_errors_of_the_old_one_but_the_heat_of_its_machine() -> None:
    world = World()
    for _ in range(ENTER):
        world.report({"temperature": 95.0}, error_rate=0.9)
    assert world.code == "error-rate"
    world.report({"temperature": 95.0, "instance": "n2"}, instance="s2")
    assert world.code == "hot"


def test_failures_in_a_row_seen_here_quarantine_and_one_answer_ends_it() -> None:
    world = World()
    world.happen(*(RequestFailed(PI, "inference", world.now) for _ in range(3)))
    assert (world.state, world.code) == (Health.QUARANTINED, "quarantined")
    world.happen(RequestAnswered(PI, Stages(inference=20.0), world.now))
    assert world.state is Health.READY


def test_a_failed_self_test_is_a_quarantine_and_other_failures_are_not() -> None:
    world = World()
    wrong: dict[str, Any] = {"state": ServiceState.FAILED, "reason": "the self-test was answered wrongly"}
    world.report(**wrong, self_test=SelfTest(False, "zeros"))
    assert (world.state, world.code) == (Health.QUARANTINED, "self-test")
    world.report(**wrong, self_test=SelfTest(None))
    assert (world.state, world.code) == (Health.FAILED, "failed")


@pytest.mark.parametrize("state", [s for s in ServiceState if s is not ServiceState.READY])
def test_what_a_service_says_of_itself_is_its_health(state: ServiceState) -> None:
    world = World()
    world.report(state=state)
    assert world.state.value == state.value


def test_every_code_is_documented() -> None:
    from nearfar.placement.refusal import CODES

    assert {"self-test", "error-rate", "quarantined", "disconnected", "gone", "stale"} <= set(CODES)
    source = inspect.getsource(health_module)
    page = (Path(__file__).parents[2] / "docs" / "explanation-health.md").read_text()
    for code in (*Health, *CODES.keys() & {"self-test", "error-rate"}, *NODE_CAUSES, "errors"):
        assert f"`{code}`" in page, code
    for limit in ("85", "80", "95 %", "92 %", "10 %", "5 %", "50 %", "25 %"):
        assert limit in page
    assert all(f'"{code}"' in source for code in (*NODE_CAUSES, "errors"))


# -- gone, disconnected, and back --------------------------------------------------------------------------------------


def test_a_node_that_vanishes_without_a_goodbye_is_disconnected_and_comes_back_as_it_was() -> None:
    world = World()
    world.happen(RequestAnswered(PI, Stages(link=3.0, inference=40.0), world.now))
    for _ in range(ENTER):
        world.report(error_rate=BAD)
    known = world.snapshot.observed[PI]
    at = Seconds(world.now + 2.1)
    world.happen(NodeVanished(NodeId("pi"), at), ServiceVanished(PI, at))
    world.now = Seconds(at + 5)
    assert (world.state, world.code) == (Health.DISCONNECTED, "disconnected")
    assert node_health(world.snapshot.nodes[NodeId("pi")], world.now)[0] is Health.DISCONNECTED
    world.happen(NodeAppeared(NodeId("pi"), world.now), ServiceAppeared(PI, world.now))
    assert world.report(error_rate=BAD) is Health.DEGRADED, "what was counted is still known"
    assert world.snapshot.observed[PI] == known


def test_a_new_instance_after_the_cut_starts_afresh() -> None:
    world = World()
    for _ in range(ENTER):
        world.report(error_rate=BAD)
    world.happen(NodeVanished(NodeId("pi"), world.now), ServiceVanished(PI, world.now))
    world.happen(NodeAppeared(NodeId("pi"), world.now), ServiceAppeared(PI, world.now))
    assert world.report(instance="s2") is Health.READY


def test_a_goodbye_makes_it_gone_not_disconnected() -> None:
    world = World()
    world.report({"leaving": True}, state=ServiceState.STOPPING)
    assert [world.state, node_health(world.snapshot.nodes[NodeId("pi")], world.now)[0]] == [Health.STOPPING] * 2
    world.happen(ServiceVanished(PI, world.now), NodeVanished(NodeId("pi"), world.now))
    world.now = Seconds(world.now + 5)
    assert [world.state, node_health(world.snapshot.nodes[NodeId("pi")], world.now)[0]] == [Health.GONE] * 2


def test_a_process_that_dies_while_its_node_lives_is_gone() -> None:
    world = World()
    world.happen(ServiceVanished(PI, world.now))
    world.now = Seconds(world.now + 5)
    assert world.state is Health.GONE
    assert health(world.snapshot, sid("nowhere"), world.now)[0] is Health.GONE


def test_a_token_without_telemetry_is_stale() -> None:
    world = World()
    world.now = Seconds(world.now + FRESH + 0.1)
    assert (world.state, world.code) == (Health.STALE, "stale")
    assert node_health(world.snapshot.nodes[NodeId("pi")], world.now)[0] is Health.STALE
    assert isinstance(OFF, Steady)
