from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given

from nearfar.fleet.snapshot import Observed, Snapshot
from nearfar.placement.expectation import (
    BELIEVED,
    LATELY,
    PRIOR_BANDWIDTH,
    PRIOR_RTT,
    PRIOR_SERVICE,
    RTO_LEAST,
    Expectation,
    expect,
    link_to,
    service_time,
)
from nearfar.types.ids import ModelName, NodeId
from nearfar.types.request import Request
from nearfar.types.units import Bytes, Milliseconds, Seconds
from tests.fleet.build import NOW, fleet, link, node_view, service_view, sid
from tests.placement.worlds import requests, snapshots

REQUEST = Request(ModelName("yard"), "here", Bytes(99_000), Bytes(1000))


def of(snapshot: Snapshot, node: str = "pi", request: Request = REQUEST) -> Expectation:
    return expect(snapshot, request, snapshot.services[sid(node)], NOW)


def seen(**changes: object) -> Observed:
    return Observed(**{"answered_at": Seconds(NOW - 0.1), **changes})  # type: ignore[arg-type]


def test_the_total_is_the_sum_of_its_parts_by_hand() -> None:
    world = fleet(
        service_view("pi/yard", queued=2, in_flight=1, service_ms=20.0), links={"pi": link(4.0, bandwidth=1e7)}
    )
    expected = of(world)
    assert (expected.link, expected.wait, expected.service) == (4.0, 60.0, 20.0)
    assert expected.transfer == pytest.approx(10.0)
    assert expected.total == pytest.approx(94.0)
    assert expected.basis == "measured link"


@given(snapshots(), requests())
def test_whatever_nodes_send_every_part_is_a_number_and_not_negative(snapshot: Snapshot, request: Request) -> None:
    for view in snapshot.services.values():
        e = expect(snapshot, request, view, NOW)
        parts = (e.link, e.transfer, e.wait, e.service)
        assert all(0 <= part < math.inf for part in (*parts, e.margin))
        assert e.total == pytest.approx(sum(parts))


def test_the_own_node_and_the_own_machine_need_no_network() -> None:
    nodes = [(name, node_view(name, host="box")) for name in ("pi", "here")]
    world = fleet(service_view("pi/yard"), service_view("here/yard"), nodes=nodes, links={"pi": link(9.0)})
    assert (of(world, "here").link, of(world, "here").transfer) == (0.0, 0.0)
    assert (of(world, "pi").link, of(world, "pi").basis) == (0.0, "same machine")


def test_machines_that_state_no_host_are_not_taken_for_one() -> None:
    world = fleet(service_view("pi/yard"), service_view("here/yard"), links={"pi": link(9.0)})
    assert of(world).link == 9.0


def test_the_matrix_is_read_in_both_directions_and_from_the_one_who_decides() -> None:
    world = fleet(service_view("pi/yard"), me="pi", links={"here": link(7.0)})
    assert of(world).link == 7.0
    elsewhere = Request(ModelName("yard"), "camera")
    world = fleet(service_view("pi/yard"), me="gateway", links={"pi": link(3.0)})
    assert of(world, request=elsewhere).link == 3.0


def test_without_a_measurement_a_stated_prior() -> None:
    expected = of(fleet(service_view("pi/yard")))
    assert expected.link == PRIOR_RTT
    assert expected.transfer == pytest.approx(100_000 / PRIOR_BANDWIDTH * 1e3)
    assert expected.basis == "not measured, 5 ms assumed"


def test_observed_link_stands_in_for_a_missing_or_old_measurement() -> None:
    answers = {"pi/yard": seen(link=Milliseconds(30.0), moved=Bytes(100_000))}
    for links in ({}, {"pi": link(2.0, age=BELIEVED + 1)}):
        expected = of(fleet(service_view("pi/yard"), links=links, observed=answers))
        assert expected.basis == "observed link"
        assert expected.link + expected.transfer == pytest.approx(30.0)  # a request of the same size takes as long


def test_an_observed_link_faster_than_the_prior_bandwidth() -> None:
    answers = {"pi/yard": seen(link=Milliseconds(2.0), moved=Bytes(100_000))}
    expected = of(fleet(service_view("pi/yard"), observed=answers))
    assert expected.link == 0.0 and expected.transfer == pytest.approx(2.0)


def test_old_answers_do_not_count_and_an_old_measurement_is_better_than_none() -> None:
    answers = {"pi/yard": Observed(link=Milliseconds(90.0), answered_at=Seconds(NOW - BELIEVED - 1))}
    expected = of(fleet(service_view("pi/yard"), links={"pi": link(2.0, age=BELIEVED + 1)}, observed=answers))
    assert (expected.link, expected.basis) == (2.0, "measured link, old")


def test_recent_answers_tell_of_a_changed_link_before_pings_do() -> None:
    def asked(age: float, link_ms: float) -> Expectation:
        answers = {
            "pi/yard": Observed(link=Milliseconds(link_ms), moved=Bytes(100_000), answered_at=Seconds(NOW - age))
        }
        return of(fleet(service_view("pi/yard"), links={"pi": link(2.0, bandwidth=1e7)}, observed=answers))

    slower = asked(0.1, 60.0)
    assert slower.basis == "link of recent answers"
    assert [slower.link, slower.transfer] == pytest.approx([50.0, 10.0])
    assert asked(0.1, 14.1).link == pytest.approx(4.1)
    assert (asked(0.1, 13.9).link, asked(0.1, 13.9).basis) == (2.0, "measured link"), "they agree within 2 ms"
    assert (asked(LATELY + 0.1, 60.0).link, asked(LATELY + 0.1, 60.0).basis) == (2.0, "measured link")


