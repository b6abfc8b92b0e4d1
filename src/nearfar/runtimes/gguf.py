"""What a GGUF file says of its model, read without an engine and without trusting it.

Source: the GGUF specification (ggml, docs/gguf.md), version 2 and 3; keys of the table "Standardized key-value pairs".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from nearfar.errors import ModelFileError
from nearfar.runtimes.modelfile import GGUF_MAGIC, read_head
from nearfar.runtimes.text import TextFacts
from nearfar.types.units import show_bytes

_SCALARS: Mapping[int, str] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MOST_KEYS = 1 << 16
_MOST_TENSORS = 1 << 20
_LONGEST_KEPT = 1 << 20
"""Bytes of a text that are kept; longer ones, and all arrays, are passed over."""
_BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 30: (1, 2),
}  # fmt: skip
"""Elements and bytes of a block of each tensor type whose sizes are widely known (ggml_type)."""
_FILE_TYPES: Mapping[int, str] = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k", 11: "q3_k_s", 12: "q3_k_m",
    13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s", 17: "q5_k_m", 18: "q6_k", 32: "bf16",
}  # fmt: skip


class Gguf(NamedTuple):
    """The head of a file: its values without arrays, lengths of these, and what its tensors take."""

    values: Mapping[str, Any]
    lengths: Mapping[str, int]
    parameters: int
    bytes: int
    """Of the tensors whose type is known."""

    def number(self, key: str, default: int = 0) -> int:
        """An integer of the model's own architecture, such as `block_count`."""
        value = self.values.get(f"{self.architecture}.{key}", default)
        return value if isinstance(value, int) and 0 <= value < 1 << 40 else default

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))[:64]

    @property
    def vocabulary(self) -> int:
        return self.lengths.get("tokenizer.ggml.tokens", 0)


class _Reader:
    def __init__(self, file: BinaryIO, size: int, name: str) -> None:
        self._file, self._size, self._name = file, size, name

    def take(self, count: int) -> bytes:
        data = self._file.read(count) if 0 <= count <= self._size else b""
        if len(data) != count:
            raise ModelFileError(f"{self._name} is truncated or damaged in its head.", "Fetch or convert it again.")
        return data

    def skip(self, count: int) -> None:
        if count < 0 or self._file.tell() + count > self._size:
            raise ModelFileError(f"{self._name} is truncated or damaged in its head.", "Fetch or convert it again.")
        self._file.seek(count, 1)

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        length = self.scalar("Q")
        if length > _LONGEST_KEPT:
            self.skip(length)
            return ""
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> tuple[Any, int | None]:
        """(value, None), or (None, length) of an array."""
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind]), None
        if kind == _STRING:
            return self.text(), None
        if kind != _ARRAY or depth > 2:
            raise ModelFileError(f"{self._name} has a value of the unknown kind {kind}.", "Convert it again.")
        inner, length = self.scalar("I"), self.scalar("Q")
        if inner in _SCALARS:
            self.skip(length * struct.calcsize("<" + _SCALARS[inner]))
        else:
            for _ in range(length):
                if inner == _STRING:
                    self.skip(self.scalar("Q"))
                else:
                    self.value(inner, depth + 1)
        return None, length


