"""FastestDet (dog-qiuqiu): one output [1, 5 + C, rows, columns]: objectness, 4 of the box, classes.

cx = (column + tanh(out)) / columns, w = sigmoid(out), both as a share of the input;
score = objectness ** 0.6 * class ** 0.4. (The recipe of the model's own README.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.models.decoders.base import DetectionDecoder, sigmoid
from nearfar.models.preprocess import Geometry
from nearfar.types.detections import Detections


class FastestDetDecoder(DetectionDecoder):
    def prepare(self) -> None:
        shape = self.outputs[0].shape
        if len(self.outputs) != 1 or len(shape) != 4 or min(shape[1:]) < 1:
            raise self.mismatch("one output 1x(5 + classes)x rows x columns")
        channels, rows, columns = shape[1:] if self.nchw else (shape[3], shape[1], shape[2])
        if channels < 6:
            raise self.mismatch("at least 6 channels")
        self.check_classes(channels - 5)
        y, x = np.divmod(np.arange(rows * columns), columns)
        self._cells = np.stack([x, y], axis=1).astype(np.float32)
        self._counts = np.array([columns, rows], np.float32)

    def decode(self, outputs: Sequence[NDArray[Any]], geometry: Geometry) -> Detections:
        stored = self.output(outputs, 0)[0]
        columns = stored.reshape(len(stored), -1).T if self.nchw else stored.reshape(-1, stored.shape[2])
        out = self.real(0, columns)
        ids = out[:, 5:].argmax(axis=1)
        best = out[np.arange(len(out)), 5 + ids]
        scores = np.clip(out[:, 0], 0, None) ** np.float32(0.6) * np.clip(best, 0, None) ** np.float32(0.4)
        rows = np.flatnonzero(scores >= self.spec.score_threshold)
        size = np.array([self.picture.width, self.picture.height], np.float32)
        centre = (self._cells[rows] + np.tanh(out[rows, 1:3])) / self._counts * size
        half = sigmoid(out[rows, 3:5]) * size / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1)
        return self.finish(boxes, scores[rows], ids[rows], geometry)
