"""Everything around a network: a picture in, the runtime's inputs out; the runtime's outputs in, the answer out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from numpy.typing import NDArray

from nearfar.errors import ManifestError
from nearfar.models.decoders import decoder_for
from nearfar.models.manifest import Manifest, Variant
from nearfar.models.preprocess import Geometry, Preprocessor
from nearfar.types.image import Image
from nearfar.types.tensor import Tensor, TensorSpec


class Pipeline:
    """Pre- and post-processing of one variant, as its manifest declares them.

    `inputs` and `outputs` are the tensors as the loaded file states them; a manifest that does not fit them is a
    `ManifestError` here, before the first picture. Other options of the decoder (`score_threshold=0.05`) may be given.
    Holds no state between calls.
    """

    def __init__(
        self,
        manifest: Manifest,
        variant: Variant,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        **options: Any,
    ) -> None:
        if manifest.input is None or manifest.decoder is None:
            raise ManifestError(
                f"Model {manifest.name!r} has the task {manifest.task.value!r}: it takes no pictures.",
                "Send tensors to it, or declare [input] and [decoder] in its manifest.",
            )
        if options:
            manifest = msgspec.structs.replace(manifest, decoder=msgspec.structs.replace(manifest.decoder, **options))
        self.tensor = _input_named(manifest, inputs)
        self.preprocessor = Preprocessor(manifest.input, variant, self.tensor)  # type: ignore[arg-type]
        self.decoder = decoder_for(manifest, variant, outputs)

    def prepare(self, image: Image) -> tuple[dict[str, NDArray[Any]], Geometry]:
        """The runtime's inputs by name, and the way back. Raises `InputError`, `TooLarge`."""
        array, geometry = self.preprocessor(image)
        return {self.tensor.name: array}, geometry

    def finish(self, outputs: Sequence[NDArray[Any]], geometry: Geometry) -> list[Tensor]:
        """`boxes`, `scores`, `class_ids` of a detector; `scores`, `class_ids` of a classifier.

        Raises `InferenceError` for NaN, infinity or a shape that was not promised.
        """
        return self.decoder.tensors(outputs, geometry)


def _input_named(manifest: Manifest, inputs: Sequence[TensorSpec]) -> TensorSpec:
    name = manifest.input.name if manifest.input else ""
    if not name and len(inputs) == 1:
        return inputs[0]
    for spec in inputs:
        if spec.name == name and len(inputs) == 1:
            return spec
    have = "; ".join(str(spec) for spec in inputs)
    if len(inputs) > 1:
        raise ManifestError(
            f"Model {manifest.name!r} takes {len(inputs)} inputs ({have}), but a picture is one.",
            "Use task = 'tensors' in its manifest.",
        )
    raise ManifestError(
        f"input.name is {name!r}, but the file takes {have}.", "Leave name away when there is only one."
    )
