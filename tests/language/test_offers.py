"""Which models there are to talk to: what is kept of them is what would be found anew."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from nearfar.fleet.events import (
    NEVER,
    Event,
    NodeAppeared,
    NodeReported,
    NodeVanished,
    RequestSent,
    ServiceAppeared,
    ServiceReported,
    ServiceVanished,
)
from nearfar.fleet.reduce import fold
from nearfar.fleet.snapshot import FRESH, Snapshot
from nearfar.language.offers import Lasting, offers
from nearfar.types.ids import NodeId, ServiceId
from nearfar.types.telemetry import ServiceState, TextReport
from nearfar.types.units import Seconds
from tests.fleet.build import node_report, service_report

TINY = ServiceId("pi/tiny")
TEXT = TextReport(512)


def reported(at: float, **changes: object) -> ServiceReported:
    given_text = {"text": TEXT, **changes}
    return ServiceReported(service_report(TINY, **given_text), Seconds(at))


def seen(*events: Event) -> Snapshot:
    return fold(Snapshot("pi"), events)


def test_a_call_under_way_changes_nothing_and_costs_nothing() -> None:
    kept = Lasting()
    snapshot = seen(ServiceAppeared(TINY, Seconds(1.0)), reported(1.0))
    first = kept.of(snapshot, Seconds(1.1))
    assert [offer.services for offer in first] == [1]
    asked = fold(snapshot, [RequestSent(TINY, Seconds(1.2), NEVER)])
    assert asked is not snapshot and kept.of(asked, Seconds(1.3)) is first


def test_a_service_that_is_not_heard_any_more_is_not_offered_for_longer_than_before() -> None:
    kept = Lasting()
    snapshot = seen(ServiceAppeared(TINY, Seconds(1.0)), reported(1.0))
    assert kept.of(snapshot, Seconds(1.0))[0].services == 1
    assert kept.of(snapshot, Seconds(1.0 + FRESH))[0].services == 1
    late = kept.of(snapshot, Seconds(1.0 + FRESH + 0.01))[0]
    assert late.services == 0 and "no telemetry" in late.reason
    assert kept.of(snapshot, Seconds(9.0))[0].reason == "no telemetry for 8.0 s"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ready", "failed", "far", "tensors", "there", "gone", "node", "no node", "asked"]),
            st.floats(0.0, 3.0),
        ),
        max_size=12,
    )
)
def test_it_is_always_what_would_be_found_anew(steps: list[tuple[str, float]]) -> None:
    kept, snapshot, now = Lasting(), Snapshot("pi"), 1.0
    for what, later in steps:
        now += later
        at = Seconds(now)
        possible: dict[str, Event] = {
            "ready": reported(now),
            "failed": reported(now, state=ServiceState.FAILED),
            "far": reported(now, runtime="remote"),
            "tensors": reported(now, text=None),
            "there": ServiceAppeared(TINY, at),
            "gone": ServiceVanished(TINY, at),
            "node": NodeAppeared(NodeId("pi"), at),
            "no node": NodeVanished(NodeId("pi"), at),
            "asked": RequestSent(TINY, at, NEVER),
        }
        events = [possible[what]]
        if what == "node":
            events.append(NodeReported(node_report("pi"), at))
        snapshot = fold(snapshot, events)
        for moment in (now, now + 1.0):
            found = kept.of(snapshot, Seconds(moment))
            assert msgspec.to_builtins(found) == msgspec.to_builtins(offers(snapshot, Seconds(moment)))
