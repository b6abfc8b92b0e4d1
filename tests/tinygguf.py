"""A language model of a few thousand random weights as a GGUF file, written by hand: for tests that need an engine and
no knowledge.

    model = tiny(tmp_path)                  # a LabModel for tests.fleetlab
    write(tmp_path / "tiny.gguf", seed=7)   # the file alone

Its vocabulary is every byte, and every printable ASCII character as a token of its own, so that any text goes in and a
token of its output is one small letter, digit or blank. It never ends by itself: an answer is as long as `max_tokens`.
The same seed gives the same file, so that two nodes with it write the same greedy text.

Source of the form: the GGUF specification, version 3; names of tensors and keys as llama.cpp reads them.
"""

from __future__ import annotations

import hashlib
import string
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.models.manifest import manifest_of
from tests.fleetlab import LabModel

ALIGN = 32
WRITTEN = string.ascii_lowercase + string.digits + " "
"""What its answers are made of."""
TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_CONTROL, _UNKNOWN, _NORMAL, _BYTE = 3, 2, 1, 6


def write(
    path: Path,
    *,
    seed: int = 1,
    width: int = 32,
    layers: int = 2,
    heads: int = 4,
    context: int = 512,
    embedding: bool = False,
    template: str = TEMPLATE,
) -> Path:
    """Write a model of the architecture `llama` in float32. `embedding` makes it one for vectors (mean pooling)."""
    tokens, kinds = _vocabulary()
    values: dict[str, tuple[int, Any]] = {
        "general.architecture": (_STRING, "llama"),
        "general.name": (_STRING, "tiny"),
        "general.file_type": (_U32, 0),
        "llama.context_length": (_U32, context),
        "llama.embedding_length": (_U32, width),
        "llama.block_count": (_U32, layers),
        "llama.feed_forward_length": (_U32, 2 * width),
        "llama.attention.head_count": (_U32, heads),
        "llama.attention.head_count_kv": (_U32, heads),
        "llama.attention.layer_norm_rms_epsilon": (_F32, 1e-5),
        "llama.rope.dimension_count": (_U32, width // heads),
        "tokenizer.ggml.model": (_STRING, "llama"),
        "tokenizer.ggml.tokens": (_STRING, tokens),
        "tokenizer.ggml.scores": (_F32, [0.0] * len(tokens)),
        "tokenizer.ggml.token_type": (_I32, kinds),
        "tokenizer.ggml.unknown_token_id": (_U32, 0),
        "tokenizer.ggml.bos_token_id": (_U32, 1),
        "tokenizer.ggml.eos_token_id": (_U32, 2),
        "tokenizer.ggml.add_bos_token": (_BOOL, True),
        "tokenizer.ggml.add_space_prefix": (_BOOL, False),
    }
    if template:
        values["tokenizer.chat_template"] = (_STRING, template)
    if embedding:
        values["llama.pooling_type"] = (_U32, 1)
    path.write_bytes(_file(values, _weights(np.random.default_rng(seed), tokens, width, layers)))
    return path


def tiny(folder: Path, name: str = "tiny", **options: Any) -> LabModel:
    """The same as a model for `tests.fleetlab.Lab.node`; `options` are those of `write`."""
    file = write(folder / f"{name}.gguf", **options)
    data = file.read_bytes()
    variant = {
        "id": "gguf-f32",
        "format": "gguf",
        "precision": "fp32",
        "file": file.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
    }
    task = "embedding" if options.get("embedding") else "chat"
    return LabModel(manifest_of({"schema": 1, "name": name, "task": task, "variants": [variant]}), file)


def _vocabulary() -> tuple[list[str], list[int]]:
    printable = [chr(code) for code in range(33, 127)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *printable]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * (1 + len(printable))]
    return tokens, kinds


def _weights(random: np.random.Generator, tokens: Sequence[str], width: int, layers: int) -> dict[str, Any]:
    """Dimension 0 of the hidden state is the same for every token and no layer changes it: through it the last matrix
    says which tokens may be written at all."""

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Any:
        return (random.standard_normal((rows, columns)) * scale / np.sqrt(columns)).astype(np.float32)

    def onto_the_rest(rows: int, columns: int) -> Any:
        made = matrix(rows, columns)
        made[0] = 0
        return made

    embedded = matrix(len(tokens), width, np.sqrt(width))
    embedded[:, 0] = 2.0
    last = matrix(len(tokens), width, 8.0)
    written = {"\u2581" if character == " " else character for character in WRITTEN}
    last[:, 0] = [0.0 if token in written else -1000.0 for token in tokens]
    tensors: dict[str, Any] = {"token_embd.weight": embedded}
    for layer in range(layers):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": np.ones(width, np.float32),
            f"blk.{layer}.attn_q.weight": matrix(width, width, 2.0),
            f"blk.{layer}.attn_k.weight": matrix(width, width, 2.0),
            f"blk.{layer}.attn_v.weight": matrix(width, width),
            f"blk.{layer}.attn_output.weight": onto_the_rest(width, width),
            f"blk.{layer}.ffn_norm.weight": np.ones(width, np.float32),
            f"blk.{layer}.ffn_gate.weight": matrix(2 * width, width),
            f"blk.{layer}.ffn_up.weight": matrix(2 * width, width),
            f"blk.{layer}.ffn_down.weight": onto_the_rest(width, 2 * width),
        }
    return tensors | {"output_norm.weight": np.ones(width, np.float32), "output.weight": last}


def _file(values: Mapping[str, tuple[int, Any]], tensors: Mapping[str, Any]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for key, (kind, value) in values.items():
        head += _text(key)
        if isinstance(value, list):
            head += struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(_value(kind, item) for item in value)
        else:
            head += struct.pack("<I", kind) + _value(kind, value)
    data = b""
    for name, array in tensors.items():
        head += _text(name) + struct.pack("<I", array.ndim)
        head += struct.pack(f"<{array.ndim}Q", *reversed(array.shape)) + struct.pack("<IQ", 0, len(data))
        data += array.tobytes()
        data += bytes(-len(data) % ALIGN)
    return head + bytes(-len(head) % ALIGN) + data


def _value(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _text(value)
    return struct.pack({_U32: "<I", _I32: "<i", _F32: "<f", _BOOL: "<?"}[kind], value)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw
