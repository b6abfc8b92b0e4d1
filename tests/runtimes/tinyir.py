"""Language models of some kilobytes with random weights, in the forms that OpenVINO GenAI reads.

The vocabulary is that of bytes in the way of GPT-2, with two merged pairs; what it writes can be printed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearfar.runtimes import irfolder
from nearfar.runtimes.engine import load_engine
from tests.runtimes.tinygguf import CHATML

CONTROL = ["<unk>", "<s>", "</s>"]
MERGES = ["h e", "\u0120 t"]


def byte_tokens() -> list[str]:
    """GPT-2's character for each byte: printable ones stand for themselves, the others follow from U+0100 on."""
    printable = {*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256))
    return [chr(byte) if byte in printable else chr(256 + next(others)) for byte in range(256)]


def gguf_file(
    path: Path, *, width: int = 32, layers: int = 1, heads: int = 2, context: int = 512, seed: int = 1,
    template: str = CHATML, more: Mapping[str, Any] = {}, kind: str = "f16",
) -> Path:  # fmt: skip
    """A model of Llama's architecture. `more` are further keys of the file: flags and texts; `kind` is f16 or f32."""
    gguf = pytest.importorskip("gguf")
    writer: Any = gguf.GGUFWriter(str(path), "llama")
    random = np.random.default_rng(seed)
    half = width // heads
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(half)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(int(kind == "f16"))
    if template:
        writer.add_chat_template(template)
    for key, value in more.items():
        (writer.add_bool if isinstance(value, bool) else writer.add_string)(key, value)
    tokens = [*CONTROL, *byte_tokens(), *(pair.replace(" ", "") for pair in MERGES)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 3, *[1] * (len(tokens) - 3)])  # unknown, control; the rest is normal
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    dtype = np.float16 if kind == "f16" else np.float32

    def add(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(name, (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(dtype))

    add("token_embd.weight", len(tokens), width)
    output = np.zeros((len(tokens), width), np.float32)
    printable = [len(CONTROL) + byte for byte in range(32, 127)]
    output[printable] = random.standard_normal((len(printable), width))
    writer.add_tensor("output.weight", output.astype(dtype))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(layers):
        block = f"blk.{layer}"
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}.{name}.weight", np.ones(width, np.float32))
        for name, rows, columns in (
            ("attn_q", width, width), ("attn_k", half, width), ("attn_v", half, width), ("attn_output", width, width),
            ("ffn_gate", 2 * width, width), ("ffn_up", 2 * width, width), ("ffn_down", width, 2 * width),
        ):  # fmt: skip
            add(f"{block}.{name}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def folder(place: Path, *, context: int = 512, **options: Any) -> Path:
    """The same model as a folder that OpenVINO wrote."""
    place.mkdir()
    path = gguf_file(place / "m.gguf", context=context, **options)
    load_engine("openvino_genai", "").LLMPipeline(str(path), "CPU", enable_save_ov_model=True)
    path.unlink()
    width, heads = options.get("width", 32), options.get("heads", 2)
    config = {
        "model_type": "llama",
        "max_position_embeddings": context,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": options.get("layers", 1),
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
        "vocab_size": len(CONTROL) + 256 + len(MERGES),
    }
    (place / "config.json").write_text(json.dumps(config))
    return place


def packed(place: Path, **options: Any) -> Path:
    """And that folder as one file."""
    irfolder.pack(folder(place / "ir", **options), place / "model.tar")
    return place / "model.tar"
