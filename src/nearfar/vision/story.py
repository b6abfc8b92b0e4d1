"""Tells a stream's trail what became of its frames: moves, levels of its promise, what was given up, its hosts."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from nearfar.errors import NearfarError
from nearfar.vision.results import FrameResult, Kind, Move

if TYPE_CHECKING:
    from nearfar.client.listening import Listeners
    from nearfar.client.trail import Trail
    from nearfar.vision.stream import Watch


HANDING_OVER = 5.0
"""Seconds in which the program that had the stream may let go of its trail's file."""


class Story:
    """One stream's. `begin`, then `after` each result in the order of frames, then `close`; on one event loop."""

    def __init__(self, trail: Trail, watch: Watch) -> None:
        self._trail, self._watch = trail, watch
        self._moved = watch.summary.moved
        self._changed, self._turned = watch.promise.changed, watch.promise.turned
        self._hosts = max(0, len(watch.summary.hosts) - 1)  # the hand-over to this program is part of its story
        self._moves: deque[Move] = deque()
        """Moves from a frame on whose result has not come yet."""
        self._beginning: asyncio.Task[None] | None = None
        self._deaf: Callable[[], None] = lambda: None
        """Takes the trail from the client's listeners."""

    @property
    def warning(self) -> str:
        """Why nothing is written down any more; empty when all is well."""
        return self._trail.warning

    async def begin(self, listeners: Listeners, *, patient: bool = True) -> None:
        """Start the trail. With `patient` it is there before the first frame.

        A stream that is being taken over does not wait: the program that had it may still hold the file, and every
        millisecond is a gap.
        """

        async def start(patience: float) -> None:
            await self._trail.start(patience)
            self._tell_hosts()

        if patient:
            await start(0.0)
        else:
            self._beginning = asyncio.create_task(start(HANDING_OVER), name="trail")
        self._deaf = listeners.add(self._trail)

    def after(self, result: FrameResult) -> None:
        """Take in one result."""
        promise, trail = self._watch.promise, self._trail
        self._tell_moves(result.index)
        if new := min(promise.turned - self._turned, len(promise.turns)):
            self._turned = promise.turned
            for frame, found in list(promise.turns)[-new:]:
                trail.level(found.level.value, found.reason, frame)
        if new := min(promise.changed - self._changed, len(promise.changes)):
            self._changed = promise.changed
            for frame, _, change in list(promise.changes)[-new:]:
                trail.degraded(change.step.words, change.because, frame, restored=not change.down)
        # Who answered is not told: what is a move is the engine's to say. A frame that was answered elsewhere alone, or
        # was still on its way to the service before, is none.
        trail.outcome(result.outcome.value, None, result.index)
        if (owner := self._watch.incumbent) is not None:
            trail.serves(owner)

    def _tell_moves(self, until: float) -> None:
        """The moves that were made at this frame or before."""
        summary = self._watch.summary
        if new := min(summary.moved - self._moved, len(summary.moves)):
            self._moves.extend(list(summary.moves)[-new:])
            self._moved = summary.moved
        while self._moves and self._moves[0].frame <= until:
            move = self._moves.popleft()
            planned = move.kind is Kind.PLANNED
            self._trail.moved(move.source, move.target, move.frame, planned=planned, reason=move.reason)

    def _tell_hosts(self) -> None:
        hosts = self._watch.summary.hosts
        while self._hosts < len(hosts):
            one = hosts[self._hosts]
            self._trail.handed_over(one.source, one.target, one.frame, one.reason)
            self._hosts += 1

    async def close(self) -> None:
        """Write the end down."""
        if self._beginning is not None:
            await asyncio.gather(self._beginning, return_exceptions=True)
        self._deaf()
        self._tell_hosts()
        self._tell_moves(math.inf)  # also one at whose frame the stream ended
        summary = self._watch.summary
        counts = {outcome.value: count for outcome, count in summary.counts.items()}
        self._trail.ended(summary.ended or "the watch broke off", counts)
        try:
            await self._trail.close()
        except NearfarError as error:
            self._trail.warning = self._trail.warning or str(error)
