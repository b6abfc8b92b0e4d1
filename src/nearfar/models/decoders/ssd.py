"""SSD with TensorFlow Lite's TFLite_Detection_PostProcess inside: boxes are decoded already.

Four outputs, by default boxes [1, N, 4] (ymin xmin ymax xmax, 0 to 1), classes [1, N], scores [1, N], count [1];
`order` says it when a file gives them otherwise. Class k is index k of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InferenceError
from nearfar.models.decoders.base import DetectionDecoder
from nearfar.models.preprocess import Geometry
from nearfar.types.detections import Detections


class SsdDecoder(DetectionDecoder):
    def prepare(self) -> None:
        self._at = {name: i for i, name in enumerate(self.spec.order)}
        if len(self.outputs) != 4 or self.outputs[self._at["boxes"]].shape[-1:] not in ((4,), (-1,)):
            raise self.mismatch(f"four outputs in the order {', '.join(self.spec.order)}")

    def decode(self, outputs: Sequence[NDArray[Any]], geometry: Geometry) -> Detections:
        values = {name: self.real(i, self.output(outputs, i)) for name, i in self._at.items()}
        boxes, scores = values["boxes"].reshape(-1, 4), values["scores"].reshape(-1)
        classes, counts = values["classes"].reshape(-1), values["count"].reshape(-1)
        if len(counts) != 1 or not 0 <= counts[0] <= len(boxes) or not len(boxes) == len(scores) == len(classes):
            raise InferenceError(
                f"The detector says it found {counts.tolist()} objects in {len(boxes)} places.",
                "Check `order` in [decoder] of the manifest.",
            )
        n = int(counts[0])
        good = np.flatnonzero(scores[:n] >= self.spec.score_threshold)
        size = np.array([self.picture.width, self.picture.height] * 2, np.float32)
        corners = boxes[good][:, [1, 0, 3, 2]] * size
        return self.finish(corners, scores[good], np.rint(classes[good]).astype(np.int32), geometry)
