"""The host of a stream: the program that runs it. Hands it over when asked, publishes checkpoints, yields to a newer.

The hand-over has two phases: the host stops between two frames, exports, and waits until the successor says that it has
the memory and runs; only then it ends. When that does not come in time it goes on itself: never no host, never two.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from nearfar.errors import InputError, MeshError, NearfarError
from nearfar.mesh.base import Call, Handle
from nearfar.types.request import Privacy
from nearfar.vision.circle import Circle, ask, hello, read_ask, refuse, tell
from nearfar.vision.handover import (
    Ask,
    Op,
    StreamMemory,
    Told,
    checkpoint_key,
    host_key,
    memory_of,
    pack_memory,
    standby_key,
)
from nearfar.vision.results import FrameResult, HandOver, Kind, Outcome
from nearfar.vision.stream import Watch

if TYPE_CHECKING:
    from nearfar.vision.tracking.follow import Follow

log = logging.getLogger(__name__)
CHECKPOINT_S = 0.5
CHECKPOINT_RESULTS = 10
"""A checkpoint is published after so many results, and not before so many seconds."""


class Host:
    """`announce` it, then let it `run` a stream, tell it every result (`after`), and `close` it at the end."""

    confirm_within = 10.0
    """Seconds in which a successor that got the memory must say that it runs."""
    see_within = 1.0
    """Seconds in which the token of a successor must be seen, so that its death is noticed at once."""

    def __init__(self, circle: Circle, me: str, epoch: int, say: Callable[[str], None] = log.info) -> None:
        self.circle, self.me, self.epoch = circle, me, epoch
        self._say = say
        self._mesh, self._stream = circle.mesh, circle.stream
        self._loop = asyncio.get_running_loop()
        self._handle: Handle | None = None
        self._watch: Watch | None = None
        self._follow: Follow | None = None
        self._source, self._live, self._model, self._privacy = "", False, "", Privacy.ANY
        self._taker = ""
        self._decided: asyncio.Future[str] | None = None
        self._refused: set[str] = set()
        """Successors that did not take over in time: what they announce counts for nothing, they are about to end."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._since = time.monotonic()
        self._last: tuple[int, float | None, float] = (-1, None, 0.0)
        """Frame, presentation time and moment of capture of the last result."""
        self._period_ms = 0.0
        self._results = 0
        self._published = 0.0

    def announce(self) -> None:
        """Be seen as the stream's host of this epoch."""
        self._handle = self._mesh.serve(host_key(self._stream, self.epoch, self.me), self._on_call)
        self.circle.listeners.append(self._on_circle)

    def run(
        self,
        watch: Watch,
        *,
        source: str,
        live: bool,
        model: str,
        privacy: Privacy,
        follow: Follow | None = None,
        before: StreamMemory | None = None,
    ) -> None:
        """From now on this stream can be handed over. `before` is what it went on from."""
        self._watch, self._follow = watch, follow
        self._source, self._live, self._model, self._privacy = source, live, model, privacy
        self._since = time.monotonic()
        if before is not None:
            self._last = (before.next_frame - 1, before.pts_ms, time.monotonic() - before.age_ms / 1e3)
            self._period_ms = before.period_ms
        self._on_circle()

    def after(self, result: FrameResult) -> None:
        """A result was delivered, and everything that remembers has taken it in."""
        frame, pts, _ = self._last
        now = time.monotonic()
        if pts is not None and result.pts_ms is not None and result.index > frame:
            step = (result.pts_ms - pts) / (result.index - frame)
            if step > 0:
                self._period_ms = step if not self._period_ms else 0.9 * self._period_ms + 0.1 * step
        answered = result.outcome in (Outcome.ANSWERED, Outcome.LATE)
        self._last = (result.index, result.pts_ms, now - result.total_ms / 1e3 if answered else now)
        self._results += 1
        if self._results >= CHECKPOINT_RESULTS and now - self._published >= CHECKPOINT_S and self.circle.standbys:
            self._results, self._published = 0, now
            # What cannot travel was told to the standby when it said hello.
            with contextlib.suppress(InputError):
                self._mesh.publish(checkpoint_key(self._stream), self.export())

    def export(self) -> bytes:
        """The stream's whole memory between two frames. Raises `InputError` with the reason when it cannot travel."""
        assert self._watch is not None
        memory = StreamMemory(
            self._stream,
            self.epoch,
            self.me,
            self._model,
            self._source,
            self._live,
            self._privacy,
            self._watch.next_frame,
            self._last[1],
            self._period_ms,
            max(0.0, (time.monotonic() - self._last[2]) * 1e3) if self._last[2] else 0.0,
            self._watch.incumbent,
            memory_of(self._watch.summary),
            self._follow.export_state() if self._follow is not None else None,
            {name: part.export_state() for name, part in self._watch.parts.items()},
        )
        return pack_memory(memory)

    # -- asked by others ------------------------------------------------------------------------------------------

    def _on_call(self, call: Call) -> None:
        """On a thread of the mesh."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._answer, call)

    def _answer(self, call: Call) -> None:
        asked = read_ask(call.head)
        if isinstance(asked, NearfarError):
            call.reply(refuse(asked))
            return
        try:
            match asked.op:
                case Op.HELLO:
                    if self._watch is not None:
                        self.export()
                    call.reply(tell(self._told()))
                case Op.TAKE:
                    task = asyncio.create_task(self._hand_over(asked, call), name="hand over")
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                case Op.CONFIRM:
                    self._confirmed(asked)
                    call.reply(tell(self._told()))
                case Op.CANCEL:
                    if asked.host == self._taker:
                        self._decide(asked.text or "it cannot go on with the stream")
                    call.reply(tell(self._told()))
                case Op.ENDED:
                    raise MeshError("A host was told that its stream is over.", "Only a standby is.")
        except NearfarError as error:
            call.reply(refuse(error))

    def _told(self) -> Told:
        next_frame = self._watch.next_frame if self._watch is not None else 0
        return Told(None, next_frame, time.monotonic() - self._since)

    async def _hand_over(self, asked: Ask, call: Call) -> None:
        try:
            if self._watch is None:
                raise MeshError(f"{self.me} is not running yet.", "Try again in a second.")
            if self._taker:
                raise MeshError(f"{self._taker} is just taking this stream over.", "Take it from there.")
        except NearfarError as error:
            call.reply(refuse(error))
            return
        self._taker, watch = asked.host, self._watch
        try:
            self.export()  # what cannot travel is refused before anything is stopped
            await self.circle.until(lambda: self._taker in self.circle.takers, self.see_within)
            await watch.hold()
            try:
                data = self.export()
                self._decided = self._loop.create_future()
                call.reply(tell(self._told()), [data])
                if why := await self._decision():
                    self._refused.add(asked.host)
                    self._say(f"{asked.host} did not take the stream over: {why}; going on here")
            finally:
                if not watch.summary.handed_over:
                    watch.go_on()
        except NearfarError as error:
            self._say(f"not handed over to {asked.host}: {error}")
            call.reply(refuse(error))
        finally:
            self._taker, self._decided = "", None

    async def _decision(self) -> str:
        """Why the successor does not go on with the stream; empty once it does."""
        assert self._decided is not None
        try:
            async with asyncio.timeout(self.confirm_within):
                return await self._decided
        except TimeoutError:
            return f"it did not say within {self.confirm_within:.0f} s that it runs"

    def _decide(self, why: str) -> None:
        if self._decided is not None and not self._decided.done():
            self._decided.set_result(why)

    def _confirmed(self, asked: Ask) -> None:
        """The point of no return: in one step on the event loop, so that this side either ends or goes on."""
        watch = self._watch
        if watch is None or asked.host != self._taker or self._decided is None or self._decided.done():
            raise MeshError(
                f"{self.me} has gone on with the stream {self._stream!r} itself.", "Take it over again: --takeover."
            )
        self._decided.set_result("")
        frame = watch.next_frame
        watch.summary.hosts.append(HandOver(self.me, asked.host, frame, Kind.PLANNED))
        watch.release(f"handed over to {asked.host} after frame {frame - 1}")

    # -- what is seen of others -----------------------------------------------------------------------------------

    def _on_circle(self) -> None:
        if self._taker and self._taker not in self.circle.takers:
            self._decide("it is gone")
        if self._watch is None:
            return
        self._refused &= self.circle.hosts.keys() | self.circle.takers
        for host, epoch in self.circle.hosts.items():
            if host in (self.me, self._taker) or host in self._refused:
                continue
            if epoch > self.epoch:
                self._give_way(host, f"with epoch {epoch}, this one has {self.epoch}")
            elif epoch == self.epoch:
                task = asyncio.create_task(self._compare(host), name="compare hosts")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _compare(self, other: str) -> None:
        """Two hosts of one epoch, started at once or on both sides of a cut: the one that ran for longer stays."""
        with contextlib.suppress(NearfarError):  # it is gone again
            told, _ = await ask(self._mesh, host_key(self._stream, self.epoch, other), hello(self.me), 5.0)
            mine = time.monotonic() - self._since
            if other in self.circle.hosts and (told.running_s, other) > (mine, self.me):
                self._give_way(other, f"for {told.running_s:.1f} s, this one for {mine:.1f} s")

    def _give_way(self, other: str, why: str) -> None:
        watch = self._watch
        if watch is None or watch.summary.handed_over or watch.summary.error is not None:
            return
        watch.summary.error = MeshError(
            f"{other} runs the stream {self._stream!r} too ({why}), so this program ended after frame "
            f"{watch.next_frame - 1}.",
            "Wait for it with --standby, or take the stream back with --takeover.",
        )
        watch.stop(f"gave way to {other}")

    async def close(self, ended: str = "") -> None:
        """Withdraw. `ended`: why the stream is over, for standbys, which then end too; empty when it is not."""
        with contextlib.suppress(ValueError):
            self.circle.listeners.remove(self._on_circle)
        if ended:
            goodbye = Ask(Op.ENDED, self.me, ended)
            keys = [standby_key(self._stream, standby) for standby in self.circle.standbys]
            await asyncio.gather(*(ask(self._mesh, key, goodbye, 2.0) for key in keys), return_exceptions=True)
        for task in tuple(self._tasks):
            if task.get_name() != "hand over":
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._handle is not None:
            self._handle.close()
