"""The engine: frames from a source to whoever can see, a few on their way at a time, results in order.

Every frame that was read comes to exactly one end (`Outcome`), also when services die, the source breaks off or the
user presses Ctrl-C; none waits longer than `patience` for its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from nearfar.errors import (
    DeadlineExceeded,
    InferenceError,
    InputError,
    MeshError,
    NearfarError,
    NoCandidate,
    Overloaded,
    SourceError,
    UnknownModel,
)
from nearfar.types.ids import ModelName, ServiceId, StreamId, node_of
from nearfar.types.image import Image, ImageKind
from nearfar.types.request import FRAME, Answer, Qos
from nearfar.types.units import Bytes, Milliseconds, Seconds
from nearfar.vision.base import Frame, Movable, Seer, Source
from nearfar.vision.encode import Encoder
from nearfar.vision.latest import Latest
from nearfar.vision.moving import Assigned, Mover
from nearfar.vision.promise import Keeper, Plan
from nearfar.vision.results import EXPIRED, FrameResult, Outcome, Summary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OnResult = Callable[["FrameResult", "NDArray[np.uint8] | None"], "Awaitable[None] | None"]
"""Called on the event loop for every frame in order, with its pixels unless it was dropped; may be `async`."""

MOST_IN_FLIGHT = 4
_NOBODY_THERE = (NoCandidate, Overloaded, MeshError, UnknownModel)
"""Errors after which the next frame would fare no better at once: wait a little. Others concern their frame alone."""
_ELSEWHERE = (NoCandidate, Overloaded, MeshError, InferenceError)
"""Failures of a service that a frame was pinned to during a move, after which whoever asks may choose another one."""
BACK_PRESSURE = "back-pressure: newer frames came before it could be sent"
STOPPED = "stopped: the stream was ended before it was answered"


class Watch:
    """One stream. `run` once; `summary` may be read, and `stop` called, at any time on the same event loop."""

    first_pause = 0.05
    longest_pause = 0.5
    closing_s = 1.0
    """How long to wait for the source's thread at the end; one that hangs in a camera's driver is left behind."""

    def __init__(
        self,
        source: Source,
        seer: Seer,
        model: ModelName,
        qos: Qos = Qos(),  # noqa: B008 - frozen
        *,
        on_result: OnResult | None = None,
        stream: StreamId | None = None,
        in_flight: int | None = None,
        depth: int = 1,
        always: ImageKind | None = None,
        patience: Seconds = Seconds(10.0),  # noqa: B008
        give_up: Seconds | None = None,
        first: int = 0,
        incumbent: ServiceId | None = None,
        summary: Summary | None = None,
    ) -> None:
        """`in_flight`: requests at a time, 1 or more; None for 2 of a file, and of a camera as many as the link needs.
        `depth`: frames that wait to be sent. `always`: raw or encoded, instead of what is cheaper.

        `patience`: longest wait for one answer (at least the deadline and a second). `give_up`: end the stream with the
        last error after that long without any answer; by default 30 s for a file, which waits, and never for a camera.

        To go on with a stream that ran elsewhere: the number of the `first` frame that the source gives, who served it
        last, and its `summary` so far.
        """
        if in_flight is not None and in_flight < 1:
            raise ValueError(f"at least one frame must be on its way, not {in_flight}")
        self.summary = summary if summary is not None else Summary()
        self.encoder = Encoder(always=always)
        self.promise = Keeper(seer, model, qos, stream)
        self.summary.promise = self.promise
        self.mover = Mover(seer, model, qos, self.summary, stream=stream, owner=incumbent)
        """Takes the stream from one service to another; in a hurry while the promise is in danger."""
        self.parts: dict[str, Movable] = {"promise": self.promise} if self.promise.promise is not None else {}
        """What else remembers and goes with the stream to another program, by name."""
        self._source = source
        self._seer = seer
        self._model = model
        self._qos = qos
        self._on_result = on_result
        self._stream = stream
        self._adaptive = in_flight is None and source.live
        self._allowed = in_flight or (1 if source.live else 2)
        self._most = MOST_IN_FLIGHT if self._adaptive else self._allowed
        self._busy = 0
        self._link_share: float | None = None
        self._depth = depth
        self._patience = max(patience, (qos.deadline or 0.0) / 1e3 + 1.0)
        self._give_up = give_up if give_up is not None else math.inf if source.live else 30.0
        self._pause = self.first_pause
        self._resume_at = 0.0
        self._last_error: NearfarError | None = None
        self._stopping = ""
        self._feeding: asyncio.Task[None] | None = None
        self._ready: dict[int, tuple[FrameResult, NDArray[np.uint8] | None, bool]] = {}
        self._first = self._next = first
        self._read_before = self.summary.read
        self._arrived = asyncio.Event()
        self._gate = asyncio.Event()
        self._gate.set()
        self._progress = asyncio.Event()
        self._reconnects = self._corrupt = 0
        self._telling = self._frozen = self._released = False
        self._all_done = False

    @property
    def incumbent(self) -> ServiceId | None:
        """Whose answers count for the next frame; None before the first answer."""
        return self.mover.owner

    @property
    def next_frame(self) -> int:
        """The number of the first frame that was not delivered yet."""
        return self._next

    async def run(self) -> Summary:
        """Until the source ends, `stop` is called, or the task is cancelled: also then the summary is returned.

        Does not raise for what happens to frames, source or recorder: `summary.error` and `exit_code` say it. What
        `on_result` raises beside `NearfarError` is raised when everything is closed.
        """
        self._last_answer = time.monotonic()
        self._latest = Latest(self._depth, dropping=self._source.live, on_drop=self._on_drop)
        self._requests: set[asyncio.Task[FrameResult]] = set()
        self._failed: dict[int, tuple[ServiceId, ...]] = {}
        self._room = asyncio.Event()
        # Frames that are answered but not yet delivered hold their pixels: few, so that a slow recorder holds all back.
        self._window = asyncio.Semaphore(self._most * 2 + 2)
        self._broken: BaseException | None = None
        pump = threading.Thread(target=self._pump, name=f"frames of {self._source.uri}", daemon=True)
        delivering = asyncio.create_task(self._deliver())
        self._feeding = asyncio.create_task(self._feed())
        pump.start()
        try:
            await self._until_done(self._feeding)
        finally:
            self._source.close()
            self._latest.abandon()
        await self._until_done(asyncio.gather(*self._requests, return_exceptions=True))
        await self._until_done(asyncio.ensure_future(self.mover.close()))
        self._all_done = True
        self._arrived.set()
        self._progress.set()
        await self._until_done(delivering)
        await self._until_done(asyncio.ensure_future(asyncio.to_thread(pump.join, self.closing_s)))
        self._close_summary()
        if self._broken is not None:
            raise self._broken
        return self.summary

    def stop(self, reason: str = "stopped by the user") -> None:
        """End the stream: frames on their way are given up and counted as dropped. May be called twice."""
        self._stopping = self._stopping or reason
        self.go_on()
        if self._feeding is not None:
            self._feeding.cancel()
        for task in getattr(self, "_requests", ()):
            task.cancel()

    # At a boundary between two frames

    async def hold(self) -> int:
        """Take no new frame, wait until those on their way are delivered; the number of the next one.

        Until `go_on` or `release` is called nothing is sent and nothing delivered. Raises `InputError` when the stream
        is over or is being stopped.
        """
        self._gate.clear()
        while not self._over and (self._requests or self._telling or self._next in self._ready):
            self._progress.clear()
            await self._progress.wait()
        if self._over:
            self.go_on()
            raise InputError("The stream has just ended.", "Start it anew.")
        self._frozen = True
        return self._next

    def go_on(self) -> None:
        """As if `hold` had not been called."""
        self._frozen = False
        self._gate.set()
        self._arrived.set()
        self._progress.set()

    def release(self, reason: str) -> None:
        """End after `hold`: somebody else goes on with the next frame, so what was read beyond is not counted here."""
        self._released = self.summary.handed_over = True
        self._ready.clear()
        self.stop(reason)

    @property
    def _over(self) -> bool:
        return bool(self._all_done or self._stopping)

    async def _until_done(self, work: asyncio.Future[Any]) -> None:
        """Wait for the work; a cancellation from outside (Ctrl-C) becomes `stop` and the work is waited for still."""
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None:
                    task.uncancel()
                self.stop()
        if not work.cancelled():
            work.result()

    # The source's thread

    def _pump(self) -> None:
        error: NearfarError | None = None
        try:
            while (frame := self._source.read()) is not None and self._latest.put(frame):
                pass
        except NearfarError as found:
            error = found
        except Exception as found:  # a third party's source; the stream must still end with a reason
            error = SourceError(f"{self._source.uri!r} failed with {type(found).__name__}: {found}.")
        finally:
            self._source.close()
            with contextlib.suppress(Exception):
                # What the source opened belongs to this thread: one more read lets it shut that.
                self._source.read()
            self._latest.finish(error)

    # From the hand-over to the fleet

    async def _feed(self) -> None:
        while True:
            while self._busy >= self._allowed:
                self._room.clear()
                await self._room.wait()
            await self._window.acquire()
            await self._back_off()
            await self._gate.wait()
            frame = await self._latest.get()
            await self._gate.wait()  # it may have been shut while this frame came
            self._count_read()
            if frame is None:
                return
            if self._source.live and (pausing := self._pausing()):
                self._finish(self._dropped(frame, pausing), held=True)
                continue
            if skipping := self.promise.skips(frame):
                self._finish(self._dropped(frame, skipping), held=True)
                continue
            self._busy += 1
            self.mover.ask_for(*self.promise.asks())
            self.mover.forecast = self.promise.forecast(self.mover.owner)
            spent_ms = (time.monotonic() - frame.at) * 1e3 if self._source.live else 0.0
            assigned = self.mover.due(frame.index, frame.image.nbytes, spent_ms)
            task = asyncio.create_task(self._see(frame, assigned))
            self._requests.add(task)
            task.add_done_callback(partial(self._settle, frame))

    def _settle(self, frame: Frame, task: asyncio.Task[FrameResult]) -> None:
        """A request's end. Here and not in its task, which may be cancelled before it ran its first line."""
        self._requests.discard(task)
        self._busy -= 1
        self._room.set()
        result = self._dropped(frame, STOPPED) if task.cancelled() else task.result()
        try:
            self.promise.ended(result)
            self.mover.ended(frame.index, result.answer, self._failed.pop(frame.index, ()))
        finally:  # whatever a defect there does, the frame comes to its end
            self._finish(result, frame.image, held=True)

    async def _back_off(self) -> None:
        if (rest := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(rest)

    def _pausing(self) -> str:
        """The reason why nothing is sent at this moment; empty when frames may go."""
        if self._last_error is None or self._resume_at <= time.monotonic():
            return ""
        return f"paused: waiting to try again after {self._last_error.code}"

    def _on_drop(self, frame: Frame) -> None:
        self._finish(self._dropped(frame, STOPPED if self._stopping else self._pausing() or BACK_PRESSURE))

    def _dropped(self, frame: Frame, reason: str) -> FrameResult:
        return FrameResult(frame.index, Outcome.DROPPED, frame.pts_ms, reason=reason, decode_ms=frame.decode_ms)

    async def _see(self, frame: Frame, assigned: Assigned) -> FrameResult:
        FRAME.set(frame.index)  # this task is this frame's alone
        if not self._source.live:
            await self._back_off()
        taken = time.monotonic()
        since = frame.at if self._source.live else taken
        wait_ms = max(0.0, (taken - since) * 1e3 - frame.decode_ms) if self._source.live else 0.0
        qos, budget = self._qos, self._qos.deadline
        if budget is not None:
            rest = Milliseconds(budget - (taken - since) * 1e3)
            if rest <= 0:
                return self._dropped(frame, EXPIRED)
            qos = msgspec.structs.replace(qos, deadline=rest)
        encode_ms = 0.0
        error: NearfarError | None = None
        answer: Answer | None = None
        kind: ImageKind | None = None
        try:
            async with asyncio.timeout(self._patience):
                plan = self.promise.plan(qos, (taken - since) * 1e3, assigned.owner)
                rtt_ms, bandwidth = self._seer.link_to(plan.model, assigned.owner or self.incumbent)
                fitted, shrink_ms = await plan.fit(frame)
                image, encode_ms = await self.encoder.prepare(fitted, rtt_ms, bandwidth)
                encode_ms += shrink_ms
                kind, self.promise.size = image.kind, Bytes(image.nbytes)
                self.mover.sent(frame.index, image, plan.qos)
                answer = self.promise.restored(await self._ask(frame, image, plan, assigned), fitted, frame)
        except NearfarError as found:
            error = found
        except TimeoutError:
            error = DeadlineExceeded(
                f"No answer in {self._patience:.0f} s.", "See who serves the model with: nearfar services"
            )
        except Exception as found:  # a defect of the client must not end the stream unexplained
            error = NearfarError(f"{type(found).__name__}: {found}")
        total_ms = (time.monotonic() - since) * 1e3
        if answer is not None and kind is not None:
            outcome = Outcome.LATE if budget is not None and total_ms > budget else Outcome.ANSWERED
            self._on_answer(answer, kind)
        else:
            outcome = Outcome.FAILED
            self._on_failure(error)
        reason = f"{total_ms:.0f} ms, {budget:.0f} ms allowed" if outcome is Outcome.LATE else str(error or "")
        return FrameResult(
            frame.index,
            outcome,
            frame.pts_ms,
            answer,
            error,
            reason,
            frame.decode_ms,
            wait_ms,
            encode_ms,
            total_ms,
            kind,
        )

    async def _ask(self, frame: Frame, image: Image, plan: Plan, assigned: Assigned) -> Answer:
        """Of whom the frame belongs to; when that one fails during a move, of whoever is best then."""
        owner, started, qos = assigned.owner or self.incumbent, time.monotonic(), plan.qos
        pin = self.mover.pin_of(assigned)
        if pin is not None:
            to_it = msgspec.structs.replace(qos, node=node_of(pin))
            try:
                return await self._seer.see(plan.model, image, to_it, stream=self._stream, incumbent=pin, **plan.more)
            except _ELSEWHERE:
                self._failed[frame.index] = (pin,)
                owner = None
                if qos.deadline is not None:
                    rest = Milliseconds(qos.deadline - (time.monotonic() - started) * 1e3)
                    if rest <= 0:
                        raise
                    qos = msgspec.structs.replace(qos, deadline=rest)
        return await self._seer.see(plan.model, image, qos, stream=self._stream, incumbent=owner, **plan.more)

    def _on_answer(self, answer: Answer, kind: ImageKind) -> None:
        self._pause = self.first_pause
        self._resume_at = 0.0
        self._last_error = None
        self._last_answer = time.monotonic()
        self.encoder.learn(kind, answer.stages)
        if self._adaptive:
            share = answer.stages.link / max(0.01, answer.stages.service)
            self._link_share = share if self._link_share is None else 0.8 * self._link_share + 0.2 * share
            self._allowed = in_flight_for(self._link_share, self._most)

    def _on_failure(self, error: NearfarError | None) -> None:
        now = time.monotonic()
        self._last_error = error
        if isinstance(error, _NOBODY_THERE) and self._resume_at <= now:
            # Frames on their way at the same time fail together: that is one failure, not a reason to wait longer.
            asked = getattr(error, "retry_after", 0.0) if isinstance(error, Overloaded) else 0.0
            self._resume_at = now + min(max(self._pause, asked), self.longest_pause)
            self._pause = min(self._pause * 2, self.longest_pause)
        if now - self._last_answer > self._give_up and self.summary.error is None:
            self.summary.error = error
            self.stop(f"gave up: no answer for {now - self._last_answer:.0f} s, the last error was: {error}")

    # Results, in order

    def _finish(self, result: FrameResult, image: NDArray[np.uint8] | None = None, *, held: bool = False) -> None:
        """`held`: the frame was taken from the hand-over, so it has a place in the window until it is delivered."""
        if self._released:
            return
        self._ready[result.index] = (result, None if result.outcome is Outcome.DROPPED else image, held)
        self._arrived.set()
        self._progress.set()

    def _count_read(self) -> None:
        self.summary.read = self._read_before + max(self._latest.accepted, self._next - self._first)
        self.summary.reconnects += self._source.reconnects - self._reconnects
        self.summary.corrupt += self._source.corrupt - self._corrupt
        self._reconnects, self._corrupt = self._source.reconnects, self._source.corrupt

    async def _deliver(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while not self._frozen and (item := self._ready.pop(self._next, None)) is not None:
                self._telling = True
                self._next += 1
                result, image, held = item
                self._count_read()
                self.summary.add(result)
                await self._tell(result, image)
                self._telling = False
                self._progress.set()
                if held:
                    self._window.release()
            if self._all_done:
                return

    async def _tell(self, result: FrameResult, image: NDArray[np.uint8] | None) -> None:
        if self._on_result is None:
            return
        try:
            waiting = self._on_result(result, image)
            if inspect.isawaitable(waiting):
                await waiting
        except NearfarError as error:
            self._on_result = None
            self.summary.error = self.summary.error or error
            self.stop(f"results could not be delivered: {error}")
        except Exception as error:
            self._on_result = None
            self._broken = error
            self.stop(f"results could not be delivered: {type(error).__name__}: {error}")

    def _close_summary(self) -> None:
        self.promise.close()
        self._count_read()
        if self._released:
            self.summary.read = self._read_before + self._next - self._first
        else:
            self.summary.error = self.summary.error or self._latest.error
        self._progress.set()
        self.summary.stop(self._stopping or self._source.ended or "the source ended")


def in_flight_for(link_share: float, most: int = MOST_IN_FLIGHT) -> int:
    """How many requests of a camera to have on their way, when the link takes `link_share` times the service's work.

    A second request fills the time in which the first one travels. Where there is hardly any, it would only wait in the
    service's queue and grow old, while the hand-over would have replaced it with a newer frame; a quarter is let pass.

    >>> [in_flight_for(share) for share in (0.0, 0.2, 0.5, 1.0, 2.0, 50.0)]
    [1, 1, 2, 2, 3, 4]
    """
    return max(1, min(most, 1 + math.ceil(link_share - 0.25)))


async def watch(
    source: Source,
    seer: Seer,
    model: ModelName,
    qos: Qos = Qos(),  # noqa: B008 - frozen
    **options: Any,
) -> Summary:
    """Run one stream to its end; `options` are those of `Watch`.

    >>> import inspect; list(inspect.signature(Watch.__init__).parameters)[5:]
    ['on_result', 'stream', 'in_flight', 'depth', 'always', 'patience', 'give_up', 'first', 'incumbent', 'summary']
    """
    return await Watch(source, seer, model, qos, **options).run()
