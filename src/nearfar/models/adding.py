"""A bare model file into the store: its family recognised, its manifest written, the two checked against each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from nearfar.errors import ManifestError, UnknownModel
from nearfar.models import blobs
from nearfar.models.manifest import LONGEST_TEXT, Manifest, Task, Variant, manifest_of, parse_manifest
from nearfar.models.process import Pipeline
from nearfar.models.recognise import Recognition, recognise
from nearfar.models.store import Store
from nearfar.models.textfile import add_text, is_gguf
from nearfar.types.ids import is_name
from nearfar.types.tensor import TensorSpec

Inspect = Callable[[Path], tuple[str, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]
"""Loads a file (best in a process of its own): its format, or the runtime that did; its inputs and outputs.

Raises `ModelFileError`."""


class AddOptions(msgspec.Struct, frozen=True):
    """What the caller knows better than the file. Empty means: recognise it, or keep what is stored."""

    name: str = ""
    task: str | None = None
    labels: tuple[str, ...] | str = ()
    decoder: str | None = None
    """A decoder's kind."""
    size: tuple[int, int] | None = None
    """Width and height, for files that leave them open."""
    precision: str | None = None
    variant: str = ""
    version: str = "1"
    licence: str = ""
    description: str = ""
    input_fields: Mapping[str, Any] = {}
    """Fields of [input] to set, such as {"colour": "bgr"}."""
    decoder_fields: Mapping[str, Any] = {}
    """Fields of [decoder] to set, such as {"score_threshold": 0.4}."""
    provenance: Mapping[str, Any] = {}
    runtimes: tuple[str, ...] = ()


def add_file(store: Store, path: Path, inspect: Inspect, options: AddOptions = AddOptions()) -> Manifest:  # noqa: B008
    """Add a model file without a manifest; a name that is stored already gets it as one more variant.

    The reason for the family is in `provenance.recognised`. Raises `ManifestError` naming the flag or the field,
    `ModelFileError` (from `inspect`), `StoreError`. Adding the same file again changes nothing.
    """
    if is_gguf(path):
        return add_text(store, path, inspect, options)
    name = _free(store, options.name or name_of(path.name))
    format_, inputs, outputs = inspect(path)
    if not options.name:
        name = _free(store, without_size(name, inputs))
    sha256 = blobs.sha256_of(path)
    try:
        stored = store.get(name)
    except UnknownModel:
        stored = None
    if stored is None:
        seen = _seen(inputs, outputs, options)
        variant = _variant(path, format_, sha256, seen, options)
        manifest = _new(name, seen, variant, options)
    else:
        same = next((v for v in stored.manifest.variants if v.sha256 == sha256), None)
        if same is not None:
            return stored.manifest
        seen = _seen(inputs, outputs, _as_stored(stored.manifest, options))
        variant = _variant(path, format_, sha256, seen, options)
        manifest = _extended(stored.manifest, variant)
    check_fits(manifest, variant, inputs, outputs)
    return store.add(path, manifest, variant.id)


def add_with_manifest(store: Store, path: Path, manifest_path: Path, inspect: Inspect) -> Manifest:
    """Add a file and the manifest that describes it (one variant, or the one whose `file` is the file's name).

    Raises as `add_file` does.
    """
    try:
        with manifest_path.open(encoding="utf-8") as file:
            text = file.read(LONGEST_TEXT + 1)
    except (OSError, UnicodeDecodeError) as e:
        raise ManifestError(f"{manifest_path} cannot be read: {e}.", "Give a TOML file.") from None
    manifest = parse_manifest(text, manifest_path.name)
    variants = [v for v in manifest.variants if v.file == path.name] or list(manifest.variants)
    if len(variants) != 1:
        raise ManifestError(f"{manifest_path.name}: no variant names the file {path.name!r}.", "Correct its `file`.")
    _, inputs, outputs = inspect(path)
    check_fits(manifest, variants[0], inputs, outputs)
    return store.add(path, manifest, variants[0].id)


