from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.fleet.events import (
    Event,
    LinkMeasured,
    NodeAppeared,
    NodeForgotten,
    NodeReported,
    NodeVanished,
    PromiseBroken,
    RequestAnswered,
    RequestFailed,
    RequestSent,
    ServiceAppeared,
    ServiceForgotten,
    ServiceReported,
    ServiceVanished,
)
from nearfar.fleet.health import QUARANTINE
from nearfar.fleet.reduce import BLAMELESS, OBSERVED_MOST, fold, prune
from nearfar.fleet.snapshot import FRESH, LinkView, Snapshot, service_health
from nearfar.types.ids import ModelName, NodeId, ServiceId
from nearfar.types.request import Stages
from nearfar.types.telemetry import LinkReport, ServiceState
from nearfar.types.units import Bytes, Milliseconds, Ratio, Seconds
from tests.fleet.build import node_report, service_report, sid

EMPTY = Snapshot("me")
T = Seconds(10.0)
STAGES = Stages(2.0, 0.0, 1.0, 20.0, 1.0)


def at(moment: float) -> Seconds:
    return Seconds(moment)


def reported(name: str, moment: float, instance: str = "s1", **changes: Any) -> ServiceReported:
    return ServiceReported(service_report(name, instance=instance, **changes), at(moment))


def link_report(peer: str, rtt: float = 3.0) -> LinkReport:
    return LinkReport(NodeId(peer), Milliseconds(rtt), Milliseconds(0.5), Ratio(0.0), None)


NAMES = st.sampled_from([f"{node}/{model}" for node in ("a", "b", "c") for model in ("yard", "gate")])
NODES = st.sampled_from(["a", "b", "c"])
INSTANCES = st.sampled_from(["", "s1", "s2", "s3"])
CODES = st.sampled_from(["unreachable", "deadline-exceeded", "cancelled", "overloaded"])


@st.composite
def events(draw: st.DrawFn) -> list[Event]:
    """Any events in any order, at moments that never go back."""
    moment = 0.0
    found: list[Event] = []
    for _ in range(draw(st.integers(0, 30))):
        moment += draw(st.sampled_from([0.0, 0.4, 1.9, 2.5, 70.0]))
        name, node, t = draw(NAMES), draw(NODES), at(moment)
        service = ServiceId(name)
        choices: list[Event] = [
            RequestSent(service, t),
            RequestAnswered(service, STAGES, t, draw(st.integers(0, 3)), Bytes(1000)),
            RequestFailed(service, draw(CODES), t),
            reported(name, moment, draw(INSTANCES)),
            NodeReported(node_report(node, instance=draw(INSTANCES), links=(link_report("b"),)), t),
            ServiceAppeared(service, t),
            ServiceVanished(service, t),
            ServiceForgotten(service, t),
            NodeAppeared(NodeId(node), t),
            NodeVanished(NodeId(node), t),
            NodeForgotten(NodeId(node), t),
            LinkMeasured(NodeId(node), link_report("c"), t),
            PromiseBroken(service, Milliseconds(100.0), t, "late"),
        ]
        assert {type(choice) for choice in choices} == set(get_args(Event))
        found.append(draw(st.sampled_from(choices)))
    return found


@given(events())
def test_a_batch_folds_to_the_same_as_one_by_one(batch: list[Event]) -> None:
    one_by_one = EMPTY
    for event in batch:
        one_by_one = fold(one_by_one, [event])
    assert fold(EMPTY, batch) == one_by_one


@given(events(), events())
def test_folding_changes_no_earlier_snapshot(first: list[Event], second: list[Event]) -> None:
    before = fold(EMPTY, first)
    copy = fold(EMPTY, first)
    fold(before, second)
    assert before == copy


@given(events())
def test_the_index_by_model_is_exactly_the_services(batch: list[Event]) -> None:
    snapshot = fold(EMPTY, batch)
    listed = [service for ids in snapshot.by_model.values() for service in ids]
    assert sorted(listed) == sorted(snapshot.services)
    assert all(list(ids) == sorted(ids) and ids for ids in snapshot.by_model.values())
    assert all(snapshot.services[s].report.model == model for model, ids in snapshot.by_model.items() for s in ids)
    assert all(count > 0 for count in snapshot.pending.values())


