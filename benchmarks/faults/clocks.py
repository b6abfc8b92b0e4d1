"""The wall clocks of nodes jump by a day, each another way. The machine's own clock is left alone.

`time.time` is moved in the agent and the services of a node, while they run (`parts.py`). What reads the clock in
compiled code (Zenoh stamps no message of a peer) is not moved.
"""

from __future__ import annotations

import shutil

from benchmarks.faults.base import Stage, fault
from benchmarks.faults.fleet import Broken, Node

DAY = 86_400


@fault("clock-jumps", "wall clocks jump by a day either way while all runs; a twin from the past must not win")
def clock_jumps(stage: Stage) -> None:
    fleet = stage.fleet
    before = fleet.services()
    two = stage.node("two")
    moved = {stage.node("one"): DAY, two: -DAY}
    for node, seconds in moved.items():
        node.clock.write_text(str(seconds))
    try:
        stage.hold(2.0)
        stage.goes_on()
        stage.never_restarted(before)
        _a_twin_is_turned_away(stage, two, 2 * -DAY)
        stage.never_restarted(before)
    finally:
        for node in moved:
            node.clock.unlink(missing_ok=True)
    stage.hold(1.0)
    stage.never_restarted(before)


def _a_twin_is_turned_away(stage: Stage, living: Node, seconds: int) -> None:
    """Another agent of the same name, elsewhere, whose clock says that it is older: the living one stays."""
    fleet = stage.fleet
    home = fleet.folder / f"twin-{living.name}"
    home.mkdir()
    twin = Node(fleet, living.name, stage.node("three").place, home, models=())
    twin.clock = fleet.folder / "clock-twin"
    twin.clock.write_text(str(seconds))
    pid = living.pid
    try:
        twin.launch()
        code = twin.ended()
        if code != 2 or "is alive in this fleet" not in twin.tail():
            raise Broken(f"a twin of {living.name} was not turned away: exit code {code}, {twin.tail()}")
        if not living.runs or living.pid != pid:
            raise Broken(f"{living.name} left because of a twin with an older clock")
    finally:
        if twin.runs:
            twin.kill()
        twin.clock.unlink(missing_ok=True)
        shutil.rmtree(home)


FAULTS = (clock_jumps,)
