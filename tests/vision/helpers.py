"""Sources, seers and videos that tests of this room share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from nearfar.types.ids import ModelName, ServiceId, StreamId
from nearfar.types.image import Image, ImageKind
from nearfar.types.request import Answer, Qos, Stages
from nearfar.types.tensor import Tensor
from nearfar.types.units import Milliseconds, Seconds
from nearfar.vision.base import Frame, Source

WIDTH, HEIGHT, SQUARE = 160, 120, 24
MODEL = ModelName("square")


def scene(index: int) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """A grey picture with one yellow square, and where the square is (x1, y1, x2, y2)."""
    image = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    x, y = 4 * index % (WIDTH - SQUARE), 30 + index % 40
    image[y : y + SQUARE, x : x + SQUARE] = (0, 230, 230)
    return image, (x, y, x + SQUARE, y + SQUARE)


def find_square(image: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Where the yellow square is, by its green channel."""
    rows, columns = np.nonzero(image[:, :, 1] > 140)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def make_video(path: Path, frames: int = 20, *, rate: int = 25, faststart: bool = True, **options: str) -> Path:
    """A video of `scene(0)`, `scene(1)`, ..; the container is chosen by the suffix."""
    codec, pixels = ("gif", "rgb8") if path.suffix == ".gif" else ("libx264", "yuv420p")
    flags = {"movflags": "faststart"} if faststart and path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=flags) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        for index in range(frames):
            picture = av.VideoFrame.from_ndarray(scene(index)[0], format="bgr24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def answer(image: Image, server: str = "pi/square", *, boxes: Any = None) -> Answer:
    """An answer with one box, by default around what `find_square` finds."""
    if boxes is None and image.kind is ImageKind.BGR:
        boxes = [find_square(np.frombuffer(image.buffer, np.uint8).reshape(image.height, image.width, 3))]
    elif boxes is None:
        import cv2

        decoded = cv2.imdecode(np.frombuffer(image.buffer, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        boxes = [find_square(decoded.astype(np.uint8))]
    n = len(boxes)
    outputs = [
        Tensor.of("boxes", np.array(boxes, np.float32).reshape(n, 4)),
        Tensor.of("scores", np.full(n, 0.9, np.float32)),
        Tensor.of("class_ids", np.zeros(n, np.int32)),
    ]
    return Answer(outputs, ServiceId(server), "fake", Stages(0.3, 0.1, 1.0, 5.0, 0.5))


class ScriptedSource(Source):
    """`count` frames of one tiny picture; `gate(index)` runs in the decoder's thread before each."""

    def __init__(
        self,
        count: int,
        *,
        live: bool = False,
        gate: Callable[[int], object] | None = None,
        error: Exception | None = None,
        image: NDArray[np.uint8] | None = None,
    ) -> None:
        self.uri = "scripted"
        self.live = live
        self._count = count
        self._gate = gate
        self._error = error
        self._index = 0
        self._image = np.zeros((4, 6, 3), np.uint8) if image is None else image
        self.closed = threading.Event()

    def read(self) -> Frame | None:
        if self.closed.is_set():
            return None
        if self._index >= self._count:
            if self._error is not None:
                raise self._error
            self.ended = "the script ended"
            return None
        if self._gate is not None:
            self._gate(self._index)
        frame = Frame(self._index, Seconds(time.monotonic()), self._image, Milliseconds(self._index * 40.0))
        self._index += 1
        return frame

    def close(self) -> None:
        self.closed.set()


class ScriptedSeer:
    """Calls `reply(n, image)` for the n-th request; it answers, raises, or is awaited."""

    def __init__(
        self, reply: Callable[[int, Image], Any] | None = None, link: tuple[float, float | None] = (0.1, None)
    ) -> None:
        self.reply = reply or (lambda _, image: answer(image, boxes=[]))
        self.link = link
        self.calls = 0
        self.running = 0
        self.most = 0
        self.incumbents: list[ServiceId | None] = []
        self.deadlines: list[float | None] = []
        self.kinds: list[ImageKind] = []

    async def see(
        self,
        model: ModelName,
        image: Image,
        qos: Qos,
        *,
        stream: StreamId | None = None,
        incumbent: ServiceId | None = None,
    ) -> Answer:
        number = self.calls
        self.calls += 1
        self.incumbents.append(incumbent)
        self.deadlines.append(qos.deadline)
        self.kinds.append(image.kind)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            result = self.reply(number, image)
            if asyncio.iscoroutine(result):
                result = await result
        finally:
            self.running -= 1
        assert isinstance(result, Answer)
        return result

    def link_to(self, model: ModelName, incumbent: ServiceId | None) -> tuple[float, float | None]:
        return self.link
