"""A smaller picture of a frame, and boxes back in the frame's own pixels."""

from __future__ import annotations

import asyncio
import time

import msgspec

from nearfar.types.request import Answer
from nearfar.types.tensor import Tensor
from nearfar.vision.base import Frame

INLINE_PIXELS = 500_000
"""Pictures of at most so many pixels are shrunk where it is asked for: a thread's hand-over costs as much."""


async def shrunk(frame: Frame, scale: float) -> tuple[Frame, float]:
    """The frame at `scale` of its width and height (above 0, at most 1; never below one pixel), and the milliseconds
    that took. At 1 it is the frame itself; else without the source's JPEG, which is of the whole picture."""
    if scale == 1.0:
        return frame, 0.0
    import cv2

    started = time.perf_counter()
    height, width = frame.image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if width * height <= INLINE_PIXELS:
        small = cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA)
    else:
        small = await asyncio.to_thread(cv2.resize, frame.image, size, interpolation=cv2.INTER_AREA)
    return msgspec.structs.replace(frame, image=small, jpeg=None), (time.perf_counter() - started) * 1e3


def enlarged(answer: Answer, sent: Frame, frame: Frame) -> Answer:
    """The answer to the frame that was sent, with its boxes in pixels of `frame` and within that picture."""
    if sent is frame or not any(tensor.name == "boxes" for tensor in answer.outputs):
        return answer
    import numpy as np

    height, width = frame.image.shape[:2]
    small_height, small_width = sent.image.shape[:2]
    sides = np.array([width, height, width, height], np.float32)
    boxes = answer.array("boxes") * (sides / np.array([small_width, small_height] * 2, np.float32))
    boxes = np.clip(boxes, 0, sides).astype(np.float32)
    outputs = [Tensor.of("boxes", boxes) if tensor.name == "boxes" else tensor for tensor in answer.outputs]
    return msgspec.structs.replace(answer, outputs=outputs)
