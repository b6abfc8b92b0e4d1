"""What the built-in trackers share: the living tracks as parallel arrays, their births and ends, their travel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np

from nearfar.errors import SettingsError
from nearfar.types.detections import Detections
from nearfar.vision.tracking import kalman
from nearfar.vision.tracking.association import need_scipy
from nearfar.vision.tracking.base import LAST_FRAME, Tracker, check
from nearfar.vision.tracking.state import damaged, pack, unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "ids": ("<i8", ()),
    "class_ids": ("<i4", ()),
    "scores": ("<f4", ()),
    "hits": ("<i4", ()),
    "misses": ("<i4", ()),
    "seen": ("<i8", ()),
    "bank": ("<f8", (5, 4)),
}
"""Name, type and shape per track of every array of `Tracks`; little-endian, as they travel."""
TRACK_BYTES = sum(int(np.dtype(kind).itemsize * np.prod(shape, dtype=int)) for kind, shape in COLUMNS.values())
STATE_BYTES = 1024
"""A state has at most `STATE_BYTES + TRACK_BYTES * tracks` bytes, and a tracker has at most `most_tracks` tracks."""
MANY = 1 << 30


class Tracks:
    """n living tracks, oldest first. ids int64 [n], 0 while unconfirmed; class_ids int32 [n]; scores float32 [n];
    hits and misses int32 [n], updates with and, since the last one with, without a match; seen int64 [n], the frame of
    the last match; bank float64 [n, 5, 4], as in `kalman.py`."""

    ids: NDArray[np.int64]
    class_ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    hits: NDArray[np.int32]
    misses: NDArray[np.int32]
    seen: NDArray[np.int64]
    bank: NDArray[np.float64]

    def __init__(self, n: int = 0) -> None:
        for name, (kind, shape) in COLUMNS.items():
            setattr(self, name, np.zeros((n, *shape), kind))

    def __len__(self) -> int:
        return len(self.ids)

    def keep(self, which: NDArray[Any]) -> None:
        for name in COLUMNS:
            setattr(self, name, getattr(self, name)[which])

    def add(self, others: Tracks) -> None:
        for name in COLUMNS:
            setattr(self, name, np.concatenate((getattr(self, name), getattr(others, name))))


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tracker's state: its options, its counters, and the arrays of its tracks as bytes."""

    options: dict[str, bool | int | float]
    frame: int | None
    next_id: int
    tracks: int
    columns: dict[str, bytes]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every built-in tracker can be told."""

    class_aware: bool = True
    """A track keeps to detections of its class. False: it may change its class and keeps its id."""
    most_tracks: int = 10_000
    """New tracks are not begun beyond this many living ones; the best scores come first."""

    def __post_init__(self) -> None:
        if not 1 <= self.most_tracks <= 50_000:
            raise ValueError("most_tracks must be from 1 to 50000")


class BoxTracker(Tracker):
    """A tracker by boxes alone. Subclasses associate; the rest is here."""

    version: ClassVar[int] = 1
    form: ClassVar[kalman.Form]
    stays = ""
    not_begun = 0
    """Detections that began no track because there were `most_tracks`; for telling, no part of the memory."""

    def __init__(self, options: Options) -> None:
        need_scipy()
        self.options = options
        self.frame: int | None = None
        self._next_id = 1
        self.tracks = Tracks()

    def update(self, detections: Detections, frame: int) -> Detections:
        check(detections, frame, self.frame)
        first = self.frame is None
        self._forget(frame)
        if self.frame is not None and len(self.tracks):
            self._before_predict()
            kalman.predict(self.form, self.tracks.bank, frame - self.frame)
        self.frame = frame
        b = detections.boxes.astype(np.float64)
        usable = np.flatnonzero((b[:, 2] - b[:, 0] > _LEAST) & (b[:, 3] - b[:, 1] > _LEAST))
        rows, of = self._associate(detections[usable], first)
        ids = self.tracks.ids[rows]
        order = np.argsort(of, kind="stable")
        rows, of = rows[order][ids[order] > 0], usable[of[order]][ids[order] > 0]
        boxes = self.form.boxes(self.tracks.bank[rows, kalman.VALUE]).astype(np.float32)
        return Detections(boxes, detections.scores[of], detections.class_ids[of], self.tracks.ids[rows])

    def _before_predict(self) -> None:
        """Adjust the bank before it is moved on."""

    def _forget(self, frame: int) -> None:
        """Drop tracks that are too old to be looked for in this frame."""
        raise NotImplementedError

    def _associate(self, found: Detections, first: bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Match, correct, begin and end tracks. Pairs (track, index into `found`) that were seen in this frame."""
        raise NotImplementedError

    def predicted(self) -> NDArray[np.float64]:
        """Boxes of all tracks as they are expected in this frame, float64 [n, 4]."""
        return self.form.boxes(self.tracks.bank[:, kalman.VALUE])

    def _seen(self, rows: NDArray[np.intp], found: Detections, of: NDArray[np.intp]) -> None:
        """Correct these tracks by these detections."""
        t = self.tracks
        t.bank[rows] = kalman.correct(self.form, t.bank[rows], found.boxes[of])
        t.class_ids[rows] = found.class_ids[of]
        t.scores[rows] = found.scores[of]
        t.hits[rows] = np.minimum(t.hits[rows] + 1, MANY)
        t.misses[rows] = 0
        assert self.frame is not None
        t.seen[rows] = self.frame

    def _confirm(self, rows: NDArray[np.intp]) -> None:
        """Give ids to those of these tracks that have none, in their order."""
        new = rows[self.tracks.ids[rows] == 0]
        self.tracks.ids[new] = np.arange(self._next_id, self._next_id + len(new))
        self._next_id += len(new)

    def _begin(self, found: Detections, of: NDArray[np.intp], confirmed: bool) -> NDArray[np.intp]:
        """Tracks for these detections, as far as there is room; their rows, and with each the detection, in order."""
        room = max(0, self.options.most_tracks - len(self.tracks))
        if len(of) > room:
            self.not_begun += len(of) - room
            of = np.sort(of[np.argsort(-found.scores[of], kind="stable")[:room]])
        fresh = Tracks(len(of))
        fresh.bank[:] = kalman.born(self.form, found.boxes[of])
        fresh.class_ids[:], fresh.scores[:], fresh.hits[:] = found.class_ids[of], found.scores[of], 1
        assert self.frame is not None
        fresh.seen[:] = self.frame
        start = len(self.tracks)
        self.tracks.add(fresh)
        if confirmed:
            self._confirm(np.arange(start, len(self.tracks)))
        return of

    def export_state(self) -> bytes:
        """At most `STATE_BYTES + TRACK_BYTES * most_tracks` bytes."""
        columns = {name: getattr(self.tracks, name).tobytes() for name in COLUMNS}
        options = msgspec.to_builtins(self.options)
        memory = Memory(options, self.frame, self._next_id, len(self.tracks), columns)
        return pack(f"tracker/{self.name}", self.version, memory)

    def import_state(self, data: bytes) -> None:
        kind = f"tracker/{self.name}"
        memory = unpack(data, kind, self.version, Memory)
        try:
            options = msgspec.convert(memory.options, type(self.options))
        except msgspec.ValidationError as error:
            raise damaged(kind, str(error)) from None
        tracks = Tracks()
        if set(memory.columns) != set(COLUMNS) or not 0 <= memory.tracks <= options.most_tracks:
            raise damaged(kind, "its columns or their length are not those of a tracker")
        for name, (dtype, shape) in COLUMNS.items():
            wanted = memory.tracks * int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
            if len(memory.columns[name]) != wanted:
                raise damaged(kind, f"{name} has {len(memory.columns[name])} bytes, not {wanted}")
            column = np.frombuffer(memory.columns[name], dtype).reshape(memory.tracks, *shape)
            setattr(tracks, name, column.astype(np.dtype(dtype).newbyteorder("=")))
        why = _impossible(tracks, memory)
        if why:
            raise damaged(kind, why)
        self.options, self.frame, self._next_id, self.tracks = options, memory.frame, memory.next_id, tracks


