"""A whole node breaks, or two want to be the same one: the others go on, and nothing is left behind."""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from tests.faults.load import Load, ask, healthy
from tests.fleetlab import Lab, fake, poll
from tests.fleetlab import lab as lab
from tests.waiting import until_now


@pytest.mark.slow
def test_a_node_that_dies_under_load_costs_no_request_without_a_reason_and_comes_back_under_its_name(
    lab: Lab, tmp_path: Path
) -> None:
    """kill -9 of agent and services at once, seen through the gateway of the other node."""
    model = fake(tmp_path, "echo", delay_ms=20.0)
    one = lab.node("one", [model])
    two = lab.node("two", [model], join=[one])
    poll(lambda: healthy(one, "echo", "two"), "one sees the service of two")
    with Load(one, "echo", clients=6) as load:
        poll(lambda: {o.served_by for o in load.outcomes} >= {"one/echo", "two/echo"}, "both answer", 60.0)
        two.kill9_node()
        poll(lambda: not healthy(one, "echo", "two"), "it is seen to be gone")
        after = len(load.outcomes)
        load.wait_for(30, "the survivor answers")
        survivors = load.outcomes[after + 6 :]
        assert {o.served_by for o in survivors} == {"one/echo"}
        two.launch()
        two.wait_ready()
        poll(lambda: healthy(one, "echo", "two"), "it is back")
        poll(lambda: load.outcomes[-1].served_by == "two/echo", "and gets its share", 60.0)
    assert not load.broken, "a request hung or its connection broke"
    assert all(outcome.stated for outcome in load.outcomes)
    assert sum(not outcome.ok for outcome in load.outcomes) == 0, "the survivor could answer all that the dead lost"
    assert (one.stop(), two.stop()) == (0, 0)


@pytest.mark.slow
def test_services_of_a_killed_agent_end_by_themselves_whatever_they_are_doing(lab: Lab, tmp_path: Path) -> None:
    """One that idles, one that hangs in an inference and one that hangs while it warms up: none may stay."""
    names = ("idle", "stuck", "warming")
    hang = {"idle": 0, "stuck": 8, "warming": 1}
    one = lab.node("one", [fake(tmp_path, name, hang_at=hang[name]) for name in names], wait=False)
    one.models = names[:2]
    one.wait_ready()
    two = lab.node("two", [fake(tmp_path, "idle")], join=[one])
    poll(lambda: healthy(two, "idle", "one"), "two sees one")
    with one.http(timeout=60.0) as http:

        def hang_on() -> None:
            with contextlib.suppress(httpx.HTTPError):  # its gateway dies with the agent
                ask(http, "stuck")

        hung = threading.Thread(target=hang_on)
        hung.start()
        poll(lambda: (one.service_json("stuck") or {}).get("in_flight") == 1, "it hangs")
        services = [psutil.Process(one.service_pid(name)) for name in names]
        one.kill9_agent()
        hung.join()
    until_now(
        lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in services),
        "no service is left",
        limit=20.0,
    )
    with two.http() as http:
        assert all(ask(http, "idle").served_by == "two/idle" for _ in range(5))
        refused = ask(http, "stuck")
        assert refused.status == 503 and "gone" in refused.detail
    assert two.stop() == 0


@pytest.mark.slow
def test_a_second_agent_with_the_same_id_is_turned_away_and_the_first_one_lives_on(lab: Lab, tmp_path: Path) -> None:
    model = fake(tmp_path, "echo")
    one = lab.node("pi", [model])
    before = one.service_pid("echo")

    same_home = lab.node("pi", [model], wait=False)
    assert same_home.wait_ended(60) == 2
    assert "'pi' runs on this machine already" in same_home.stderr and "--name NAME" in same_home.stderr
    assert "Traceback" not in same_home.stderr

    elsewhere = Lab(tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    elsewhere.fleet = lab.fleet
    with elsewhere:
        other_home = elsewhere.node("pi", [model], join=[one], wait=False)
        assert other_home.wait_ended(60) == 2
        assert "'pi' is alive in this fleet" in other_home.stderr and "--name NAME" in other_home.stderr
        assert "Traceback" not in other_home.stderr
        assert not elsewhere.processes()

    assert one.service_pid("echo") == before and len(lab.processes()) == 2
    with one.http() as http:
        assert ask(http, "echo").ok
    assert one.stop() == 0


@pytest.mark.slow
def test_a_node_that_comes_and_goes_disturbs_nobody_and_two_gateways_answer_at_once(lab: Lab, tmp_path: Path) -> None:
    model = fake(tmp_path, "echo", delay_ms=5.0)
    one = lab.node("one", [model])
    two = lab.node("two", [model], join=[one])
    guest = None
    with Load(one, "echo", clients=2) as first, Load(two, "echo", clients=2) as second:
        for end in ("asked", "killed", "asked"):
            if guest is None:
                guest = lab.node("guest", [model], join=[one])
            else:
                guest.launch()
                guest.wait_ready()
            for gateway in (one, two):
                poll(partial(healthy, gateway, "echo", "guest"), "the guest is seen")
            if end == "asked":
                assert guest.stop() == 0
            else:
                guest.kill9_node()
            for gateway in (one, two):
                poll(lambda g=gateway: not healthy(g, "echo", "guest"), "the guest is gone")  # type: ignore[misc]
        for load in (first, second):
            load.wait_for(20, "both gateways go on")
    for load in (first, second):
        assert not load.broken and all(outcome.ok for outcome in load.outcomes)
    assert "guest/echo" in {o.served_by for o in first.outcomes + second.outcomes}
    gone = next(node for node in one.fleet_json()["nodes"] if node["node"] == "guest")
    assert gone["alive"] is False
    assert (one.stop(), two.stop()) == (0, 0)
