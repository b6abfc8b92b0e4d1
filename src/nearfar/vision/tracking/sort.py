"""SORT: "Simple Online and Realtime Tracking", Bewley, Ge, Ott, Ramos and Upcroft, ICIP 2016 (arXiv:1602.00763).

As in the paper: a constant-velocity Kalman filter over (x centre, y centre, area, proportions), the proportions taken
for constant; assignment by intersection over union, at least 0.3; a new track is on probation until it was seen often
enough; one that is not seen ends soon. Ours are: noise in proportion to the size of the box instead of fixed pixels,
classes kept apart, and that only frames that were looked at count as not seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta

from nearfar.types.detections import Detections
from nearfar.vision.tracking.association import assign, similarity
from nearfar.vision.tracking.kalman import Form, Noise
from nearfar.vision.tracking.tracks import BoxTracker, Options, options_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SortOptions(Options, frozen=True, forbid_unknown_fields=True, kw_only=True):
    overlap: Annotated[float, Meta(gt=0, le=1)] = 0.3
    """Least intersection over union of a track's expected box with a detection."""
    least_hits: Annotated[int, Meta(ge=1, le=1000)] = 3
    """A track is confirmed when it was seen in so many updates in a row; in the stream's first one, at once."""
    max_misses: Annotated[int, Meta(ge=0, le=10_000)] = 1
    """A confirmed track ends when it was not seen in more updates than these (T_lost of the paper)."""
    max_gap: Annotated[int, Meta(ge=1, le=1_000_000)] = 30
    """Frames that nobody looked at are predicted through, up to this many since the track was last seen."""


class Sort(BoxTracker):
    """See `SortOptions` for what can be told. Raises `SettingsError` and, without scipy, `RuntimeUnavailable`."""

    name = "sort"
    form = Form(
        by_area=True,
        noise=Noise(
            measured=(0.05, 0.05, 0.1, 0.1),
            drift=(0.05, 0.05, 0.1, 0.01),
            swerve=(0.00625, 0.00625, 0.005, 0.0),
            born_speed=(0.1, 0.1, 0.05, 0.0),
        ),
    )
    options: SortOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(options_of(SortOptions, options))

    def _forget(self, frame: int) -> None:
        self.tracks.keep(frame - self.tracks.seen <= self.options.max_gap)

    def _associate(self, found: Detections, first: bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        t, o = self.tracks, self.options
        alike = similarity(self.predicted(), t.class_ids, found.boxes, found.class_ids, o.class_aware)
        rows, of = assign(alike, o.overlap)
        t.misses += 1
        self._seen(rows, found, of)
        self._confirm(np.sort(rows[t.hits[rows] >= o.least_hits]))
        alive = np.where(t.ids > 0, t.misses <= o.max_misses, t.misses == 0)
        rows = (np.cumsum(alive) - 1)[rows]
        t.keep(alive)
        before = len(t)
        begun = self._begin(found, np.setdiff1d(np.arange(len(found)), of), first or o.least_hits == 1)
        return np.concatenate((rows, np.arange(before, len(t)))), np.concatenate((of, begun))
