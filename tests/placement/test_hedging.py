"""Hedges: never past the deadline, never before the 95th percentile, never more than the budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.fleet.snapshot import Observed
from nearfar.placement.expectation import Expectation
from nearfar.placement.hedging import MOST_SAVED, Budget, hedge_at, percentile
from nearfar.types.units import Milliseconds, Seconds

TIMES = st.floats(0, 500)


def expects(total: float, margin: float = 0.0) -> Expectation:
    zero = Milliseconds(0.0)
    return Expectation(zero, zero, zero, Milliseconds(total), Milliseconds(margin), Milliseconds(total), "test")


@given(TIMES, TIMES, TIMES, TIMES, TIMES, st.floats(1, 1000))
def test_a_hedge_goes_after_the_95th_percentile_and_can_still_be_in_time(
    first: float, margin: float, spread: float, second: float, slack: float, deadline: float
) -> None:
    expected, observed = expects(first, margin), Observed(spread=Milliseconds(spread))
    end = Seconds(10 + deadline / 1000)
    at = hedge_at(expected, observed, expects(second, slack), Seconds(10.0), end)
    if at is None:
        assert percentile(expected, observed) + second > deadline - 1e-6
    else:
        assert at >= 10 + percentile(expected, observed) / 1000 - 1e-9
        assert at + second / 1000 <= end + 1e-9


def test_without_a_second_service_there_is_no_hedge() -> None:
    assert hedge_at(expects(10), None, None, Seconds(0.0), Seconds(1.0)) is None


def test_it_waits_as_long_as_the_deadline_allows() -> None:
    assert hedge_at(expects(20), None, expects(30, 5), Seconds(0.0), Seconds(0.1)) == pytest.approx(0.06)
    assert hedge_at(expects(60), None, expects(30, 5), Seconds(0.0), Seconds(0.1)) == pytest.approx(0.065)


@given(st.floats(0, 1), st.lists(st.booleans(), max_size=400))
def test_never_more_hedges_than_the_share_of_the_requests_and_what_was_saved(share: float, wishes: list[bool]) -> None:
    budget, hedges = Budget(share), 0
    for requests, wish in enumerate(wishes, 1):
        budget = budget.earn()
        if wish and budget.affords:
            budget = budget.spend()
            hedges += 1
        assert hedges <= 1 + share * requests + 1e-6 and budget.tokens <= MOST_SAVED
    if share == 0:
        assert hedges == 0
