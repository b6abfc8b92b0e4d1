"""Known pictures, and what the runtimes themselves make of them: what an answer must be equal to, bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.models.process import Pipeline
from nearfar.models.store import Store
from nearfar.runtimes.base import LoadOptions
from nearfar.runtimes.registry import installed
from nearfar.types.image import Image, ImageKind
from nearfar.types.request import Answer

FRAMES = 6
_PARTS = ("boxes", "scores", "class_ids")


def render(folder: Path, seed: int) -> None:
    """A folder of a few JPEGs of one scene, some seconds apart, in the order of their names."""
    import cv2

    from recipes.yard.scene import Scene

    folder.mkdir()
    scene = Scene(seed)
    for number in range(FRAMES):
        image, _ = scene.frame(2.0 * number)
        cv2.imwrite(str(folder / f"{number}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])


def compute(frames: Path, store: Store, file: Path) -> None:
    """Ask every runtime that can run a variant of `yard`, and keep what it says in an `.npz`."""
    stored = store.get("yard")
    known: dict[str, NDArray[Any]] = {}
    for variant in stored.manifest.variants:
        for entry in installed():
            if entry.runtime is None or entry.reason or variant.format not in entry.runtime.formats:
                continue
            with entry.runtime.load(stored.open(variant.id), LoadOptions()) as loaded:
                pipeline = Pipeline(stored.manifest, variant, loaded.inputs, loaded.outputs)
                for number, (jpeg, pixels) in enumerate(pictures(frames)):
                    for image in (Image.encoded(jpeg), Image.bgr(pixels)):
                        inputs, geometry = pipeline.prepare(image)
                        found = pipeline.finish(loaded.infer(inputs), geometry)
                        for tensor in found:
                            at = f"{variant.id}|{entry.name}|{image.kind.value}|{number}|{tensor.name}"
                            known[at] = tensor.array()
    np.savez(file, allow_pickle=False, **known)


def pictures(folder: Path) -> list[tuple[bytes, NDArray[np.uint8]]]:
    """(JPEG, its pixels) of each known picture."""
    import cv2

    jpegs = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    return [(jpeg, _pixels(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))) for jpeg in jpegs]


def _pixels(image: Any) -> NDArray[np.uint8]:
    assert image is not None
    return np.ascontiguousarray(image, np.uint8)


class Truth:
    """What may be answered. A variant that several runtimes run has several right answers."""

    def __init__(self, file: Path) -> None:
        self._known: dict[tuple[str, str, int], list[dict[str, NDArray[Any]]]] = {}
        with np.load(file, allow_pickle=False) as kept:
            by_runtime: dict[tuple[str, str, str, int], dict[str, NDArray[Any]]] = {}
            for at in kept.files:
                variant, runtime, kind, number, part = at.split("|")
                by_runtime.setdefault((variant, runtime, kind, int(number)), {})[part] = kept[at]
        for (variant, _, kind, number), parts in by_runtime.items():
            self._known.setdefault((variant, kind, number), []).append(parts)

    def right(self, answer: Answer, kind: ImageKind, number: int) -> bool:
        """Whether an answer about a picture is, bit by bit, what a runtime says of it."""
        got = {name: answer.array(name) for name in _PARTS}
        return any(
            all(_same(got[name], parts[name]) for name in _PARTS)
            for parts in self._known.get((answer.variant, kind.value, number), ())
        )

    def right_json(self, answer: dict[str, Any], number: int) -> bool:
        """As `right`, of an encoded picture's answer over HTTP, which is rounded."""
        got = [(d["box"], d["score"], d["class_id"]) for d in answer["detections"]]
        known = self._known.get((answer["variant"], ImageKind.ENCODED.value, number), ())
        return any(got == _rounded(parts) for parts in known)


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _rounded(parts: dict[str, NDArray[Any]]) -> Sequence[tuple[list[float], float, int]]:
    columns = (parts[name].tolist() for name in _PARTS)
    return [
        ([round(v, 2) for v in box], round(score, 4), class_id) for box, score, class_id in zip(*columns, strict=True)
    ]
