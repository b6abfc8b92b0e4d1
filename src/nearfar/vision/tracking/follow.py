"""A stream's whole memory in one thing: its tracker, its lines, its zones. It moves as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from nearfar.errors import InputError, SettingsError
from nearfar.types.detections import Detections
from nearfar.vision.areas import Area
from nearfar.vision.results import FrameResult
from nearfar.vision.tracking.base import Tracker
from nearfar.vision.tracking.registry import tracker as tracker_by_name
from nearfar.vision.tracking.registry import tracker_named_in
from nearfar.vision.tracking.state import damaged, pack, unpack
from nearfar.vision.zones import LineCounter, ZoneCounter

if TYPE_CHECKING:
    from numpy.typing import NDArray

KIND, VERSION = "follow", 1


class FollowMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tracker: bytes
    lines: tuple[Area, ...]
    zones: tuple[Area, ...]
    size: tuple[int, int] | None
    counters: tuple[bytes, ...]
    """Of the lines, then of the zones; none before the size of the picture is known."""
    updates: int
    tracks: int
    now: int


class Follow:
    """Give it each answered frame's detections in order; it gives back those that are tracked, and counts.

    `labels` name classes in what is told; they do not travel, since they belong to the model.
    """

    def __init__(
        self, tracker: Tracker, lines: Sequence[Area] = (), zones: Sequence[Area] = (), labels: Sequence[str] = ()
    ) -> None:
        self.tracker = tracker
        self.lines, self.zones, self.labels = tuple(lines), tuple(zones), tuple(labels)
        self.size: tuple[int, int] | None = None
        self.line_counters: list[LineCounter] = []
        self.zone_counters: list[ZoneCounter] = []
        self.updates = 0
        self.tracks = 0
        """Tracks that were ever confirmed."""
        self.now = 0
        """Tracks seen in the last frame."""

    def update(self, detections: Detections, frame: int, size: tuple[int, int]) -> Detections:
        """The tracked ones of these detections. `frame` as for `Tracker.update`; `size`: width and height in pixels.

        Frames without an answer are left out: the tracker predicts through them. When the size changes (a camera that
        was set anew), counts stay and positions are forgotten. Raises `InputError` as `Tracker.update` does.
        """
        tracked = self.tracker.update(detections, frame)
        if size != self.size:
            self._resize(size)
        for counter in self._counters():
            counter.update(tracked, frame)
        assert tracked.track_ids is not None
        self.updates += 1
        self.now = len(tracked)
        self.tracks = max(self.tracks, int(tracked.track_ids.max(initial=0)))
        return tracked

    def take(self, result: FrameResult, image: NDArray[Any] | None) -> FrameResult:
        """The result of a stream's frame with what is tracked in it; results come in the order of their frames.

        One without an answer (dropped, failed) comes back as it is. Raises as `update`, and `KeyError` when the answer
        is not a detector's.
        """
        if result.answer is None or image is None:
            return result
        size = (int(image.shape[1]), int(image.shape[0]))
        return msgspec.structs.replace(result, tracked=self.update(result.answer.detections(), result.index, size))

    def _counters(self) -> list[LineCounter | ZoneCounter]:
        return [*self.line_counters, *self.zone_counters]

    def _resize(self, size: tuple[int, int]) -> None:
        first, self.size = self.size is None, size
        if first:
            self.line_counters = [LineCounter(area.scaled(*size)) for area in self.lines]
            self.zone_counters = [ZoneCounter(area.scaled(*size)) for area in self.zones]
            return
        for line, area in zip(self.line_counters, self.lines, strict=True):
            line.moved_to(area.scaled(*size))
        for zone, area in zip(self.zone_counters, self.zones, strict=True):
            zone.moved_to(area.scaled(*size))

    def to_dict(self) -> dict[str, Any]:
        """Everything that is counted, for JSON."""
        return {
            "tracker": self.tracker.name,
            "frames": self.updates,
            "tracks": self.tracks,
            "now": self.now,
            "lines": {area.name: _NO_LINE for area in self.lines}
            | {a.name: c.to_dict(self.labels) for a, c in zip(self.lines, self.line_counters, strict=False)},
            "zones": {area.name: _NO_ZONE for area in self.zones}
            | {a.name: c.to_dict(self.labels) for a, c in zip(self.zones, self.zone_counters, strict=False)},
        }

    def words(self) -> str:
        """The same in one line."""
        told = self.to_dict()
        parts = [f"{told['now']} tracked, {told['tracks']} so far"]
        parts += [f"{name} in {line['in']} out {line['out']}" for name, line in told["lines"].items()]
        parts += [
            f"{name} now {zone['present']} entered {zone['entered']} left {zone['left']}"
            for name, zone in told["zones"].items()
        ]
        return "; ".join(parts)

    def export_state(self) -> bytes:
        """The whole memory. Raises `InputError` with the reason when the tracker cannot travel."""
        counters = tuple(counter.export_state() for counter in self._counters())
        memory = FollowMemory(
            self.tracker.export_state(),
            self.lines,
            self.zones,
            self.size,
            counters,
            self.updates,
            self.tracks,
            self.now,
        )
        return pack(KIND, VERSION, memory)

    @classmethod
    def from_state(cls, data: bytes, labels: Sequence[str] = (), tracker: Tracker | None = None) -> Follow:
        """What `export_state` gave, going on where that stood. `tracker`: one of the same kind, if it is not known here
        by its name. Raises `InputError` for what is no such state, `SettingsError` for a tracker not known here."""
        memory = unpack(data, KIND, VERSION, FollowMemory)
        if tracker is None:
            name = tracker_named_in(memory.tracker)
            if ":" in name:
                raise InputError(f"The state names the code {name!r}.", "Make that tracker and hand it over.")
            tracker = tracker_by_name(name)
        tracker.import_state(memory.tracker)
        made = cls(tracker, memory.lines, memory.zones, labels)
        made.updates, made.tracks, made.now = memory.updates, memory.tracks, memory.now
        if memory.size is not None:
            if len(memory.counters) != len(memory.lines) + len(memory.zones):
                raise damaged(KIND, "its counters are not those of its lines and zones")
            try:
                made._resize(memory.size)
            except (ValueError, SettingsError) as error:
                raise damaged(KIND, str(error)) from None
            for counter, state in zip(made._counters(), memory.counters, strict=True):
                counter.import_state(state)
        elif memory.counters:
            raise damaged(KIND, "it has counters and no size of a picture")
        return made


_NO_LINE: dict[str, Any] = {"in": 0, "out": 0, "by_class": {}}
_NO_DWELL = {"stays": 0, "mean": 0.0, "longest": 0}
_NO_ZONE: dict[str, Any] = {
    "present": 0, "entered": 0, "left": 0, "vanished": 0, "dwell_frames": _NO_DWELL, "by_class": {},
}  # fmt: skip
