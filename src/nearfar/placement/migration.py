"""Make before break: how a stream goes over from one service to another. Pure: the same events give the same actions.

    steady -> warming(target) -> dual(target) -> steady(target)        planned: the owner answers all the while
    steady, warming or dual   -> steady(target)                        unplanned: the owner is gone, refused or failed

The owner of a frame is fixed when the frame is due (`FrameDue`): up to the switch the old service, from its frame on
the new one. Copies (one to warm the target, then `DUAL_FRAMES` to compare it) never count as results. A target that
fails, is slower than was promised or answers something else ends the move, with a reason and a pause before it is tried
again.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from nearfar.types.ids import ServiceId
from nearfar.types.units import Milliseconds, Seconds

DUAL_FRAMES = 3
"""Good answers of the target to copies of frames before the stream goes over to it; one when it is urgent."""
MOST_SLOW = 2
"""Copies that are answered more slowly than promised before the move is given up."""
SLOW, SLOW_MS = 2.0, Milliseconds(20.0)
"""Slow is: after the deadline; without one, later than so many times what was promised and that much."""
LONGEST = Seconds(10.0)
"""A move that takes longer is given up."""
FIRST_PAUSE, LONGEST_PAUSE = Seconds(2.0), Seconds(60.0)
"""Before a target that failed a move is tried again: 2 s, doubled by each further failure, at most a minute."""
SETTLING = Seconds(1.0)
"""Before a target is tried again that was fine, but not wanted any more: bounds the copies of a wavering decision."""
ASIDES = 10
"""Frames in a row that are sent elsewhere because of a queue at the owner: then it is no queue of a moment any more."""
DOUBTS = 5
"""Frames in a row for which the owner is the best again, and in time, before a move under way is given up: estimates of
two services that are nearly alike cross at every other frame, and a move that turns round each time never arrives."""
STRAYS = 3
"""Answers in a row of one other service, without a failure, after which the stream is where it is answered."""
MOST_PAUSES = 16
SELDOM = Seconds(LONGEST / (1 + DUAL_FRAMES))
"""Frames further apart than this leave no time for copies before `LONGEST`. Nothing is under way between them, so that
there is nothing to compare and nothing to lose: such a stream goes over with its next frame."""


class Phase(StrEnum):
    STEADY = "steady"
    WARMING = "warming"
    DUAL = "dual"


class Pause(msgspec.Struct, frozen=True):
    until: Seconds
    failures: int
    """Moves to it that failed; 0 when it only was not wanted any more."""


class Moving(msgspec.Struct, frozen=True):
    """Where one stream is, and where it is going to."""

    owner: ServiceId | None = None
    """Whose answers count for the frames that are due from now on; None before the first answer."""
    phase: Phase = Phase.STEADY
    target: ServiceId | None = None
    reason: str = ""
    """Why the move under way was begun."""
    promised: Milliseconds = Milliseconds(0.0)
    """Expected completion on the target, when the move was begun; 0 when nobody promised."""
    wanted: int = DUAL_FRAMES
    """Good answers to copies that are still wanted; 0: the next frame is the target's."""
    out: int = 0
    """Copies on their way; at most one."""
    slow: int = 0
    since: Seconds = Seconds(0.0)
    """When the move under way was begun."""
    strays: tuple[ServiceId, int] | None = None
    """Who else answered lately without being asked to, and how often in a row."""
    asides: int = 0
    """Frames in a row that were sent elsewhere by the way, since the owner's queue was long."""
    doubts: int = 0
    """Frames in a row for which the owner was the best again, and in time, since the move was begun."""
    last: int = -1
    """The last frame that was due."""
    moved_at: int = -1
    """The first frame of the present owner."""
    old: ServiceId | None = None
    """The service before, while frames of it are on their way."""
    open: frozenset[int] = frozenset()
    """Frames that were due and have not ended."""
    pauses: Mapping[ServiceId, Pause] = {}
    due_at: Seconds | None = None
    """When the last frame was due."""


# -- what happens -----------------------------------------------------------------------------------------------------


class FrameDue(msgspec.Struct, frozen=True):
    """Frame number `frame`, greater than any before, is about to be sent; decided a moment ago."""

    frame: int
    best: ServiceId | None
    """Whom the decision put first, hysteresis included; None when nobody may take it."""
    promised: Milliseconds = Milliseconds(0.0)
    reason: str = ""
    refused: Mapping[ServiceId, str] = {}
    """Services that may not be asked now, with the reason; only those of the owner and of a target are looked at."""
    urgent: bool = False
    """The promise is threatened: go at once over to the best other one, which `best` then names."""
    late: bool = False
    """Even `best` is expected to be late: no reason to stay with an owner that was to be left."""
    aside: bool = False
    """`best` shall have this frame alone (`Decision.aside`): it moves the stream only when that goes on (`ASIDES`)."""


