"""Services that answer nonsense, nodes that leave properly or do not, and cuts that heal: with real processes."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from nearfar.runtimes import known_answer
from nearfar.runtimes.fake import FakeRuntime
from tests.faults.load import Load, ask, healthy
from tests.fleetlab import Lab, LabModel, Node, fake, poll
from tests.fleetlab import lab as lab

OFTEN = {"NEARFAR_NODE_SELF_TEST_EVERY_MS": "200"}
LEASE = {"NEARFAR_MESH_LEASE_MS": "1000"}


def with_answer(folder: Path, name: str, **faults: Any) -> LabModel:
    """A fake with a fault, and the answer of the same file without it as what the store has recorded."""
    well = fake(folder, name)
    with FakeRuntime().load(well.file) as loaded:
        answer = known_answer.learn(loaded.infer, loaded.inputs, known_answer.shapes_of(loaded.inputs), "fake")
    return fake(folder, name, **faults)._replace(answer=known_answer.encode(answer))


def row(gateway: Node, model: str, node: str = "") -> dict[str, Any]:
    return gateway.service_json(model, node) or {}


def when(gateway: Node, model: str, code: str, what: str, words: str = "", limit: float = 60.0) -> dict[str, Any]:
    """The service's row at a moment when it has the code, and the words in its reason."""
    seen: list[dict[str, Any]] = []

    def so() -> bool:
        seen.append(row(gateway, model))
        return seen[-1].get("code") == code and words in seen[-1]["reason"]

    poll(so, what, limit)
    return seen[-1]


def node_row(gateway: Node, name: str) -> dict[str, Any]:
    return next((r for r in gateway.fleet_json()["nodes"] if r["node"] == name), {})


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["zeros", "noise", "garble"])
def test_a_service_that_begins_to_answer_nonsense_is_found_out_ended_and_used_again_when_it_is_well(
    lab: Lab, tmp_path: Path, fault: str
) -> None:
    switch = tmp_path / "fault"
    one = lab.node("one", [with_answer(tmp_path, "echo", fault_file=str(switch))], env=OFTEN)
    poll(lambda: row(one, "echo")["self_test"]["passed"], "its self-test is told")
    told = row(one, "echo")["self_test"]
    assert "recorded" in told["reason"] and told["failed"] == 0 and told["seconds_ago"] < 20
    pid = one.service_pid("echo")
    with one.http() as http:
        assert ask(http, "echo").ok
    switch.write_text(fault)
    found = when(one, "echo", "self-test", "it is found out")
    assert (found["healthy"], found["health"]) == (False, "quarantined") and "self-test" in found["reason"]
    with one.http() as http:
        refused = ask(http, "echo")  # raises when it is answered with anything but what was sent
        assert refused.status == 503 and refused.detail
        # It starts again and again with back-off, and is never ready: its first answer is compared too.
        poll(
            lambda: row(one, "echo")["self_test"]["failed"] >= 3, "it is tried again, and found out at its start", 60.0
        )
        assert not row(one, "echo")["healthy"]
        text = http.get("/metrics").text
        assert re.search(r'nearfar_service_health\{health="quarantined",model="echo".*\} 1\.0', text) or re.search(
            r'nearfar_service_health\{health="starting",model="echo".*\} 1\.0', text
        )
        assert re.search(r'nearfar_service_self_tests_failed_total\{model="echo".*\} [3-9]\.0', text)
        switch.unlink()
        poll(lambda: healthy(one, "echo"), "it is well again", 90.0)
        assert ask(http, "echo").ok
    assert one.service_pid("echo") != pid
    assert one.stop() == 0


@pytest.mark.slow
def test_callers_do_not_notice_when_another_service_is_there(lab: Lab, tmp_path: Path) -> None:
    """Between the fault and the next self-test zeros may get out (Load would count them as broken): a garbled answer
    cannot, and once it is found out nothing is asked there."""
    switch = tmp_path / "fault"
    one = lab.node("one", [with_answer(tmp_path, "echo", fault_file=str(switch), delay_ms=2.0)], env=OFTEN)
    two = lab.node("two", [fake(tmp_path, "echo", delay_ms=10.0)], join=[one])
    poll(lambda: healthy(one, "echo", "two"), "one sees the service of two")
    with Load(one, "echo", clients=2) as load:
        load.wait_for(20, "requests are answered")
        switch.write_text("garble")
        poll(lambda: row(one, "echo", "one")["code"] == "self-test", "it is found out", 60.0)
        before = len(load.outcomes)
        load.wait_for(20, "the other one answers")
        assert {o.served_by for o in load.outcomes[before + 2 :]} == {"two/echo"}
    assert not load.broken and all(outcome.ok for outcome in load.outcomes)
    assert (one.stop(), two.stop()) == (0, 0)


