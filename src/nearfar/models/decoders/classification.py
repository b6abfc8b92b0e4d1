"""Classifiers: one output of C scores, [1, C] or [1, 1, 1, C]; the answer is the `top_k` best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.models.decoders.base import Decoder
from nearfar.models.preprocess import Geometry
from nearfar.types.tensor import Tensor


class ClassificationDecoder(Decoder):
    def prepare(self) -> None:
        shape = self.outputs[0].shape
        if len(self.outputs) != 1 or -1 in shape[1:] or math.prod(shape[1:]) != max(shape[1:], default=0):
            raise self.mismatch("one output of class scores")
        self.check_classes(max(shape[1:]))

    def tensors(self, outputs: Sequence[NDArray[Any]], geometry: Geometry) -> list[Tensor]:
        """`scores` float32 [k], best first, and `class_ids` int32 [k]; equal scores in the order of their ids."""
        scores = self.activated(self.real(0, self.output(outputs, 0).reshape(-1)))
        best = np.argsort(-scores, kind="stable")[: self.spec.top_k]
        return [Tensor.of("scores", scores[best]), Tensor.of("class_ids", best.astype(np.int32))]
