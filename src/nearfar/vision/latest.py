"""Hands frames from a decoder's thread to the event loop, holding few: the newest, or what fits while it waits."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from nearfar.errors import NearfarError
from nearfar.vision.base import Frame


class Latest:
    """A bounded hand-over of at most `depth` frames.

    With `dropping`, a full hand-over gives up its OLDEST frame for a new one and says which by `on_drop`; without,
    `put` blocks, which holds the decoder back. `on_drop` and what is `async` run on the loop that made this object.
    """

    def __init__(self, depth: int = 1, *, dropping: bool, on_drop: Callable[[Frame], None]) -> None:
        if depth < 1:
            raise ValueError(f"a hand-over holds at least one frame, not {depth}")
        self.error: NearfarError | None = None
        """Why the producer broke off, once `get` returned None."""
        self.accepted = 0
        self._depth = depth
        self._dropping = dropping
        self._on_drop = on_drop
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._waiting: deque[Frame] = deque()
        self._dropped: deque[Frame] = deque()
        self._finished = False
        self._abandoned = False
        self._wake = asyncio.Event()

    def put(self, frame: Frame) -> bool:
        """From the producer's thread. False when nobody wants frames any more: the frame was not taken, stop."""
        with self._changed:
            while not self._dropping and len(self._waiting) >= self._depth and not self._abandoned:
                self._changed.wait()
            if self._abandoned:
                return False
            if len(self._waiting) >= self._depth:
                self._dropped.append(self._waiting.popleft())
            self._waiting.append(frame)
            self.accepted += 1
        return self._notify()

    def finish(self, error: NearfarError | None = None) -> None:
        """From the producer's thread: nothing more comes, because of `error` or since it is the end."""
        with self._changed:
            self._finished = True
            self.error = error
        self._notify()

    async def get(self) -> Frame | None:
        """The oldest frame that waits, or None when the producer finished or the hand-over was abandoned."""
        while True:
            self._wake.clear()
            self._report()
            with self._changed:
                if self._waiting and not self._abandoned:
                    self._changed.notify()
                    return self._waiting.popleft()
                if self._finished or self._abandoned:
                    return None
            await self._wake.wait()

    def abandon(self) -> None:
        """From the loop: no more frames are wanted. Those that wait are reported as dropped."""
        with self._changed:
            self._abandoned = True
            self._dropped.extend(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        self._wake.set()
        self._report()

    def _notify(self) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._awake)
        except RuntimeError:  # the loop is closed: the producer outlived its consumer
            return False
        return True

    def _awake(self) -> None:
        self._report()
        self._wake.set()

    def _report(self) -> None:
        while True:
            with self._changed:
                if not self._dropped:
                    return
                frame = self._dropped.popleft()
            self._on_drop(frame)
