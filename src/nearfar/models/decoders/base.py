"""What the decoders of all families share: reading outputs as real numbers, choosing boxes, suppression.

A NaN or an infinity in an output is an `InferenceError`, never an empty result: a broken network is no empty street.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InferenceError, ManifestError
from nearfar.models.accuracy import overlaps
from nearfar.models.manifest import DecoderSpec, InputSpec, Layout, Variant
from nearfar.models.preprocess import Geometry
from nearfar.types.detections import Detections
from nearfar.types.tensor import Tensor, TensorSpec

MOST_CANDIDATES = 1000
"""Boxes above the score threshold that enter suppression, best first: a threshold near 0 must not cost seconds."""

Floats = NDArray[np.float32]


class Decoder(ABC):
    """Reads the outputs of one family. Made once per service; `ManifestError` when the outputs are not its own."""

    def __init__(
        self, spec: DecoderSpec, picture: InputSpec, variant: Variant, outputs: Sequence[TensorSpec], classes: int = 0
    ) -> None:
        """`picture` is the manifest's input, `classes` the number of labels (0: unknown, nothing is checked)."""
        self.spec = spec
        self.picture = picture
        self.nchw = variant.layout is Layout.NCHW
        self.outputs = tuple(outputs)
        self.classes = classes
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Check `outputs` and compute what does not depend on values."""

    @abstractmethod
    def tensors(self, outputs: Sequence[NDArray[Any]], geometry: Geometry) -> list[Tensor]:
        """What the service answers. Raises `InferenceError` on NaN, infinity or a shape that was not promised."""

    def mismatch(self, wanted: str) -> ManifestError:
        have = "; ".join(str(spec) for spec in self.outputs)
        return ManifestError(
            f"decoder.kind {self.spec.kind!r} needs {wanted}, but the file gives {have}.",
            "Correct [input] or [decoder] in the manifest, or take another kind.",
        )

    def check_classes(self, found: int) -> None:
        if self.classes and self.classes != found:
            raise ManifestError(
                f"labels has {self.classes} names, but the file's outputs have {found} classes.",
                "Give as many labels as there are classes, in their order.",
            )

    def activated(self, values: Floats, axis: int = -1) -> Floats:
        """Class outputs as 0 to 1, by the manifest's `activation`; softmax goes over the classes in `axis`."""
        match self.spec.activation:
            case "sigmoid":
                return sigmoid(values)
            case "softmax":
                return softmax(values, axis)
            case _:
                return values

    def output(self, outputs: Sequence[NDArray[Any]], index: int) -> NDArray[Any]:
        """One output as it is stored, its shape and its numbers checked."""
        if len(outputs) != len(self.outputs):
            raise InferenceError(f"The runtime gave {len(outputs)} outputs, the file states {len(self.outputs)}.")
        spec, array = self.outputs[index], outputs[index]
        if len(array.shape) != len(spec.shape) or any(
            want not in (-1, have) for want, have in zip(spec.shape, array.shape, strict=True)
        ):
            raise InferenceError(f"Output {spec} came with the shape {list(array.shape)}.")
        check_finite(spec.name, array)
        return array

    def real(self, index: int, stored: NDArray[Any]) -> Floats:
        """Stored values of an output as real numbers, float32: (stored - zero_point) * scale when quantised."""
        spec = self.outputs[index]
        if spec.scale and stored.dtype.kind in "iu":
            shifted = stored.astype(np.float32)
            shifted -= np.float32(spec.zero_point)
            shifted *= np.float32(spec.scale)
            return shifted
        return stored.astype(np.float32, copy=False)


