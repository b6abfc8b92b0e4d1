"""Counters of what crosses a line, and of what is in a zone. They look at the foot of a track: the middle of the lower
edge of its box, where a person or a car stands on the ground, averaged over the last updates (the smoothing window).

Both are stateful and movable: `export_state` and `import_state`, bit-equal to not moving.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from nearfar.errors import InputError, SettingsError
from nearfar.types.detections import Detections
from nearfar.vision.areas import Point, inside
from nearfar.vision.tracking.state import damaged, pack, unpack

VERSION = 1
WINDOW = 3
"""Updates over which a foot is averaged."""
FORGET = 30
"""Frames for which a track that is not seen is remembered: as long as the built-in trackers keep one by default."""
MARGIN = 0.1
"""A track has crossed a line once its foot is this share of its box's height beyond it."""
SETTLE = 2
"""A track has entered or left a zone once it was on the other side for so many updates in a row."""
LONGEST_WINDOW = 100
MOST_WALKERS = 20_000
"""Tracks that a counter remembers; beyond it those go first that were not seen for longest."""


class Walker(msgspec.Struct, array_like=True):
    """What a counter remembers of one track; about 60 bytes in a state, and 19 for each point of the window."""

    feet: list[Point]
    seen: int
    side: int = 0
    """Of a line: -1 left, 1 right, 0 not known yet. Of a zone: 1 inside, 0 outside."""
    at: Point = (0.0, 0.0)
    """Of a line: the last point that was clearly on a side."""
    streak: int = 0
    """Of a zone: updates in a row on the other side."""
    class_id: int = 0
    """Of a zone: the class with which it entered."""
    since: int = 0
    """Of a zone: the frame in which it entered."""


class LineMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    points: tuple[Point, Point]
    window: int
    margin: float
    forget: int
    frame: int
    inward: dict[int, int]
    outward: dict[int, int]
    walkers: dict[int, Walker]


class ZoneMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    points: tuple[Point, ...]
    window: int
    settle: int
    forget: int
    frame: int
    entered: dict[int, int]
    left: dict[int, int]
    vanished: dict[int, int]
    stays: dict[int, tuple[int, int, int]]
    walkers: dict[int, Walker]


class LineCounter:
    """Crossings of the way from the first point to the second, by class. From its left to its right is `inward`: with a
    line that is drawn from left to right on the screen, inward is downward. Passing beyond its ends does not count."""

    def __init__(
        self, points: Sequence[Point], *, window: int = WINDOW, margin: float = MARGIN, forget: int = FORGET
    ) -> None:
        """`points`: two, in pixels. Raises `SettingsError` for options out of range."""
        (x1, y1), (x2, y2) = points
        if (x1, y1) == (x2, y2):
            raise SettingsError("Both ends of a line are the same point.", "Give two different points.")
        _check(window, forget, 0 < margin <= 10)
        self.points: tuple[Point, Point] = ((x1, y1), (x2, y2))
        self.window, self.margin, self.forget = window, margin, forget
        self.inward: dict[int, int] = {}
        """Crossings by class id."""
        self.outward: dict[int, int] = {}
        self._frame = -1
        self._walkers: dict[int, Walker] = {}

    def update(self, tracked: Detections, frame: int) -> None:
        """Take in what a tracker gave for this frame. Raises `InputError` without track ids or out of order."""
        self._frame = _check_frame(tracked, frame, self._frame)
        (ax, ay), (bx, by) = self.points
        length = math.sqrt((bx - ax) * (bx - ax) + (by - ay) * (by - ay))
        for track_id, class_id, foot, tall in _feet(tracked):
            walker = _step(self._walkers, track_id, foot, frame, self.window)
            x, y = _mean(walker.feet)
            away = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / length
            if abs(away) < self.margin * tall:
                continue  # too near to say: a box that trembles on the line must not count
            side = 1 if away > 0 else -1
            if walker.side == -side and self._meets(walker.at, (x, y)):
                counts = self.inward if side > 0 else self.outward
                counts[class_id] = counts.get(class_id, 0) + 1
            walker.side, walker.at = side, (x, y)
        for gone in _gone(self._walkers, frame - self.forget):
            del self._walkers[gone]

    def moved_to(self, points: Sequence[Point]) -> None:
        """The picture has another size, and the line another place in it: positions are forgotten, counts are kept."""
        self.points = (points[0], points[1])
        self._walkers.clear()

    def _meets(self, p: Point, q: Point) -> bool:
        """Whether the way from p to q, on both sides of the line, crosses between the line's ends."""
        (ax, ay), (bx, by) = self.points
        dp = (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax)
        dq = (bx - ax) * (q[1] - ay) - (by - ay) * (q[0] - ax)
        part = dp / (dp - dq)
        x, y = p[0] + (q[0] - p[0]) * part, p[1] + (q[1] - p[1]) * part
        along = (x - ax) * (bx - ax) + (y - ay) * (by - ay)
        return 0 <= along <= (bx - ax) * (bx - ax) + (by - ay) * (by - ay)

    def to_dict(self, labels: Sequence[str] = ()) -> dict[str, Any]:
        """`in`, `out`, and both by class, for JSON."""
        classes = sorted({*self.inward, *self.outward})
        by_class = {_name(c, labels): {"in": self.inward.get(c, 0), "out": self.outward.get(c, 0)} for c in classes}
        return {"in": sum(self.inward.values()), "out": sum(self.outward.values()), "by_class": by_class}

    def export_state(self) -> bytes:
        memory = LineMemory(
            self.points, self.window, self.margin, self.forget, self._frame, self.inward, self.outward, self._walkers
        )
        return pack("counter/line", VERSION, memory)

    def import_state(self, data: bytes) -> None:
        """Become the counter that exported this. Raises `InputError` when it is not such a state; then unchanged."""
        memory = unpack(data, "counter/line", VERSION, LineMemory)
        try:
            made = LineCounter(memory.points, window=memory.window, margin=memory.margin, forget=memory.forget)
        except SettingsError as error:
            raise damaged("counter/line", error.message) from None
        _check_memory("counter/line", memory.walkers, memory.window, memory.frame, (memory.inward, memory.outward))
        made.inward, made.outward, made._frame = memory.inward, memory.outward, memory.frame
        made._walkers = memory.walkers
        self.__dict__.update(made.__dict__)


