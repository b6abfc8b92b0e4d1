"""The budget: kept in simulation under drift, money never exceeded, and a state that travels."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import InputError, StoreError
from nearfar.language.budget import (
    DAY,
    WINDOW,
    Fed,
    Goal,
    Routed,
    Settled,
    State,
    Target,
    after,
    day_of,
    export,
    refusal,
    restore,
    threshold,
)
from nearfar.types.units import Seconds

Scores = Callable[[random.Random, int], float]
MIDNIGHT = float(20_000 * DAY)

DRIFTS: dict[str, Scores] = {
    "steady": lambda rng, i: rng.random(),
    "slow drift": lambda rng, i: rng.betavariate(2 + i / 400, 2),
    "steps": lambda rng, i: rng.betavariate(8, 2) if i % 1500 < 750 else rng.betavariate(2, 8),
    "waves": lambda rng, i: min(1.0, max(0.0, 0.5 + 0.3 * math.sin(i / 150) + rng.gauss(0, 0.1))),
    "all equal": lambda rng, i: 0.5,
    "two values": lambda rng, i: rng.choice((0.2, 0.8)),
}


def at(when: float) -> Seconds:
    return Seconds(when)


def play(target: Target, scores: Scores, count: int = 2400, seed: int = 0) -> list[tuple[float, bool]]:
    """(score, far) of prompts that come one a second."""
    rng, state, told = random.Random(seed), State(target), list[tuple[float, bool]]()
    for i in range(count):
        now, score = at(MIDNIGHT + i), scores(rng, i)
        far = score < threshold(state, now)
        state = after(state, Routed(score, far), now)
        told.append((score, far))
    return told


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("drift", DRIFTS)
def test_a_share_is_kept_within_two_points_over_2000_prompts(drift: str, share: float) -> None:
    told = play(Target(Goal.SHARE, share), DRIFTS[drift])[-2000:]
    assert statistics.fmean(far for _, far in told) == pytest.approx(share, abs=0.02)


def test_scores_that_only_rise_are_kept_too_where_the_share_is_not_tiny() -> None:
    """Each is higher than all before, so no quantile reaches it: what is owed has to."""
    told = play(Target(Goal.SHARE, 0.2), lambda rng, i: i / 2400)[-2000:]
    assert statistics.fmean(far for _, far in told) == pytest.approx(0.2, abs=0.02)


def test_the_lowest_scores_go_far() -> None:
    told = play(Target(Goal.SHARE, 0.3), DRIFTS["steady"])[WINDOW:]
    assert (
        statistics.fmean(s for s, far in told if far) < 0.25 < 0.55 < statistics.fmean(s for s, far in told if not far)
    )


@pytest.mark.parametrize("floor", [0.6, 0.8, 0.9])
@pytest.mark.parametrize("drift", DRIFTS)
def test_a_floor_of_quality_is_kept_with_few_far_calls(drift: str, floor: float) -> None:
    told = play(Target(Goal.QUALITY, floor, far_quality=0.95), DRIFTS[drift])[WINDOW:]
    quality = statistics.fmean(0.95 if far else score for score, far in told)
    assert quality > floor - 0.02
    always_near = statistics.fmean(score for score, _ in told)
    least = max(0.0, (floor - always_near) / (0.95 - always_near))
    assert statistics.fmean(far for _, far in told) <= least + 0.25, "random choice would need `least`, and drift costs"


def test_a_floor_that_near_reaches_alone_needs_no_far_call() -> None:
    told = play(Target(Goal.QUALITY, 0.3), DRIFTS["steady"])[WINDOW:]
    assert statistics.fmean(far for _, far in told) < 0.02


def test_a_floor_above_what_far_gives_sends_all() -> None:
    assert all(far for _, far in play(Target(Goal.QUALITY, 0.99), DRIFTS["steady"])[WINDOW:])


def test_feedback_corrects_the_floor() -> None:
    """Near answers that people find worse than judged need more far calls."""
    good = State(Target(Goal.QUALITY, 0.7), scores=tuple(i / 100 + 0.25 for i in range(70)))
    bad = good
    for _ in range(40):
        bad = after(bad, Fed(0.8, False), at(MIDNIGHT))
    assert bad.bias < -0.5
    assert threshold(bad, at(MIDNIGHT)) > threshold(good, at(MIDNIGHT))


class Spent:
    def __init__(self) -> None:
        self.by_day: dict[int, float] = {}
        self.refused = 0
        self.by_hour: dict[tuple[int, int], list[bool]] = {}


def spend(amount: float, days: int = 3, count: int = 1200, seed: int = 0, dear: float = 1.0) -> Spent:
    """Days with an evening peak, calls that end five minutes later, prices that differ and change."""
    rng, state, told = random.Random(seed), State(Target(Goal.MONEY, amount)), Spent()
    open_calls: list[tuple[float, Settled]] = []
    for day in range(days):
        begin = MIDNIGHT + day * DAY
        for when in sorted(begin + DAY * min(0.9999, max(0.0, rng.gauss(0.6, 0.15))) for _ in range(count)):
            now = at(when)
            while open_calls and open_calls[0][0] <= when:
                ended, settled = open_calls.pop(0)
                state = after(state, settled, at(ended))
            score = rng.betavariate(3, 2)
            far, bound = score < threshold(state, now), 0.02 * dear
            if far and refusal(state, bound, now):
                far, told.refused = False, told.refused + 1
            state = after(state, Routed(score, far, bound if far else 0.0), now)
            hour = (day, int((when - begin) // 3600))
            told.by_hour.setdefault(hour, []).append(far)
            if far:
                today = day_of(state.target, when)
                cost = rng.choice((0.0, bound, rng.uniform(0.1, 1.0) * bound))
                told.by_day[today] = told.by_day.get(today, 0.0) + cost
                open_calls.append((when + 300, Settled(bound, cost, today)))
    return told


@pytest.mark.parametrize("amount", [0.0, 0.01, 0.5, 3.0, 8.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_money_is_never_exceeded(amount: float, seed: int) -> None:
    told = spend(amount, seed=seed)
    assert all(spent <= amount + 1e-9 for spent in told.by_day.values())
    if amount >= 0.5:
        later = [spent for day, spent in told.by_day.items() if day > min(told.by_day)]
        assert min(later) > 0.85 * amount, "and what there is is used, once a day is known"


def test_money_lasts_for_the_day_once_a_day_is_known() -> None:
    told = spend(3.0, days=4)
    busy = {hour: flags for hour, flags in told.by_hour.items() if hour[0] == 3 and len(flags) > 60}
    shares = [statistics.fmean(flags) for flags in busy.values()]
    assert len(shares) >= 6
    assert min(shares) > 0.4 * statistics.fmean(shares), "no busy hour is left without"


def test_a_refusal_says_what_is_spent_and_comes_back_the_next_day() -> None:
    state = State(Target(Goal.MONEY, 1.0))
    state = after(state, Routed(0.1, True, 0.7), at(MIDNIGHT))
    assert refusal(state, 0.3, at(MIDNIGHT)) == ""
    assert "0.7 more reserved" in refusal(state, 0.31, at(MIDNIGHT))
    state = after(state, Settled(0.7, 0.4, day_of(state.target, MIDNIGHT)), at(MIDNIGHT + 5))
    assert refusal(state, 0.6, at(MIDNIGHT + 6)) == ""
    assert "0.4 of 1" in refusal(state, 0.61, at(MIDNIGHT + 6))
    assert refusal(state, 0.9, at(MIDNIGHT + DAY)) == ""
    assert "not known" in refusal(state, math.inf, at(MIDNIGHT))
    assert refusal(State(Target(Goal.SHARE, 0.1)), math.inf, at(MIDNIGHT)) == ""


def test_a_clock_that_goes_back_gives_no_money_twice() -> None:
    state = after(State(Target(Goal.MONEY, 1.0)), Routed(0.1, True, 1.0), at(MIDNIGHT))
    assert refusal(state, 0.1, at(MIDNIGHT - 1)) != ""
    assert after(state, Routed(0.9, False), at(MIDNIGHT - 1)).reserved == 1.0


def test_what_others_decided_does_not_move_the_share() -> None:
    state = State(Target(Goal.SHARE, 0.5))
    for i in range(50):
        state = after(state, Routed(0.5, False, forced=True), at(MIDNIGHT + i))
    assert (state.routed, state.owed, state.scores) == (0, 0.0, ())


def test_the_state_travels_as_bytes() -> None:
    rng, state = random.Random(0), State(Target(Goal.MONEY, 2.0, day_begins=3600.0))
    for i in range(300):
        state = after(state, Routed(rng.random(), i % 3 == 0, 0.001), at(MIDNIGHT + 40 * i))
    again = restore(export(state))
    assert again == state
    assert threshold(again, at(MIDNIGHT + 9000)) == threshold(state, at(MIDNIGHT + 9000))
    for bad in (b"", b"{}", export(state).replace(b"money", b"honey"), export(state).replace(b"2.0", b"-2.0", 1)):
        with pytest.raises(StoreError):
            restore(bad)


@pytest.mark.parametrize(
    ("goal", "amount"),
    [(Goal.SHARE, 1.5), (Goal.SHARE, -0.1), (Goal.QUALITY, 2), (Goal.MONEY, -1), (Goal.MONEY, math.nan)],
)
def test_budgets_that_cannot_be_meant(goal: Goal, amount: float) -> None:
    with pytest.raises(InputError):
        Target(goal, amount)


def test_events_that_cannot_be_meant() -> None:
    state = State(Target(Goal.MONEY, 1.0))
    for event in (Routed(1.5, False), Routed(math.nan, False), Routed(0.5, True, -1.0), Settled(0.1, -1.0, 0)):
        with pytest.raises(InputError):
            after(state, event, at(MIDNIGHT))


EVENTS = st.one_of(
    st.builds(Routed, st.floats(0, 1), st.booleans(), st.floats(0, 2), st.booleans()),
    st.builds(Settled, st.floats(0, 2), st.floats(0, 2), st.integers(20_000, 20_003)),
    st.builds(Fed, st.floats(0, 1), st.booleans()),
)


@given(st.sampled_from(Goal), st.floats(0, 1), st.lists(st.tuples(EVENTS, st.floats(-10, 50_000)), max_size=60))
@settings(max_examples=200)
def test_any_sequence_of_events_leaves_a_usable_state(
    goal: Goal, amount: float, events: list[tuple[Routed | Settled | Fed, float]]
) -> None:
    state, now = State(Target(goal, amount)), MIDNIGHT
    for event, passed in events:
        now += passed
        state = after(state, event, at(now))
        assert 0 <= threshold(state, at(now)) <= 1 + 1e-6
        assert state.reserved >= 0
        assert len(state.scores) <= WINDOW
    assert restore(export(state)) == state