def subject(event: Event) -> str:
    """Events of different subjects are independent of each other."""
    match event:
        case ServiceReported():
            return event.report.service
        case NodeReported():
            return "node " + event.report.node
        case LinkMeasured():
            return "link " + event.source
        case NodeAppeared() | NodeVanished() | NodeForgotten():
            return "node " + event.node
        case _:
            return event.service


@given(events(), st.randoms(use_true_random=False))
def test_independent_events_commute(batch: list[Event], rng: random.Random) -> None:
    # Links that a node reports and what forgetting a node does to links depend on each other: left out here.
    kept = [e for e in batch if not isinstance(e, NodeForgotten)]
    by_subject: dict[str, list[Event]] = {}
    for event in kept:
        by_subject.setdefault(subject(event), []).append(event)
    shuffled: list[Event] = []
    while by_subject:
        name = rng.choice(sorted(by_subject))
        shuffled.append(by_subject[name].pop(0))
        if not by_subject[name]:
            del by_subject[name]
    assert fold(EMPTY, shuffled) == fold(EMPTY, kept)


def test_token_and_telemetry_may_come_in_either_order() -> None:
    token, telemetry = ServiceAppeared(sid("a"), T), reported("a/yard", 10.1)
    assert fold(EMPTY, [token, telemetry]) == fold(EMPTY, [telemetry, token])
    assert service_health(fold(EMPTY, [token, telemetry]).services[sid("a")], None, at(10.2))[0]


def test_a_token_alone_stands_as_starting_and_is_listed() -> None:
    snapshot = fold(EMPTY, [ServiceAppeared(sid("a"), T)])
    assert snapshot.by_model == {ModelName("yard"): (sid("a"),)}
    assert not service_health(snapshot.services[sid("a")], None, T)[0]


def test_an_older_instance_is_ignored_while_the_newer_one_speaks() -> None:
    snapshot = fold(EMPTY, [reported("a/yard", 1, "s1", queued=7), reported("a/yard", 2, "s2"), reported("a/yard", 3)])
    view = snapshot.services[sid("a")]
    assert (view.report.instance, view.heard) == ("s2", 2.0)


def test_reports_in_the_wrong_order_do_not_silence_the_living_for_good() -> None:
    # This client hears the new one first, then a late report of the old one, then only the new one.
    snapshot = fold(EMPTY, [reported("a/yard", 1, "new"), reported("a/yard", 1.1, "old")])
    moment = 1.5
    while moment < 1.1 + FRESH + 0.5:
        snapshot = fold(snapshot, [reported("a/yard", moment, "new")])
        moment += 0.5
    assert snapshot.services[sid("a")].report.instance == "new"


def test_the_agents_word_on_a_stopped_service_is_taken_every_time() -> None:
    snapshot = EMPTY
    for round_ in range(4):
        snapshot = fold(snapshot, [reported("a/yard", round_, f"s{round_}")])
        snapshot = fold(snapshot, [reported("a/yard", round_ + 0.3, "", state=ServiceState.FAILED)])
        assert snapshot.services[sid("a")].report.state is ServiceState.FAILED
    late = fold(snapshot, [reported("a/yard", 3.4, "s2")])
    assert late == snapshot


def test_a_node_of_an_older_instance_is_ignored_with_its_links() -> None:
    old = NodeReported(node_report("a", instance="i1", links=(link_report("b", 99.0),)), at(3))
    snapshot = fold(
        EMPTY, [NodeReported(node_report("a", instance=i, links=(link_report("b"),)), T) for i in ("i1", "i2")]
    )
    assert fold(snapshot, [NodeReported(old.report, at(10.5))]) == snapshot


def test_a_report_that_contradicts_its_own_id_is_ignored() -> None:
    assert fold(EMPTY, [reported("a/yard", 1, node=NodeId("b"))]) == EMPTY


