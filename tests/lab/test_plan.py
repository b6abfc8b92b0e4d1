"""The plan of a live run: the very frames, outages and speeds of the testbed, each at its moment."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from nearfar.lab.plan import Down, Pace, Plan, Rate, Reroute, Up
from nearfar.lab.stage import AFTER_DOWN, EARLY, schedule
from nearfar.simulate.baselines import Random
from nearfar.simulate.frames import Frame
from nearfar.simulate.run import Engine
from nearfar.simulate.scenario import Scenario
from tests.simulate.worlds import scenarios, small


def born_in_testbed(scenario: Scenario) -> set[tuple[float, int, int]]:
    found = set()

    def watch(frame: Frame, *_: object) -> None:
        found.add((round(frame.born, 6), frame.stream.id, frame.number))

    Engine(scenario, Random(), watcher=watch).play()
    return found


@given(scenarios())
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_the_same_frames_are_born_at_the_same_moments(scenario: Scenario) -> None:
    plan = Plan(scenario)
    births = [birth for gateway in plan.gateways for birth in plan.births(gateway.name)]
    assert {(round(b.at, 6), b.stream, b.number) for b in births} == born_in_testbed(scenario)
    assert len(births) == len({(b.stream, b.number) for b in births})


@given(scenarios())
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
def test_happenings_are_in_order_and_a_node_is_started_only_after_it_has_gone(scenario: Scenario) -> None:
    plan = Plan(scenario)
    moments = [change.at for change in plan.happenings]
    assert moments == sorted(moments)
    gone: dict[str, float] = {}
    for begin, change in schedule(plan.happenings, scenario.seconds):
        assert begin <= scenario.seconds
        if isinstance(change, Down):
            assert change.at > 0
            gone[change.node] = begin
        elif isinstance(change, Up) and change.how != "cut":
            assert begin >= gone.get(change.node, 0.0)
            assert begin >= change.at - EARLY or begin == pytest.approx(gone[change.node] + AFTER_DOWN)


def test_speeds_multiply_and_return() -> None:
    plan = Plan(
        small(
            nodes=[{"name": "n", "device": "coral", "link": "lan", "slowdown": 2.0}],
            changes=[
                {"at_s": 1, "kind": "slow", "nodes": "n-*", "factor": 3, "for_s": 4},
                {"at_s": 2, "kind": "slow", "nodes": "n-*", "factor": 5, "for_s": 1},
            ],
        )
    )
    assert [(c.at, round(c.factor, 9)) for c in plan.happenings if isinstance(c, Pace)] == [
        (0.0, 2.0), (1.0, 6.0), (2.0, 30.0), (3.0, 6.0), (5.0, 2.0),
    ]  # fmt: skip


def test_a_link_changes_and_is_itself_again() -> None:
    changes = [{"at_s": 2, "kind": "link", "nodes": "nano-*", "clients": "cams", "link": "lan", "for_s": 3}]
    plan = Plan(small(changes=changes))
    assert [c for c in plan.happenings if isinstance(c, Reroute)] == [
        Reroute(2.0, "cams-gw0", "nano-0", ("lan",)),
        Reroute(2.0, "cams-gw1", "nano-0", ("lan",)),
        Reroute(5.0, "cams-gw0", "nano-0", ("wifi",)),
        Reroute(5.0, "cams-gw1", "nano-0", ("wifi",)),
    ]


def test_who_joins_later_is_away_at_first_and_rates_are_told() -> None:
    changes = [
        {"at_s": 0, "kind": "leave", "nodes": "nano-0", "for_s": 4},
        {"at_s": 1, "kind": "rate", "clients": "cams", "factor": 2},
    ]
    plan = Plan(small(changes=changes))
    assert plan.away_at_first() == ["nano-0"]
    assert [change for _, change in schedule(plan.happenings, 8) if isinstance(change, Down | Up)] == [
        Up(4.0, "nano-0", "leave")
    ]
    assert [change for change in plan.happenings if isinstance(change, Rate)] == [
        Rate(1.0, "cams-gw0"), Rate(1.0, "cams-gw1"),
    ]  # fmt: skip
    assert plan.most_frames() == pytest.approx(80, abs=8)  # four cameras, ten frames a second, twice as many
