from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.fleet.links import BULK, WINDOW, LinkEstimator
from nearfar.types.ids import NodeId
from nearfar.types.units import Bytes, Milliseconds, Seconds

RTT = st.floats(0.01, 5000)


def fed(*samples: float | None) -> LinkEstimator:
    link = LinkEstimator(NodeId("pi"))
    for moment, rtt in enumerate(samples):
        link.add(None if rtt is None else Milliseconds(rtt), Seconds(moment))
    return link


def test_nothing_is_reported_before_an_answer() -> None:
    assert fed().report() is None
    assert fed(None, None).report() is None


def test_the_first_two_samples_as_rfc_6298_computes_them() -> None:
    report = fed(100.0, 60.0).report()
    assert report is not None
    assert report.jitter == pytest.approx(0.75 * 50 + 0.25 * 40)  # with the mean before the sample
    assert report.rtt == pytest.approx(7 / 8 * 100 + 1 / 8 * 60)


@given(st.lists(RTT, min_size=1, max_size=80))
def test_the_mean_stays_between_the_extremes(samples: list[float]) -> None:
    report = fed(*samples).report()
    assert report is not None
    assert min(samples) * (1 - 1e-9) <= report.rtt <= max(samples) * (1 + 1e-9)
    assert 0 <= report.jitter <= max(samples)
    assert report.loss == 0.0 and report.bandwidth is None


@given(st.lists(st.one_of(st.none(), RTT), max_size=200))
def test_loss_is_the_share_of_the_last_window(samples: list[float | None]) -> None:
    report = fed(5.0, *samples).report()
    assert report is not None
    window = [5.0, *samples][-WINDOW:]
    assert report.loss == pytest.approx(sum(s is None for s in window) / len(window))


@pytest.mark.parametrize("rtt", [math.nan, math.inf, -1.0])
def test_an_impossible_round_trip_counts_as_lost(rtt: float) -> None:
    link = fed(5.0, rtt)
    report = link.report()
    assert report is not None and report.rtt == 5.0 and report.loss == 0.5
    assert link.last == 0.0


def test_bandwidth_is_bytes_over_time_without_the_round_trip() -> None:
    link = fed(10.0)
    link.add_bulk(Bytes(1_000_000), Milliseconds(110.0))
    report = link.report()
    assert report is not None and report.bandwidth == pytest.approx(1e7)


def test_small_transfers_and_impossible_times_are_not_counted() -> None:
    link = fed(10.0)
    link.add_bulk(Bytes(BULK - 1), Milliseconds(1.0))
    link.add_bulk(Bytes(BULK), Milliseconds(0.0))
    link.add_bulk(Bytes(BULK), Milliseconds(math.nan))
    report = link.report()
    assert report is not None and report.bandwidth is None


def test_a_transfer_faster_than_the_round_trip_keeps_bandwidth_finite() -> None:
    link = fed(50.0)
    link.add_bulk(Bytes(BULK), Milliseconds(20.0))
    report = link.report()
    assert report is not None and report.bandwidth == pytest.approx(BULK / 2e-3)
