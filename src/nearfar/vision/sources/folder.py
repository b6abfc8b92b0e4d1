"""A folder of images in the order of their names (2 before 10), or one image."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from nearfar.errors import SourceError
from nearfar.types.units import Milliseconds, Seconds
from nearfar.vision.base import Frame, Source
from nearfar.vision.sources import IMAGES

RATE = 25.0
"""Frames per second of a folder played in real time."""


class FolderSource(Source):
    """Each image is a frame. Raises `SourceError` from `read` naming the image that cannot be decoded."""

    def __init__(self, path: Path, *, loop: bool = False, realtime: bool = False) -> None:
        self.uri = str(path)
        self.live = realtime
        self._loop = loop
        self._closing = threading.Event()
        self._index = 0
        self._started: float | None = None
        self._path = path
        self._files: list[Path] | None = None

    def skip(self, first: int) -> bool:
        if first > self._index:
            self._index, self._started = first, None
            self.passed_ms = Milliseconds((first - 1) / RATE * 1e3)
        return True

    def stood_still(self, seconds: float) -> None:
        if self._started is not None:
            self._started += seconds

    def read(self) -> Frame | None:
        if self._files is None:
            self._files = self._list()
        if self._closing.is_set():
            self.ended = self.ended or "stopped"
            return None
        if self._index >= len(self._files) and not self._loop:
            self.ended = "the last image was read"
            return None
        seconds = self._index / RATE
        if self.live:
            now = time.monotonic()
            self._started = now - seconds if self._started is None else self._started
            if self._started + seconds > now and self._closing.wait(self._started + seconds - now):
                self.ended = "stopped"
                return None
        return self._load(self._files[self._index % len(self._files)], seconds)

    def close(self) -> None:
        self._closing.set()

    def _list(self) -> list[Path]:
        files = [self._path] if self._path.is_file() else natural(p for p in self._path.iterdir() if p.is_file())
        files = [path for path in files if path.suffix.lower() in IMAGES]
        if not files:
            self.ended = "no images"
            raise SourceError(f"{self.uri!r} holds no images.", f"Give a folder with {', '.join(sorted(IMAGES))}.")
        return files

    def _load(self, path: Path, seconds: float) -> Frame:
        import cv2
        import numpy as np

        at = time.monotonic()
        started = time.perf_counter()
        try:
            data = np.fromfile(path, np.uint8)
            image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        except (OSError, cv2.error) as error:
            self.ended = f"{path.name}: {error}"
            raise SourceError(f"{str(path)!r} cannot be read: {error}.", "Check its rights, or remove it.") from error
        if image is None:
            self.ended = f"{path.name} is not an image"
            raise SourceError(
                f"{str(path)!r} (frame {self._index}) is not an image that OpenCV can decode.", "Remove or replace it."
            )
        spent = (time.perf_counter() - started) * 1e3
        frame = Frame(self._index, Seconds(at), image, Milliseconds(seconds * 1e3), Milliseconds(spent))
        self._index += 1
        return frame


def natural(paths: Iterable[Path]) -> list[Path]:
    """Sorted by name with numbers by value.

    >>> [p.name for p in natural([Path("b10.png"), Path("b2.png"), Path("a.png")])]
    ['a.png', 'b2.png', 'b10.png']
    """
    return sorted(paths, key=lambda p: [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", p.name)])