_LEAST = 1e-3
"""Pixels: a box that is thinner has no proportions that could be followed."""


def _impossible(tracks: Tracks, memory: Memory) -> str:
    """Why these values cannot be a tracker's memory; empty when they can."""
    if not 1 <= memory.next_id <= LAST_FRAME or (memory.frame is not None and not 0 <= memory.frame <= LAST_FRAME):
        return "a counter is out of range"
    if not len(tracks):
        return ""
    confirmed = tracks.ids[tracks.ids != 0]
    if confirmed.min(initial=1) < 1 or confirmed.max(initial=0) >= memory.next_id:
        return "a track has an id that was never given"
    if len(np.unique(confirmed)) != len(confirmed):
        return "two tracks have one id"
    if memory.frame is None or tracks.seen.min() < 0 or tracks.seen.max() > memory.frame:
        return "a track was seen in a frame that is yet to come"
    if min(tracks.hits.min(), tracks.misses.min()) < 0 or max(tracks.hits.max(), tracks.misses.max()) > MANY:
        return "a count of hits or misses is out of range"
    bank = tracks.bank
    if not (np.isfinite(bank).all() and np.isfinite(tracks.scores).all()):
        return "a value is NaN or infinite"
    if (bank[:, kalman.VALUE, 2:] <= 0).any() or (bank[:, [kalman.VAR, kalman.SPEED_VAR]] < 0).any():
        return "a box has no area, or a variance is negative"
    return ""


def options_of(kind: type[Any], given: dict[str, Any]) -> Any:
    """The options as the struct `kind`. Raises `SettingsError` that names the wrong one."""
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        known = ", ".join(field.name for field in msgspec.structs.fields(kind))
        raise SettingsError(f"Wrong option of a tracker: {error}.", f"The options are {known}.") from None
