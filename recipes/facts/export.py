"""Writes the trained near model in every format, and ships two of them.

    python -m recipes.facts.export --train DIR [--out DIR/files] [--ship]

GGUF f16, q8_0, q4_0; llama2.c fp32 (``run.c``) and q80 (``runq.c``) with ``tokenizer.bin``; ONNX. ``--ship`` copies
GGUF q8_0, llama2.c q80 and the vocabulary into the package and stamps sizes and hashes into ``facts.toml``.
Then ``python -m recipes.facts.check --models DIR/files`` says whether they all say the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tomllib
from pathlib import Path

import numpy as np

from recipes.facts import gguf_file, llama2c, onnx_file
from recipes.facts.evaluate import EMBEDDED
from recipes.facts.model import Shape, Weights, load
from recipes.facts.vocabulary import Vocabulary

SHIPPED = ("facts-q8_0.gguf", "facts-q80.bin", "tokenizer.bin", "vocabulary.json")
LARGEST = 3_500_000  # bytes of all shipped files


def export(out: Path, shape: Shape, weights: Weights, vocabulary: Vocabulary) -> list[Path]:
    """Write every format into ``out``; needs the package onnx, not torch."""
    out.mkdir(parents=True, exist_ok=True)
    shape.check()
    for kind in gguf_file.FILE_TYPES:
        gguf_file.write(out / f"facts-{kind}.gguf", shape, weights, vocabulary, kind)
    # the weights of the f16 file exactly, so that the full-precision files can say the same even where it is close
    half = {name: w.astype(np.float16).astype(np.float32) if w.ndim == 2 else w for name, w in weights.items()}
    llama2c.write_fp32(out / "facts-fp32.bin", shape, half)
    llama2c.write_q80(out / "facts-q80.bin", shape, weights)
    (out / "tokenizer.bin").write_bytes(vocabulary.llama2c())
    vocabulary.save(out / "vocabulary.json")
    onnx_file.write(out / "facts.onnx", shape, half)
    return sorted(p for p in out.iterdir() if p.suffix in (".gguf", ".bin", ".onnx"))


def stamp(manifest: Path) -> None:
    """Put the sizes and hashes of the files beside it into the manifest."""
    text = manifest.read_text(encoding="utf-8")
    for variant in tomllib.loads(text)["variants"]:
        content = (manifest.parent / variant["file"]).read_bytes()
        for key, old, new in (
            ("sha256", f'"{variant["sha256"]}"', f'"{hashlib.sha256(content).hexdigest()}"'),
            ("bytes", str(variant["bytes"]), str(len(content))),
        ):
            head, mark, tail = text.partition(f'file = "{variant["file"]}"')
            text = head + mark + tail.replace(f"{key} = {old}", f"{key} = {new}", 1)
    manifest.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the trained near model as GGUF, llama2.c and ONNX.")
    parser.add_argument("--train", type=Path, required=True, help="directory of recipes.facts.train")
    parser.add_argument("--out", type=Path, help="default: files/ in the training directory")
    parser.add_argument("--ship", action="store_true", help="copy what the package carries and stamp its manifest")
    args = parser.parse_args()
    out = args.out or args.train / "files"
    paths = export(out, *load(args.train / "weights.npz"), Vocabulary.load(args.train / "vocabulary.json"))
    print(json.dumps({p.name: p.stat().st_size for p in paths}))
    if args.ship:
        total = sum((out / name).stat().st_size for name in SHIPPED)
        if total > LARGEST:
            raise SystemExit(f"the shipped files have {total} bytes, more than {LARGEST}: make the network smaller")
        EMBEDDED.mkdir(parents=True, exist_ok=True)
        for name in SHIPPED:
            shutil.copyfile(out / name, EMBEDDED / name)
        if (EMBEDDED / "facts.toml").exists():
            stamp(EMBEDDED / "facts.toml")


if __name__ == "__main__":
    main()
