"""A service that answers, and what it answers is wrong."""

from __future__ import annotations

from typing import Literal

from benchmarks.faults.base import Stage, fault
from benchmarks.faults.fleet import Broken
from benchmarks.faults.parts import Orders

HELD = 3.0


def _lie(stage: Stage, wrong: Literal["zeros", "other"]) -> None:
    node = stage.node()
    stage.note(node.name)
    stage.expose()
    stage.order(node, Orders(wrong))
    try:
        stage.hold(HELD)
    finally:
        stage.order(node, None)


@fault("zeros", "a service that answers zeros from some moment on; how many are delivered is measured")
def zeros(stage: Stage) -> None:
    _lie(stage, "zeros")


@fault("other-output", "a service that answers what another model would, of the right shape and dtype; measured")
def other_output(stage: Stage) -> None:
    _lie(stage, "other")


@fault("wrong-shape", "a service whose outputs have another shape, dtype or number: none may be delivered")
def wrong_shape(stage: Stage) -> None:
    node = stage.node()
    kinds: tuple[Literal["shape", "dtype", "count"], ...] = ("shape", "dtype", "count")
    kind = stage.rng.choice(kinds)
    stage.note(f"{node.name}: {kind}")
    before = _failed(stage, node.name)
    stage.order(node, Orders(kind))
    try:
        stage.hold(HELD)
        stage.fleet.wait(lambda: _failed(stage, node.name) > before, "the service says that it failed", 30.0)
    finally:
        stage.order(node, None)


def _failed(stage: Stage, name: str) -> int:
    """Requests that a node's mirror says it could not answer, as a gateway heard."""
    view = stage.node("one" if name != "one" else "three").view()
    for row in view.get("services", ()):
        if row["service"] == f"{name}/mirror":
            return int(row["failed"])
    raise Broken(f"{name}/mirror is not in the fleet")


FAULTS = (zeros, other_output, wrong_shape)