def test_a_late_report_does_not_revive_the_dead() -> None:
    snapshot = fold(EMPTY, [ServiceAppeared(sid("a"), T), reported("a/yard", 10), ServiceVanished(sid("a"), at(11))])
    snapshot = fold(snapshot, [reported("a/yard", 11.1)])
    assert service_health(snapshot.services[sid("a")], None, at(11.2))[:2] == (False, "gone")


def test_a_ghost_is_kept_for_a_while_then_forgotten_and_may_come_back() -> None:
    gone = fold(
        EMPTY,
        [
            NodeAppeared(NodeId("a"), T),
            ServiceAppeared(sid("a"), T),
            reported("a/yard", 10),
            RequestSent(sid("a"), T),
            RequestAnswered(sid("a"), STAGES, T),
            LinkMeasured(NodeId("a"), link_report("b"), T),
            LinkMeasured(NodeId("b"), link_report("c"), T),
            ServiceVanished(sid("a"), at(11)),
            NodeVanished(NodeId("a"), at(11)),
        ],
    )
    assert gone.services[sid("a")].report.instance == "s1"
    assert prune(gone, at(70)) == gone
    left = prune(gone, at(71.1))
    assert (left.nodes, left.services, left.by_model, left.observed) == ({}, {}, {}, {})
    assert list(left.links) == [(NodeId("b"), NodeId("c"))]
    back = fold(left, [ServiceAppeared(sid("a"), at(80)), reported("a/yard", 80, "s2")])
    assert service_health(back.services[sid("a")], None, at(80))[0]


def test_the_living_are_never_forgotten() -> None:
    alive = fold(EMPTY, [ServiceAppeared(sid("a"), T), NodeAppeared(NodeId("a"), T)])
    assert prune(alive, at(1e6)) == alive
    assert fold(alive, [ServiceForgotten(sid("a"), T), NodeForgotten(NodeId("a"), T)]) == alive


def known(name: str = "a/yard", **changes: Any) -> Snapshot:
    return fold(EMPTY, [ServiceAppeared(ServiceId(name), at(0)), reported(name, 0, **changes)])


def test_pending_counts_what_is_under_way() -> None:
    snapshot = fold(known(), [RequestSent(sid("a"), T), RequestSent(sid("a"), T)])
    assert snapshot.pending == {sid("a"): 2}
    snapshot = fold(snapshot, [RequestFailed(sid("a"), "cancelled", T), RequestAnswered(sid("a"), STAGES, T)])
    assert snapshot.pending == {}
    assert fold(snapshot, [RequestAnswered(sid("a"), STAGES, T)]).pending == {}


def test_what_is_observed_moves_towards_what_answers_say() -> None:
    snapshot = known(service_ms=11.0)
    for _ in range(60):
        snapshot = fold(snapshot, [RequestAnswered(sid("a"), STAGES, T, 2, Bytes(5000))])
    seen = snapshot.observed[sid("a")]
    assert seen.ratio == pytest.approx(2.0, rel=1e-3)
    assert (seen.link, seen.jitter, seen.moved, seen.queued, seen.queued_at) == (2.0, 0.0, 5000, 2, T)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -5.0])
def test_numbers_that_cannot_be_are_kept_out_of_the_averages(bad: float) -> None:
    snapshot = fold(known(), [RequestAnswered(sid("a"), Stages(bad, 0, bad, bad, bad), T)])
    seen = snapshot.observed[sid("a")]
    assert seen.ratio == 1.0 and seen.link is None
    snapshot = fold(known(service_ms=bad), [RequestAnswered(sid("a"), STAGES, T)])
    assert snapshot.observed[sid("a")].ratio == 1.0


def test_failures_in_a_row_are_counted_and_an_answer_ends_them() -> None:
    snapshot = fold(known(), [RequestFailed(sid("a"), "unreachable", at(t)) for t in (1, 2, 3)])
    seen = snapshot.observed[sid("a")]
    assert (seen.failures, seen.error, seen.failed_at) == (3, "unreachable", 3.0)
    assert fold(snapshot, [RequestAnswered(sid("a"), STAGES, T)]).observed[sid("a")].failures == 0