def test_bandwidth_is_learned_from_answers_when_no_transfer_was_timed() -> None:
    answers = {"pi/yard": seen(link=Milliseconds(104.0), moved=Bytes(100_000))}
    expected = of(fleet(service_view("pi/yard"), links={"pi": link(4.0, bandwidth=None)}, observed=answers))
    assert expected.link == 4.0 and expected.transfer == pytest.approx(100.0)


def test_loss_costs_the_expected_number_of_time_outs() -> None:
    expected = of(fleet(service_view("pi/yard"), links={"pi": link(4.0, loss=0.1)}))
    assert expected.link == pytest.approx(4.0 + RTO_LEAST / 9)


def test_jitter_is_a_margin_against_the_deadline_and_not_part_of_the_total() -> None:
    calm = of(fleet(service_view("pi/yard"), links={"pi": link(4.0)}))
    nervous = of(fleet(service_view("pi/yard"), links={"pi": link(4.0, jitter=3.0)}))
    assert nervous.total == calm.total
    just = Milliseconds(calm.total + 1)
    assert calm.keeps(just) and not nervous.keeps(just) and nervous.keeps(None)


def test_own_requests_that_telemetry_holds_already_are_not_counted_twice() -> None:
    def wait(pending: int) -> float:
        return of(
            fleet(service_view("pi/yard", queued=3, in_flight=1), pending={"pi/yard": pending} if pending else {})
        ).wait

    assert wait(0) == wait(4) == 80.0
    assert wait(6) == 120.0  # two were sent since the report


def test_an_answer_tells_of_the_queue_before_telemetry_does() -> None:
    view = service_view("pi/yard", queued=9, in_flight=1, age=0.4)
    drained = {"pi/yard": seen(queued=0, queued_at=Seconds(NOW - 0.1))}
    assert of(fleet(view, observed=drained)).wait == 0.0
    older = {"pi/yard": seen(queued=0, queued_at=Seconds(NOW - 0.5))}
    assert of(fleet(service_view("pi/yard", queued=9, in_flight=1, age=0.0), observed=older)).wait == 200.0
    grown = {"pi/yard": seen(queued=12, queued_at=Seconds(NOW))}
    assert of(fleet(view, observed=grown)).wait == 12 * 20.0, "the first of them is begun as the answer leaves"


def test_what_was_seen_is_worked_off_and_others_mean_number_stays() -> None:
    view = service_view("pi/yard", queued=9, in_flight=1, age=0.1)
    assert of(fleet(view, observed={"pi/yard": seen()})).wait == pytest.approx(100.0), "five of ten are done since"
    assert of(fleet(view, observed={"pi/yard": seen(others=7.0)})).wait == pytest.approx(140.0)


def test_ones_own_requests_count_by_when_they_are_due() -> None:
    def wait(*dues: float, rtt: float = 0.0) -> float:
        world = fleet(service_view("pi/yard"), links={"pi": link(rtt)})
        owed = {sid("pi"): tuple(Seconds(NOW + due / 1000) for due in dues)} if dues else {}
        return of(msgspec.structs.replace(world, owed=owed)).wait

    assert wait() == 0.0
    assert wait(30.0) == pytest.approx(30.0, abs=0.1)
    assert wait(30.0, 50.0, rtt=40.0) == pytest.approx(10.0, abs=0.2), "over a long link they are done when it arrives"
    assert wait(-5.0, -1.0) == pytest.approx(30.0), "what is overdue waits there still, one of them half done"


@pytest.mark.parametrize(("backlog", "wait"), [(0, 0.0), (3, 0.0), (4, 5.0), (7, 20.0)])
def test_free_workers_mean_no_wait(backlog: int, wait: float) -> None:
    world = fleet(service_view("pi/yard", workers=4, queued=max(backlog - 4, 0), in_flight=min(backlog, 4)))
    assert of(world).wait == wait


def test_service_time_is_reported_then_profile_then_prior() -> None:
    assert service_time(service_view("pi/yard", service_ms=7.0, profile_ms=9.0), None, NOW) == 7.0
    assert service_time(service_view("pi/yard", service_ms=0.0, profile_ms=9.0), None, NOW) == 9.0
    assert service_time(service_view("pi/yard", service_ms=math.nan, profile_ms=0.0), None, NOW) == PRIOR_SERVICE


def test_the_observed_ratio_corrects_and_fades() -> None:
    view = service_view("pi/yard", service_ms=10.0)

    def after(age: float) -> float:
        return service_time(view, Observed(ratio=3.0, answered_at=Seconds(NOW - age)), NOW)

    assert after(0) == pytest.approx(30.0)
    assert after(BELIEVED / 2) == pytest.approx(20.0)
    assert after(BELIEVED) == after(10 * BELIEVED) == 10.0


def test_it_reads_as_a_sentence_of_its_parts() -> None:
    text = str(of(fleet(service_view("pi/yard"), links={"pi": link(4.0)})))
    assert text.startswith("24.1 ms (link 4.0, measured link; transfer 0.1; wait 0.0; service 20.0)")


def test_link_of_a_node_that_is_not_known() -> None:
    world = fleet(service_view("pi/yard"))
    assert link_to(world, NodeId("nobody"), world.services[sid("pi")], NOW).rtt == PRIOR_RTT


def test_a_chain_of_own_requests_does_not_drift_away() -> None:
    """Each is due after the one before: a service faster than it reports would look ever later while it is busy."""
    world = fleet(service_view("pi/yard", service_ms=10.0), links={"pi": link(2.0)})
    dues = tuple(Seconds(NOW + 5.0 + n * 0.01) for n in range(4))
    assert of(msgspec.structs.replace(world, owed={sid("pi"): dues})).wait == 2 * 4 * 10.0