class DetectionDecoder(Decoder):
    """A decoder whose result is boxes."""

    @abstractmethod
    def decode(self, outputs: Sequence[NDArray[Any]], geometry: Geometry) -> Detections:
        """Objects in pixels of the picture, best first, at most `max_detections`. Raises `InferenceError`."""

    def tensors(self, outputs: Sequence[NDArray[Any]], geometry: Geometry) -> list[Tensor]:
        """`boxes` float32 [n, 4], `scores` float32 [n], `class_ids` int32 [n]."""
        found = self.decode(outputs, geometry)
        return [
            Tensor.of("boxes", found.boxes),
            Tensor.of("scores", found.scores),
            Tensor.of("class_ids", found.class_ids),
        ]

    def pick(self, index: int, stored: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
        """Of class scores [cells, C] as stored: (cell, class, score 0 to 1) of each that reaches the threshold.

        With `multi_label` a cell may give several classes, else its best one. At most `MOST_CANDIDATES`.
        """
        logits = self.spec.activation == "sigmoid"
        least = logit(self.spec.score_threshold) if logits else self.spec.score_threshold
        # Dequantisation and the sigmoid rise with the stored value: only cells whose largest class is enough need them.
        best = self.real(index, stored.max(axis=1))
        cells = np.flatnonzero(best >= least)
        if self.spec.multi_label:
            values = self.real(index, stored[cells])
            rows, ids = np.nonzero(values >= least)
            cells, values = cells[rows], values[rows, ids]
        else:
            ids, values = stored[cells].argmax(axis=1), best[cells]
        cells, ids, values = strongest(cells, ids, values)
        return cells, ids, sigmoid(values) if logits else values

    def finish(self, boxes: Floats, scores: Floats, class_ids: NDArray[Any], geometry: Geometry) -> Detections:
        """From candidates in model pixels to the result: suppression, the best, the way back to the picture."""
        order = np.argsort(-scores, kind="stable")[:MOST_CANDIDATES]
        boxes, scores, class_ids = boxes[order], scores[order], class_ids[order]
        if self.spec.nms_iou < 1:
            kept = suppress(boxes, class_ids, self.spec.nms_iou, self.spec.max_detections)
        else:
            kept = np.arange(min(len(boxes), self.spec.max_detections))
        boxes = boxes[kept]
        check_finite("boxes", boxes)  # exp() of a large output is an infinity that the output itself was not
        return Detections(geometry.to_image(boxes), scores[kept], class_ids[kept].astype(np.int32))


def check_finite(name: str, array: NDArray[Any]) -> None:
    """Raise `InferenceError` when a float array holds NaN or an infinity."""
    if array.dtype.kind != "f" or not array.size:
        return
    # A sum over any NaN or infinity is not finite, and is one pass; a finite array may overflow, so look again.
    with np.errstate(all="ignore"):
        total = array.sum(dtype=np.float32 if array.itemsize <= 4 else np.float64)
    if not np.isfinite(total) and not np.isfinite(array).all():
        bad = int(np.size(array) - np.isfinite(array).sum())
        raise InferenceError(
            f"Output {name!r} holds {bad} values that are not numbers.",
            "The model is broken, or does not take what it was given: add or pull it again, or check [input].",
        )


def strongest(
    cells: NDArray[np.intp], ids: NDArray[np.intp], values: Floats
) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """The `MOST_CANDIDATES` largest values with their cells and classes; all when there are fewer."""
    if len(values) <= MOST_CANDIDATES:
        return cells, ids, values
    top = np.sort(np.argpartition(-values, MOST_CANDIDATES)[:MOST_CANDIDATES])
    return cells[top], ids[top], values[top]


def join(
    parts: Sequence[tuple[Floats, Floats, NDArray[np.intp]]],
) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Boxes, scores and class ids of all strides, one after the other."""
    boxes, scores, ids = zip(*parts, strict=True)
    return np.concatenate(boxes), np.concatenate(scores), np.concatenate(ids)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    out: Floats = np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1))
    return out


def softmax(x: Floats, axis: int = -1) -> Floats:
    """exp(x) / sum(exp(x)) along an axis."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    shares: Floats = powers / powers.sum(axis=axis, keepdims=True)
    return shares


def logit(probability: float) -> float:
    """The x whose sigmoid is `probability`; minus infinity for 0, infinity for 1."""
    if probability <= 0:
        return -float("inf")
    return float(np.log(probability / (1 - probability))) if probability < 1 else float("inf")


def grid(width: int, height: int, stride: int) -> Floats:
    """Column and row of each cell of a map, [cells, 2], row by row; the map has ceil(size / stride) cells a side."""
    columns, rows = -(-width // stride), -(-height // stride)
    y, x = np.divmod(np.arange(columns * rows), columns)
    return np.stack([x, y], axis=1).astype(np.float32)


def suppress(boxes: Floats, class_ids: NDArray[Any], iou: float, most: int) -> NDArray[np.intp]:
    """Class-wise greedy non-maximum suppression; boxes come best first. Indices of those kept, at most `most`."""
    if len(boxes) < 2:
        return np.arange(len(boxes))
    rivals = (overlaps(boxes, boxes) > iou) & (class_ids[:, None] == class_ids[None])
    alive = np.ones(len(boxes), bool)
    # A box without rivals never changes anything: only the others are walked through in order.
    contested = np.triu(rivals, 1).any(axis=1)
    for i in np.flatnonzero(contested):
        if alive[i]:
            alive[i + 1 :] &= ~rivals[i, i + 1 :]
    return np.flatnonzero(alive)[:most]
