"""A simulated stream's monitor and moves: the real ones, used as `vision/promise.py` and `vision/moving.py` use them.

Here is only the glue: what the engine tells them, and what is counted of what they say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nearfar.fleet.events import PromiseBroken
from nearfar.placement.decide import Decision
from nearfar.placement.migration import (
    Abort,
    Action,
    CopyEnded,
    Event,
    FrameEnded,
    Moving,
    Switch,
    step,
)
from nearfar.placement.qos import LEAST_BINS, LEAST_LATE, WINDOW, Assessment, Level, Monitor, Promise
from nearfar.placement.steering import Assignment, assign, complaint, due_of, forecast_of, wait_of
from nearfar.types.ids import ServiceId
from nearfar.types.request import Stages
from nearfar.types.units import Milliseconds, Seconds

if TYPE_CHECKING:
    from nearfar.simulate.frames import Frame, Stream
    from nearfar.simulate.measures import Measures

Moved = Callable[["Stream", Switch], None]
"""Called with every move."""


class Guard:
    """One stream's monitor and moves."""

    __slots__ = ("_deadline", "_decision", "_found", "_incumbent", "_measures", "_monitor", "_moved", "_newest",
                 "_promise", "_stream", "state")  # fmt: skip

    def __init__(self, stream: Stream, measures: Measures, moved: Moved, most_rate: float = 1.0) -> None:
        self.state = Moving()
        self._stream = stream
        self._measures = measures
        self._moved = moved
        self._deadline = Milliseconds(stream.deadline * 1000) if stream.deadline else None
        self._promise = Promise(self._deadline) if self._deadline is not None and watchable(stream, most_rate) else None
        self._monitor = Monitor(Seconds(0.0)) if self._promise is not None else None
        self._found: Assessment | None = None
        self._decision: Decision | None = None
        self._incumbent: ServiceId | None = None
        self._newest = -1

    # -- the moves -----------------------------------------------------------------------------------------------------

    def forecast(self, spent_ms: float) -> Milliseconds | None:
        """What the stream's monitor expects of the incumbent; None while the promise is kept."""
        return forecast_of(self._found, spent_ms)

    def due(self, frame: Frame, decision: Decision, now: float) -> Assignment:
        """The frame is about to be sent; decided a moment ago with the owner as the incumbent."""
        self._decision = decision
        event = due_of(frame.number, decision, self.state, self.forecast(0.0) is not None)
        assigned = assign(self.state, decision, self._step(event, now))
        self._stream.incumbent = frame.owner = self.state.owner
        frame.pin, frame.rescued = assigned.pin, assigned.rescued
        self._measures.asides += decision.aside
        self._measures.rescued += assigned.rescued
        return assigned

    def ended(self, frame: Frame, by: ServiceId | None, aside: bool, now: float) -> None:
        """Nobody waits any longer for the frame that was due."""
        failed = frame.failed
        if by is not None:
            if frame.rescued and not aside:
                self.copied(by, (now - frame.born) * 1000, "", now)
            if self.state.owner is not None and (aside or frame.rescued):
                by, failed = None, ()
        self._step(FrameEnded(frame.number, by, failed), now)
        self._stream.incumbent = self.state.owner

    def copied(self, target: ServiceId, took_ms: float, trouble: str, now: float) -> None:
        """The copy of a frame was answered, or was not."""
        self._step(CopyEnded(target, Milliseconds(took_ms), trouble, self._deadline), now)

    def _step(self, event: Event, now: float) -> tuple[Action, ...]:
        self.state, actions = step(self.state, event, Seconds(now))
        for action in actions:
            if isinstance(action, Switch):
                if action.planned:
                    self._measures.planned += 1
                else:
                    self._measures.unplanned += 1
                self._moved(self._stream, action)
            elif isinstance(action, Abort):
                self._measures.aborted += 1
        return actions

    # -- the promise ---------------------------------------------------------------------------------------------------

    def answered(self, frame: Frame, by: ServiceId, aside: bool, stages: Stages, now: float) -> None:
        """An answer came in time."""
        monitor = self._monitor
        if monitor is None:
            return
        if frame.number > self._newest and (self._incumbent is None or not aside):
            self._newest = frame.number
            if self._incumbent is not None and by != self._incumbent:
                monitor.restart(Seconds(now))
            self._incumbent = by
        monitor.observe(stages, (now - frame.born) * 1000, Seconds(now))
        self._assess(now)

    def missed(self, now: float) -> None:
        """A frame was asked for, and nobody answered in time."""
        if self._monitor is not None:
            self._monitor.missed(Seconds(now))
            self._assess(now)

    def _assess(self, now: float) -> None:
        monitor, promise = self._monitor, self._promise
        assert monitor is not None and promise is not None
        before = monitor.level
        found = self._found = monitor.assess(promise, Seconds(now), wait_of(self._decision, self._incumbent))
        if found.level is before:
            return
        self._measures.levels[found.level.value] += 1
        if found.level is Level.BROKEN and self._incumbent is not None:
            event = PromiseBroken(self._incumbent, promise.deadline, Seconds(now), complaint(found))
            self._stream.gateway.add(event)


def watchable(stream: Stream, most_rate: float) -> bool:
    """Whether a monitor could ever say anything but `kept`: that takes a few ends of frames within its window.

    It spares the work for streams that send a frame every few minutes, and changes no result. `most_rate`: how many
    times as fast as usual the stream may become.
    """
    least = min(LEAST_LATE, LEAST_BINS) - 1
    return least * stream.period / most_rate <= WINDOW + stream.deadline
