"""Keeps one stream's promise: watches it, asks for a move before it breaks, and gives up what the user said when nobody
can keep it. All that it decides by is pure (`placement/qos.py`, `vision/degrade.py`); clock and fleet meet it here."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from typing import Any

import msgspec

from nearfar.errors import Cancelled
from nearfar.placement.decide import Decision
from nearfar.placement.filters import FAR_RUNTIMES
from nearfar.placement.qos import Assessment, Level, Monitor, Promise
from nearfar.placement.steering import complaint, forecast_of, wait_of
from nearfar.types.ids import ModelName, ServiceId, StreamId
from nearfar.types.request import Answer, Degrade, Qos, Request
from nearfar.types.units import Bytes, Milliseconds, Seconds
from nearfar.vision.base import Frame, Seer
from nearfar.vision.degrade import Change, Effect, Ladder, Smaller, steps_of
from nearfar.vision.results import FrameResult, Outcome
from nearfar.vision.shrink import enlarged, shrunk

LOOK_EVERY = Seconds(0.25)
"""How often the fleet is asked what it would do with the next frame."""
LOOK_FOR_MODELS_EVERY = Seconds(30.0)
ROOM = 0.7
"""Something is taken back only when the forecast is within this share of the deadline."""
KEPT_CHANGES = 1000
DEGRADED = "degraded: 1 of {every} frames is sent, as --degrade rate allows"
EXPIRED_WORD = "expired"


class Plan(msgspec.Struct, frozen=True):
    """How to ask for one frame."""

    model: ModelName
    qos: Qos
    scale: float
    more: dict[str, Any]
    """Further arguments of `see`: the forecast, while the promise is in danger."""

    async def fit(self, frame: Frame) -> tuple[Frame, float]:
        """The frame as it is to be sent, and the milliseconds spent on that."""
        return await shrunk(frame, self.scale)


class Keeper:
    """One stream's. Without a deadline nothing is promised and nothing given up. Used on one event loop."""

    def __init__(self, seer: Seer, model: ModelName, qos: Qos, stream: StreamId | None = None) -> None:
        self.promise = None if qos.deadline is None else Promise(qos.deadline, qos.percentile)
        self.size = Bytes(0)
        """Bytes of the last picture that was sent."""
        self.changes: deque[tuple[int, str, Change]] = deque(maxlen=KEPT_CHANGES)
        """(frame, time of day, what was given up or taken back)."""
        self.changed = 0
        self.levels = dict.fromkeys(Level, 0)
        """How often each level was entered."""
        self.turns: deque[tuple[int, Assessment]] = deque(maxlen=KEPT_CHANGES)
        """(frame, what was found) whenever the level was another one than before."""
        self.turned = 0
        self.found: Assessment | None = None
        self.monitor = Monitor(self._now())
        self._level = self.monitor.level
        """The level that was told last."""
        # Which models there are to step down to is found out later; what follows them in the list waits for that.
        known = qos.degrade.index(Degrade.MODEL) if Degrade.MODEL in qos.degrade else len(qos.degrade)
        self.ladder = Ladder(steps_of(qos.degrade[:known]), self._now(), qos.degrade[known:])
        self.incumbent: ServiceId | None = None
        self.smaller: tuple[Smaller, ...] = ()
        """Models to step down to, once they were looked for."""
        self.late = ""
        """Why nobody is expected to keep the promise at this moment; empty when somebody is."""
        self._seer: Any = seer
        self._model = model
        self._qos = qos
        self._stream = stream
        self._effect = self.ladder.effect()
        self._frame = -1
        self._looked: float = -math.inf
        self._decision: Decision | None = None
        self._modelled: float = -math.inf
        self._searching: asyncio.Task[None] | None = None

    def _now(self) -> Seconds:
        return Seconds(time.monotonic())

    # -- before a frame is sent -----------------------------------------------------------------------------------

    def skips(self, frame: Frame) -> str:
        """Why this frame is not sent; empty when it is."""
        every = self._effect.every
        return DEGRADED.format(every=every) if frame.index % every else ""

    def plan(self, qos: Qos, spent_ms: float, owner: ServiceId | None = None) -> Plan:
        """How to ask for the next frame; `qos` is what is left of the stream's after `spent_ms` since the frame.

        `owner`: whose frame it is; None for the incumbent.
        """
        if self.promise is None:
            return Plan(self._model, qos, 1.0, {})
        effect, forecast = self._effect, self.forecast(owner, spent_ms)
        qos = msgspec.structs.replace(qos, degrade=effect.degrade)
        more = {} if forecast is None else {"forecast": forecast}
        return Plan(effect.model or self._model, qos, effect.scale, more)

    def forecast(self, owner: ServiceId | None = None, spent_ms: float = 0.0) -> Milliseconds | None:
        """What is to be expected of the incumbent from `spent_ms` after a frame on; None while the promise is kept.

        None also for another `owner` than the one whose answers were watched: its trouble is not that of the next one.
        """
        if owner is not None and owner != self.incumbent:
            return None
        return forecast_of(self.found, spent_ms)

    def asks(self) -> tuple[ModelName, Qos]:
        """The model and the QoS that the next frame is asked for with, after all that is given up."""
        if self.promise is None:
            return self._model, self._qos
        return self._effect.model or self._model, msgspec.structs.replace(self._qos, degrade=self._effect.degrade)

    @staticmethod
    def restored(answer: Answer, sent: Frame, frame: Frame) -> Answer:
        """The answer in pixels of the frame itself."""
        return enlarged(answer, sent, frame)

    # -- after its end --------------------------------------------------------------------------------------------

    def ended(self, result: FrameResult) -> None:
        """Every frame's end, in the order of the ends."""
        if self.promise is None:
            return
        now = self._now()
        if result.answer is not None:
            server = result.answer.served_by
            if result.answer.aside and self.incumbent is not None:
                # Of this frame alone: it counts for the promise, and says nothing of where the stream is.
                self.monitor.took(result.total_ms, now)
            else:
                if result.index > self._frame:
                    self._frame = result.index
                    if self.incumbent is not None and server != self.incumbent:
                        self.monitor.restart(now)
                    self.incumbent = server
                self.monitor.observe(result.answer.stages, result.total_ms, now)
        elif _is_lost(result):
            self.monitor.missed(now)
        else:
            return  # nobody was asked, so nothing is known of anybody
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            self._look(now)
        self._assess(now, result.index)

    def _look(self, now: Seconds) -> None:
        """What the fleet would do with the next frame; a seer that is no client does not say."""
        decide = getattr(self._seer, "decide", None)
        if decide is None or self.promise is None:
            return
        plan = self.plan(self._qos, 0.0)
        request = Request(
            plan.model,
            self._seer.me,
            self.size,
            qos=plan.qos,
            stream=self._stream,
            incumbent=self.incumbent,
            **plan.more,
        )
        decision: Decision = decide(request)
        self._decision = decision
        self.late = decision.reason if decision.late else ""
        if Degrade.MODEL in self._qos.degrade and now - self._modelled >= LOOK_FOR_MODELS_EVERY:
            self._modelled = now
            self._searching = asyncio.get_running_loop().create_task(self._search(), name="smaller models")

    async def _search(self) -> None:
        from nearfar.vision.smaller import smaller_models

        self.smaller = await smaller_models(self._seer, self._model, self._qos)
        found = self.smaller
        self.ladder.extend(steps_of(self._qos.degrade, found))
        self._effect = self.ladder.effect()

    def _assess(self, now: Seconds, frame: int) -> None:
        assert self.promise is not None
        before = self.monitor.level
        found = self.found = self.monitor.assess(self.promise, now, self._wait())
        self._turn(found, frame)
        if found.level is not before:
            report = getattr(self._seer, "promise_broken", None)
            if found.level is Level.BROKEN and report is not None and self.incumbent is not None:
                report(self.incumbent, self.promise.deadline, complaint(found))
                self._looked = -math.inf  # who else would do is asked anew before anything is given up
        if not self.ladder.steps:
            return
        trouble, room = self._state(found)
        because = found.reason if found.level is not Level.KEPT else self.late or found.reason
        change = self.ladder.update(trouble, room, now, because)
        if change is not None:
            self.changed += 1
            self.changes.append((frame, time.strftime("%H:%M:%S"), change))
            self._effect = self.ladder.effect()
            self.monitor.restart(now)
            self.found = self.monitor.assess(self.promise, now)
            self._turn(self.found, frame)

    def _turn(self, found: Assessment, frame: int) -> None:
        if found.level is not self._level:
            self._level = found.level
            self.levels[found.level] += 1
            self.turned += 1
            self.turns.append((frame, found))

    def _wait(self) -> Milliseconds | None:
        """How long the next frame would wait at the incumbent, by the last look."""
        return wait_of(self._decision, self.incumbent)

    def _state(self, found: Assessment) -> tuple[bool, bool]:
        """(trouble that nobody else would end, room to take something back)."""
        decision, top = self._decision, self.ladder.top
        if decision is not None and decision.chosen is None:
            return False, False  # nobody at all can be asked: fewer or smaller frames would not change that
        nobody = decision is None or decision.late or decision.chosen == self.incumbent
        ahead = found.forecast
        if found.level is not Level.KEPT:  # and still so by what is to come, not only by what the window remembers
            trouble = nobody and (ahead is None or ahead > found.promise.deadline)
        else:  # what was measured says more than what is expected
            trouble = ahead is None and decision is not None and decision.late
        if top is None:
            return trouble, False
        if top.kind in (Degrade.REFUSE, Degrade.FAR) and decision is not None:
            return trouble, not decision.late and not (top.kind is Degrade.FAR and self._is_far(decision))
        limit = ROOM * found.promise.deadline
        room = found.level is Level.KEPT and found.forecast is not None and found.forecast + top.saves <= limit
        return trouble, room

    def _is_far(self, decision: Decision) -> bool:
        view = self._seer.snapshot().services.get(decision.chosen)
        return view is not None and (view.report.runtime in FAR_RUNTIMES or view.report.cost > 0)

    # -- what is told ---------------------------------------------------------------------------------------------

    @property
    def effect(self) -> Effect:
        """What is given up now."""
        return self._effect

    def degraded(self) -> str:
        """What is given up now, since when and why; empty when nothing is."""
        taken = self.ladder.taken
        if not taken:
            return ""
        downs = ((since, change.because) for _, since, change in reversed(self.changes) if change.down)
        since, because = next(downs, ("its start", "its state said so"))
        own = next((step.model for step in taken if step.model is not None), None)
        instead = f" instead of {self._model}" if own is not None else ""
        return f"degraded: {', '.join(s.words for s in taken)}{instead}, since {since}, because {because}"

    def words(self) -> str:
        """One line for people; empty when nothing is promised."""
        if self.promise is None:
            return ""
        if told := self.degraded():
            return told
        if self.found is None:
            return f"{self.promise.percentile:g} % within {self.promise.deadline:g} ms: no answer has come yet"
        if self.late and self.found.forecast is None:
            return f"nobody is expected to keep {self.promise.deadline:g} ms: {self.late}"
        return self.found.reason

    def to_dict(self) -> dict[str, Any] | None:
        """Plain values for JSON; None when nothing is promised. Times in milliseconds."""
        if self.promise is None:
            return None
        found = self.found
        told: dict[str, Any] = {
            "deadline_ms": self.promise.deadline,
            "percentile": self.promise.percentile,
            "level": self.monitor.level.value,
            "entered": {level.value: n for level, n in self.levels.items()},
            "degraded": self.degraded() or None,
            "steps": [step.words for step in self.ladder.taken],
            "changed": self.changed,
            "changes": [
                {"frame": frame, "time": at, "step": c.step.words, "given_up": c.down, "because": c.because}
                for frame, at, c in self.changes
            ],
        }
        if found is not None:
            told |= {
                "late_share": round(found.share, 4),
                "quantile_ms": finite(found.quantile),
                "stages_ms": {name: finite(value) for name, value in found.stages.items()},
                "forecast_ms": None if found.forecast is None else finite(found.forecast),
                "blame": found.blame or None,
                "reason": found.reason,
            }
        return told

    def export_state(self) -> bytes:
        """What the monitor knows. What is given up does not travel: the next program may have more room."""
        return self.monitor.export_state(self._now())

    def import_state(self, data: bytes) -> None:
        """Go on with what another program's monitor knew. Raises `InputError` when it is no such state."""
        self.monitor = Monitor.import_state(data, self._now())

    def close(self) -> None:
        """Stop looking for models."""
        if self._searching is not None:
            self._searching.cancel()


def _is_lost(result: FrameResult) -> bool:
    """Whether an answer was asked for and did not come, or came too late to be asked for."""
    if result.outcome is Outcome.FAILED:
        return not isinstance(result.error, Cancelled)
    return result.outcome is Outcome.DROPPED and result.reason.startswith(EXPIRED_WORD)


def finite(value: float) -> float | None:
    """Rounded to a microsecond; None for what JSON cannot carry: a percentile of answers that were lost.

    >>> finite(1.23456), finite(math.inf)
    (1.235, None)
    """
    return round(value, 3) if math.isfinite(value) else None
