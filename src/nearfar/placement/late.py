"""Saying no at once: what a caller hears who would rather be refused than answered late."""

from __future__ import annotations

from nearfar.errors import NoCandidate
from nearfar.fleet.snapshot import Snapshot
from nearfar.placement.decide import Decision
from nearfar.placement.expectation import Expectation, expect
from nearfar.placement.qos import gives_up
from nearfar.placement.refusal import Refusal
from nearfar.types.request import Degrade, Request
from nearfar.types.units import Seconds

SOONEST, LATEST = 0.1, 30.0
"""Bounds in seconds of when it is worth asking again."""


def refused_as_late(snapshot: Snapshot, request: Request, decision: Decision, now: Seconds) -> NoCandidate | None:
    """The refusal of a request that nobody is expected to answer in time, when its caller prefers one; else None.

    Every candidate that might have taken it says when it would have answered (code `late`); `retry_after` in seconds is
    when the first queue is expected to have run empty, if that would be enough.
    """
    deadline = request.qos.deadline
    if not decision.late or deadline is None or not gives_up(request.qos, Degrade.REFUSE):
        return None
    expected: list[tuple[str, Expectation]] = []
    for entry in decision.ranking:
        found = entry.expected or expect(snapshot, request, snapshot.services[entry.service], now)
        expected.append((entry.service, found))
    told = [
        Refusal(service, "late", f"would answer in {when}; {deadline:.0f} ms are allowed") for service, when in expected
    ]
    if (more := decision.eligible - len(told)) > 0:
        told.append(Refusal(request.model, "late", f"{more} more services are expected to be later still"))
    waits = [when.wait / 1000 for _, when in expected if when.total - when.wait + when.margin <= deadline]
    service, soonest = min(expected, key=lambda entry: entry[1].total)
    return NoCandidate(
        f"Nobody is expected to answer within {deadline:.0f} ms; the soonest is {service} with {soonest.total:.0f} ms.",
        "Allow more time, or leave 'refuse' away to be answered late.",
        [refusal.as_mapping() for refusal in (*told, *decision.refusals)],
        min(max(SOONEST, min(waits, default=1.0)), LATEST),
    )
