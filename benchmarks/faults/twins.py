"""Two nodes of one name: a twin that comes while the other lives, and one that grew up behind a cut."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence

from benchmarks.faults.base import Stage, fault, needs_cut
from benchmarks.faults.fleet import Broken, Node

TURNED_AWAY = 2
"""Exit code of a node whose name is taken."""


@contextlib.contextmanager
def twin(stage: Stage, living: Node, beside: Node, models: Sequence[str] = (), clock: float = 0.0) -> Iterator[Node]:
    """Another agent of the same name in a home of its own, where another node stands; `clock` moves its wall clock."""
    fleet = stage.fleet
    home = fleet.folder / f"twin-{living.name}"
    home.mkdir()
    if "mirror" in models:
        fleet.fill(home)
    made = Node(fleet, living.name, beside.place, home, models)
    made.clock = fleet.folder / "clock-twin"
    made.clock.write_text(str(clock))
    made.launch()
    try:
        yield made
    finally:
        if made.runs:
            made.kill()
        made.clock.unlink(missing_ok=True)
        shutil.rmtree(home)


def must_be_turned_away(made: Node, living: Node, pid: int, words: str) -> None:
    code = made.ended()
    if code != TURNED_AWAY or words not in made.tail():
        raise Broken(f"a twin of {living.name} was not turned away: exit code {code}, {made.tail()}")
    if not living.runs or living.pid != pid:
        raise Broken(f"{living.name} left because of its twin: {living.tail()}")


@fault(
    "twin-behind-a-cut",
    "a node's name is taken a second time behind a cut: when it heals, the younger leaves",
    needs_cut,
)
def twin_behind_a_cut(stage: Stage) -> None:
    fleet = stage.fleet
    two, one = stage.node("two"), stage.node("one")
    before = fleet.services()
    pid = two.pid
    fleet.ground.part([fleet.node(name).place for name in ("two", "three")])
    try:
        stage.hold(2.0)
        with twin(stage, two, one, models=("mirror",)) as made:
            fleet.wait(lambda: made.service_pid("mirror"), "the twin serves")
            fleet.wait(lambda: _serves(one), "its half sees it")
            fleet.ground.heal()
            must_be_turned_away(made, two, pid, "is alive in this fleet")
            if left := [name for name in made.models if made.service_pid(name)]:
                raise Broken(f"the twin left its services behind: {left}")
    finally:
        fleet.ground.heal()
    stage.never_restarted(before)


def _serves(gateway: Node) -> bool:
    return any(row["service"] == "two/mirror" and row["healthy"] for row in gateway.view().get("services", ()))


FAULTS = (twin_behind_a_cut,)
