"""Has a service fallen silent? Nobody tells that a cable was pulled: the only sign is what does not come.

An answer is *overdue* from the moment it was due, or from the moment the service was last heard (an answer, a refusal,
a report), whichever is later. Overdue for longer than the tolerance, the service is silent: new requests avoid it, what
is under way there is asked again elsewhere. Whatever it sends next ends that; reports come twice a second, so they are
the probe. A busy service goes on answering others and reporting, so its slow answer alone never makes it silent.
"""

from __future__ import annotations

from nearfar.fleet.snapshot import NEVER, Observed, ServiceView, Snapshot
from nearfar.types.ids import ServiceId
from nearfar.types.units import Milliseconds, Seconds

LEAST = Milliseconds(100.0)
"""Least tolerance. At 30 frames/s a cut is then noticed within 33 ms + what an answer takes + 100 ms. Longer than the
pauses of an operating system or a garbage collector; shorter than TCP's time-out of 200 ms, as being wrong is cheap."""
SPREADS = 4.0
"""Tolerance in mean deviations between when answers were due and when they came, as the time-out of RFC 6298."""


def tolerance(view: ServiceView, observed: Observed | None) -> Milliseconds:
    """How long an answer may be overdue, in milliseconds; a service that never answered gets its own time on top."""
    if observed is None or observed.answered_at == NEVER:
        report = view.report
        return Milliseconds(LEAST + 2 * max(report.service_ms, report.profile_ms, 0.0))
    return Milliseconds(max(LEAST, SPREADS * observed.spread))


def alarm(snapshot: Snapshot, view: ServiceView, due: Seconds | None = None) -> Seconds | None:
    """When the service counts as silent unless it is heard before; None when it owes nothing.

    `due`: an answer that it will owe, too, which the snapshot does not know of yet.
    """
    service = view.report.service
    missed = snapshot.missed.get(service)
    if missed is not None and (due is None or missed < due):
        due = missed
    for other in snapshot.owed.get(service, ()):
        if due is None or other < due:
            due = other
    if due is None:
        return None
    observed = snapshot.observed.get(service)
    return Seconds(max(due, _heard(view, observed)) + tolerance(view, observed) / 1000)


def _heard(view: ServiceView, observed: Observed | None) -> Seconds:
    """When anything came from it: a report, an answer or a refusal."""
    return view.heard if observed is None else max(view.heard, observed.answered_at, observed.queued_at)


def suspect_from(snapshot: Snapshot, view: ServiceView, sent: Seconds, due: Seconds, grace: Milliseconds) -> Seconds:
    """From when on it is worth asking for the `alarm` of an answer that is due then: never later than that alarm.

    Cheap, as it is asked of every request, and nearly all are answered before. `grace`, at most `LEAST`: so long after
    it was due a usual answer is there. Who was silent already when the request was `sent` is given its time anew.
    """
    usual = Seconds(due + grace / 1000)
    service = view.report.service
    if service not in snapshot.owed and service not in snapshot.missed:
        return usual
    if _heard(view, snapshot.observed.get(service)) + LEAST / 1000 >= usual:
        return usual
    at = alarm(snapshot, view, due)  # what it owed before may be overdue sooner
    return usual if at is None or at <= sent else min(usual, at)


def silent(snapshot: Snapshot, view: ServiceView, now: Seconds) -> bool:
    """Whether it owes an answer and nothing has come from it for too long."""
    if now - _heard(view, snapshot.observed.get(view.report.service)) < LEAST / 1000:
        return False  # spares who is heard all the time a longer look
    at = alarm(snapshot, view)
    return at is not None and now >= at


def given_up_code(snapshot: Snapshot, service: ServiceId, now: Seconds) -> str:
    """The code of the `RequestFailed` for a copy that is no longer needed, as another one was answered.

    `silent` keeps what the service owed on its account, so that it stays avoided until it is heard.
    """
    view = snapshot.services.get(service)
    return "silent" if view is not None and silent(snapshot, view, now) else "cancelled"
