"""Something is there and does nothing."""

from __future__ import annotations

import contextlib
import os
import signal

from benchmarks.faults.base import Stage, fault
from benchmarks.faults.parts import Orders

PAUSE = 3.0
"""Seconds; three leases, and less than the time after which a silent service is ended."""


@fault("pause-service", "SIGSTOP of a service, SIGCONT three seconds later")
def pause_service(stage: Stage) -> None:
    node, model = stage.service()
    stage.note(f"{node.name}/{model}")
    before = stage.fleet.services()
    pid = node.service_pid(model)
    os.kill(pid, signal.SIGSTOP)
    try:
        stage.hold(PAUSE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    del before[f"{node.name}/{model}"]  # one that stood still in an inference may be ended for it
    stage.never_restarted(before)


@fault("pause-node", "SIGSTOP of an agent and its services, SIGCONT three seconds later")
def pause_node(stage: Stage) -> None:
    node = stage.node()
    stage.note(node.name)
    stage.excuse(node)
    node.signal(signal.SIGSTOP)
    try:
        stage.hold(PAUSE)
    finally:
        node.signal(signal.SIGCONT)


@fault("hung-interpreter", "a service that holds the interpreter's lock for ever, in somebody else's C code")
def hung_interpreter(stage: Stage) -> None:
    node = stage.node()
    stage.note(node.name)
    pid = node.service_pid("mirror")
    stage.order(node, Orders("hang"))
    try:
        stage.note(f"who asks it hears {stage.poke(node).get('code')}")
        stage.fleet.wait(
            lambda: any(row["service"] == f"{node.name}/mirror" and not row["healthy"] for row in _rows(stage)),
            "the hung service is seen not to be well",
        )
    finally:
        stage.order(node, None)
    took = stage.fleet.wait(
        lambda: node.service_pid("mirror") not in (0, pid), "the hung service was ended and started again", 40.0
    )
    stage.note(f"it was another process {took:.1f} s after it was seen to hang")


def _rows(stage: Stage) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = stage.node("three").view().get("services", [])
    return rows


FAULTS = (pause_service, pause_node, hung_interpreter)
