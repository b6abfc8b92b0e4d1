"""Writes the near model as GGUF (version 3): header, metadata, tensors; and reads it back. Only numpy is needed.

Layout after ggml-org's GGUF specification. Matrices come as f16, Q8_0 or Q4_0, norms as f32. The output is tied to the
embedding, so there is no ``output.weight``. llama.cpp's ``llama`` rotates neighbouring pairs, as this model does:
no weight is permuted.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recipes.facts import blocks
from recipes.facts.model import EPSILON, THETA, Shape, Weights, sizes
from recipes.facts.prompt import TEMPLATE
from recipes.facts.vocabulary import BEGIN, BYTES, BYTES_FROM, END, UNKNOWN_ID, Vocabulary

ALIGNMENT = 32
TENSOR_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}
FILE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 7}
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
NAMES = {
    "attention_norm": "attn_norm",
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "w1": "ffn_gate",
    "w2": "ffn_down",
    "w3": "ffn_up",
}


def tensor_name(name: str) -> str:
    """llama.cpp's name of a weight."""
    if name in ("embedding", "norm"):
        return {"embedding": "token_embd.weight", "norm": "output_norm.weight"}[name]
    layer, _, kind = name.partition(".")
    return f"blk.{layer}.{NAMES[kind]}.weight"


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """Type and content of a metadata value: bool, int (u32), float (f32), str, or a list of one of these (int: i32)."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    head = {str: 8, int: 5, float: 6}[type(value[0])]
    body = b"".join(_text(v) if head == 8 else struct.pack("<i" if head == 5 else "<f", v) for v in value)
    return struct.pack("<IIQ", 9, head, len(value)) + body


def metadata(shape: Shape, vocabulary: Vocabulary, kind: str, name: str) -> dict[str, Any]:
    """Everything llama.cpp must know beside the tensors."""
    types = [BYTE if BYTES_FROM <= i < BYTES_FROM + BYTES else NORMAL for i in range(len(vocabulary))]
    types[UNKNOWN_ID], types[BEGIN], types[END] = UNKNOWN, CONTROL, CONTROL
    return {
        "general.architecture": "llama",
        "general.name": name,
        "general.license": "apache-2.0",
        "general.description": "Answers questions about a small table of facts; trained by recipes/facts of nearfar.",
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
        "general.alignment": ALIGNMENT,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.width,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.hidden,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": EPSILON,
        "llama.rope.dimension_count": shape.head,
        "llama.rope.freq_base": THETA,
        "llama.vocab_size": len(vocabulary),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [p.replace(" ", "\u2581") for p in vocabulary.pieces],
        "tokenizer.ggml.scores": [float(s) for s in vocabulary.scores],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": BEGIN,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.eot_token_id": BEGIN,  # ends an answer, too, as in llama2.c
        "tokenizer.ggml.unknown_token_id": UNKNOWN_ID,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": TEMPLATE,
    }


def packed(array: np.ndarray, kind: str) -> bytes:
    """The bytes of a tensor."""
    if kind == "f32":
        return array.astype("<f4").tobytes()
    if kind == "f16":
        return array.astype("<f2").tobytes()
    return (blocks.q8_0 if kind == "q8_0" else blocks.q4_0)(array).tobytes()


def write(path: Path, shape: Shape, weights: Weights, vocabulary: Vocabulary, kind: str, name: str = "facts") -> None:
    """Write ``weights`` as ``kind``: f16, q8_0 or q4_0 (whose embedding, which is the output too, stays q8_0)."""
    kinds = {n: "f32" if w.ndim == 1 else "q8_0" if (n, kind) == ("embedding", "q4_0") else kind
             for n, w in weights.items()}  # fmt: skip
    meta: Mapping[str, Any] = metadata(shape, vocabulary, kind, name)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(weights), len(meta))
    head += b"".join(_text(key) + _value(value) for key, value in meta.items())
    body = b""
    for n, w in weights.items():
        head += _text(tensor_name(n)) + struct.pack("<I", w.ndim) + struct.pack(f"<{w.ndim}Q", *reversed(w.shape))
        head += struct.pack("<IQ", TENSOR_TYPES[kinds[n]], len(body))
        raw = packed(w, kinds[n])
        body += raw + bytes(-len(raw) % ALIGNMENT)
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + body)


class _Reader:
    """Takes the content of a GGUF file apart, front to back."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def one(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def text(self) -> str:
        size = self.one("Q")
        self.at += size
        return self.content[self.at - size : self.at].decode()

    def value(self, kind: int) -> Any:
        """A metadata value of one of the types that ``_value`` writes."""
        if kind == 8:
            return self.text()
        if kind == 9:
            inner, size = self.one("I"), self.one("Q")
            return [self.value(inner) for _ in range(size)]
        return self.one({4: "I", 5: "i", 6: "f", 7: "?"}[kind])


def unpacked(raw: np.ndarray, kind: int) -> np.ndarray:
    """The bytes of a tensor of one of ``TENSOR_TYPES`` as float32."""
    if kind in (0, 1):
        return raw.view("<f4" if kind == 0 else "<f2").astype(np.float32)
    return np.asarray((blocks.from_q8_0 if kind == 8 else blocks.from_q4_0)(raw), np.float32)


def read(path: Path) -> tuple[Shape, Weights]:
    """Shape and weights of a file that ``write`` wrote, dequantised to float32. ValueError for any other file."""
    r = _Reader(path.read_bytes())
    if r.content[:8] != struct.pack("<4sI", b"GGUF", 3):
        raise ValueError(f"{path} is no GGUF file of version 3")
    r.at = 8
    tensors, entries = r.one("Q"), r.one("Q")
    meta = {r.text(): r.value(r.one("I")) for _ in range(entries)}
    found = []
    for _ in range(tensors):
        name = r.text()
        size = [r.one("Q") for _ in range(r.one("I"))][::-1]
        found.append((name, size, r.one("I"), r.one("Q")))
    start = r.at + -r.at % ALIGNMENT
    arrays = {}
    for name, size, kind, at in found:
        many = int(np.prod(size))
        each = {0: 4, 1: 2, 2: 18 / blocks.BLOCK, 8: 34 / blocks.BLOCK}[kind]
        raw = np.frombuffer(r.content, np.uint8, int(many * each), start + at)
        arrays[name] = unpacked(raw, kind).reshape(size)
    shape = Shape(
        meta["llama.embedding_length"], meta["llama.block_count"], meta["llama.attention.head_count"],
        meta["llama.attention.head_count_kv"], meta["llama.feed_forward_length"], meta["llama.vocab_size"],
        meta["llama.context_length"],
    )  # fmt: skip
    return shape, {name: arrays[tensor_name(name)] for name in sizes(shape)}
