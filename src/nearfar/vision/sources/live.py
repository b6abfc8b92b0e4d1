"""What network cameras and webcams share: they break off and come back, and that is counted, never hidden.

An address may also lead to a video of finite length: that is played at its own speed and ends once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import av.error

from nearfar.errors import SourceError
from nearfar.types.units import Milliseconds, Seconds
from nearfar.vision.base import Frame, Source
from nearfar.vision.sources.container import Decoded, decode, open_container, reason_of


class LiveSource(Source):
    """A camera behind PyAV. The first connection must succeed; later breaks are mended with growing pauses.

    Gives up with `SourceError` when there was no frame for `give_up` seconds after a break.
    """

    live = True
    first_pause = 0.1
    longest_pause = 5.0

    def __init__(
        self,
        address: str,
        shown: str,
        *,
        format_name: str | None = None,
        options: Mapping[str, str] | None = None,
        open_timeout: float = 10.0,
        read_timeout: float = 5.0,
        give_up: float = 60.0,
        keep_jpeg: bool = False,
    ) -> None:
        self.uri = shown
        self._address = address
        self._format = format_name
        self._options = dict(options or {})
        self._timeouts = (open_timeout, read_timeout)
        self._give_up = give_up
        self._keep_jpeg = keep_jpeg
        self._closing = threading.Event()
        self._container: Any = None
        self._frames: Iterator[Decoded | Exception] = iter(())
        self._index = 0
        self._origin: float | None = None
        self._pause = self.first_pause
        self._last_frame: float | None = None
        self._finite = False

    def read(self) -> Frame | None:
        while not self._closing.is_set():
            try:
                if self._container is None:
                    self._connect()
                item = next(self._frames, None)
            except (av.error.FFmpegError, SourceError) as error:
                self._mend(error)
                continue
            if isinstance(item, Exception):
                self.corrupt += 1
            elif item is None and self._finite and self._index:
                self._shut()
                self.ended = "the video ended"
                self._closing.set()
            elif item is None:
                self._mend(None)
            elif self._due(item):
                return self._frame(item)
        self._shut()
        self.ended = self.ended or "stopped"
        return None

    def close(self) -> None:
        self._closing.set()

    def _connect(self) -> None:
        self._container = open_container(
            self._address, self.uri, format_name=self._format, options=self._options, timeout=self._timeouts
        )
        # Of a camera no length is known; FFmpeg gives one only for what has a head that states it.
        self._finite = bool(self._container.duration)
        codec = self._container.streams.video[0].codec_context.name
        self._frames = decode(self._container, keep_data=self._keep_jpeg and codec == "mjpeg")

    def _due(self, item: Decoded) -> bool:
        """Wait until a frame of a finite video is due; False when the source was closed meanwhile."""
        if not self._finite or self._origin is None or item.seconds is None:
            return True
        rest = self._origin + item.seconds - time.monotonic()
        return rest <= 0 or not self._closing.wait(rest)

    def _frame(self, item: Decoded) -> Frame:
        self._pause = self.first_pause
        at = time.monotonic() if self._finite else item.arrived
        self._last_frame = at
        if self._origin is None:
            self._origin = at - (item.seconds or 0.0 if self._finite else 0.0)
        # The clock of a camera starts over with every connection, and many lie: arrival is what can be relied upon.
        seconds = item.seconds if self._finite and item.seconds is not None else at - self._origin
        pts = Milliseconds(seconds * 1e3)
        frame = Frame(self._index, Seconds(at), item.image, pts, Milliseconds(item.decode_ms), item.data)
        self._index += 1
        return frame

    def _mend(self, error: Exception | None) -> None:
        """Wait before the next attempt, or raise when there is no hope."""
        self._shut()
        if self._last_frame is None:
            if isinstance(error, SourceError):
                self.ended = error.message
                raise error
            self.ended = f"no picture came: {reason_of(error) if error else 'the stream ended'}"
            raise SourceError(f"{self.uri!r}: {self.ended}.", "Check the address and that the camera sends a picture.")
        reason = error.message if isinstance(error, SourceError) else reason_of(error) if error else "the stream ended"
        if self._finite:
            self.ended = f"broke off at frame {self._index}: {reason}"
            raise SourceError(f"{self.uri!r} {self.ended}.", "Start again; it plays from its beginning.")
        silent = time.monotonic() - self._last_frame
        if silent > self._give_up:
            self.ended = f"no frame for {silent:.0f} s after frame {self._index - 1}: {reason}"
            raise SourceError(f"{self.uri!r}: {self.ended}.", "Check the camera and the network, then start again.")
        self.reconnects += 1
        self._closing.wait(self._pause)
        self._pause = min(self._pause * 2, self.longest_pause)

    def _shut(self) -> None:
        self._frames = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None