class FrameEnded(msgspec.Struct, frozen=True):
    """A frame came to its end: answered `by` somebody, after those in `failed` did not; or by nobody."""

    frame: int
    by: ServiceId | None = None
    failed: tuple[ServiceId, ...] = ()
    deciding: bool = True
    """Whether `FrameDue` carries decisions; without any, the stream is simply where it was answered last."""


class CopyEnded(msgspec.Struct, frozen=True):
    """The answer to a copy came, or did not: `trouble` says why it is of no use, empty when it is good."""

    target: ServiceId
    took: Milliseconds = Milliseconds(0.0)
    trouble: str = ""
    deadline: Milliseconds | None = None
    sent: bool = True
    """False when the frame came to its end before its copy was sent: nothing is known, another one is sent."""


Event = FrameDue | FrameEnded | CopyEnded

# -- what to do -------------------------------------------------------------------------------------------------------


class Warm(msgspec.Struct, frozen=True):
    """Send a copy of this frame to the target; its answer only shows that the target answers."""

    target: ServiceId


class Shadow(msgspec.Struct, frozen=True):
    """Send a copy of this frame to the target and compare its answer with the owner's."""

    target: ServiceId


class Switch(msgspec.Struct, frozen=True):
    """Frames from `at_frame` on are the target's."""

    source: ServiceId
    target: ServiceId
    at_frame: int
    planned: bool
    reason: str


class Abort(msgspec.Struct, frozen=True):
    """The move is given up; the owner stays."""

    target: ServiceId
    reason: str


class Release(msgspec.Struct, frozen=True):
    """The last frame of the old service has ended: nothing of this stream is there any more."""

    service: ServiceId


Action = Warm | Shadow | Switch | Abort | Release


def step(state: Moving, event: Event, now: Seconds) -> tuple[Moving, tuple[Action, ...]]:
    """The next state, and what to do. Never raises; `now` is the monotonic clock of the one who asks."""
    match event:
        case FrameDue():
            return _due(state, event, now)
        case FrameEnded():
            return _ended(state, event)
        case CopyEnded():
            return _copied(state, event, now)


def pinned(state: Moving, best: ServiceId | None) -> ServiceId | None:
    """The only service that may be asked for the frame that was just due; None when the asking side may choose.

    While the decision and the owner are one, whoever asks decides for itself, with its own retries; while they differ,
    the stream must not jump ahead of its move.
    """
    return state.owner if best is not None and best != state.owner else None


def _due(state: Moving, event: FrameDue, now: Seconds) -> tuple[Moving, tuple[Action, ...]]:
    asides = state.asides + 1 if event.aside else 0
    seldom = not state.open and state.due_at is not None and now - state.due_at > SELDOM
    state = msgspec.structs.replace(
        state, last=event.frame, open=state.open | {event.frame}, asides=asides, due_at=now
    )  # fmt: skip
    owner, best = state.owner, event.best
    if 0 < asides < ASIDES and best is not None:
        best = owner
    if owner is None:
        return state, ()
    if (why := event.refused.get(owner)) is not None and best is not None and best != owner:
        return _switch(state, best, event.frame, False, f"{owner}: {why}")
    if state.phase is Phase.STEADY:
        pause = state.pauses.get(best) if best is not None else None
        waits = pause is not None and now < pause.until and not (event.urgent and pause.failures == 0)
        if best is None or best == owner or waits or state.old is not None:
            return state, ()
        if seldom:
            return _switch(state, best, event.frame, True, event.reason)
        begun = msgspec.structs.replace(
            state, phase=Phase.WARMING, target=best, reason=event.reason, promised=event.promised,
            wanted=1 if event.urgent else DUAL_FRAMES, out=1, slow=0, since=now,
        )  # fmt: skip
        return begun, (Warm(best),)
    target = state.target
    assert target is not None
    if (why := event.refused.get(target)) is not None:
        return _abort(state, f"it may not be asked any more: {why}", now, failed=True)
    doubts = state.doubts + 1 if best == owner and not event.late else 0
    if doubts != state.doubts:
        state = msgspec.structs.replace(state, doubts=doubts)
    if doubts >= DOUBTS:
        return _abort(state, "the present service is the best one again", now, failed=False)
    if now - state.since > LONGEST:
        return _abort(state, f"it was not ready after {LONGEST:.0f} s", now, failed=True)
    if best is None:
        return state, ()
    if state.phase is Phase.DUAL and state.wanted <= 0 and not doubts:
        return _switch(state, target, event.frame, True, state.reason)
    if event.urgent and state.wanted > 1:
        state = msgspec.structs.replace(state, wanted=1)
    if state.out == 0:
        copy = Warm(target) if state.phase is Phase.WARMING else Shadow(target)
        return msgspec.structs.replace(state, out=1), (copy,)
    return state, ()