class ZoneCounter:
    """Who is in a polygon now, how many entered, left or vanished in it, by class, and how long they stayed.

    A track that is first seen inside has entered; one that is inside and not seen for `forget` frames has vanished. So
    at any moment entered = present + left + vanished, of every class; the class is the one with which it entered.
    """

    def __init__(
        self, points: Sequence[Point], *, window: int = WINDOW, settle: int = SETTLE, forget: int = FORGET
    ) -> None:
        """`points`: three or more, in pixels. Raises `SettingsError` for options out of range."""
        if len(points) < 3:
            raise SettingsError("A zone has three points or more.", "Give the corners in order.")
        _check(window, forget, 1 <= settle <= 1000)
        self.points: tuple[Point, ...] = tuple(points)
        self.window, self.settle, self.forget = window, settle, forget
        self.entered: dict[int, int] = {}
        """Tracks by class id; so `left` and `vanished`."""
        self.left: dict[int, int] = {}
        self.vanished: dict[int, int] = {}
        self._stays: dict[int, tuple[int, int, int]] = {}
        self._frame = -1
        self._walkers: dict[int, Walker] = {}

    def update(self, tracked: Detections, frame: int) -> None:
        """Take in what a tracker gave for this frame. Raises `InputError` without track ids or out of order."""
        self._frame = _check_frame(tracked, frame, self._frame)
        for track_id, class_id, foot, _ in _feet(tracked):
            walker = _step(self._walkers, track_id, foot, frame, self.window)
            within = inside(_mean(walker.feet), self.points)
            walker.streak = walker.streak + 1 if within != bool(walker.side) else 0
            if walker.streak >= self.settle:
                walker.streak = 0
                if within:
                    walker.side, walker.class_id, walker.since = 1, class_id, frame
                    self.entered[class_id] = self.entered.get(class_id, 0) + 1
                else:
                    self._ends(walker, frame, self.left)
        for gone in _gone(self._walkers, frame - self.forget):
            walker = self._walkers.pop(gone)
            if walker.side:
                self._ends(walker, walker.seen, self.vanished)

    def _ends(self, walker: Walker, frame: int, how: dict[int, int]) -> None:
        walker.side = 0
        how[walker.class_id] = how.get(walker.class_id, 0) + 1
        count, total, longest = self._stays.get(walker.class_id, (0, 0, 0))
        stay = frame - walker.since
        self._stays[walker.class_id] = (count + 1, total + stay, max(longest, stay))

    def moved_to(self, points: Sequence[Point]) -> None:
        """The picture has another size, the zone stands elsewhere in it: average anew; who was inside still is."""
        self.points = tuple(points)
        for walker in self._walkers.values():
            walker.feet.clear()

    @property
    def present(self) -> dict[int, int]:
        """Tracks inside by class id, those included that were not seen for a moment."""
        found: dict[int, int] = {}
        for walker in self._walkers.values():
            if walker.side:
                found[walker.class_id] = found.get(walker.class_id, 0) + 1
        return found

    @property
    def inside_ids(self) -> tuple[int, ...]:
        """Ids of the tracks inside."""
        return tuple(sorted(i for i, walker in self._walkers.items() if walker.side))

    def to_dict(self, labels: Sequence[str] = ()) -> dict[str, Any]:
        """Counts, together and by class; the dwell time, in frames, of the stays that have ended. For JSON."""
        counts = {"present": self.present, "entered": self.entered, "left": self.left, "vanished": self.vanished}
        told: dict[str, Any] = {what: sum(by.values()) for what, by in counts.items()}
        told["dwell_frames"] = _dwell(list(self._stays.values()))
        told["by_class"] = {
            _name(c, labels): {what: by.get(c, 0) for what, by in counts.items()}
            | {"dwell_frames": _dwell([self._stays[c]] if c in self._stays else [])}
            for c in sorted(self.entered)
        }
        return told

    def export_state(self) -> bytes:
        memory = ZoneMemory(
            self.points, self.window, self.settle, self.forget, self._frame,
            self.entered, self.left, self.vanished, self._stays, self._walkers,
        )  # fmt: skip
        return pack("counter/zone", VERSION, memory)

    def import_state(self, data: bytes) -> None:
        """Become the counter that exported this. Raises `InputError` when it is not such a state; then unchanged."""
        memory = unpack(data, "counter/zone", VERSION, ZoneMemory)
        try:
            made = ZoneCounter(memory.points, window=memory.window, settle=memory.settle, forget=memory.forget)
        except SettingsError as error:
            raise damaged("counter/zone", error.message) from None
        made.entered, made.left, made.vanished = memory.entered, memory.left, memory.vanished
        made._stays, made._frame, made._walkers = memory.stays, memory.frame, memory.walkers
        counts = (made.entered, made.left, made.vanished)
        _check_memory("counter/zone", memory.walkers, memory.window, memory.frame, counts)
        now = made.present
        for c in {*made.entered, *made.left, *made.vanished, *now}:
            if made.entered.get(c, 0) != now.get(c, 0) + made.left.get(c, 0) + made.vanished.get(c, 0):
                raise damaged("counter/zone", "not everybody who entered is inside, has left or vanished")
        self.__dict__.update(made.__dict__)


