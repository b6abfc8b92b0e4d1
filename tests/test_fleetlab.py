"""The helper that starts real nodes for other tests: it must not leave anything behind, nor pass when it does."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.fleetlab import Lab, fake, poll
from tests.fleetlab import lab as lab


def test_two_nodes_one_fleet_services_found_killed_and_started_again(lab: Lab, tmp_path: Path) -> None:
    model = fake(tmp_path, "echo")
    one = lab.node("one", [model])
    two = lab.node("two", [model], join=[one])
    poll(lambda: (one.service_json("echo", "two") or {}).get("healthy"), "one sees the service of two")
    pid = one.service_pid("echo")
    assert psutil.pid_exists(pid) and pid != two.service_pid("echo")
    one.kill9_service("echo")
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    poll(lambda: (one.service_json("echo") or {}).get("healthy"), "the service is back")
    assert one.service_pid("echo") != pid
    two.kill9_agent()
    poll(lambda: len(lab.processes()) == 2, "the killed agent's service ended by itself")
    assert two.wait_ended() == -9
    two.launch()
    two.wait_ready()
    assert two.stop() == 0


def test_a_node_that_cannot_start_fails_with_what_it_said(lab: Lab) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"(?s)exit code 3.*no model 'yrad'.*'yard'"):
        lab.node("one", ["yrad"])


def test_a_lab_that_is_left_by_an_error_leaves_no_process(tmp_path: Path) -> None:
    made = Lab(tmp_path)
    with pytest.raises(ZeroDivisionError):
        with made:
            made.node("one", [fake(tmp_path, "echo")])
            assert len(made.processes()) == 2
            raise ZeroDivisionError
    assert made.processes() == []
