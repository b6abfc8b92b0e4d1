"""Language models of some kilobytes with random weights, written where a test needs one. They answer nonsense.

The vocabulary is that of bytes, so that any text can be read and written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BYTES = 259
"""Tokens that are control words or single bytes; those after them are printable."""
CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def llama(
    path: Path,
    *,
    width: int = 32,
    layers: int = 1,
    heads: int = 2,
    shared: int = 1,
    wide: int = 64,
    context: int = 512,
    words: int = 0,
    seed: int = 1,
    template: str = CHATML,
    more: Mapping[str, int] = {},
) -> Path:
    """A model of Llama's architecture. `words` are further tokens, for a vocabulary of a real one's size."""
    gguf = pytest.importorskip("gguf")
    writer: Any = gguf.GGUFWriter(str(path), "llama")
    random = np.random.default_rng(seed)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(shared)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(0)
    if template:
        writer.add_chat_template(template)
    for key, value in more.items():
        writer.add_uint32(key, value)
    count = _vocabulary(writer, words)
    kv = shared * (width // heads)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32))

    add("token_embd.weight", count, width)
    output = random.standard_normal((count, width)).astype(np.float32)
    output[:BYTES] = 0.0  # it says what can be printed: half a character would come late, or never
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(layers):
        block = f"blk.{layer}"
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}.{name}.weight", np.ones(width, np.float32))
        for name, rows, columns in (
            ("attn_q", width, width), ("attn_k", kv, width), ("attn_v", kv, width), ("attn_output", width, width),
            ("ffn_gate", wide, width), ("ffn_up", wide, width), ("ffn_down", width, wide),
        ):  # fmt: skip
            add(f"{block}.{name}.weight", rows, columns)
    return _written(writer, path)


def lora(path: Path, *, width: int = 32, layers: int = 1, seed: int = 5, strength: float = 4.0) -> Path:
    """An adapter for `llama` of the same width and layers, strong enough to change what it says."""
    gguf = pytest.importorskip("gguf")
    writer: Any = gguf.GGUFWriter(str(path), "llama")
    random = np.random.default_rng(seed)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", strength)
    for layer in range(layers):
        for name in ("attn_q", "attn_output"):
            tensor = f"blk.{layer}.{name}.weight"
            writer.add_tensor(f"{tensor}.lora_a", random.standard_normal((2, width)).astype(np.float32))
            writer.add_tensor(f"{tensor}.lora_b", random.standard_normal((width, 2)).astype(np.float32))
    return _written(writer, path)


def _vocabulary(writer: Any, words: int) -> int:
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    kinds = [2, 3, 3] + [6] * 256  # unknown, control, byte
    printable = [chr(code) for code in range(32, 127)]
    tokens += ["\u2581" if char == " " else char for char in printable] + [f"w{number}" for number in range(words)]
    kinds += [1] * (len(printable) + words)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    return len(tokens)


def _written(writer: Any, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
