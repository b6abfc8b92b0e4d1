"""Boxes as distributions over distances (generalised focal loss, Li et al. 2020, arXiv:2006.04388).

Per stride two outputs: class scores [cells, C] and distances [cells, 4 * (reg_max + 1)], with or without a leading 1.
Each side of a box (left, top, right, bottom) is the expectation of a softmax over 0 ... reg_max cells, counted from the
cell's centre. Outputs belong to a stride by their number of rows; of two with equal columns the first is the scores.
NanoDet and PicoDet are this, with different strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nearfar.models.decoders.base import DetectionDecoder, Floats, check_finite, grid, join
from nearfar.models.preprocess import Geometry
from nearfar.types.detections import Detections


class _Head(NamedTuple):
    stride: int
    scores: int
    distances: int
    centres: Floats


class DistancesDecoder(DetectionDecoder):
    def prepare(self) -> None:
        bins = 4 * (self.spec.reg_max + 1)
        self._bins = np.arange(self.spec.reg_max + 1, dtype=np.float32)
        self._heads: list[_Head] = []
        for stride in self.spec.strides:
            cells = grid(self.picture.width, self.picture.height, stride)
            own = [i for i in range(len(self.outputs)) if self._size(i)[0] == len(cells)]
            distances = [i for i in own if self._size(i)[1] == bins]
            if len(own) != 2 or not distances:
                raise self.mismatch(f"{len(cells)} rows of scores and of {bins} distances for stride {stride}")
            scores = next(i for i in own if i != distances[-1])
            self.check_classes(self._size(scores)[1])
            centres = (cells + np.float32(0.5)) * np.float32(stride)
            self._heads.append(_Head(stride, scores, distances[-1], centres))
        if len(self.outputs) != 2 * len(self.spec.strides):
            raise self.mismatch(f"{2 * len(self.spec.strides)} outputs")

    def _size(self, index: int) -> tuple[int, int]:
        shape = self.outputs[index].shape
        if len(shape) == 3 and shape[0] in (1, -1):
            shape = shape[1:]
        return (shape[0], shape[1]) if len(shape) == 2 else (0, 0)

    def decode(self, outputs: Sequence[NDArray[Any]], geometry: Geometry) -> Detections:
        parts: list[tuple[Floats, Floats, NDArray[np.intp]]] = []
        for head in self._heads:
            stored = self.output(outputs, head.scores).reshape(self._size(head.scores))
            rows, ids, scores = self.pick(head.scores, stored)
            far = self.output(outputs, head.distances).reshape(self._size(head.distances))[rows]
            boxes = self._boxes(self.real(head.distances, far), head.centres[rows], head.stride)
            parts.append((boxes, scores, ids))
        return self.finish(*join(parts), geometry)

    def _boxes(self, out: Floats, centres: Floats, stride: int) -> Floats:
        sides = out.reshape(len(out), 4, len(self._bins))
        weights = np.exp(sides - sides.max(axis=2, keepdims=True, initial=-np.inf))
        distance = (weights @ self._bins) / weights.sum(axis=2) * np.float32(stride)
        boxes: Floats = np.concatenate([centres - distance[:, :2], centres + distance[:, 2:]], axis=1)
        check_finite("boxes", boxes)
        return boxes
