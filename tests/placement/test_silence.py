"""Silence: only what is owed and overdue, with nothing heard meanwhile, counts; anything heard ends it."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from nearfar.fleet.events import Event, RequestAnswered, RequestFailed, RequestSent, ServiceReported
from nearfar.fleet.reduce import fold
from nearfar.fleet.snapshot import Observed, Snapshot
from nearfar.placement.decide import decide
from nearfar.placement.filters import refuse
from nearfar.placement.policies.predictive import Predictive
from nearfar.placement.silence import LEAST, SPREADS, alarm, given_up_code, silent, suspect_from
from nearfar.types.ids import ModelName
from nearfar.types.request import Request, Stages
from nearfar.types.units import Milliseconds, Seconds
from tests.fleet.build import NOW, fleet, service_report, service_view, sid

A = sid("a")
REQUEST = Request(ModelName("yard"), "here")
ANSWERED = Observed(link=Milliseconds(1.0), answered_at=Seconds(NOW - 5))


def at(ms: float) -> Seconds:
    return Seconds(NOW + ms / 1000)


def world(spread: float = 0.0) -> Snapshot:
    observed = msgspec.structs.replace(ANSWERED, spread=Milliseconds(spread))
    return fleet(service_view("a/yard", age=0.4), service_view("b/yard"), observed={"a/yard": observed})


def is_silent(snapshot: Snapshot, ms: float) -> bool:
    return silent(snapshot, snapshot.services[A], at(ms))


def sent(ms: float, due: float) -> Event:
    return RequestSent(A, at(ms), at(due))


def test_who_owes_nothing_is_never_silent() -> None:
    assert alarm(world(), world().services[A]) is None
    assert not is_silent(world(), 1e6)


def test_an_answer_overdue_by_more_than_the_tolerance_makes_it_silent_and_requests_avoid_it() -> None:
    snapshot = fold(world(), [sent(0, 20)])
    assert not is_silent(snapshot, 20 + LEAST - 1)
    assert is_silent(snapshot, 20 + LEAST + 1)
    refusal = refuse(snapshot, REQUEST, snapshot.services[A], at(20 + LEAST + 1))
    assert refusal is not None and refusal.code == "silent"


def test_a_way_that_strays_is_given_more_time() -> None:
    snapshot = fold(world(spread=60.0), [sent(0, 20)])
    assert not is_silent(snapshot, 20 + SPREADS * 60 - 1) and is_silent(snapshot, 20 + SPREADS * 60 + 1)


def test_a_busy_service_that_reports_or_answers_others_is_not_silent() -> None:
    owing = fold(world(), [sent(0, 20)])
    report = ServiceReported(service_report(A, in_flight=1, queued=3), at(90))
    other = [sent(50, 70), RequestAnswered(A, Stages(1, 0, 0, 5, 0), at(90), due=at(70))]
    for heard in ([report], other):
        snapshot = fold(owing, heard)
        assert not is_silent(snapshot, 90 + LEAST - 1), "it was heard"
        assert is_silent(snapshot, 90 + LEAST + 1), "and is owing still"


def test_what_was_given_up_at_its_deadline_still_tells_of_silence_until_something_is_heard() -> None:
    snapshot = fold(world(), [sent(0, 20), RequestFailed(A, "deadline-exceeded", at(100), Milliseconds(100), at(20))])
    assert not snapshot.owed and is_silent(snapshot, 121)
    heard = fold(snapshot, [ServiceReported(service_report(A), at(200))])
    assert not heard.missed and not is_silent(heard, 1e6)


def test_a_copy_that_is_not_needed_any_more_is_no_evidence_unless_it_was_silent_then() -> None:
    snapshot = fold(world(), [sent(0, 20)])
    assert given_up_code(snapshot, A, at(60)) == "cancelled" and given_up_code(snapshot, A, at(130)) == "silent"
    assert not is_silent(fold(snapshot, [RequestFailed(A, "cancelled", at(60), None, at(20))]), 1e6)
    assert is_silent(fold(snapshot, [RequestFailed(A, "silent", at(130), None, at(20))]), 140)


def test_silence_is_no_failure_and_where_nobody_else_is_left_the_silent_one_is_asked() -> None:
    snapshot = fold(world(), [sent(0, 20), RequestFailed(A, "silent", at(130), None, at(20))])
    assert snapshot.observed[A].failures == 0
    import random

    both = decide(snapshot, REQUEST, at(140), random.Random(1), Predictive())
    assert both.chosen == sid("b") and [r.code for r in both.refusals if r.subject == A] == ["silent"]
    alone = decide(
        snapshot, msgspec.structs.replace(REQUEST, excluded=(sid("b"),)), at(140), random.Random(1), Predictive()
    )
    assert alone.chosen == A


MOMENTS = st.floats(0, 1000)


@given(st.lists(st.tuples(MOMENTS, st.floats(1, 300), st.sampled_from(["answered", "lost", "open"])), max_size=12),
       st.lists(MOMENTS, max_size=4))  # fmt: skip
def test_whatever_happens_it_is_silent_only_when_it_owed_and_was_not_heard_for_the_tolerance(
    requests: list[tuple[float, float, str]], reports: list[float]
) -> None:
    events: list[tuple[float, Event]] = []
    for moment, took, end in requests:
        due = at(moment + 20)
        events.append((moment, RequestSent(A, at(moment), due)))
        if end == "answered":
            stages = Stages(1, 0, 0, 5, 0)
            events.append((moment + took, RequestAnswered(A, stages, at(moment + took), due=due)))
        elif end == "lost":
            code = "deadline-exceeded"
            events.append((moment + took, RequestFailed(A, code, at(moment + took), Milliseconds(took), due)))
    events += [(moment, ServiceReported(service_report(A), at(moment))) for moment in reports]
    events.sort(key=lambda entry: entry[0])
    snapshot = world()
    heard = -400.0
    for moment, event in events:
        if isinstance(event, RequestAnswered | ServiceReported):
            heard = moment
        snapshot = fold(snapshot, [event])
        if is_silent(snapshot, moment):
            assert moment - heard >= LEAST - 1e-6
            assert snapshot.owed or snapshot.missed
        assert set(snapshot.owed) <= set(snapshot.pending), "what is owed is under way"
        assert len(snapshot.owed.get(A, ())) <= snapshot.pending.get(A, 0)


@given(
    st.lists(st.floats(-300, 300), max_size=4),
    st.none() | st.floats(-300, 0),
    st.floats(-300, 0),
    st.floats(0, 200),
    st.floats(0, LEAST),
)
def test_nobody_is_looked_at_later_than_the_alarm_would_go_off(
    dues: list[float], missed: float | None, answered: float, due: float, grace: float
) -> None:
    observed = msgspec.structs.replace(ANSWERED, answered_at=at(answered))
    snapshot = msgspec.structs.replace(
        fleet(service_view("a/yard", age=0.4), observed={"a/yard": observed}),
        owed={A: tuple(at(d) for d in dues)} if dues else {},
        missed={A: at(missed)} if missed is not None else {},
    )
    view = snapshot.services[A]
    look = suspect_from(snapshot, view, at(0), at(due), Milliseconds(grace))
    goes_off = alarm(snapshot, view, at(due))
    assert goes_off is not None and look <= at(due) + grace / 1000 + 1e-9
    if goes_off > at(0):  # else it was silent already, and is asked because nobody else is there
        assert look <= goes_off + 1e-9