def _ended(state: Moving, event: FrameEnded) -> tuple[Moving, tuple[Action, ...]]:
    if event.frame not in state.open:  # of what was asked for before something else was
        return state, ()
    state = msgspec.structs.replace(state, open=state.open - {event.frame})
    actions: tuple[Action, ...] = ()
    by, owner = event.by, state.owner
    if by is None or by == owner:
        if by is not None and state.strays is not None:
            state = msgspec.structs.replace(state, strays=None)
    elif owner is None:
        state = msgspec.structs.replace(state, owner=by, moved_at=event.frame)
    elif event.frame > state.moved_at and (by != state.old or owner in event.failed):
        # A frame that is still the old service's, or that went back to it by the way, moves nothing.
        strays = state.strays[1] + 1 if state.strays is not None and state.strays[0] == by else 1
        if owner in event.failed:
            state, actions = _switch(state, by, event.frame, False, f"{owner} did not answer frame {event.frame}")
        elif not event.deciding:
            state, actions = _switch(state, by, event.frame, False, "answered there")
        elif strays >= STRAYS:
            state, actions = _switch(state, by, event.frame, False, f"{strays} frames in a row were answered there")
        else:
            state = msgspec.structs.replace(state, strays=(by, strays))
    if state.old is not None and not any(frame < state.moved_at for frame in state.open):
        actions += (Release(state.old),)
        state = msgspec.structs.replace(state, old=None)
    return state, actions


def _copied(state: Moving, event: CopyEnded, now: Seconds) -> tuple[Moving, tuple[Action, ...]]:
    if state.phase is Phase.STEADY or event.target != state.target:
        return state, ()  # of a move that is over
    if not event.sent:
        return msgspec.structs.replace(state, out=0), ()
    if event.trouble:
        return _abort(state, event.trouble, now, failed=True)
    if state.phase is Phase.WARMING:  # the first answer of a service that was cold says nothing of its speed
        return msgspec.structs.replace(state, phase=Phase.DUAL, out=0), ()
    limit = event.deadline
    if limit is None and state.promised > 0:
        limit = Milliseconds(SLOW * state.promised + SLOW_MS)
    if limit is not None and event.took > limit:
        slow = state.slow + 1
        if slow >= MOST_SLOW:
            why = f"it answered in {event.took:.0f} ms, {state.promised:.0f} ms promised, {limit:.0f} ms allowed"
            return _abort(state, why, now, failed=True)
        return msgspec.structs.replace(state, slow=slow, out=0), ()
    return msgspec.structs.replace(state, wanted=max(0, state.wanted - 1), out=0), ()


def _switch(
    state: Moving, target: ServiceId, frame: int, planned: bool, reason: str
) -> tuple[Moving, tuple[Action, ...]]:
    source = state.owner
    assert source is not None
    actions: tuple[Action, ...] = ()
    if state.target is not None and state.target != target:
        actions += (Abort(state.target, f"the stream had to go to {target} at once"),)
    if state.old is not None and state.old != target:
        actions += (Release(state.old),)  # of two moves in a row: what is still on its way there is not waited for
    pauses = {service: pause for service, pause in state.pauses.items() if service != target}
    over = msgspec.structs.replace(_steady(state), owner=target, moved_at=frame, old=source, strays=None, pauses=pauses)
    return over, (*actions, Switch(source, target, frame, planned, reason))


def _abort(state: Moving, reason: str, now: Seconds, *, failed: bool) -> tuple[Moving, tuple[Action, ...]]:
    target = state.target
    assert target is not None
    before = state.pauses.get(target)
    failures = (before.failures if before is not None else 0) + failed
    length = min(FIRST_PAUSE * 2.0 ** min(failures - 1, 10), LONGEST_PAUSE) if failed else SETTLING
    kept = dict(sorted(state.pauses.items(), key=lambda item: item[1].until)[-(MOST_PAUSES - 1) :])
    pauses = {**kept, target: Pause(Seconds(now + length), failures)}
    return msgspec.structs.replace(_steady(state), pauses=pauses), (Abort(target, reason),)


def _steady(state: Moving) -> Moving:
    return msgspec.structs.replace(
        state,
        phase=Phase.STEADY,
        target=None,
        reason="",
        promised=Milliseconds(0.0),
        wanted=DUAL_FRAMES,
        out=0,
        slow=0,
        doubts=0,
    )