@pytest.mark.parametrize("code", sorted(BLAMELESS))
def test_some_failures_are_not_the_services_fault(code: str) -> None:
    snapshot = fold(known(queue_limit=8), [RequestFailed(sid("a"), code, T)] * 5)
    seen = snapshot.observed.get(sid("a"))
    assert seen is None or seen.failures == 0
    if code == "overloaded":
        assert seen is not None and (seen.queued, seen.queued_at) == (8, T)


@pytest.mark.parametrize(("waited", "blamed"), [(None, True), (1.0, False), (39.0, False), (41.0, True)])
def test_a_deadline_that_could_not_be_kept_is_not_the_services_fault(waited: float | None, blamed: bool) -> None:
    gave_up = RequestFailed(sid("a"), "deadline-exceeded", T, None if waited is None else Milliseconds(waited))
    snapshot = fold(known(service_ms=20.0, in_flight=1), [gave_up])
    seen = snapshot.observed.get(sid("a"))
    assert (seen is not None and seen.failures == 1) == blamed


def test_a_restart_leaves_quarantine_but_one_failure_from_it() -> None:
    snapshot = fold(known(), [RequestFailed(sid("a"), "unreachable", T)] * 5)
    snapshot = fold(snapshot, [reported("a/yard", 11, "s2")])
    assert snapshot.observed[sid("a")].failures == QUARANTINE - 1


def test_what_concerns_an_unknown_service_leaves_no_trace() -> None:
    trace: list[Event] = [RequestFailed(sid("x"), "unreachable", T), RequestAnswered(sid("x"), STAGES, T)]
    assert fold(EMPTY, [*trace, ServiceVanished(sid("x"), T), NodeVanished(NodeId("x"), T)]) == EMPTY


def test_observations_are_bounded_and_failing_services_are_kept() -> None:
    many = [f"n{i}/yard" for i in range(OBSERVED_MOST + 1)]
    snapshot = fold(EMPTY, [reported(name, 0) for name in many])
    snapshot = fold(snapshot, [RequestFailed(ServiceId(many[0]), "unreachable", at(0.5))])
    snapshot = fold(snapshot, [RequestAnswered(ServiceId(n), STAGES, at(1 + i)) for i, n in enumerate(many[1:])])
    assert len(snapshot.observed) == OBSERVED_MOST // 2
    assert {ServiceId(many[0]), ServiceId(many[-1])} <= set(snapshot.observed)
    assert ServiceId(many[1]) not in snapshot.observed


def test_links_come_from_nodes_and_from_this_client() -> None:
    snapshot = fold(
        EMPTY,
        [
            NodeReported(node_report("a", links=(link_report("b"), link_report("c"))), T),
            LinkMeasured(NodeId("me"), link_report("a", 7.0), at(11)),
        ],
    )
    assert set(snapshot.links) == {("a", "b"), ("a", "c"), ("me", "a")}
    assert snapshot.links[NodeId("me"), NodeId("a")] == LinkView(
        Milliseconds(7.0), Milliseconds(0.5), Ratio(0.0), None, at(11)
    )


def test_a_batch_copies_only_what_it_touches() -> None:
    before = known()
    after = fold(before, [RequestSent(sid("a"), T)])
    assert after.services is before.services
    assert after.observed is before.observed
    assert after.links is before.links
    assert after.by_model is before.by_model
    assert fold(before, []) is before


def test_a_batch_copies_each_mapping_once() -> None:
    copies: list[str] = []

    class Counted(dict[Any, Any]):
        def __init__(self, name: str, content: Mapping[Any, Any]) -> None:
            super().__init__(content)
            self.name = name

        def copy(self) -> Counted:
            copies.append(self.name)
            return Counted(self.name, self)

    written = ("observed", "owed", "pending")
    counted = {name: Counted(name, getattr(known(), name)) for name in (*written, "missed", "services")}
    before = msgspec.structs.replace(known(), **counted)
    due = Seconds(T + 1)
    after = fold(before, [RequestSent(sid("a"), T, due), RequestAnswered(sid("a"), STAGES, T, due=due)] * 50)
    assert sorted(copies) == list(written)
    assert after.observed[sid("a")] and not before.observed and not after.pending and not after.owed