def read(path: Path) -> Gguf:
    """Raises `ModelFileError` for a file that is no GGUF, truncated, or not read by this version."""
    if read_head(path)[:4] != GGUF_MAGIC:
        raise ModelFileError(f"{path.name} is not a GGUF file.", "Give a .gguf file.")
    size = path.stat().st_size
    with path.open("rb") as file:
        reader = _Reader(file, size, path.name)
        reader.take(4)
        version, tensors, keys = reader.scalar("I"), reader.scalar("Q"), reader.scalar("Q")
        if version not in (2, 3):
            raise ModelFileError(f"{path.name} is GGUF version {version}.", "Convert it again: 2 and 3 are read.")
        if keys > _MOST_KEYS or tensors > _MOST_TENSORS:
            raise ModelFileError(f"{path.name} claims {keys} keys and {tensors} tensors.", "Do not use this file.")
        values: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        for _ in range(keys):
            key = reader.text()
            value, length = reader.value(reader.scalar("I"))
            if length is None:
                values[key] = value
            else:
                lengths[key] = length
        parameters = used = end = 0
        for _ in range(tensors):
            reader.text()
            count, rank = 1, reader.scalar("I")
            if rank > 8:
                raise ModelFileError(f"{path.name} has a tensor of {rank} dimensions.", "Do not use this file.")
            for _ in range(rank):
                count *= reader.scalar("Q")
            kind, offset = reader.scalar("I"), reader.scalar("Q")
            elements, each = _BLOCKS.get(kind, (0, 0))
            length = count // elements * each if elements else 0
            parameters, used, end = parameters + count, used + length, max(end, offset + length)
        align = values.get("general.alignment", 32)
        align = align if isinstance(align, int) and 0 < align <= 1 << 20 else 32
        start = -(-file.tell() // align) * align
    if start + end > size:
        told = f"{path.name} is truncated: its tensors need {show_bytes(start + end)}, the file has {show_bytes(size)}."
        raise ModelFileError(told, "Fetch it again.")
    return Gguf(values, lengths, parameters, used)


def facts(path: Path) -> TextFacts:
    """Raises `ModelFileError`, also for a file that holds no model of language."""
    head = read(path)
    if not head.architecture or not head.parameters:
        raise ModelFileError(f"{path.name} holds no weights of a model.", "Give the model's own .gguf file.")
    if not head.vocabulary:
        raise ModelFileError(f"{path.name} has no vocabulary.", "Convert it again with its tokenizer.")
    pooling = head.values.get(f"{head.architecture}.pooling_type", 0)
    return TextFacts(
        architecture=head.architecture,
        parameters=head.parameters,
        context=head.number("context_length"),
        quantisation=_FILE_TYPES.get(head.values.get("general.file_type", -1), "mixed"),
        embedding=bool(pooling) or "bert" in head.architecture,
        chat=bool(head.values.get("tokenizer.chat_template")),
        licence=str(head.values.get("general.license", ""))[:200],
    )


class Need(msgspec.Struct, frozen=True):
    """Bytes that a model takes when it is loaded, part by part."""

    weights: int
    keys_and_values: int
    work: int
    beside: int = 0
    """Of a draft model and of adapters."""
    kept: int = 0
    """Of prompts that were answered."""

    @property
    def total(self) -> int:
        return self.weights + self.keys_and_values + self.work + self.beside + self.kept

    def __str__(self) -> str:
        parts = f"{show_bytes(self.weights)} of weights + {show_bytes(self.keys_and_values)} of keys and values"
        parts += f" + {show_bytes(self.work)} to work in"
        if self.beside:
            parts += f" + {show_bytes(self.beside)} of draft and adapters"
        if self.kept:
            parts += f" + {show_bytes(self.kept)} of kept prompts"
        return f"{parts} = {show_bytes(self.total)}"


BATCH = 256
"""Tokens of a prompt that are read at once. On two AVX-512 cores 256 reads as fast as 2,048 (439 tokens/s of a model of
28 M parameters), and between two batches other conversations go on and a stop is heard."""
ENGINE = 16 << 20
"""Bytes that llama.cpp takes beside all that: measured, 10 to 25 MiB."""


def need(
    head: Gguf, context: int, slots: int, file_bytes: int, batch: int = BATCH, beside: int = 0, kept: int = 0
) -> Need:
    """What loading takes: the file, 2 bytes for each key and value (f16) of every token of every slot and layer, and
    activations of one batch in float32. Rotating or sliding caches take less; a refusal says how to ask for less."""
    layers = head.number("block_count", 1)
    width = head.number("embedding_length")
    heads = max(1, head.number("attention.head_count", 1))
    shared = head.number("attention.head_count_kv", heads) or heads
    key = head.number("attention.key_length", width // heads)
    value = head.number("attention.value_length", width // heads)
    cache = 2 * layers * context * slots * shared * (key + value)
    wide = head.number("feed_forward_length", 4 * width)
    work = 4 * batch * (6 * width + 2 * wide) + 4 * slots * head.vocabulary + ENGINE
    return Need(file_bytes, cache, work, beside, kept)


def need_beside(path: Path) -> int:
    """Bytes of an adapter's file. Raises `ModelFileError` when it is no GGUF, or no adapter."""
    head = read(path)
    if head.values.get("general.type") != "adapter":
        raise ModelFileError(f"{path.name} is no adapter.", "Give a LoRA adapter that was converted to GGUF.")
    return path.stat().st_size
