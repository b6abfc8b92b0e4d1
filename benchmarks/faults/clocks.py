"""The wall clocks of nodes jump by a day, each another way. The machine's own clock is left alone.

`time.time` is moved in the agent and the services of a node, while they run (`parts.py`). What reads the clock in
compiled code (Zenoh stamps no message of a peer) is not moved.
"""

from __future__ import annotations

from benchmarks.faults.base import Stage, fault
from benchmarks.faults.twins import must_be_turned_away, twin

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
        pid = two.pid
        with twin(stage, two, stage.node("three"), clock=2 * -DAY) as made:  # it says that it is the older one
            must_be_turned_away(made, two, pid, "is alive in this fleet")
        stage.never_restarted(before)
    finally:
        for node in moved:
            node.clock.unlink(missing_ok=True)
    stage.hold(1.0)
    stage.never_restarted(before)


FAULTS = (clock_jumps,)
