"""A video file, also an animated GIF: as fast as frames are taken, or at the speed of its own clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av.error

from nearfar.errors import SourceError
from nearfar.types.units import Milliseconds, Seconds
from nearfar.vision.base import Frame, Source
from nearfar.vision.sources.container import Decoded, decode, open_container, reason_of


class FileSource(Source):
    """Frames of a file. `live` is `realtime`: a file that plays at its own speed waits for nobody."""

    def __init__(self, path: Path, *, loop: bool = False, realtime: bool = False) -> None:
        self.uri = str(path)
        self.live = realtime
        self._loop = loop
        self._closing = threading.Event()
        self._container: Any = None
        self._frames: Iterator[Decoded | Exception] = iter(())
        self._index = 0
        self._first_of_round = 0
        self._last_s = 0.0
        self._offset_s = 0.0
        self._started: float | None = None
        self._skip = 0

    def skip(self, first: int) -> bool:
        self._skip, self._started = first, None  # the first one that is given is due at once
        return True

    def stood_still(self, seconds: float) -> None:
        if self._started is not None:
            self._started += seconds

    def read(self) -> Frame | None:
        while not self._closing.is_set():
            if self._container is None:
                self._open()
            try:
                item = next(self._frames, None)
            except av.error.FFmpegError as error:
                raise self._broke_off(reason_of(error)) from error
            if isinstance(item, Exception):
                # Passed over and counted; when it was the cut end of the file, the check below finds that.
                self.corrupt += 1
                continue
            if item is not None and self._index < self._skip:
                self.passed_ms = Milliseconds(self._seconds(item) * 1e3)
                self._index += 1
                continue
            if item is not None:
                return self._paced(item)
            self._check_complete()
            self._shut()
            if not self._loop or self._index == self._first_of_round:
                self.ended = "the file ended" + (
                    f"; {self.corrupt} packets could not be decoded" if self.corrupt else ""
                )
                return None
            self._offset_s = self._last_s + self._step
        self._shut()
        self.ended = self.ended or "stopped"
        return None

    def close(self) -> None:
        self._closing.set()

    def _open(self) -> None:
        self._container = open_container(self.uri, self.uri)
        stream = self._container.streams.video[0]
        self._step = float(1 / stream.average_rate) if stream.average_rate else 0.04
        self._promised = int(stream.frames or 0)
        self._frames = decode(self._container)
        self._first_of_round = self._index

    def _seconds(self, item: Decoded) -> float:
        """Presentation time of what was just decoded, growing over loops."""
        inside = item.seconds
        if inside is None or self._container.format.name == "avi":
            # AVI knows only the order of decoding: with B-frames its times are wrong, but its rate is constant.
            inside = (self._index - self._first_of_round) * self._step
        seconds = self._offset_s + inside
        self._last_s = max(self._last_s, seconds)
        return seconds

    def _paced(self, item: Decoded) -> Frame | None:
        seconds = self._seconds(item)
        at = item.arrived
        if self.live:
            now = time.monotonic()
            if self._started is None:
                self._started = now - seconds
            due = self._started + seconds
            if due > now and self._closing.wait(due - now):
                self.ended = "stopped"
                return None
            at = max(due, now)
        frame = Frame(self._index, Seconds(at), item.image, Milliseconds(seconds * 1e3), Milliseconds(item.decode_ms))
        self._index += 1
        return frame

    def _check_complete(self) -> None:
        """Raise when the file ended before what its head promises: a file cut off is not a file that is over."""
        ended_s = self._last_s - self._offset_s + 1.5 * self._step
        # The count alone is no proof (edit lists hide frames of a whole file): a cut file is also too short in time.
        too_few = not self._promised or self._index - self._first_of_round < self._promised
        if too_few and ended_s < promised_length(self._container):
            raise self._broke_off("the file ends before its last frame")
        if self._container.format.name == "gif" and not ends_with_trailer(Path(self.uri)):
            raise self._broke_off("the file ends without the trailer that closes a GIF")

    def _broke_off(self, reason: str) -> SourceError:
        got = self._index - self._first_of_round
        of = f" of {self._promised}" if self._promised > got else ""
        self._shut()
        self.ended = f"broke off at frame {got}{of}: {reason}"
        return SourceError(
            f"{self.uri!r} {self.ended}.", f"The {got} frames before it were delivered; copy or record the file anew."
        )

    def _shut(self) -> None:
        self._frames = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None


def promised_length(container: Any) -> float:
    """Seconds of pictures that the head of the file states; 0 when it states none (a transport stream, a GIF)."""
    stream = container.streams.video[0]
    if "matroska" in container.format.name:
        # A track's own length is a tag such as 00:00:02.000000000; the segment's counts only without other tracks.
        parts = stream.metadata.get("DURATION", "").split(":")
        if len(parts) == 3 and all(part.replace(".", "").isdigit() for part in parts):
            return int(parts[0]) * 3600 + int(parts[1]) * 60 + float(parts[2])
        return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0
    if not stream.frames:
        return 0.0
    return float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0


def ends_with_trailer(path: Path) -> bool:
    """Whether a GIF ends with its trailer, 0x3B (GIF89a specification, section 27); zero padding may follow."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 512))
        return file.read().rstrip(b"\0").endswith(b"\x3b")
