"""Pictures and videos written to disk."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.errors import SourceError
from nearfar.vision.draw import draw_result
from nearfar.vision.results import FrameResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VIDEOS = frozenset({".mp4", ".mkv", ".mov"})
_CLOCK = 90_000  # ticks per second, as in MPEG systems: every usual frame rate is a whole number of them


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write uint8 [height, width, 3] blue-green-red as the kind that the suffix names. Raises `SourceError`."""
    import cv2
    import numpy as np

    try:
        done, data = cv2.imencode(path.suffix or ".?", image)
    except cv2.error:
        done, data = False, np.empty(0, np.uint8)
    if not done:
        raise SourceError(f"{str(path)!r}: no such kind of image as {path.suffix!r}.", "Use .jpg or .png.")
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        if path.is_file():
            path.unlink(missing_ok=True)  # a part of a picture is none
        raise _failed(path, error) from error


class Recorder:
    """A video of H.264 that keeps each frame's own time. Call from one thread at a time; `close` makes it whole.

    Size is that of the first picture, one pixel more where it is odd; others are fitted in with black bars. While it is
    written the file is in fragments, so that most of it can be played even when the program was killed.
    """

    def __init__(self, path: Path, *, rate: float = 25.0) -> None:
        """`rate`: frames per second for frames that come without a time. Raises `SourceError` for another suffix."""
        if path.suffix.lower() not in VIDEOS:
            raise SourceError(f"{str(path)!r} is no video that can be written.", f"Use {', '.join(sorted(VIDEOS))}.")
        if not path.absolute().parent.is_dir():
            raise SourceError(f"There is no folder {str(path.absolute().parent)!r}.", "Make it first.")
        self.path = path
        self.frames = 0
        self._rate = rate
        self._container: Any = None
        self._stream: Any = None
        self._size = (0, 0)
        self._last = -1
        self._closed = False

    def write(self, image: NDArray[np.uint8], pts_ms: float | None = None) -> None:
        """Add uint8 [height, width, 3], blue-green-red, shown from `pts_ms` on. Times must grow: one that does not is
        moved behind the one before. Raises `SourceError` with the bytes that were written when the disk is full."""
        import av

        if self._closed:
            raise SourceError(f"{str(self.path)!r} is closed.")
        seconds = self.frames / self._rate if pts_ms is None else pts_ms / 1e3
        tick = max(round(seconds * _CLOCK), self._last + 1)
        try:
            if self._container is None:
                self._open(image)
            picture = av.VideoFrame.from_ndarray(self._fitted(image), format="bgr24")
            picture.pts, picture.time_base = tick, Fraction(1, _CLOCK)
            self._container.mux(self._stream.encode(picture))
        except (av.FFmpegError, OSError) as error:
            self._give_up()
            raise _failed(self.path, error) from error
        self._last = tick
        self.frames += 1

    def close(self) -> None:
        """Write what the encoder still holds and the index; may be called twice. Raises `SourceError` as `write`."""
        import av

        if self._closed or self._container is None:
            self._closed = True
            return
        self._closed = True
        try:
            self._container.mux(self._stream.encode())
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            raise _failed(self.path, error) from error

    def _open(self, image: NDArray[np.uint8]) -> None:
        import av

        height, width = image.shape[:2]
        self._size = (height + height % 2, width + width % 2)
        # With hybrid_fragmented the file is plain MP4 once it is closed, and playable fragments until then: as far as
        # they were flushed.
        flags = {"flush_packets": "1"}
        if self.path.suffix.lower() != ".mkv":
            flags["movflags"] = "hybrid_fragmented"
        self._container = av.open(str(self.path), "w", options=flags)
        rate = round(self._rate) or 1
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.codec_context.gop_size = rate  # a fragment ends at a key frame: a crash costs a second, not ten
        self._stream.width, self._stream.height, self._stream.pix_fmt = self._size[1], self._size[0], "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _CLOCK)
        self._stream.options = {"preset": "veryfast", "crf": "23", "bf": "0"}  # B-frames would shift all times

    def _fitted(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = self._size
        if image.shape[:2] == (height, width):
            return image
        import cv2

        scale = min(height / image.shape[0], width / image.shape[1])
        if not 1 <= scale < 1 + 2 / min(image.shape[:2]):  # one pixel is not worth resampling
            size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            border = cv2.BORDER_CONSTANT
        else:
            border = cv2.BORDER_REPLICATE
        down, right = height - image.shape[0], width - image.shape[1]
        top, left = (down // 2, right // 2) if border == cv2.BORDER_CONSTANT else (0, 0)
        return cv2.copyMakeBorder(image, top, down - top, left, right - left, border)  # type: ignore[no-any-return]

    def _give_up(self) -> None:
        import contextlib

        import av

        self._closed = True
        if self._container is not None:
            with contextlib.suppress(av.FFmpegError, OSError):
                self._container.close()


class AnnotatedRecording:
    """An `on_result` that draws each frame's result and records it; dropped frames are absent, their time is kept.

    Drawing and encoding run in a thread: the engine waits for it and drops frames of a camera, or holds a file back.
    """

    def __init__(self, path: Path, labels: Sequence[str] = (), *, rate: float = 25.0) -> None:
        self.recorder = Recorder(path, rate=rate)
        self._labels = tuple(labels)

    async def __call__(self, result: FrameResult, image: NDArray[np.uint8] | None) -> None:
        if image is not None:
            await asyncio.to_thread(self._write, result, image)

    def _write(self, result: FrameResult, image: NDArray[np.uint8]) -> None:
        self.recorder.write(draw_result(image, result, self._labels), result.pts_ms)

    def close(self) -> None:
        self.recorder.close()


def _failed(path: Path, error: Exception) -> SourceError:
    written = path.stat().st_size if path.exists() else 0
    number = getattr(error, "errno", None)
    why = str(getattr(error, "strerror", None) or error)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        hint = "Make room on the disk, or write to another one."
    elif number in (errno.EACCES, errno.EROFS, errno.EPERM):
        hint = "Write to a folder where you may."
    else:
        hint = "Check the path."
    return SourceError(f"{str(path)!r} cannot be written: {why}, after {written} bytes.", hint)