@pytest.mark.slow
def test_a_start_that_is_corrupt_is_refused_with_the_reason_and_without_a_record_it_is_said_what_that_is_worth(
    lab: Lab, tmp_path: Path
) -> None:
    models = [with_answer(tmp_path, "corrupt", zeros_from=1), fake(tmp_path, "unrecorded", zeros_from=1, seed=1)]
    one = lab.node("one", models, env=OFTEN, wait=False)
    one.models = ("unrecorded",)
    one.wait_ready()
    told = when(one, "corrupt", "self-test", "it never becomes ready", "starts again in")
    assert "compared with its recorded answer" in told["reason"]
    assert told["answered"] == 0 and told["self_test"]["passed"] is False
    weak = row(one, "unrecorded")["self_test"]
    assert weak["passed"] and "its own first answer" in weak["reason"] and "all zeros" in weak["reason"]
    assert one.stop() == 0


def test_the_embedded_model_is_compared_with_the_answer_that_came_with_the_package(lab: Lab) -> None:
    one = lab.node("one", ["yard"], env=OFTEN)
    told = row(one, "yard")["self_test"]
    assert told["passed"] and told["reason"] == "as its recorded answer"
    assert one.stop() == 0


# -- leaving, and being cut off ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_node_that_says_goodbye_is_gone_and_one_that_is_killed_is_disconnected(lab: Lab, tmp_path: Path) -> None:
    model = fake(tmp_path, "echo")
    one = lab.node("one", [model], env=LEASE)
    two = lab.node("two", [model], join=[one], env=LEASE)
    poll(lambda: healthy(one, "echo", "two"), "one sees the service of two")
    assert two.stop() == 0
    poll(lambda: row(one, "echo", "two")["health"] == "gone", "it said goodbye")
    assert "goodbye" in row(one, "echo", "two")["reason"]
    assert (node_row(one, "two")["health"], node_row(one, "two")["code"]) == ("gone", "gone")
    two.launch()
    two.wait_ready()
    poll(lambda: healthy(one, "echo", "two"), "it is back")
    two.kill9_node()
    poll(lambda: row(one, "echo", "two")["health"] == "disconnected", "it said none")
    assert node_row(one, "two")["health"] == "disconnected"
    two.launch()
    two.wait_ready()
    poll(lambda: healthy(one, "echo", "two"), "and is back again")
    two.kill9_service("echo")
    poll(lambda: row(one, "echo", "two")["health"] in ("gone", "failed", "starting"), "its process alone died")
    poll(lambda: healthy(one, "echo", "two"), "its agent started it again")
    assert (one.stop(), two.stop()) == (0, 0)


@contextmanager
def silent(node: Node) -> Iterator[None]:
    """Cut off without a word, as by a cable that is pulled: agent and services keep all that they have."""
    processes = [psutil.Process(node.agent_pid), *psutil.Process(node.agent_pid).children(recursive=True)]
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process.pid, signal.SIGCONT)


@pytest.mark.slow
def test_a_cut_that_heals_finds_everything_as_it_was_and_starts_nothing_twice(lab: Lab, tmp_path: Path) -> None:
    model = fake(tmp_path, "echo", delay_ms=2.0)
    one = lab.node("one", [model], env=LEASE)
    two = lab.node("two", [model], join=[one], env=LEASE)
    poll(lambda: healthy(one, "echo", "two"), "one sees the service of two")
    with one.http() as http:
        for _ in range(5):
            assert ask(http, "echo", node="two").ok
    poll(lambda: row(one, "echo", "two")["answered"] == 5, "what it answered is told")
    before = {process.pid for process in lab.processes()}
    pid = two.service_pid("echo")
    with silent(two):
        poll(lambda: row(one, "echo", "two")["health"] == "disconnected", "its tokens run out", 60.0)
        assert node_row(one, "two")["health"] == "disconnected"
        assert {process.pid for process in lab.processes()} == before, "nobody starts it elsewhere"
    poll(lambda: healthy(one, "echo", "two"), "it is believed again", 60.0)
    assert row(one, "echo", "two")["answered"] == 5, "the very same service"
    assert two.service_pid("echo") == pid and {process.pid for process in lab.processes()} == before
    with one.http() as http:
        poll(lambda: ask(http, "echo", node="two").ok, "and asked again")
    assert (one.stop(), two.stop()) == (0, 0)
    assert "Traceback" not in one.stderr + two.stderr
