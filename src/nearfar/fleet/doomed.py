"""Work that would be done for nobody: who asked will have given up before the answer is there.

The same rule in the real worker and in the simulator. It looks at what is left of the budget that came with the request
(`CallHead.budget_ms`: without the way back, which the client takes off) and at the service's own recent mean.
"""

from __future__ import annotations

BUSY = 1.2
"""While others wait, a request is dropped when less than so many recent means are left: its place goes to one that can
still be answered in time."""
IDLE = 0.5
"""While nobody waits, nothing is gained by dropping, unless it is hopeless."""


def doomed(left_ms: float, recent_ms: float, others_wait: bool) -> bool:
    """Whether to drop a request whose work would begin now, with `left_ms` of its budget left.

    >>> doomed(9.0, 10.0, True), doomed(9.0, 10.0, False), doomed(4.0, 10.0, False)
    (True, False, True)
    """
    return left_ms <= 0 or left_ms < recent_ms * (BUSY if others_wait else IDLE)


def refusable(budget_ms: float, recent_ms: float, queued: int, in_flight: int, workers: int) -> bool:
    """Whether to refuse a request at the door: with what waits already, it could not be answered within its budget.

    Saying so at once leaves the caller time to ask another. What is being worked on is half done, on average.

    >>> refusable(35.0, 10.0, 2, 1, 1), refusable(34.0, 10.0, 2, 1, 1), refusable(5.0, 10.0, 0, 0, 1)
    (False, True, False)
    """
    if in_flight < workers:
        return recent_ms * IDLE > budget_ms
    return (queued + 0.5) * recent_ms / workers + recent_ms * BUSY > budget_ms
