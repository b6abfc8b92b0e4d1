"""FOMO ("faster objects, more objects", Edge Impulse): a coarse grid of class probabilities, objects as centroids.

One map of C channels, `background` being the class that means nothing is there. Neighbouring cells (8 ways) of the same
class above the threshold are one object: its box is theirs, its score the best of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.models.decoders.base import DetectionDecoder, Floats
from nearfar.models.preprocess import Geometry
from nearfar.types.detections import Detections


class FomoDecoder(DetectionDecoder):
    def prepare(self) -> None:
        shape = self.outputs[0].shape
        if len(self.outputs) != 1 or len(shape) != 4 or min(shape[1:]) < 1:
            raise self.mismatch("one map of class probabilities")
        channels, self._rows, self._columns = shape[1:] if self.nchw else (shape[3], shape[1], shape[2])
        if self.spec.background >= channels:
            raise self.mismatch(f"more than {self.spec.background} channels, as background is {self.spec.background}")
        # Labels may name the background too, or leave it out: class ids skip it in the second case.
        self._named = self.classes == channels or self.spec.background < 0
        if self.classes and not self._named:
            self.check_classes(channels - 1)
        self._channels = channels

    def decode(self, outputs: Sequence[NDArray[Any]], geometry: Geometry) -> Detections:
        import cv2

        stored = self.output(outputs, 0)[0]
        maps = self.real(0, stored if self.nchw else np.moveaxis(stored, 2, 0))
        maps = self.activated(maps, axis=0)
        best = maps.argmax(axis=0)
        cell = np.array([self.picture.width / self._columns, self.picture.height / self._rows] * 2, np.float32)
        boxes: list[list[int]] = []
        scores: list[float] = []
        ids: list[int] = []
        for channel in range(self._channels):
            if channel == self.spec.background:
                continue
            mask = (best == channel) & (maps[channel] >= self.spec.score_threshold)
            if not mask.any():
                continue
            count, names, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
            for i in range(1, count):
                x, y, w, h = (int(v) for v in stats[i, :4])
                boxes.append([x, y, x + w, y + h])
                scores.append(float(maps[channel][names == i].max()))
                ids.append(channel if self._named or channel < self.spec.background else channel - 1)
        corners: Floats = np.array(boxes, np.float32).reshape(-1, 4) * cell
        return self.finish(corners, np.array(scores, np.float32), np.array(ids, np.int32), geometry)
