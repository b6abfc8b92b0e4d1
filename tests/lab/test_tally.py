"""A live run in the testbed's measures, and whether two runs say the same."""

from __future__ import annotations

import msgspec
import pytest

from nearfar.lab.agreement import disorder, noise, verdicts
from nearfar.lab.gateway import Ended, Work
from nearfar.lab.tally import Run, summarise
from nearfar.simulate.measures import Summary
from tests.simulate.worlds import small

SCENARIO = small(changes=[{"at_s": 5, "kind": "slow", "nodes": "coral-1", "factor": 4}])
A, B, C = "coral-0/ssd", "coral-1/ssd", "nano-0/ssd"


def ended(number: int, at: float, served_by: str = "", code: str = "", stream: int = 0) -> Ended:
    return Ended(stream, number, at - 0.05, at, served_by, code, 1)


def run(*ends: Ended, before: tuple[Work, ...] = (), after: tuple[Work, ...] = (), **changes: object) -> Summary:
    kept = [{(work.service, work.instance): work for work in works} for works in (before, after)]
    made = Run("random", {}, ends, kept[0], kept[1], 8.0, True, 9.0, {"sent_late_ms": 2.0})
    return summarise(SCENARIO, None, msgspec.structs.replace(made, **changes))


def test_every_frame_is_counted_once_with_its_end() -> None:
    summary = run(
        ended(0, 3.1, A), ended(1, 3.2, A), ended(2, 3.3, code="deadline-exceeded"), ended(3, 3.4, code="no-candidate")
    )
    assert (summary.frames, summary.in_time, summary.late, summary.lost) == (4, 2, 0, 2)
    assert summary.violation_rate == 0.5
    assert summary.lost_by == {"deadline-exceeded": 1, "no-candidate": 1}
    assert summary.attempts == 4
    assert summary.latency_ms["p50"] == pytest.approx(50, rel=0.05)
    assert summary.options == {"sent_late_ms": 2.0}
    assert sum(summary.series["violations"]) == 2


def test_late_are_answers_that_nobody_waited_for_and_work_counts_from_the_run_s_begin() -> None:
    late = [ended(n, 3.1, code="deadline-exceeded") for n in range(3)]
    summary = run(
        *late, ended(3, 3.2, A),
        before=(Work(A, "old", 10, 1000.0),),
        after=(Work(A, "old", 12, 1800.0), Work(A, "new", 1, 800.0)),
    )  # fmt: skip
    assert (summary.in_time, summary.late, summary.lost) == (1, 2, 1)
    assert summary.lost_by == {"deadline-exceeded": 1}
    assert summary.busiest == pytest.approx(1.6 / 8)


def test_moves_and_flaps_are_those_of_the_testbed_s_rules() -> None:
    summary = run(ended(0, 3.1, A), ended(1, 3.2, C), ended(2, 3.3, A))
    assert (summary.moves, summary.flaps, summary.unprovoked_moves) == (2, 1, 2)
    summary = run(ended(1, 3.2, C), ended(0, 3.3, A))
    assert summary.moves == 0, "an older answer that came later moves nothing"
    summary = run(ended(0, 4.9, B), ended(1, 5.1, A), ended(2, 5.2, B))
    assert (summary.moves, summary.flaps, summary.unprovoked_moves) == (2, 0, 0), "B became slow in between"
    assert summary.true_changes == 1


def played(policy: str, rate: float, frames: int = 400) -> Summary:
    return msgspec.structs.replace(run(ended(0, 3.1, A)), policy=policy, violation_rate=rate, frames=frames)


def test_rates_agree_within_a_quarter_or_within_chance() -> None:
    simulated = [played("a", 0.40), played("b", 0.02), played("only-here", 0.5)]
    found = verdicts(simulated, [played("a", 0.49), played("b", 0.04)])
    assert [(v.policy, v.agrees) for v in found] == [("a", True), ("b", True)]
    assert [v.agrees for v in verdicts(simulated, [played("a", 0.51), played("b", 0.06)])] == [False, False]
    assert noise(played("a", 0.0), played("b", 0.0)) == pytest.approx(1.96 * (2 * 0.0075 * 0.9925 / 400) ** 0.5)
    assert noise(played("a", 0.0, 0), played("b", 0.0)) == 1.0


def test_order_is_contradicted_only_beyond_noise() -> None:
    simulated = [played("a", 0.1), played("b", 0.3), played("c", 0.32)]
    assert disorder(simulated, [played("c", 0.2), played("b", 0.3), played("a", 0.1)]) == []
    assert disorder(simulated, [played("a", 0.4), played("b", 0.38)]) == []
    assert disorder(simulated, [played("a", 0.4), played("b", 0.2)]) == [("a", "b")]
