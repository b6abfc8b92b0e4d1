"""The manifest: what a model is, how its input is made, how its outputs are read, and the files it comes as.

Text form is TOML, schema 1; every field is described in docs/reference-manifest.md. `parse_manifest` is strict: an
unknown key, a wrong type or a value out of range is a `ManifestError` whose message starts with the field's path.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from nearfar.errors import ManifestError
from nearfar.models import fields as f
from nearfar.models.labels import BUILT_IN
from nearfar.types.ids import is_name

SCHEMA = 1
LONGEST_TEXT = 1 << 20
"""Characters of a manifest that are read; more is refused."""


class Task(StrEnum):
    OBJECT_DETECTION = "object-detection"
    CLASSIFICATION = "classification"
    TENSORS = "tensors"
    """Arrays in, arrays out; no pre- or post-processing."""
    CHAT = "chat"
    """A language model: messages or a text in, a text out."""
    EMBEDDING = "embedding"
    """Texts in, a vector for each out."""


LANGUAGE = frozenset({Task.CHAT, Task.EMBEDDING})
"""Tasks whose models take text."""


class Resize(StrEnum):
    STRETCH = "stretch"
    """To width x height, whatever the image's proportions."""
    LETTERBOX = "letterbox"
    """Fit inside, proportions kept, the rest padded evenly on both sides."""
    LETTERBOX_TOP_LEFT = "letterbox-top-left"
    """Fit inside, image at the top left, the rest padded right or below."""
    CENTER_CROP = "center-crop"
    """Cover, proportions kept; what stands over on both sides is cut off."""


class Colour(StrEnum):
    RGB = "rgb"
    BGR = "bgr"
    GRAY = "gray"

    @property
    def channels(self) -> int:
        return 1 if self is Colour.GRAY else 3


class Layout(StrEnum):
    NCHW = "nchw"
    NHWC = "nhwc"


class InputSpec(msgspec.Struct, frozen=True):
    """How an image becomes the input: x = (pixel * scale - mean) / std, pixel 0 to 255, in the order of `colour`."""

    width: int
    height: int
    name: str = ""
    """The input tensor; empty means the only one."""
    resize: Resize = Resize.STRETCH
    colour: Colour = Colour.RGB
    pad: int = 114
    """Grey level 0 to 255 of the padding of a letterbox."""
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    """One for all channels, or one per channel in the order of `colour`; in units of pixel * scale."""
    std: tuple[float, ...] = (1.0,)

    @property
    def identity(self) -> bool:
        """Whether pixels go in as they are."""
        return self.scale == 1.0 and not any(self.mean) and all(s == 1.0 for s in self.std)


class DecoderSpec(msgspec.Struct, frozen=True):
    """How outputs are read. Which fields a kind knows stands in `DECODER_FIELDS`."""

    kind: str
    score_threshold: float = 0.3
    nms_iou: float = 0.5
    """Boxes of one class that overlap more than this are one object; 1 switches suppression off."""
    max_detections: int = 100
    strides: tuple[int, ...] = (8, 16, 32)
    """Model pixels per cell of each output map."""
    heads: str = "joined"
    outputs: tuple[str, ...] = ()
    """With split heads: names of the outputs, box map and class map for each stride; empty: told by their sizes."""
    activation: str = "none"
    """What class outputs still need to become 0 to 1: none, sigmoid or softmax."""
    multi_label: bool = True
    """Whether one cell may give several classes (as the published figures count), or its best one only."""
    reg_max: int = 7
    """Largest distance in cells that a side's distribution can say; it has reg_max + 1 bins."""
    order: tuple[str, ...] = ("boxes", "classes", "scores", "count")
    """What each output of ssd-postprocess is."""
    background: int = 0
    """The class of fomo that means nothing is there; -1 for none."""
    top_k: int = 5


class Variant(msgspec.Struct, frozen=True):
    """One file of a model."""

    id: str
    format: str
    precision: str
    file: str
    """Its name, never a path."""
    sha256: str
    """64 lower-case hexadecimal digits of the file's contents."""
    bytes: int
    layout: Layout = Layout.NCHW
    """Of the image input and of output maps."""
    dtype: str = "float32"
    """Of the image input."""
    runtimes: tuple[str, ...] = ()
    """Runtimes that may load it; empty means every one that knows the format."""


class Manifest(msgspec.Struct, frozen=True):
    """A model. `labels` is a list of names or the name of a built-in list (`coco80`, `coco90`)."""

    name: str
    task: Task
    variants: tuple[Variant, ...]
    schema: int = SCHEMA
    version: str = "1"
    description: str = ""
    labels: tuple[str, ...] | str = ()
    licence: str = ""
    provenance: Mapping[str, Any] = {}
    """Where it comes from: free texts, numbers and tables of these."""
    input: InputSpec | None = None
    decoder: DecoderSpec | None = None

    def variant(self, variant_id: str) -> Variant:
        """Raises `ManifestError` for an id that is not there."""
        for variant in self.variants:
            if variant.id == variant_id:
                return variant
        known = [v.id for v in self.variants]
        raise ManifestError(
            f"Model {self.name!r} has no variant {variant_id!r}{f.nearest(variant_id, known)}.",
            f"It has {', '.join(known)}.",
        )


