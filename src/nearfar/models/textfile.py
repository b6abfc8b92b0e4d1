"""A file of a language model into the store: what it says of itself becomes its manifest."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nearfar.errors import ManifestError, ModelFileError, UnknownModel
from nearfar.models import blobs
from nearfar.models.manifest import LANGUAGE, Manifest, Task, Variant, manifest_of
from nearfar.models.store import Store
from nearfar.types.ids import is_name

if TYPE_CHECKING:
    from nearfar.models.adding import AddOptions

_MAGIC = b"GGUF"
_PACKED = b"nearfar-openvino-text\0"
"""First bytes of a tar that holds a folder of OpenVINO's: the name of its first member."""
_FAKE = b"nearfar-fake-text"
_HEAD = 4096
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "q8_0": "int8", "int8": "int8", "int4": "int4"}
_QUANTISATION = re.compile(r"[-_.](f32|f16|bf16|i?q[1-8](_[0-9a-z]+)*|(fp16|int8|int4)([-_]ov)?)$", re.IGNORECASE)


def text_format(path: Path) -> str:
    """`gguf`, `openvino-text` or `fake-text` by the file's own mark; "" for any other, and for what cannot be
    read: that is told elsewhere."""
    if not path.is_file():  # a pipe would be waited for
        return ""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return ""
    if head[:4] == _MAGIC:
        return "gguf"
    if head.startswith(_PACKED):
        return "openvino-text"
    return "fake-text" if _FAKE in head and b"\0" not in head else ""


def name_of_text(file_name: str) -> str:
    """A model's name from a file's, without the quantisation, which tells a variant.

    >>> name_of_text("Qwen2.5-0.5B-Instruct-Q4_K_M.gguf"), name_of_text("Qwen3-1.7B-int4-ov.tar")
    ('qwen2.5-0.5b-instruct', 'qwen3-1.7b')
    """
    stem = file_name.removesuffix(".tar")
    stem = stem[:-5] if stem.lower().endswith(".gguf") else stem
    stem = _QUANTISATION.sub("", stem)
    return re.sub(r"\.{2,}", ".", re.sub(r"[^a-z0-9.]+", "-", stem.lower())).strip("-.")[:64]


def add_text(store: Store, path: Path, inspect: Callable[[Path], Any], options: AddOptions) -> Manifest:
    """As `adding.add_file`; `inspect` gives (runtime, facts, ()). Raises `ManifestError`, `ModelFileError`,
    `StoreError`. A name that is stored already gets the file as one more variant."""
    if options.input_fields or options.decoder_fields or options.labels or options.decoder or options.size:
        raise ManifestError(f"{path.name} takes text: it has no picture and no classes.", "Leave those flags away.")
    name = options.name or name_of_text(path.name)
    if not is_name(name):
        raise ManifestError(f"{name!r} cannot name a model.", "Give --name with a-z, 0-9, '.', '_', '-'.")
    store.check_free(name)
    _, facts, _ = inspect(path)
    if not hasattr(facts, "quantisation"):
        raise ModelFileError(f"{path.name} holds no language model.", "Give the model's own .gguf file.")
    task = Task.EMBEDDING if facts.embedding else Task.CHAT
    if options.task is not None and options.task != task:
        if options.task not in LANGUAGE:
            raise ManifestError(f"{path.name} is a language model.", "Use --task chat or --task embedding.")
        task = Task(options.task)
    format_ = text_format(path)
    sha256 = blobs.sha256_of(path)
    variant = Variant(
        id=options.variant or f"{format_}-{facts.quantisation}",
        format=format_,
        precision=options.precision or _precision(facts.quantisation),
        file=re.sub(r"[^A-Za-z0-9._+@-]+", "-", path.name).replace("..", ".").lstrip(".-+@")[-120:] or "model.gguf",
        sha256=sha256,
        bytes=path.stat().st_size,
        runtimes=options.runtimes,
    )
    raw = msgspec.to_builtins(variant)
    try:
        stored = store.get(name).manifest
    except UnknownModel:
        recognised = f"{facts.architecture}, {_millions(facts.parameters)} parameters, {facts.quantisation}"
        manifest = manifest_of(
            {
                "schema": 1,
                "name": name,
                "version": options.version,
                "task": task.value,
                "description": options.description,
                "licence": options.licence or facts.licence,
                "provenance": {
                    "source": variant.file,
                    "recognised": recognised,
                    "parameters": facts.parameters,
                    "context": facts.context,
                    **options.provenance,
                },
                "variants": [raw],
            }
        )
    else:
        if any(v.sha256 == sha256 for v in stored.variants):
            return stored
        if stored.task is not task or any(v.id == variant.id for v in stored.variants):
            raise ManifestError(
                f"Model {name!r} is stored already: {stored.task.value}, {', '.join(v.id for v in stored.variants)}.",
                f"Give --variant ID or another --name, or `nearfar models remove {name}` first.",
            )
        manifest_of({"schema": 1, "name": name, "task": task.value, "variants": [raw]})  # its fields are checked
        manifest = msgspec.structs.replace(stored, variants=(*stored.variants, variant))
    return store.add(path, manifest, variant.id)


def _precision(quantisation: str) -> str:
    if quantisation in _PRECISIONS:
        return _PRECISIONS[quantisation]
    return "int4" if quantisation.startswith(("q4", "iq4")) else "mixed"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count < 1e9 else f"{count / 1e9:.2f} G"
