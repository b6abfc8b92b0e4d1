"""Quarantine as a circuit breaker: closed until N failures in a row, open for a while, then one probe at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nearfar.fleet.events import RequestAnswered, RequestFailed, RequestSent, ServiceReported
from nearfar.fleet.health import QUARANTINE
from nearfar.fleet.reduce import fold
from nearfar.placement.filters import refuse
from nearfar.types.ids import ModelName
from nearfar.types.request import Request, Stages
from nearfar.types.units import Seconds
from tests.fleet.build import NOW, fleet, service_report, service_view, sid

A = sid("a")
REQUEST = Request(ModelName("yard"), "here")


@given(st.lists(st.tuples(st.floats(0, 40), st.sampled_from(["ask", "answer", "fail", "cancel", "busy"])), max_size=80))
def test_open_after_n_failures_one_probe_when_half_open_closed_by_an_answer(steps: list[tuple[float, str]]) -> None:
    snapshot = fleet(service_view("a/yard"))
    now, failures, failed_at, under_way = float(NOW), 0, 0.0, 0
    for pause, step in steps:
        now += pause
        snapshot = fold(snapshot, [ServiceReported(service_report(A), Seconds(now))])
        if step == "ask":
            refused = refuse(snapshot, REQUEST, snapshot.services[A], Seconds(now))
            if failures < QUARANTINE:
                assert refused is None, "closed"
            elif now < failed_at + min(2.0 * 2 ** (failures - QUARANTINE), 30.0) - 1e-6:
                assert refused is not None and refused.code == "quarantined", "open"
            elif now > failed_at + min(2.0 * 2 ** (failures - QUARANTINE), 30.0) + 1e-6:
                assert (refused is None) == (under_way == 0), "half open: one probe, never two"
            if refused is None:
                snapshot = fold(snapshot, [RequestSent(A, Seconds(now))])
                under_way += 1
        elif under_way:
            under_way -= 1
            if step == "answer":
                snapshot = fold(snapshot, [RequestAnswered(A, Stages(1, 0, 0, 5, 0), Seconds(now))])
                failures = 0
            else:
                code = {"fail": "inference", "cancel": "cancelled", "busy": "doomed"}[step]
                snapshot = fold(snapshot, [RequestFailed(A, code, Seconds(now))])
                if step == "fail":
                    failures, failed_at = failures + 1, now
        assert snapshot.pending.get(A, 0) == under_way