_DETECTOR = ("kind", "score_threshold", "nms_iou", "max_detections")
DECODER_FIELDS: Mapping[str, tuple[str, ...]] = {
    "ssd-postprocess": (*_DETECTOR, "order"),
    "yolox": (*_DETECTOR, "heads", "strides", "outputs", "activation", "multi_label"),
    "nanodet": (*_DETECTOR, "strides", "reg_max", "activation", "multi_label"),
    "picodet": (*_DETECTOR, "strides", "reg_max", "activation", "multi_label"),
    "fastestdet": _DETECTOR,
    "fomo": (*_DETECTOR, "background", "activation"),
    "classification": ("kind", "activation", "top_k"),
}
"""Kinds of decoders, each with the fields it knows."""

DEFAULT_STRIDES: Mapping[str, tuple[int, ...]] = {"picodet": (8, 16, 32, 64)}

_SHA256 = re.compile(r"[0-9a-f]{64}")


def _name(value: Any, path: str) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise ManifestError(
            f"{path} is {f.show(value)}.", "Use 1 to 64 of a-z, 0-9, '.', '_', '-', starting with a letter or digit."
        )
    return value


def check_file_name(value: Any, path: str) -> str:
    """A plain file name: no folder, no `..`, nothing a file system reads in its own way."""
    good = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+@-]{0,127}", value) and ".." not in value
    if not good:
        raise ManifestError(f"{path} is {f.show(value)}.", "Use a plain file name such as model.onnx.")
    return str(value)


def _format(value: Any, path: str) -> str:
    """A format of ours, or `x-...` for one that a third party's runtime loads."""
    if isinstance(value, str) and value.startswith("x-") and is_name(value):
        return value
    return str(f.one_of("onnx", "tflite", "openvino", "gguf", "openvino-text", "far", "fake", "fake-text")(value, path))


def _sha256(value: Any, path: str) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ManifestError(f"{path} is {f.show(value)}.", "Use the 64 lower-case hexadecimal digits of sha256sum.")
    return value


def _labels(value: Any, path: str) -> tuple[str, ...] | str:
    if isinstance(value, str):
        return str(f.one_of(*BUILT_IN)(value, path))
    checked: tuple[str, ...] = f.list_of(f.text(200), 0, 100_000)(value, path)
    return checked


def _numbers(value: Any, path: str, zero: bool = True) -> tuple[float, ...]:
    check = f.number(-1e9, 1e9, zero=zero)
    if isinstance(value, list | tuple):
        checked: tuple[float, ...] = f.list_of(check, 1, 4)(value, path)
        return checked
    return (check(value, path),)


def _free(value: Any, path: str, depth: int = 0) -> Any:
    """Provenance: texts, numbers, booleans, lists and tables of these, four deep."""
    if isinstance(value, Mapping) and depth < 4:
        return {f.text(200)(k, path): _free(v, f"{path}.{k}", depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple) and 0 < depth < 4:
        return [_free(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)]
    if isinstance(value, bool) or (isinstance(value, str) and depth):
        return value
    if depth and isinstance(value, int | float):
        return value if isinstance(value, int) else f.number()(value, path)
    raise ManifestError(f"{path} is {f.show(value)}.", "Use a table of texts, numbers and true or false.")


_VARIANT = {
    "id": f.Field(_name),
    "format": f.Field(_format),
    "precision": f.Field(f.one_of("fp32", "fp16", "bf16", "int8", "int4", "mixed"), "fp32"),
    "file": f.Field(check_file_name),
    "sha256": f.Field(_sha256),
    "bytes": f.Field(f.integer(1, 1 << 45)),
    "layout": f.Field(f.one_of("nchw", "nhwc"), "nchw"),
    "dtype": f.Field(f.one_of("float32", "uint8", "int8"), "float32"),
    "runtimes": f.Field(f.list_of(_name, 0, 16), ()),
}

_INPUT = {
    "name": f.Field(f.text(), ""),
    "width": f.Field(f.integer(1, 8192)),
    "height": f.Field(f.integer(1, 8192)),
    "resize": f.Field(f.one_of(*Resize), "stretch"),
    "colour": f.Field(f.one_of(*Colour), "rgb"),
    "pad": f.Field(f.integer(0, 255), 114),
    "scale": f.Field(f.number(-1e9, 1e9, zero=False), 1.0),
    "mean": f.Field(_numbers, (0.0,)),
    "std": f.Field(lambda value, path: _numbers(value, path, zero=False), (1.0,)),
}

_DECODER = {
    "kind": f.Field(f.one_of(*DECODER_FIELDS)),
    "score_threshold": f.Field(f.number(0, 1), 0.3),
    "nms_iou": f.Field(f.number(0, 1), 0.5),
    "max_detections": f.Field(f.integer(1, 10_000), 100),
    "strides": f.Field(f.list_of(f.integer(1, 1024), 1, 8), (8, 16, 32)),
    "heads": f.Field(f.one_of("joined", "split"), "joined"),
    "outputs": f.Field(f.list_of(f.text(empty=False), 0, 16), ()),
    "activation": f.Field(f.one_of("none", "sigmoid", "softmax"), "none"),
    "multi_label": f.Field(f.boolean, True),
    "reg_max": f.Field(f.integer(1, 64), 7),
    "order": f.Field(f.list_of(f.one_of("boxes", "classes", "scores", "count"), 4, 4), DecoderSpec("").order),
    "background": f.Field(f.integer(-1, 100_000), 0),
    "top_k": f.Field(f.integer(1, 100_000), 5),
}


def _variants(value: Any, path: str) -> tuple[Variant, ...]:
    tables = f.list_of(lambda raw, at: f.table(raw, at, _VARIANT), 1, 64)(value, path)
    variants = tuple(Variant(**{**t, "layout": Layout(t["layout"])}) for t in tables)
    for i, variant in enumerate(variants):
        if any(other.id == variant.id for other in variants[:i]):
            raise ManifestError(f"{path}[{i}].id is {variant.id!r} a second time.", "Give each variant its own id.")
    return variants


def _input(value: Any, path: str) -> InputSpec:
    raw = f.table(value, path, _INPUT)
    spec = InputSpec(**{**raw, "resize": Resize(raw["resize"]), "colour": Colour(raw["colour"])})
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) not in (1, spec.colour.channels):
            raise ManifestError(
                f"{path}.{name} has {len(values)} numbers, but colour {spec.colour.value} has {spec.colour.channels}.",
                "Give one number, or one per channel.",
            )
    return spec


