"""Carries out a stream's moves between services: asks for the decision, sends the copies, compares what comes back.

When and whether to move is decided by `placement.migration`, which has no effects; here are the effects. Copies are
pinned to their target under the stream's own QoS, so every filter (privacy before all) holds for them as for any frame.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import msgspec

from nearfar.errors import NearfarError
from nearfar.placement.migration import (
    Abort,
    Action,
    CopyEnded,
    Event,
    FrameDue,
    FrameEnded,
    Moving,
    Release,
    Shadow,
    Switch,
    Warm,
    step,
)
from nearfar.placement.steering import assign, due_of
from nearfar.types.ids import ModelName, ServiceId, StreamId, node_of
from nearfar.types.request import Answer, Qos, Request
from nearfar.types.units import Bytes, Milliseconds, Seconds
from nearfar.vision.results import GivenUp, Kind, Move, Summary

if TYPE_CHECKING:
    from nearfar.fleet.snapshot import Snapshot
    from nearfar.placement.decide import Decision
    from nearfar.types.image import Image
    from nearfar.vision.base import Seer

FEW = 3
"""Two answers to one frame may differ by so many objects, or by half: another variant sees a little more or less."""


class Chooser(Protocol):
    """A seer that can say beforehand where a frame would go; the fleet's client can. Others are just followed."""

    me: str

    def decide(self, request: Request) -> Decision: ...

    def snapshot(self) -> Snapshot: ...


class Assigned(NamedTuple):
    """Who has a frame: fixed when it is due."""

    pin: ServiceId | None
    """The only service to ask at first; None: whoever asks may choose, with `owner` as the incumbent."""
    copy: ServiceId | None
    """Who gets a copy of it besides."""
    owner: ServiceId | None
    """Whose frame it is; None before the first answer."""


