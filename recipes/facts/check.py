"""Do all the files say the same?

    python -m recipes.facts.check --models DIR [--count 200]

The answers of GGUF f16 through llama.cpp are compared, text by text, with those of every other file: llama2.c fp32 and
q80 through the numpy interpreter, ONNX through onnxruntime, GGUF q8_0 and q4_0 through llama.cpp. f16, fp32 and ONNX
must agree everywhere (exit status 1 otherwise), with keys and values in float32 as in the other two; of the quantised
files the share that agrees is printed.
What was found is written to ``agreement.json`` there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recipes.facts import llama2c, onnx_file
from recipes.facts.dialogues import Dialogue, dialogue
from recipes.facts.evaluate import LONGEST_ANSWER, asking, rounded
from recipes.facts.prompt import messages, prompt_ids
from recipes.facts.vocabulary import BEGIN, END, Vocabulary

CHECK_SEED = 901
PARTS = ("tables", "names", "phrasings", "turns")
REFERENCE = "facts-f16.gguf"
MUST_AGREE = ("facts-fp32.bin", "facts.onnx")


def prompts(count: int) -> list[Dialogue]:
    """Dialogues of all parts, none of which training or the figures use."""
    return [dialogue(PARTS[i % len(PARTS)], CHECK_SEED, i) for i in range(count)]


def runner(path: Path) -> Callable[[Sequence[int], Sequence[int], int], list[int]]:
    """Greedy tokens of a llama2.c or ONNX file."""
    return onnx_file.greedy(path) if path.suffix == ".onnx" else llama2c.Interpreter(path).greedy


def answers(path: Path, vocabulary: Vocabulary, asked: Sequence[Dialogue]) -> list[str]:
    """Greedy answers of a file, whatever its format."""
    if path.suffix == ".gguf":
        with asking(path, precise=True) as ask:
            return [ask(messages(d)) for d in asked]
    run = runner(path)
    return [vocabulary.decode(run(prompt_ids(vocabulary, d), (END, BEGIN), LONGEST_ANSWER)) for d in asked]


def compare(folder: Path, count: int) -> dict[str, Any]:
    """Per file the share of answers equal to those of ``REFERENCE``, and the first that differs."""
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    asked = prompts(count)
    reference = answers(folder / REFERENCE, vocabulary, asked)
    out: dict[str, Any] = {"prompts": count, "right": sum(
        said == d.turns[-1].answer for said, d in zip(reference, asked, strict=True)
    ) / count}  # fmt: skip
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".gguf", ".onnx", ".bin")):
        if path.name in (REFERENCE, "tokenizer.bin"):
            continue
        said = answers(path, vocabulary, asked)
        differing = [i for i in range(count) if said[i] != reference[i]]
        out[path.name] = {"agree": 1 - len(differing) / count}
        if differing:
            i = differing[0]
            out[path.name]["first"] = [asked[i].system, asked[i].turns[-1].question, reference[i], said[i]]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the answers of all exported files.")
    parser.add_argument("--models", type=Path, required=True, help="what recipes.facts.export wrote")
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    found = compare(args.models, args.count)
    (args.models / "agreement.json").write_text(json.dumps(rounded(found), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))
    if any(found[name]["agree"] < 1 for name in MUST_AGREE):
        sys.exit("the full-precision files do not say the same")


if __name__ == "__main__":
    main()
