"""ByteTrack: "Multi-Object Tracking by Associating Every Detection Box", Zhang et al., ECCV 2022 (arXiv:2110.06864).

As in the paper: confident detections are matched first, with all tracks, also those that are lost; then the others,
with what is left of the tracks that were just seen, since a box that is half hidden scores low and still continues a
track, but begins none. Lost tracks are kept for a while and come back with their id. Like its authors' program: the
first similarity is multiplied by the detection's score, a track must be seen twice before it gets an id (in the first
frame at once), a lost box keeps its height. Ours are: the noise, as in `sort.py`, and classes kept apart. Left out is
that program's rule that of a lost track and a seen one on the same spot one ends: measured, it bought nothing here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta

from nearfar.types.detections import Detections
from nearfar.vision.tracking.association import assign, similarity
from nearfar.vision.tracking.kalman import SPEED, Form, Noise
from nearfar.vision.tracking.tracks import BoxTracker, Options, options_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

Share = Annotated[float, Meta(gt=0, le=1)]


class ByteTrackOptions(Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    high: Annotated[float, Meta(ge=0, le=1)] = 0.6
    """Detections that score at least this are confident."""
    low: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Detections that score less than this are passed over."""
    begin: Annotated[float, Meta(ge=0, le=1)] = 0.7
    """Detections that score at least this, and `high`, may begin a track."""
    first: Share = 0.2
    """Least overlap times score in the first association."""
    second: Share = 0.5
    """Least overlap in the second one."""
    third: Share = 0.3
    """Least overlap times score for a track that was seen once."""
    buffer: Annotated[int, Meta(ge=1, le=1_000_000)] = 30
    """Frames for which a lost track is kept, whether they were looked at or not."""


class ByteTrack(BoxTracker):
    """See `ByteTrackOptions` for what can be told. Raises `SettingsError` and, without scipy, `RuntimeUnavailable`."""

    name = "bytetrack"
    form = Form(
        by_area=False,
        noise=Noise(
            measured=(0.05, 0.05, 0.1, 0.05),
            drift=(0.025, 0.025, 0.01, 0.025),
            swerve=(0.00625, 0.00625, 0.0, 0.00625),
            born_speed=(0.1, 0.1, 0.0, 0.05),
        ),
    )
    options: ByteTrackOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(options_of(ByteTrackOptions, options))

    def _forget(self, frame: int) -> None:
        self.tracks.keep(frame - self.tracks.seen <= self.options.buffer)

    def _before_predict(self) -> None:
        # The last thing seen of a box that goes behind something is that it shrinks: not to be continued.
        self.tracks.bank[self.tracks.misses > 0, SPEED, 3] = 0.0

    def _associate(self, found: Detections, first: bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        t, o = self.tracks, self.options
        confident = np.flatnonzero(found.scores >= o.high)
        doubtful = np.flatnonzero((found.scores >= o.low) & (found.scores < o.high))
        alike = similarity(self.predicted(), t.class_ids, found.boxes, found.class_ids, o.class_aware)
        weighed = alike * found.scores.astype(np.float64)[None]
        just_seen = t.misses == 0
        pairs = [_among(weighed, np.flatnonzero(t.ids > 0), confident, o.first)]
        left = np.setdiff1d(np.flatnonzero((t.ids > 0) & just_seen), pairs[0][0])
        pairs.append(_among(alike, left, doubtful, o.second))
        free = np.setdiff1d(confident, pairs[0][1])
        pairs.append(_among(weighed, np.flatnonzero(t.ids == 0), free, o.third))
        rows, of = (np.concatenate(part) for part in zip(*pairs, strict=True))
        t.misses += 1
        self._seen(rows, found, of)
        self._confirm(np.sort(rows))
        alive = (t.ids > 0) | (t.misses == 0)
        rows = (np.cumsum(alive) - 1)[rows]
        t.keep(alive)
        before = len(t)
        fresh = np.setdiff1d(free, pairs[2][1])
        begun = self._begin(found, fresh[found.scores[fresh] >= o.begin], first)
        return np.concatenate((rows, np.arange(before, len(t)))), np.concatenate((of, begun))


def _among(
    alike: NDArray[np.float64], rows: NDArray[np.intp], columns: NDArray[np.intp], least: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """`assign` over these rows and columns, told in numbers of the whole."""
    r, c = assign(alike[np.ix_(rows, columns)], least)
    return rows[r], columns[c]
