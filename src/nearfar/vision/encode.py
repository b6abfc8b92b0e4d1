"""Raw pixels or JPEG: whichever reaches the service's model sooner over the link that is there.

An image is not scaled down to the model's input before it is sent: that would save more, but the service would then
resize an image that was resized already, and its answers would differ from those for the frame itself. Only a user who
would rather give that up than the deadline gets it (`shrink.py`).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from nearfar.types.image import Image, ImageKind
from nearfar.types.request import Stages
from nearfar.vision.base import Frame

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUALITY = 90
"""JPEG quality, 1 to 100. At 90 with 4:2:0 chroma the loss is below what a detector's own resize does."""
INLINE_MS = 2.0
"""Encoding that takes no longer than this is done where it is asked for: a thread's hand-over costs as much."""
PROBE_EVERY = 300
"""Frames sent raw over a link before the cost of encoding is measured again."""
UNKNOWN_RATE = 12.5e6
"""Bytes per second assumed of a link with a round trip above `LOCAL_RTT_MS` and no measured rate: 100 Mbit/s."""
LOCAL_RTT_MS = 1.0
_WEIGHT = 0.2


class Choice(msgspec.Struct, frozen=True):
    """How to send, the predicted milliseconds of both ways, and why."""

    kind: ImageKind
    raw_ms: float
    encoded_ms: float
    reason: str


def cheaper(
    *,
    raw_bytes: int,
    encoded_bytes: float,
    encode_ms: float,
    decode_ms: float,
    rtt_ms: float,
    bandwidth: float | None,
) -> Choice:
    """The way with the shorter time: round trip + bytes / bandwidth, and for JPEG also encoding and decoding.

    `bandwidth` in bytes per second, None when the service is on this machine. Ties go to raw, which loses nothing.

    >>> link = dict(raw_bytes=6_220_800, encoded_bytes=400_000, encode_ms=6.0, decode_ms=7.0, rtt_ms=0.3)
    >>> cheaper(**link, bandwidth=12.5e6).kind.value, cheaper(**link, bandwidth=1.25e9).kind.value
    ('encoded', 'bgr')
    """
    per_byte = 1e3 / bandwidth if bandwidth else 0.0
    raw_ms = rtt_ms + raw_bytes * per_byte
    encoded_ms = rtt_ms + encode_ms + decode_ms + encoded_bytes * per_byte
    if not bandwidth:
        return Choice(ImageKind.BGR, raw_ms, encoded_ms, "raw: the service is on this machine")
    kind = ImageKind.ENCODED if encoded_ms < raw_ms else ImageKind.BGR
    name, other = ("JPEG", "raw") if kind is ImageKind.ENCODED else ("raw", "JPEG")
    mine, others = (encoded_ms, raw_ms) if kind is ImageKind.ENCODED else (raw_ms, encoded_ms)
    rate = f"{bandwidth * 8 / 1e6:.0f} Mbit/s"
    return Choice(kind, raw_ms, encoded_ms, f"{name}: {mine:.1f} ms over {rate}, {other} {others:.1f} ms")


class Encoder:
    """Chooses for each frame by what encoding, sizes and decoding cost so far on this stream.

    `always` fixes the choice. Costs are exponential averages (weight 0.2 for the newest).
    """

    def __init__(self, *, always: ImageKind | None = None, quality: int = QUALITY) -> None:
        self.choice: Choice | None = None
        """The last one."""
        self._always = always
        self._quality = quality
        self._encode_ms: float | None = None
        self._share: float | None = None
        self._preprocess: dict[ImageKind, float] = {}
        self._raw_run = 0

    def choose(self, raw_bytes: int, rtt_ms: float, bandwidth: float | None, *, has_jpeg: bool = False) -> Choice:
        """How to send an image of that many raw bytes; `has_jpeg` when its JPEG is there without encoding."""
        if self._always is not None:
            return Choice(self._always, 0.0, 0.0, f"{self._always.value}: the user asked for it")
        if bandwidth is None and rtt_ms > LOCAL_RTT_MS:
            bandwidth = UNKNOWN_RATE
        if bandwidth is None:
            return cheaper(
                raw_bytes=raw_bytes, encoded_bytes=0, encode_ms=0, decode_ms=0, rtt_ms=rtt_ms, bandwidth=None
            )
        if self._encode_ms is None or self._share is None or self._raw_run >= PROBE_EVERY:
            return Choice(ImageKind.ENCODED, 0.0, 0.0, "JPEG: to measure what encoding costs")
        return cheaper(
            raw_bytes=raw_bytes,
            encoded_bytes=raw_bytes * self._share,
            encode_ms=0.0 if has_jpeg else self._encode_ms,
            decode_ms=self._decode_ms(),
            rtt_ms=rtt_ms,
            bandwidth=bandwidth,
        )

    async def prepare(self, frame: Frame, rtt_ms: float, bandwidth: float | None) -> tuple[Image, float]:
        """(the image to send, milliseconds that encoding took)."""
        raw = frame.image.nbytes
        self.choice = self.choose(raw, rtt_ms, bandwidth, has_jpeg=frame.jpeg is not None)
        if self.choice.kind is ImageKind.BGR:
            self._raw_run += 1
            return Image.bgr(frame.image), 0.0
        self._raw_run = 0
        if frame.jpeg is not None:
            self._share = _average(self._share, len(frame.jpeg) / raw)
            self._encode_ms = self._encode_ms or 0.0
            return Image.encoded(frame.jpeg), 0.0
        started = time.perf_counter()
        if self._encode_ms is not None and self._encode_ms <= INLINE_MS:
            data = to_jpeg(frame.image, self._quality)
        else:
            data = await asyncio.to_thread(to_jpeg, frame.image, self._quality)
        spent = (time.perf_counter() - started) * 1e3
        self._encode_ms = _average(self._encode_ms, spent)
        self._share = _average(self._share, len(data) / raw)
        return Image.encoded(data), spent

    def learn(self, kind: ImageKind, stages: Stages) -> None:
        """What an answer tells: decoding a JPEG is part of the service's `preprocess`."""
        self._preprocess[kind] = _average(self._preprocess.get(kind), stages.preprocess)

    def _decode_ms(self) -> float:
        """Difference of preprocessing with and without decoding; until both were seen, as long as encoding takes."""
        encoded, raw = self._preprocess.get(ImageKind.ENCODED), self._preprocess.get(ImageKind.BGR)
        if encoded is None or raw is None:
            return self._encode_ms or 0.0
        return max(0.0, encoded - raw)


def to_jpeg(image: NDArray[np.uint8], quality: int = QUALITY) -> bytes:
    """A JPEG file of a uint8 [height, width, 3] blue-green-red image; sides at most 65500 pixels."""
    import cv2

    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"OpenCV cannot encode an image of {image.dtype}{list(image.shape)}")
    return data.tobytes()


def _average(before: float | None, value: float) -> float:
    return value if before is None else before + _WEIGHT * (value - before)