def _decoder(value: Any, path: str) -> DecoderSpec:
    raw = f.table(value, path, _DECODER)
    known = DECODER_FIELDS[raw["kind"]]
    for key in value:
        if key not in known:
            raise ManifestError(
                f"{path}.{key} means nothing to the decoder {raw['kind']!r}.", f"It knows {', '.join(known)}."
            )
    if "strides" not in value and raw["kind"] in DEFAULT_STRIDES:
        raw["strides"] = DEFAULT_STRIDES[raw["kind"]]
    if raw["outputs"] and len(raw["outputs"]) != 2 * len(raw["strides"]):
        raise ManifestError(
            f"{path}.outputs has {len(raw['outputs'])} names for {len(raw['strides'])} strides.",
            "Name the box map and the class map of each stride.",
        )
    if raw["activation"] == "softmax" and raw["kind"] not in ("classification", "fomo"):
        raise ManifestError(f"{path}.activation is 'softmax'.", f"For {raw['kind']!r} use none or sigmoid.")
    if sorted(raw["order"]) != sorted(set(raw["order"])):
        raise ManifestError(f"{path}.order names an output twice.", "Name boxes, classes, scores and count once each.")
    return DecoderSpec(**raw)


_MANIFEST = {
    "schema": f.Field(f.integer(SCHEMA, SCHEMA)),
    "name": f.Field(_name),
    "version": f.Field(f.text(64, empty=False), "1"),
    "task": f.Field(f.one_of(*Task)),
    "description": f.Field(f.text(2000), ""),
    "labels": f.Field(_labels, ()),
    "licence": f.Field(f.text(200), ""),
    "provenance": f.Field(_free, {}),
    "input": f.Field(_input, None),
    "decoder": f.Field(_decoder, None),
    "variants": f.Field(_variants),
}


def manifest_of(raw: object) -> Manifest:
    """A manifest from plain values (parsed TOML or JSON). Raises `ManifestError` naming the field."""
    values = f.table(raw, "", _MANIFEST)
    manifest = Manifest(**{**values, "task": Task(values["task"])})
    if manifest.task is Task.TENSORS or manifest.task in LANGUAGE:
        for key in ("input", "decoder"):
            if values[key] is not None:
                told = f"{key} is there, but task is {manifest.task.value!r}."
                raise ManifestError(told, f"Remove [{key}] or change task.")
        return manifest
    for key in ("input", "decoder"):
        if values[key] is None:
            raise ManifestError(f"{key} is missing.", f"Task {manifest.task.value!r} needs a table [{key}].")
    kind = values["decoder"].kind
    if (kind == "classification") != (manifest.task is Task.CLASSIFICATION):
        raise ManifestError(
            f"decoder.kind is {kind!r}, but task is {manifest.task.value!r}.",
            "Use the kind classification with the task classification, and the others with object-detection.",
        )
    return manifest


def parse_manifest(text: str, where: str) -> Manifest:
    """A manifest from TOML; `where` names the file in messages. Raises `ManifestError`."""
    try:
        if len(text) > LONGEST_TEXT:
            raise ManifestError(f"It has {len(text)} characters.", f"A manifest has at most {LONGEST_TEXT}.")
        return manifest_of(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise ManifestError(f"{where}: not TOML: {e}.", "See docs/reference-manifest.md for an example.") from None
    except ManifestError as e:
        raise ManifestError(f"{where}: {e.message}", e.hint) from None