class Mover:
    """One stream's moves. Used from one event loop."""

    longest_copy = 5.0
    """Seconds to wait for the answer to a copy when the stream has no deadline."""

    def __init__(
        self,
        seer: Seer,
        model: ModelName,
        qos: Qos,
        summary: Summary,
        *,
        stream: StreamId | None = None,
        owner: ServiceId | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = Moving(owner=owner)
        self.model, self.qos = model, qos
        """What is asked for; may be changed between frames (`ask_for`)."""
        self.forecast: Milliseconds | None = None
        """Set while the stream's promise is in danger at its owner: what is expected there. It hurries then."""
        self._seer = seer
        self._chooser = cast(Chooser, seer) if callable(getattr(seer, "decide", None)) else None
        self._stream = stream
        self._summary = summary
        self._clock = clock
        self._size = 0
        self._pin: ServiceId | None = None
        """To whom the last frame that was due is pinned."""
        self._wanted: dict[int, ServiceId] = {}
        """Frames of which a copy is to be sent, and to whom."""
        self._rescued: dict[int, tuple[ServiceId, float]] = {}
        """Frames that went to the target since the owner would have been late, and when they were due."""
        self._own: dict[int, asyncio.Future[Answer | None]] = {}
        """What the owner answers to frames of which a copy was sent."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def owner(self) -> ServiceId | None:
        """The service whose answers count for the next frame; None before the first answer."""
        return self.state.owner

    def ask_for(self, model: ModelName, qos: Qos) -> None:
        """From the next frame on, ask for this. Another model has no owner yet: there is nothing to compare with."""
        if model != self.model:
            self.state = Moving(last=self.state.last, moved_at=self.state.moved_at)
        self.model, self.qos = model, qos

    def due(self, frame: int, raw_bytes: int, spent_ms: float = 0.0) -> Assigned:
        """Frame `frame` is about to be sent, `spent_ms` of its deadline are gone. Call in the order of frames, and
        `ended` once for each."""
        if self._chooser is None:
            self._step(FrameDue(frame, None))
            return Assigned(None, None, self.state.owner)
        decision, request = self._decide(self._chooser, frame, self._size or raw_bytes, spent_ms)
        actions = self._step(due_of(frame, decision, self.state, self.forecast is not None))
        pin, copy, rescued = assign(self.state, decision, actions)
        if copy is not None:
            self._wanted[frame] = copy
        if rescued and pin is not None:
            self._rescued[frame] = (pin, self._clock())
        self._pin = self.state.owner if rescued else pin
        if pin is not None and (listeners := getattr(self._seer, "listeners", None)):
            # What is asked next is pinned: this is the decision with everybody's figures.
            listeners.decided(request, decision, self._chooser.snapshot(), Seconds(self._clock()))
        return Assigned(pin, copy, self.state.owner)

    def pin_of(self, assigned: Assigned) -> ServiceId | None:
        """The only service to ask for a frame, at the moment at which it is sent.

        A move may have begun since the frame was due (others were due meanwhile): it then stays whose it was.
        """
        if assigned.pin is None and (self._pin is not None or assigned.owner != self.state.owner):
            return assigned.owner
        return assigned.pin

    def _decide(self, chooser: Chooser, frame: int, size: int, spent_ms: float) -> tuple[Decision, Request]:
        qos = self.qos
        if qos.deadline is not None and spent_ms > 0:  # as the frame itself will be decided, or both would not agree
            qos = msgspec.structs.replace(qos, deadline=Milliseconds(max(1.0, qos.deadline - spent_ms)))
        request = Request(
            self.model,
            chooser.me,
            Bytes(size),
            qos=qos,
            stream=self._stream,
            incumbent=self.state.owner,
            frame=frame,
            forecast=self.forecast,
        )
        return chooser.decide(request), request

    def sent(self, frame: int, image: Image, qos: Qos) -> None:
        """The frame is being sent as this image with what is left of its deadline; its copy goes out beside it."""
        self._size = image.nbytes
        target = self._wanted.pop(frame, None)
        if target is None:
            return
        own = self._own[frame] = asyncio.get_running_loop().create_future()
        self._summary.shadows += 1
        task = asyncio.create_task(self._copy(target, own, image, qos), name=f"copy of frame {frame}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def ended(self, frame: int, answer: Answer | None, failed: tuple[ServiceId, ...] = ()) -> None:
        """The frame that was due came to its end; `failed` were asked for it and did not answer."""
        if (own := self._own.pop(frame, None)) is not None:
            if not own.done():
                own.set_result(answer)
        elif (target := self._wanted.pop(frame, None)) is not None:
            self._step(CopyEnded(target, sent=False))
        by = None
        rescuer, since = self._rescued.pop(frame, (None, 0.0))
        if rescuer is not None and (answer is None or answer.served_by != rescuer):
            self._step(CopyEnded(rescuer, sent=False))  # it stood for a copy, and nothing is known of that
        if answer is not None:
            by = answer.served_by
            failed = (*failed, *(ServiceId(told.partition(": ")[0]) for told in answer.attempts))
            if by == rescuer:
                took = Milliseconds((self._clock() - since) * 1e3)
                self._step(CopyEnded(by, took, "", self.qos.deadline))
                by, failed = None, ()
            elif answer.aside and self._chooser is not None and self.state.owner is not None:
                by, failed = None, ()  # of this frame alone: the stream stays, and the next decision may move it
        self._step(FrameEnded(frame, by, failed, self._chooser is not None))

    async def _copy(self, target: ServiceId, own: asyncio.Future[Answer | None], image: Image, qos: Qos) -> None:
        to_it = msgspec.structs.replace(qos, node=node_of(target))
        started = self._clock()
        trouble = ""
        took = Milliseconds(0.0)
        try:
            async with asyncio.timeout(self.longest_copy if qos.deadline is None else qos.deadline / 1e3):
                theirs = await self._seer.see(self.model, image, to_it, incumbent=target)
            took = Milliseconds((self._clock() - started) * 1e3)
            mine = await own
            trouble = "" if mine is None else differs(mine, theirs)
        except NearfarError as error:
            trouble = f"{error.code}: {error.message}"
        except TimeoutError:
            trouble = f"no answer in {(self._clock() - started) * 1e3:.0f} ms"
        except Exception as error:  # a defect of the client must not end the stream unexplained
            trouble = f"{type(error).__name__}: {error}"
        self._step(CopyEnded(target, took, trouble, self.qos.deadline))

    def _step(self, event: Event) -> tuple[Action, ...]:
        self.state, actions = step(self.state, event, Seconds(self._clock()))
        for action in actions:
            match action:
                case Switch():
                    kind = Kind.PLANNED if action.planned else Kind.UNPLANNED
                    self._summary.note(Move(action.source, action.target, action.at_frame, kind, action.reason))
                case Abort():
                    self._summary.give_up(GivenUp(action.target, self.state.last, action.reason))
                case Warm() | Shadow() | Release():
                    pass
        return actions

    async def close(self) -> None:
        """Give up the copies that are on their way."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def differs(mine: Answer, theirs: Answer) -> str:
    """Why the other answer to the same frame cannot come from the same model; empty when it may.

    >>> from nearfar.types.request import Stages
    >>> one = Answer([], ServiceId("a/yard"), "v", Stages())
    >>> differs(one, Answer([], ServiceId("b/yard"), "w", Stages()))
    ''
    """
    names, others = [t.name for t in mine.outputs], [t.name for t in theirs.outputs]
    if names != others:
        return f"it answers {', '.join(others) or 'nothing'} where {mine.served_by} answers {', '.join(names)}"
    if "boxes" not in names:
        return ""
    try:
        n, m = len(mine.detections()), len(theirs.detections())
    except (KeyError, ValueError, NearfarError) as error:
        return f"its answer cannot be read: {error}"
    if abs(n - m) > max(FEW, max(n, m) / 2):
        return f"it finds {m} objects in a frame in which {mine.served_by} finds {n}"
    return ""
