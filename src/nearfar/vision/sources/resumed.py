"""A source that goes on where another program stopped: at the very frame if it has a past, else under the next number.

It is opened, and its first frame decoded, before the other program is asked to stop (`warm`); a camera is then drained,
so that the first frame it gives is a new one.
"""

from __future__ import annotations

import contextlib
import threading
import time

import msgspec

from nearfar.errors import InputError, NearfarError, SourceError
from nearfar.types.units import Milliseconds, Seconds
from nearfar.vision.base import Frame, Source

SAME_MS = 0.5
"""Presentation times of one frame that was decoded twice differ by rounding at most."""


class Resumed(Source):
    """Call `warm` as often as wanted, then `begin` once, then read; one after the other, none on the event loop."""

    def __init__(self, inner: Source) -> None:
        self.uri, self.live = inner.uri, inner.live
        self.has_past = inner.skip(0)
        self._inner = inner
        self._held: Frame | None = None
        self._before: Milliseconds | None = None
        """Presentation time of the frame before the held one."""
        self._opened = self._over = False
        self._last = 0
        """The last frame of a camera that was drained."""
        self._shift = self._corrupt = 0
        self._draining: threading.Thread | None = None
        self._enough = threading.Event()
        self._broken: NearfarError | None = None

    def warm(self, first: int) -> None:
        """Have frame `first` decoded and at hand, or a picture of the camera. Raises `SourceError` if there is none."""
        if not self.has_past:
            if self._draining is None:
                if self._inner.read() is None:
                    raise SourceError(f"{self.uri!r} gives no picture: {self._inner.ended}.", "Check the source.")
                self._draining = threading.Thread(target=self._drain, name=f"drain {self.uri}", daemon=True)
                self._draining.start()
            return
        if self._opened and (self._held is None or self._held.index >= first):
            return
        if self._held is not None:
            self._before = self._held.pts_ms
        self._opened = True
        self._inner.skip(first)
        self._held = self._inner.read()
        self._over = self._held is None
        if self._inner.passed_ms is not None:
            self._before = max(self._before or self._inner.passed_ms, self._inner.passed_ms)

    def begin(self, first: int, before_ms: Milliseconds | None = None) -> None:
        """The next frame that is read has the number `first`. `before_ms`: presentation time of the one before it.

        Raises `InputError` when the frame before has another time here: this is another video. `SourceError` when the
        camera broke off meanwhile.
        """
        if not self.has_past:
            self._enough.set()
            if self._draining is not None:
                self._draining.join()
            if self._broken is not None:
                raise self._broken
            self._shift, self._corrupt = first - self._last - 1, self._inner.corrupt
            return
        self.warm(first)
        self._corrupt = self._inner.corrupt  # what was passed over was counted by the other program
        if self._held is not None and self._held.index != first:
            raise InputError(f"{self.uri!r} is at frame {self._held.index} already.", "Start again.")
        if before_ms is not None and self._before is not None and abs(before_ms - self._before) > SAME_MS:
            raise InputError(
                f"{self.uri!r} is another video: frame {first - 1} is at {self._before:.1f} ms, not {before_ms:.1f}.",
                "Give the same file that the stream's host reads.",
            )

    def _drain(self) -> None:
        try:
            while not self._enough.is_set() and (frame := self._inner.read()) is not None:
                self._last = frame.index
        except NearfarError as error:
            self._broken = error
        except Exception as error:  # a third party's source
            self._broken = SourceError(f"{self.uri!r} failed with {type(error).__name__}: {error}.")

    def read(self) -> Frame | None:
        held, self._held = self._held, None
        if held is not None and self.live and (lag := time.monotonic() - held.at) > 0:
            # It was decoded before the other program was asked to stop: its deadline counts from now on.
            held = msgspec.structs.replace(held, at=Seconds(held.at + lag))
            self._inner.stood_still(lag)
        # A file that is over must not be read again: it would begin anew.
        frame = held if held is not None or self._over else self._inner.read()
        self.reconnects, self.ended = self._inner.reconnects, self._inner.ended
        self.corrupt = self._inner.corrupt - self._corrupt
        if frame is None:
            return None
        return msgspec.structs.replace(frame, index=frame.index + self._shift) if self._shift else frame

    def close(self) -> None:
        self._over = False
        self._enough.set()
        self._inner.close()

    def shut(self) -> None:
        """Close it when it was never handed to a stream, on no event loop."""
        self.close()
        if self._draining is not None:
            self._draining.join(5.0)
        with contextlib.suppress(Exception):
            self._inner.read()