def check_fits(
    manifest: Manifest, variant: Variant, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Raise `ManifestError` when the manifest does not describe a file with these tensors."""
    if manifest.task is not Task.TENSORS:
        Pipeline(manifest, variant, inputs, outputs)


def name_of(file_name: str) -> str:
    """A model's name from a file's.

    >>> name_of("YOLOX_nano (416).onnx")
    'yolox-nano-416'
    """
    stem = file_name.rsplit(".", 1)[0] if "." in file_name else file_name
    return re.sub(r"\.{2,}", ".", re.sub(r"[^a-z0-9.]+", "-", stem.lower())).strip("-.")[:64]


def without_size(name: str, inputs: Sequence[TensorSpec]) -> str:
    """The name without the size of the input at its end, which the manifest says: `yolox-nano`, not `yolox-nano-416`.

    >>> from nearfar.types.tensor import DType
    >>> without_size("yolox-nano-416", [TensorSpec("images", DType.FP32, (1, 3, 416, 416))])
    'yolox-nano'
    >>> without_size("resnet-18", [TensorSpec("images", DType.FP32, (1, 3, 224, 224))])
    'resnet-18'
    """
    found = re.fullmatch(r"(.*[a-z].*?)-(\d{2,5})(?:x(\d{2,5}))?", name)
    if found is None or len(inputs) != 1 or len(inputs[0].shape) != 4:
        return name
    sizes = {int(number) for number in found.groups()[1:] if number}
    return found[1].rstrip("-.") if sizes <= set(inputs[0].shape) else name


def _free(store: Store, name: str) -> str:
    """The name, when it is one and may be given to a model of the user's."""
    if not is_name(name):
        raise ManifestError(f"{name!r} cannot name a model.", "Give --name with a-z, 0-9, '.', '_', '-'.")
    store.check_free(name)
    return name


def _seen(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], options: AddOptions) -> Recognition:
    return recognise(
        inputs,
        outputs,
        task=options.task,
        kind=options.decoder,
        labels=options.labels,
        size=options.size,
        precision=options.precision,
    )


def _as_stored(manifest: Manifest, options: AddOptions) -> AddOptions:
    """Options for one more variant: what is stored decides; a flag that says otherwise is an error."""
    kind = manifest.decoder.kind if manifest.decoder else None
    given = {"task": (options.task, manifest.task.value), "decoder": (options.decoder, kind)}
    given["labels"] = (options.labels or None, manifest.labels)  # type: ignore[assignment]
    for flag, (asked, have) in given.items():
        if asked is not None and asked != have:
            raise ManifestError(
                f"--{flag} differs from that of the model {manifest.name!r}, which is stored already.",
                f"Leave it away, give another --name, or `nearfar models remove {manifest.name}` first.",
            )
    return msgspec.structs.replace(options, task=manifest.task.value, decoder=kind, labels=manifest.labels)


def _variant(path: Path, format_: str, sha256: str, seen: Recognition, options: AddOptions) -> Variant:
    format_ = _format(path, format_)
    suffix = {"onnx": ".onnx", "tflite": ".tflite", "openvino": ".xml"}.get(format_, ".bin")
    file = re.sub(r"[^A-Za-z0-9._+@-]+", "-", path.name).replace("..", ".").lstrip(".-+@")[-120:] or f"model{suffix}"
    return Variant(
        id=options.variant or f"{format_}-{seen.precision}",
        format=format_,
        precision=seen.precision,
        file=file,
        sha256=sha256,
        bytes=path.stat().st_size,
        layout=seen.layout,
        dtype=seen.dtype,
        runtimes=options.runtimes,
    )


def _format(path: Path, said: str) -> str:
    """The format by the file's own mark; an engine that loads several formats cannot tell by its name."""
    if said not in ("onnx", "litert", "tflite", "openvino"):
        return said
    with path.open("rb") as file:
        head = file.read(64)
    if head[4:8] == b"TFL3":  # schema.fbs, file_identifier
        return "tflite"
    return "openvino" if head.lstrip(b"\xef\xbb\xbf \r\n").startswith((b"<?xml", b"<net")) else "onnx"


def _new(name: str, seen: Recognition, variant: Variant, options: AddOptions) -> Manifest:
    raw: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "version": options.version,
        "task": seen.task.value,
        "description": options.description,
        "labels": options.labels or seen.labels,
        "licence": options.licence,
        "provenance": {"source": variant.file, "recognised": seen.reason, **options.provenance},
        "variants": [msgspec.to_builtins(variant)],
    }
    if seen.task is not Task.TENSORS:
        raw["input"] = {**seen.input, **options.input_fields}
        raw["decoder"] = {**seen.decoder, **options.decoder_fields}
    elif options.input_fields or options.decoder_fields:
        raise ManifestError(f"{name!r} has the task tensors, without [input] and [decoder].", "Give --task, --decoder.")
    return manifest_of(raw)


def _extended(manifest: Manifest, variant: Variant) -> Manifest:
    if any(v.id == variant.id for v in manifest.variants):
        raise ManifestError(
            f"Model {manifest.name!r} already has a variant {variant.id!r} with other contents.",
            f"Give --variant ID for one more, or --name for another model, or `nearfar models remove {manifest.name}`.",
        )
    raw = msgspec.to_builtins(variant)
    manifest_of({"schema": 1, "name": manifest.name, "task": "tensors", "variants": [raw]})  # its fields are checked
    return msgspec.structs.replace(manifest, variants=(*manifest.variants, variant))
