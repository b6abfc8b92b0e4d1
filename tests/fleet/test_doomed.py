"""Work for nobody is dropped; work that can still be in time never is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nearfar.fleet.doomed import BUSY, doomed, refusable

MS = st.floats(0.01, 1e5)


@given(MS, MS, st.booleans())
def test_who_has_time_for_a_usual_answer_is_worked_on(left: float, recent: float, others: bool) -> None:
    if left >= BUSY * recent:
        assert not doomed(left, recent, others)
    if doomed(left, recent, False):
        assert doomed(left, recent, True), "with others waiting it is stricter, never laxer"
    assert doomed(-left, recent, others)


@given(MS, MS, st.integers(0, 100), st.integers(0, 8), st.integers(1, 8))
def test_a_longer_queue_or_less_time_is_never_refused_less(
    budget: float, recent: float, queued: int, in_flight: int, workers: int
) -> None:
    if refusable(budget, recent, queued, in_flight, workers):
        assert refusable(budget / 2, recent, queued, in_flight, workers)
        assert refusable(budget, recent, queued + 1, in_flight, workers)
    if in_flight < workers and budget >= recent:
        assert not refusable(budget, recent, queued, in_flight, workers), "its turn is now"
