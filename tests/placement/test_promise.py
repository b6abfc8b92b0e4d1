"""Streams whose promise is in danger, services that broke one, and callers who would rather be refused than late."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.fleet.events import PromiseBroken, RequestAnswered, RequestFailed, RequestSent, ServiceReported
from nearfar.fleet.reduce import fold
from nearfar.fleet.snapshot import Observed, Snapshot
from nearfar.fleet.unreliable import FORGIVEN_AFTER, UNRELIABLE_MOST, kept_out
from nearfar.placement.decide import Decision, decide
from nearfar.placement.late import refused_as_late
from nearfar.placement.policies.base import Policy
from nearfar.placement.policies.nearest import Nearest
from nearfar.placement.policies.predictive import Predictive
from nearfar.types.ids import ModelName, ServiceId
from nearfar.types.request import Degrade, Qos, Request, Stages
from nearfar.types.units import Milliseconds, Seconds
from tests.fleet.build import NOW, fleet, link, service_report, service_view, sid
from tests.placement.worlds import requests, snapshots

MS = Milliseconds
WITHIN = Qos(MS(100.0))


def at(moment: float) -> Seconds:
    return Seconds(NOW + moment)


def ask(snapshot: Snapshot, now: Seconds = NOW, policy: Policy | None = None, **fields: Any) -> Decision:
    fields = {"qos": WITHIN} | fields
    return decide(snapshot, Request(ModelName("yard"), "here", **fields), now, random.Random(0), policy or Predictive())


def pair(a_ms: float = 40.0, b_ms: float = 60.0, **changes: Any) -> Snapshot:
    """Two services; each is one millisecond away, so that expected is its time and one."""
    services = (service_view("a/yard", service_ms=a_ms, **changes), service_view("b/yard", service_ms=b_ms, **changes))
    return fleet(*services, links={"a": link(1.0), "b": link(1.0)})


def codes(decision: Decision) -> dict[str, str]:
    return {refusal.subject: refusal.code for refusal in decision.refusals}


# A threatened incumbent


def test_a_kept_incumbent_stays_and_a_threatened_one_is_left() -> None:
    world = pair()
    assert ask(world, incumbent=sid("a")).chosen == sid("a")
    moved = ask(world, incumbent=sid("a"), forecast=MS(120.0))
    assert moved.chosen == sid("b") and not moved.late
    (of_a,) = [entry for entry in moved.ranking if entry.service == sid("a")]
    assert of_a.late and of_a.cost == 120.0 and "its stream forecasts 120.0 ms there" in of_a.why


def test_a_threatened_incumbent_is_kept_by_no_hysteresis() -> None:
    """Ten percent better, and both well within the deadline: what the monitor saw decides."""
    world = pair(a_ms=40.0, b_ms=44.0)
    assert ask(world, incumbent=sid("b")).chosen == sid("b")
    assert ask(world, incumbent=sid("b"), forecast=MS(50.0)).chosen == sid("a")
    assert ask(pair(a_ms=43.5, b_ms=44.0), incumbent=sid("b"), forecast=MS(45.0)).chosen == sid("b")


def test_nobody_is_moved_from_one_broken_promise_into_another_for_nothing() -> None:
    world = pair(a_ms=110.0, b_ms=130.0)
    stays = ask(world, incumbent=sid("a"), forecast=MS(140.0))
    assert stays.chosen == sid("a") and stays.late
    assert ask(pair(a_ms=110.0, b_ms=130.0), incumbent=sid("a"), forecast=MS(400.0)).chosen == sid("b")


def test_a_forecast_below_what_telemetry_says_makes_nobody_look_better() -> None:
    assert ask(pair(a_ms=200.0), incumbent=sid("a"), forecast=MS(10.0)).chosen == sid("b")


@settings(deadline=None)
@given(snapshots(), requests(), st.floats(1.0, 1e6))
def test_a_forecast_moves_a_stream_only_to_who_is_expected_sooner(
    snapshot: Snapshot, request: Request, forecast: float
) -> None:
    import msgspec

    threatened = msgspec.structs.replace(request, forecast=MS(forecast))
    before = decide(snapshot, request, NOW, random.Random(1), Predictive())
    after = decide(snapshot, threatened, NOW, random.Random(1), Predictive())
    if after.chosen is None or after.chosen == request.incumbent:
        return
    if before.chosen == request.incumbent:
        old = {entry.service: entry for entry in after.ranking}.get(ServiceId(str(request.incumbent)))
        if old is not None:
            assert after.ranking[0].late <= old.late
            assert after.ranking[0].late < old.late or after.ranking[0].cost < old.cost


# A promise that was broken


def broken(snapshot: Snapshot, node: str, moment: float = 0.0, deadline: float = 100.0) -> Snapshot:
    return fold(snapshot, [PromiseBroken(sid(node), MS(deadline), at(moment), "9 of 90 answers late")])


def reported(snapshot: Snapshot, moment: float) -> Snapshot:
    """Telemetry goes on."""
    reports = [service_report(name, service_ms=view.report.service_ms) for name, view in snapshot.services.items()]
    return fold(snapshot, [ServiceReported(report, at(moment)) for report in reports])


def test_who_broke_a_promise_is_out_for_a_while_and_says_why() -> None:
    world = broken(pair(), "a")
    decision = ask(world)
    assert decision.chosen == sid("b") and codes(decision) == {"a/yard": "unreliable"}
    (reason,) = [r.reason for r in decision.refusals]
    assert reason == "it broke a promise of 100 ms (9 of 90 answers late); tried again in 5.0 s"
    assert ask(reported(world, 4.9), at(4.9)).chosen == sid("b")
    assert ask(reported(world, 5.1), at(5.1)).chosen == sid("a")


def test_it_is_held_against_nobody_who_asks_for_more_time_or_for_none() -> None:
    world = broken(pair(), "a")
    assert ask(world, qos=Qos(MS(200.0))).chosen == sid("a")
    assert ask(world, qos=Qos()).chosen == sid("a")
    assert ask(world, qos=Qos(MS(80.0))).chosen == sid("b")


def test_one_request_probes_it_and_an_answer_brings_it_back() -> None:
    world = reported(fold(broken(pair(), "a"), [RequestSent(sid("a"), at(5.1))]), 5.1)
    assert codes(ask(world, at(5.1))) == {"a/yard": "unreliable"}
    assert "one request is probing it" in ask(world, at(5.1)).refusals[0].reason
    back = fold(
        world, [RequestAnswered(sid("a"), Stages(1.0, 0.0, 0.0, 40.0), at(5.2)), RequestSent(sid("a"), at(5.2))]
    )
    assert not ask(back, at(5.2)).refusals and ask(back, at(5.2)).eligible == 2


def test_an_answer_while_it_is_out_brings_nothing_back() -> None:
    world = fold(broken(pair(), "a"), [RequestAnswered(sid("a"), Stages(1.0, 0.0, 0.0, 40.0), at(1.0))])
    assert ask(reported(world, 1.1), at(1.1)).chosen == sid("b")


def test_a_probe_that_fails_keeps_it_out_for_twice_as_long() -> None:
    world = fold(broken(pair(), "a"), [RequestSent(sid("a"), at(5.1)), RequestFailed(sid("a"), "inference", at(5.5))])
    assert world.unreliable[sid("a")].until == at(15.5)
    assert ask(reported(world, 15.0), at(15.0)).chosen == sid("b")
    blameless = fold(broken(pair(), "a"), [RequestFailed(sid("a"), "cancelled", at(5.5))])
    assert blameless.unreliable[sid("a")].times == 1


def test_while_it_repeats_the_time_doubles_up_to_a_minute_and_is_forgiven_in_the_end() -> None:
    world, moment, waits = pair(), 0.0, []
    for _ in range(6):
        world = broken(world, "a", moment)
        waits.append(world.unreliable[sid("a")].until - at(moment))
        moment += waits[-1] + 1
    assert waits == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0] == [kept_out(n) for n in range(1, 7)]
    world = broken(world, "a", moment + FORGIVEN_AFTER + 1)
    assert world.unreliable[sid("a")].times == 1


def test_a_restart_ends_it() -> None:
    fresh = ServiceReported(service_report("a/yard", instance="s2"), at(0.1))
    assert not fold(broken(pair(), "a"), [fresh]).unreliable


def test_a_promise_broken_by_one_that_is_not_there_is_nobodys() -> None:
    assert not fold(pair(), [PromiseBroken(sid("ghost"), MS(9.0), NOW)]).unreliable


def test_many_are_not_kept_for_ever() -> None:
    names = [f"n{i}/yard" for i in range(UNRELIABLE_MOST + 5)]
    world = fleet(*(service_view(name) for name in names))
    events = [PromiseBroken(ServiceId(name), MS(9.0), at(i / 1000)) for i, name in enumerate(names)]
    left = fold(world, events).unreliable
    assert len(left) <= UNRELIABLE_MOST and names[-1] in left and names[0] not in left


@pytest.mark.parametrize("policy", [Predictive(), Nearest()])
def test_the_only_candidate_is_asked_all_the_same_unless_the_caller_would_rather_not(policy: Policy) -> None:
    alone = broken(fleet(service_view("a/yard", service_ms=40.0), links={"a": link(1.0)}), "a")
    decision = ask(alone, policy=policy)
    assert decision.chosen == sid("a") and not [r for r in decision.refusals if r.code == "unreliable"]
    assert decision.refused == len(decision.refusals)
    refused = ask(alone, policy=policy, qos=Qos(MS(100.0), degrade=(Degrade.REFUSE,)))
    assert refused.chosen is None and codes(refused)["a/yard"] == "unreliable"
    later = ask(alone, policy=policy, qos=Qos(MS(100.0), degrade=(Degrade.RATE, Degrade.REFUSE)))
    assert later.chosen == sid("a")  # a stream that may still send fewer frames is not refused yet


def test_it_is_better_than_one_that_would_be_later_still() -> None:
    world = broken(pair(a_ms=120.0, b_ms=500.0), "a")
    assert ask(world).chosen == sid("a") and ask(world).late


# Cost and far ends


def test_who_costs_more_than_is_allowed_is_refused() -> None:
    world = fleet(service_view("a/yard", service_ms=10.0, cost=0.05), service_view("b/yard", service_ms=50.0))
    assert ask(world).chosen == sid("a")
    decision = ask(world, qos=Qos(MS(100.0), max_cost=0.02))
    assert decision.chosen == sid("b") and codes(decision) == {"a/yard": "cost"}
    assert decision.refusals[0].reason == "one request costs 0.05 there, and at most 0.02 is allowed"
    assert ask(world, qos=Qos(MS(100.0), max_cost=0.05)).chosen == sid("a")


@pytest.mark.parametrize("far", [{"runtime": "remote"}, {"cost": 0.01}])
def test_a_far_end_is_asked_only_when_nothing_near_is_in_time(far: dict[str, Any]) -> None:
    qos = Qos(MS(100.0), degrade=(Degrade.FAR,))

    def world(near_ms: float) -> Snapshot:
        return fleet(service_view("a/yard", service_ms=10.0, **far), service_view("b/yard", service_ms=near_ms))

    assert ask(world(50.0)).chosen == sid("a")  # without the word, the quickest
    near = ask(world(50.0), qos=qos)
    assert near.chosen == sid("b") and codes(near) == {"a/yard": "far"}
    assert ask(world(500.0), qos=qos).chosen == sid("a")
    assert ask(world(500.0), qos=Qos(MS(100.0), degrade=(Degrade.RATE, Degrade.FAR))).chosen == sid("b")


# Refused at once


def test_a_late_decision_becomes_a_refusal_that_says_when_each_would_have_answered() -> None:
    world = fleet(
        service_view("a/yard", service_ms=120.0),
        service_view("b/yard", service_ms=60.0, queued=6, in_flight=1),
        service_view("c/yard", alive=False),
        links={"a": link(1.0), "b": link(1.0)},
    )
    request = Request(ModelName("yard"), "here", qos=Qos(MS(100.0), degrade=(Degrade.REFUSE,)))
    decision = decide(world, request, NOW, random.Random(0), Predictive())
    error = refused_as_late(world, request, decision, NOW)
    assert error is not None and "Nobody is expected to answer within 100 ms" in error.message
    assert "a/yard with 121 ms" in error.message
    told = {refusal["subject"]: refusal for refusal in error.refusals}
    assert {name: refusal["code"] for name, refusal in told.items()} == {
        "a/yard": "late",
        "b/yard": "late",
        "c/yard": "gone",
    }
    assert told["b/yard"]["reason"].startswith("would answer in 481.0 ms (link 1.0")
    # b alone would do, once its queue has run empty: seven times 60 ms.
    assert error.retry_after == pytest.approx(0.42)


@pytest.mark.parametrize("degrade", [(), (Degrade.RATE, Degrade.REFUSE)])
def test_late_is_answered_late_unless_refuse_is_next(degrade: tuple[Degrade, ...]) -> None:
    world = pair(a_ms=120.0, b_ms=130.0)
    request = Request(ModelName("yard"), "here", qos=Qos(MS(100.0), degrade=degrade))
    decision = decide(world, request, NOW, random.Random(0), Predictive())
    assert decision.late and refused_as_late(world, request, decision, NOW) is None


def test_in_time_is_not_refused_and_baselines_say_when_too() -> None:
    request = Request(ModelName("yard"), "here", qos=Qos(MS(100.0), degrade=(Degrade.REFUSE,)))
    for a_ms, refused in ((40.0, False), (140.0, True)):
        world = pair(a_ms=a_ms, b_ms=150.0)
        decision = decide(world, request, NOW, random.Random(0), Nearest())
        error = refused_as_late(world, request, decision, NOW)
        assert (error is not None) is refused
        if error is not None:
            assert {r["reason"].split(" ms")[0] for r in error.refusals} == {
                "would answer in 141.0",
                "would answer in 151.0",
            }
            assert error.retry_after == 1.0  # waiting helps nobody


def test_an_observation_survives_beside_it() -> None:
    world = fold(broken(pair(), "a"), [RequestAnswered(sid("a"), Stages(1.0, 0.0, 0.0, 40.0), at(1.0))])
    assert isinstance(world.observed[sid("a")], Observed) and sid("a") in world.unreliable
