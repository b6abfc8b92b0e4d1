"""What a service says of itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.node.meter import FORGET, STAGES, Meter
from nearfar.types.request import Stages
from tests.node.calls import spec

times = st.floats(0.001, 10_000)


@given(st.lists(st.builds(Stages, times, times, times, times, times), max_size=40))
def test_every_answer_is_counted_in_every_stage(answers: list[Stages]) -> None:
    meter = Meter(spec(), 5.0)
    for stages in answers:
        meter.answer(stages)
    report = meter.report()
    assert report.answered == len(answers)
    for name in STAGES:
        assert sum(report.stages[name].counts.values()) == len(answers)
        assert report.stages[name].sum == pytest.approx(sum(getattr(stages, name) for stages in answers))
    least, most = min([5.0, *(a.service for a in answers)]), max([5.0, *(a.service for a in answers)])
    assert least * 0.999 <= report.service_ms <= most * 1.001


def test_an_idle_service_returns_to_its_profile_but_not_a_busy_one() -> None:
    meter = Meter(spec(), 10.0)
    for _ in range(200):
        meter.answer(Stages(inference=50.0))
    assert meter.report().service_ms == pytest.approx(50, rel=1e-3)  # it answered since the last report
    meter.in_flight = 1
    assert meter.report().service_ms == pytest.approx(50, rel=1e-3)
    meter.in_flight = 0
    assert meter.report().service_ms == pytest.approx(50 - FORGET * 40, rel=1e-3)
    for _ in range(60):
        meter.report()
    assert meter.report().service_ms == pytest.approx(10, rel=1e-3)


def test_the_queue_is_counted_where_it_is() -> None:
    meter = Meter(spec(queue_limit=7), 0.0)
    meter.waiting.put(object())
    meter.waiting.put(object())
    report = meter.report()
    assert (report.queued, report.queue_limit, report.service) == (2, 7, "n/m")
    assert report.memory > 1 << 20
    meter.answer(Stages(inference=3.0))
    assert meter.recent_ms == 3.0, "without a profile the first answer is all that is known"
