"""One service breaks, in every way it can: it is said why, it is started again, and nobody else notices."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from tests.faults.load import Load, ask, healthy, reason
from tests.fleetlab import Lab, fake, poll
from tests.fleetlab import lab as lab

LEASE = {"NEARFAR_MESH_LEASE_MS": "1000"}


@pytest.mark.slow
def test_services_that_break_are_told_started_again_and_harm_no_neighbour(lab: Lab, tmp_path: Path) -> None:
    """One node with a model for each accident, and one that must not notice."""
    good = fake(tmp_path, "good", delay_ms=2.0)
    crash = fake(tmp_path, "crash", crash_at=10)  # warm-up and profile take seven
    broken = fake(tmp_path, "broken", load_error="the weights are from Mars")
    hang = fake(tmp_path, "hang", hang_at=9)
    hog = fake(tmp_path, "hog", allocate_mib=40.0)
    node = lab.node(
        "one",
        [good, crash, broken, hang, hog],
        flags=["--memory-limit", "700MiB"],
        env={"NEARFAR_NODE_STUCK_AFTER_MS": "700"},
        wait=False,
    )
    node.models = ("good", "crash", "hang", "hog")  # the fifth never gets healthy
    node.wait_ready()
    neighbour = node.service_pid("good")
    with Load(node, "good", clients=1) as load, node.http() as http:
        # It cannot be loaded: reason, count and next start are there for all to see.
        told = r"the weights are from Mars.*Failed (once|\d+ times in a row); starts again in \d+\.\d s"
        poll(lambda: re.search(told, reason(node, "broken")), "the reason of what cannot start")
        refused = ask(http, "broken")
        assert refused.status == 503 and "the weights are from Mars" in refused.detail

        # It kills itself in the middle of a request: that one is refused with the reason, later ones are answered.
        pid = node.service_pid("crash")
        outcomes = [ask(http, "crash") for _ in range(2)]
        assert all(outcome.ok for outcome in outcomes)
        lost = ask(http, "crash")
        assert lost.status == 503 and "vanished before it answered" in lost.detail
        poll(lambda: "killed by SIGKILL" in reason(node, "crash"), "the reason of the crash")
        poll(lambda: healthy(node, "crash"), "it is back")
        assert node.service_pid("crash") != pid and ask(http, "crash").ok

        # It hangs: who has a deadline hears so in time; then it is ended and started again.
        pid = node.service_pid("hang")
        assert ask(http, "hang").ok
        late = ask(http, "hang", deadline="200ms")
        assert (late.status, late.code) == (503, "deadline-exceeded")
        poll(lambda: "did not end in 0.7 s" in reason(node, "hang"), "the reason of the restart")
        poll(lambda: healthy(node, "hang"), "it is back")
        assert node.service_pid("hang") != pid and ask(http, "hang").ok

        # It eats memory: it is stopped with the figures.
        pid = node.service_pid("hog")
        lost_memory = [ask(http, "hog") for _ in range(30)]
        assert all(outcome.stated for outcome in lost_memory)
        told = r"stopped because it used \d+\.\d MiB of memory, more than its limit of 700.0 MiB"
        poll(lambda: re.search(told, reason(node, "hog")), "the figures")
        poll(lambda: healthy(node, "hog"), "it is back")
        assert node.service_pid("hog") != pid

        load.wait_for(20, "the neighbour goes on")
    assert not load.broken and all(outcome.ok for outcome in load.outcomes)
    assert node.service_pid("good") == neighbour
    assert node.stop() == 0


@pytest.mark.slow
def test_a_file_damaged_in_the_store_and_a_model_too_large_are_told_and_the_rest_serves(
    lab: Lab, tmp_path: Path
) -> None:
    good = fake(tmp_path, "good")
    damaged = fake(tmp_path, "damaged", seed=1)
    large = fake(tmp_path, "large", allocate_at_load_mib=900.0)
    node = lab.node("one", [good, damaged, large], flags=["--memory-limit", "600MiB"], wait=False)
    node.models = ("good", "damaged")
    node.wait_ready()
    blob = node.home / "models" / "blobs" / "sha256"
    blob = next(blob.rglob(damaged.manifest.variants[0].sha256))
    blob.chmod(0o644)
    blob.write_bytes(b"\0" * blob.stat().st_size)
    node.kill9_service("damaged")
    poll(lambda: "has the sha256" in reason(node, "damaged"), "what is wrong with the file")
    assert "nearfar models remove damaged" in reason(node, "damaged")
    poll(lambda: "more than its limit of 600.0 MiB" in reason(node, "large"), "why it cannot be loaded")
    with node.http() as http:
        assert ask(http, "good").ok
        for model, words in (("damaged", "sha256"), ("large", "limit of 600.0 MiB")):
            refused = ask(http, model)
            assert refused.status == 503 and (words in refused.detail or "loading" in refused.detail)
    assert node.stop() == 0


@pytest.mark.slow
def test_a_stopped_service_is_left_out_in_time_and_used_again_when_it_goes_on(lab: Lab, tmp_path: Path) -> None:
    """SIGSTOP: the process is there, its sockets are open, and nothing comes back."""
    model = fake(tmp_path, "echo", delay_ms=2.0)
    one = lab.node("one", [model], env=LEASE)
    two = lab.node("two", [fake(tmp_path, "echo", delay_ms=30.0)], join=[one], env=LEASE)
    poll(lambda: healthy(one, "echo", "two"), "one sees the service of two")
    pid = one.service_pid("echo")
    try:
        with Load(one, "echo", clients=3, deadline="500ms") as load:
            load.wait_for(20, "requests are answered")
            os.kill(pid, signal.SIGSTOP)
            poll(lambda: not healthy(one, "echo", "one"), "it is seen not to be well")
            before = len(load.outcomes)
            load.wait_for(20, "the other one answers")
            elsewhere = load.outcomes[before:]
            assert {o.served_by for o in elsewhere if o.ok} == {"two/echo"}
            os.kill(pid, signal.SIGCONT)
            poll(lambda: healthy(one, "echo", "one"), "it is well again")
            there = len(load.outcomes)
            poll(lambda: any(o.served_by == "one/echo" for o in load.outcomes[there:]), "it is used again", 60.0)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert not load.broken and all(outcome.stated for outcome in load.outcomes)
    assert {o.code for o in load.outcomes if not o.ok} <= {"deadline-exceeded", "no-candidate"}
    assert psutil.pid_exists(pid), "it was never restarted: it came back by itself"
    assert (one.stop(), two.stop()) == (0, 0)