def _feet(tracked: Detections) -> list[tuple[int, int, Point, float]]:
    """(track id, class id, foot, height of the box) of each track."""
    assert tracked.track_ids is not None
    rows = zip(tracked.track_ids.tolist(), tracked.class_ids.tolist(), tracked.boxes.tolist(), strict=True)
    return [(i, c, ((x1 + x2) / 2, y2), y2 - y1) for i, c, (x1, y1, x2, y2) in rows]


def _step(walkers: dict[int, Walker], track_id: int, foot: Point, frame: int, window: int) -> Walker:
    walker = walkers.get(track_id)
    if walker is None:
        walker = walkers[track_id] = Walker([], frame)
    walker.feet = [*walker.feet, foot][-window:]
    walker.seen = frame
    return walker


def _gone(walkers: dict[int, Walker], since: int) -> list[int]:
    """Tracks to forget: not seen since that frame, and those that are too many."""
    gone = [i for i, walker in walkers.items() if walker.seen < since]
    if len(walkers) - len(gone) > MOST_WALKERS:
        gone = sorted(walkers, key=lambda i: (walkers[i].seen, i))[: len(walkers) - MOST_WALKERS]
    return gone


def _mean(feet: list[Point]) -> Point:
    return sum(x for x, _ in feet) / len(feet), sum(y for _, y in feet) / len(feet)


def _dwell(stays: list[tuple[int, int, int]]) -> dict[str, float]:
    count = sum(n for n, _, _ in stays)
    mean = sum(total for _, total, _ in stays) / count if count else 0.0
    return {"stays": count, "mean": round(mean, 3), "longest": max((longest for *_, longest in stays), default=0)}


def _name(class_id: int, labels: Sequence[str]) -> str:
    return labels[class_id] if 0 <= class_id < len(labels) else f"class {class_id}"


def _check(window: int, forget: int, rest: bool) -> None:
    if not (1 <= window <= LONGEST_WINDOW and 1 <= forget <= 1_000_000 and rest):
        raise SettingsError(
            "An option of a counter is out of range.",
            f"window is 1 to {LONGEST_WINDOW}, forget 1 to 1000000, margin above 0 up to 10, settle 1 to 1000.",
        )


def _check_frame(tracked: Detections, frame: int, last: int) -> int:
    if tracked.track_ids is None:
        raise InputError("These detections have no track ids.", "Hand them through a tracker first.")
    if frame <= last:
        raise InputError(f"Frame {frame} came after frame {last}.", "Hand frames over in their order, each once.")
    return frame


def _check_memory(
    kind: str, walkers: dict[int, Walker], window: int, frame: int, counts: Sequence[dict[int, int]]
) -> None:
    if any(n < 0 for by_class in counts for n in by_class.values()):
        raise damaged(kind, "a count is negative")
    for walker in walkers.values():
        numbers = [v for point in (*walker.feet, walker.at) for v in point]
        if len(walker.feet) > window or not all(map(math.isfinite, numbers)):
            raise damaged(kind, "the window of a track is too long or not finite")
        if walker.seen > frame or walker.since > frame or walker.side not in (-1, 0, 1):
            raise damaged(kind, "a track is on no side, or was seen in a frame that is yet to come")
