"""The seam: a tracker gives detections their identities, and its whole memory travels as bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from nearfar.errors import InputError

if TYPE_CHECKING:
    from nearfar.types.detections import Detections

LARGEST_COORDINATE = 1e6
"""Pixels. No picture is larger; beyond it, squares of areas would come near the end of float64."""
LAST_FRAME = 1 << 53


class Tracker(ABC):
    """Stateful: one for each stream. Call from one thread at a time.

    Two trackers with the same memory that see the same frames give the same ids and boxes, bit for bit; so a stream
    may go on with `import_state(export_state())` in another process. A third party's tracker that cannot do that leaves
    the two methods alone and says why in `stays`.
    """

    name: str
    """As `registry.tracker` knows it; part of the exported state."""
    stays: str = "it does not say how to export its memory"
    """Why its memory cannot travel; empty when it can."""

    @abstractmethod
    def update(self, detections: Detections, frame: int) -> Detections:
        """The detections of this frame that belong to a confirmed track, with `track_ids`, in the order given.

        `frame`: number of the frame within the stream, growing with each call; numbers that are left out (frames that
        were dropped, failed or not looked at) are predicted through. Boxes are the tracker's estimate, float32 pixels;
        scores and classes are the detection's. Ids count from 1 and are never used again. Boxes without area are
        passed over. Raises `InputError` for values that are not finite, boxes beyond `LARGEST_COORDINATE`, and a
        frame that is not later than the last one; the memory is then unchanged.
        """

    def export_state(self) -> bytes:
        """The whole memory. Raises `InputError` with the reason when it cannot travel."""
        raise InputError(f"The tracker {self.name!r} cannot travel: {self.stays}.", "Use sort or bytetrack.")

    def import_state(self, data: bytes) -> None:
        """Become the tracker that exported this. Raises `InputError` when it is not such a state; then unchanged."""
        raise InputError(f"The tracker {self.name!r} cannot travel: {self.stays}.", "Use sort or bytetrack.")


def check(detections: Detections, frame: int, last: int | None) -> None:
    """Raise `InputError` for what no tracker can take."""
    if not 0 <= frame <= LAST_FRAME:
        raise InputError(f"Frame {frame} is not a number from 0 to 2^53.", "Number the frames of the stream from 0.")
    if last is not None and frame <= last:
        raise InputError(
            f"Frame {frame} came after frame {last}.", "Hand frames over in their order, each once; leave gaps out."
        )
    if not (np.isfinite(detections.boxes).all() and np.isfinite(detections.scores).all()):
        raise InputError(
            f"Frame {frame} has boxes or scores that are NaN or infinite.", "Check the model's decoder and its scales."
        )
    if len(detections) and float(np.abs(detections.boxes).max()) > LARGEST_COORDINATE:
        raise InputError(
            f"Frame {frame} has a box beyond {LARGEST_COORDINATE:.0f} pixels.",
            "Boxes are x1 y1 x2 y2 in pixels; check the model's decoder.",
        )
