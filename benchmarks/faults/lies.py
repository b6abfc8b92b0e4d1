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
    stage.order(node, Orders(kind))
    try:
        for _ in range(3):  # who asks this one alone hears why, whatever placement makes of it meanwhile
            told = stage.poke(node)
            if "outputs" in told:
                raise Broken(f"{node.name}/mirror delivered {told['outputs']}")
            if told.get("code") not in ("inference", "no-candidate") or not told.get("detail"):
                raise Broken(f"{node.name}/mirror with a wrong output ended in {told}")
        stage.note(told["detail"][:90])
        stage.hold(HELD)
    finally:
        stage.order(node, None)


FAULTS = (zeros, other_output, wrong_shape)
