"""Writes the near model as GGUF (version 3): header, metadata, tensors. Only numpy is needed.

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
from recipes.facts.model import EPSILON, THETA, Shape, Weights
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
