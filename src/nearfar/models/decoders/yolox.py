"""YOLOX (Ge et al. 2021, arXiv:2107.08430): one box per cell, no anchors.

xy = (out + cell) * stride, wh = exp(out) * stride; score = objectness * class.
`heads = "joined"`: one output [1, N, 5 + C], N the cells of all strides one after the other, columns x y w h,
objectness, classes. `heads = "split"`: per stride a box map of 4 and a class map of C channels (no objectness); maps
belong to a stride by the names in `outputs`, else by their size, and of two with 4 channels the first is the boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nearfar.models.decoders.base import DetectionDecoder, Floats, check_finite, grid, join, strongest
from nearfar.models.preprocess import Geometry
from nearfar.types.detections import Detections


class _Head(NamedTuple):
    stride: int
    boxes: int
    scores: int
    cells: Floats


class YoloxDecoder(DetectionDecoder):
    def prepare(self) -> None:
        self._heads: list[_Head] = []
        w, h = self.picture.width, self.picture.height
        grids = [grid(w, h, stride) for stride in self.spec.strides]
        if self.spec.heads == "split":
            self._pair(grids)
            return
        cells = sum(len(g) for g in grids)
        if len(self.outputs) != 1 or len(shape := self.outputs[0].shape) != 3 or shape[1] != cells or shape[2] < 6:
            raise self.mismatch(f"one output 1x{cells}x(5 + classes) for {w}x{h} and strides {list(self.spec.strides)}")
        self.check_classes(shape[2] - 5)
        self._cells = np.concatenate(grids)
        self._strides = np.concatenate(
            [np.full(len(g), s, np.float32) for g, s in zip(grids, self.spec.strides, strict=True)]
        )

    def _pair(self, grids: Sequence[Floats]) -> None:
        w, h = self.picture.width, self.picture.height
        for cells, stride in zip(grids, self.spec.strides, strict=True):
            size = (-(-h // stride), -(-w // stride))
            maps = self._named(stride) or [i for i in range(len(self.outputs)) if self._map(i)[:2] == size]
            boxes = [i for i in maps if self._map(i)[2] == 4]
            if len(maps) != 2 or not boxes or any(self._map(i)[:2] != size for i in maps):
                raise self.mismatch(f"one map of 4 and one of class channels, {size[0]}x{size[1]}, for stride {stride}")
            scores = next(i for i in maps if i != boxes[0])
            self.check_classes(self._map(scores)[2])
            self._heads.append(_Head(stride, boxes[0], scores, cells))
        if len(self.outputs) != 2 * len(grids):
            raise self.mismatch(f"{2 * len(grids)} maps")

    def _named(self, stride: int) -> list[int]:
        """The two maps of a stride by name; empty when the runtime knows the outputs by other names."""
        names = [spec.name for spec in self.outputs]
        if not self.spec.outputs or set(self.spec.outputs) - set(names):
            return []
        at = 2 * self.spec.strides.index(stride)
        return [names.index(name) for name in self.spec.outputs[at : at + 2]]

    def _map(self, index: int) -> tuple[int, int, int]:
        """Height, width and channels of an output map; zeros when it is no map."""
        shape = self.outputs[index].shape
        if len(shape) != 4:
            return (0, 0, 0)
        return (shape[2], shape[3], shape[1]) if self.nchw else (shape[1], shape[2], shape[3])

    def decode(self, outputs: Sequence[NDArray[Any]], geometry: Geometry) -> Detections:
        found = self._split(outputs) if self._heads else self._joined(outputs)
        return self.finish(*found, geometry)

    def _joined(self, outputs: Sequence[NDArray[Any]]) -> tuple[Floats, Floats, NDArray[np.intp]]:
        out = self.real(0, self.output(outputs, 0)[0])
        objectness = self.activated(out[:, 4])
        # No class can lift a score above its objectness, so most rows are done with.
        rows = np.flatnonzero(objectness >= self.spec.score_threshold)
        scores = self.activated(out[rows, 5:]) * objectness[rows, None]
        if self.spec.multi_label:
            at, ids = np.nonzero(scores >= self.spec.score_threshold)
        else:
            ids = scores.argmax(axis=1)
            at = np.flatnonzero(scores[np.arange(len(rows)), ids] >= self.spec.score_threshold)
            ids = ids[at]
        rows, ids, values = strongest(rows[at], ids, scores[at, ids])
        return _boxes(out[rows, :4], self._cells[rows], self._strides[rows, None]), values, ids

    def _split(self, outputs: Sequence[NDArray[Any]]) -> tuple[Floats, Floats, NDArray[np.intp]]:
        parts: list[tuple[Floats, Floats, NDArray[np.intp]]] = []
        for head in self._heads:
            stored = self._columns(self.output(outputs, head.scores))
            rows, ids, scores = self.pick(head.scores, stored)
            box = self.real(head.boxes, self._columns(self.output(outputs, head.boxes))[rows])
            parts.append((_boxes(box, head.cells[rows], np.float32(head.stride)), scores, ids))
        return join(parts)

    def _columns(self, array: NDArray[Any]) -> NDArray[Any]:
        """A map as [cells, channels]."""
        if self.nchw:
            return array.reshape(array.shape[1], -1).T
        return array.reshape(-1, array.shape[3])


def _boxes(out: Floats, cells: Floats, stride: Any) -> Floats:
    centre = (out[:, :2] + cells) * stride
    with np.errstate(over="ignore"):
        half = np.exp(out[:, 2:4]) * (stride * np.float32(0.5))
    boxes: Floats = np.concatenate([centre - half, centre + half], axis=1)
    check_finite("boxes", boxes)
    return boxes
