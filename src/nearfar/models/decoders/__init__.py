"""One file per family of networks: how its outputs become boxes or classes. `decoder_for` picks by the manifest."""

from __future__ import annotations

from collections.abc import Sequence

from nearfar.errors import ManifestError
from nearfar.models.decoders.base import Decoder
from nearfar.models.labels import labels_of
from nearfar.models.manifest import DECODER_FIELDS, Manifest, Variant
from nearfar.types.tensor import TensorSpec


def decoder_for(manifest: Manifest, variant: Variant, outputs: Sequence[TensorSpec]) -> Decoder:
    """The decoder of a model for these outputs. Raises `ManifestError` when the outputs are not of that family."""
    from nearfar.models.decoders.classification import ClassificationDecoder
    from nearfar.models.decoders.distances import DistancesDecoder
    from nearfar.models.decoders.fastestdet import FastestDetDecoder
    from nearfar.models.decoders.fomo import FomoDecoder
    from nearfar.models.decoders.ssd import SsdDecoder
    from nearfar.models.decoders.yolox import YoloxDecoder

    kinds: dict[str, type[Decoder]] = {
        "ssd-postprocess": SsdDecoder,
        "yolox": YoloxDecoder,
        "nanodet": DistancesDecoder,
        "picodet": DistancesDecoder,
        "fastestdet": FastestDetDecoder,
        "fomo": FomoDecoder,
        "classification": ClassificationDecoder,
    }
    if manifest.decoder is None or manifest.input is None:
        raise ManifestError(f"Model {manifest.name!r} has no [decoder].", "Send tensors to it, not pictures.")
    if manifest.decoder.kind not in kinds:
        raise ManifestError(f"decoder.kind is {manifest.decoder.kind!r}.", f"Use one of {', '.join(DECODER_FIELDS)}.")
    names = len(labels_of(manifest))
    return kinds[manifest.decoder.kind](manifest.decoder, manifest.input, variant, outputs, names)
