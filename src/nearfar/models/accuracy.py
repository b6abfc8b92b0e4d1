"""How good detections are: average precision at an overlap of 0.5, as COCO counts it.

Protocol (Lin et al. 2014, "Microsoft COCO", and the evaluation published with it): per class, predictions of all
images in order of falling score; each takes the free truth of its image that it overlaps most, if by at least the
threshold; precision is made monotone and read at the 101 recalls 0, 0.01, ..., 1; the mean of these is the class's AP,
and the mean over the classes that occur in the truth is AP50. A prediction that matches no truth but an ignored region
counts as neither hit nor miss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from nearfar.types.detections import Detections

RECALLS = np.linspace(0.0, 1.0, 101)


class Truths(msgspec.Struct, frozen=True):
    """What is in one image: boxes float [n, 4] (x1 y1 x2 y2, pixels), class ids int [n], ignored bool [n] or None.

    An ignored box (a crowd, an object hardly visible) is not demanded; with class id -1 it stands for every class.
    """

    boxes: Any
    class_ids: Any
    ignored: Any = None


class Accuracy(msgspec.Struct, frozen=True):
    """Figures from 0 to 1. `hits`, `misses`, `false_alarms` count at every score that was handed in."""

    ap50: float
    """Mean over the classes that occur; NaN when none does. (The overlap is the one asked for.)"""
    per_class: Mapping[int, float]
    """Average precision of each class id that occurs in the truth."""
    hits: int
    misses: int
    false_alarms: int


def overlaps(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of boxes [n, 4] with [m, 4], as [n, m], 0 to 1; boxes without area overlap nothing."""
    inter, area_a, area_b = _areas(a, b)
    union = area_a[:, None] + area_b[None] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def _areas(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(a, np.float64).reshape(-1, 4), np.asarray(b, np.float64).reshape(-1, 4)
    least = np.maximum(a[:, None, :2], b[None, :, :2])
    most = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(most - least, 0, None).prod(axis=2)
    area_a = np.clip(a[:, 2:] - a[:, :2], 0, None).prod(axis=1)
    area_b = np.clip(b[:, 2:] - b[:, :2], 0, None).prod(axis=1)
    return inter, area_a, area_b


def average_precision(predictions: Sequence[Detections], truths: Sequence[Truths], iou: float = 0.5) -> Accuracy:
    """AP of `predictions[i]` against `truths[i]`, over all images.

    Raises `ValueError` when the two differ in length. No cut by score or number is made here.

    >>> box = np.array([[0, 0, 9, 9]], np.float32)
    >>> sure = Detections(box, np.ones(1, np.float32), np.zeros(1, np.int32))
    >>> average_precision([sure], [Truths(box, [0])]).ap50
    1.0
    """
    if len(predictions) != len(truths):
        raise ValueError(f"{len(predictions)} images of predictions, {len(truths)} of truth")
    marks: dict[int, list[tuple[NDArray[np.float32], NDArray[np.int8]]]] = {}
    wanted: dict[int, int] = {}
    for found, truth in zip(predictions, truths, strict=True):
        ids = np.asarray(truth.class_ids, np.int64).reshape(-1)
        ignored = np.zeros(len(ids), bool) if truth.ignored is None else np.asarray(truth.ignored, bool).reshape(-1)
        boxes = np.asarray(truth.boxes, np.float64).reshape(-1, 4)
        for class_id in np.unique(ids[~ignored]):
            wanted[int(class_id)] = wanted.get(int(class_id), 0) + int(((ids == class_id) & ~ignored).sum())
        for class_id in np.unique(found.class_ids):
            mine = np.flatnonzero(found.class_ids == class_id)
            mine = mine[np.argsort(-found.scores[mine], kind="stable")]
            here = (ids == class_id) & ~ignored
            there = ((ids == class_id) | (ids == -1)) & ignored
            hits = _match(found.boxes[mine], boxes[here], boxes[there], iou)
            marks.setdefault(int(class_id), []).append((found.scores[mine], hits))
    per_class = {c: _interpolated(marks.get(c, []), n) for c, n in sorted(wanted.items())}
    flat = [mark for pairs in marks.values() for _, mark in pairs]
    all_marks = np.concatenate(flat) if flat else np.zeros(0, np.int8)
    hits_n = int((all_marks == 1).sum())
    return Accuracy(
        ap50=float(np.mean(list(per_class.values()))) if per_class else float("nan"),
        per_class=per_class,
        hits=hits_n,
        misses=sum(wanted.values()) - hits_n,
        false_alarms=int((all_marks == 0).sum()),
    )


def _match(found: NDArray[Any], truth: NDArray[Any], ignored: NDArray[Any], iou: float) -> NDArray[np.int8]:
    """Of predictions in order of falling score: 1 a hit, 0 a false alarm, -1 not counted."""
    marks = np.zeros(len(found), np.int8)
    overlap = overlaps(found, truth)
    for i in range(len(found)):
        if overlap.shape[1]:
            best = int(overlap[i].argmax())
            if overlap[i, best] >= iou:
                marks[i] = 1
                overlap[:, best] = -1.0  # taken
                continue
        if len(ignored):
            # COCO's rule for regions: what share of the prediction lies inside, not intersection over union.
            inter, area, _ = _areas(found[i : i + 1], ignored)
            if (inter[0] >= iou * area[0]).any() and area[0] > 0:
                marks[i] = -1
    return marks


def _interpolated(pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.int8]]], wanted: int) -> float:
    if not pairs:
        return 0.0
    scores = np.concatenate([s for s, _ in pairs])
    marks = np.concatenate([m for _, m in pairs])
    order = np.argsort(-scores, kind="stable")
    marks = marks[order]
    marks = marks[marks >= 0]
    if not len(marks):
        return 0.0
    true = np.cumsum(marks == 1)
    precision = true / np.arange(1, len(marks) + 1)
    recall = true / wanted
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.where(at < len(precision), precision[np.minimum(at, len(precision) - 1)], 0.0).mean())
