"""Made-up objects for the tests of trackers and counters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from nearfar.types.detections import Detections
from nearfar.vision.tracking.base import Tracker
from nearfar.vision.tracking.registry import tracker

NAMES = ("sort", "bytetrack")


def found(boxes: Sequence[Sequence[float]], scores: Sequence[float] = (), classes: Sequence[int] = ()) -> Detections:
    n = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(n, 4),
        np.array(scores or [0.9] * n, np.float32),
        np.array(classes or [0] * n, np.int32),
    )


def tracked(boxes: Sequence[Sequence[float]], ids: Sequence[int], classes: Sequence[int] = ()) -> Detections:
    """What a tracker would give, for counters."""
    plain = found(boxes, (), classes)
    return Detections(plain.boxes, plain.scores, plain.class_ids, np.array(ids, np.int64))


def box(x: float, y: float, wide: float = 40.0, tall: float = 80.0) -> tuple[float, float, float, float]:
    """By the middle of its lower edge."""
    return x - wide / 2, y - tall, x + wide / 2, y


def ids_of(detections: Detections) -> list[int]:
    assert detections.track_ids is not None
    return [int(i) for i in detections.track_ids]


def same(a: Detections, b: Detections) -> bool:
    """Bit for bit, which is more than equal: 0.0 and -0.0 differ."""
    return (
        ids_of(a) == ids_of(b)
        and a.boxes.tobytes() == b.boxes.tobytes()
        and a.scores.tobytes() == b.scores.tobytes()
        and a.class_ids.tobytes() == b.class_ids.tobytes()
    )


def moved(name: str, one: Tracker) -> Tracker:
    """A new tracker with the memory of this one."""
    other = tracker(name)
    other.import_state(one.export_state())
    return other


def walkers(frames: int, count: int, seed: int = 1) -> list[Detections]:
    """Objects that walk straight, tremble, are missed now and then, with false alarms between them."""
    rng = np.random.default_rng(seed)
    start, speed = rng.uniform(50, 900, (count, 2)), rng.uniform(-6, 6, (count, 2))
    classes = rng.integers(0, 3, count)
    frames_of = []
    for frame in range(frames):
        there = np.flatnonzero(rng.random(count) > 0.15)
        boxes = [box(*(start[i] + frame * speed[i] + rng.normal(0, 1.5, 2))) for i in there]
        scores = list(rng.uniform(0.2, 1.0, len(there)))
        kinds = [int(classes[i]) for i in there]
        for _ in range(int(rng.integers(0, 3))):
            boxes.append(box(*rng.uniform(0, 1000, 2)))
            scores.append(float(rng.uniform(0.1, 0.8)))
            kinds.append(int(rng.integers(0, 3)))
        frames_of.append(found(boxes, scores, kinds))
    return frames_of


_coordinate = st.floats(0, 300, width=32)


@st.composite
def any_detections(draw: st.DrawFn) -> Detections:
    n = draw(st.integers(0, 6))
    boxes = []
    for _ in range(n):
        x, y = draw(_coordinate), draw(_coordinate)
        # Also boxes without area, and many that overlap.
        boxes.append((x, y, x + draw(st.floats(0, 120, width=32)), y + draw(st.floats(0, 120, width=32))))
    scores = draw(st.lists(st.floats(0, 1, width=32), min_size=n, max_size=n))
    return found(boxes, scores, draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))


streams = st.lists(st.tuples(st.integers(1, 4) | st.just(500), any_detections()), min_size=1, max_size=14)
"""(frames since the last one, what was found), in order."""
