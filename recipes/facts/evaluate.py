"""Asks the exported model what training never saw, through llama.cpp, and counts answers that are right to the letter.

    python -m recipes.facts.evaluate [--train DIR] [--count 1000] [--write]

Greedy, one question a conversation (part ``turns``: the last of two to four). The seed of the tests, 900, is none that
a training run may have. With ``--train`` every GGUF in ``DIR/files`` is measured, without it the shipped one.
``--write`` puts ``figures.json`` into the package, with the record of the training. Needs the extra ``language``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on a busy host

from recipes.facts.dialogues import PARTS, TRAINING, UNKNOWN, Dialogue, dialogue
from recipes.facts.prompt import messages

EMBEDDED = Path(__file__).parents[2] / "src/nearfar/models/embedded/facts"
TEST_SEED = 900
TEST_PARTS = tuple(part for part in PARTS if part not in TRAINING)
SHIPPED = "facts-q8_0.gguf"
SLOTS = 4
LONGEST_ANSWER = 96  # tokens

Ask = Callable[[list[dict[str, str]]], str]


@contextmanager
def asking(path: Path, slots: int = SLOTS, precise: bool = False) -> Iterator[Ask]:
    """A function (chat messages) -> greedy answer of the GGUF at ``path``, usable from ``slots`` threads.

    ``precise`` keeps keys and values in float32 instead of the float16 that llama.cpp is content with.
    """
    import xllamacpp as xlc

    p = xlc.CommonParams()
    p.model.path = str(path)
    p.n_ctx = 768 * slots
    p.n_parallel = slots
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
    p.cache_ram_mib = 0
    p.verbosity = -1
    p.use_jinja = True
    if precise:
        p.cache_type_k = p.cache_type_v = xlc.ggml_type.GGML_TYPE_F32
    server = xlc.Server(p)

    def ask(said: list[dict[str, str]]) -> str:
        answer = server.handle_chat_completions(
            {"messages": said, "temperature": 0, "max_tokens": LONGEST_ANSWER, "cache_prompt": False}
        )
        if "choices" not in answer:
            raise RuntimeError(f"llama.cpp did not answer: {answer}")
        return str(answer["choices"][0]["message"]["content"])

    yield ask


def outcomes(ask: Ask, part: str, count: int, seed: int = TEST_SEED) -> Iterable[tuple[Dialogue, str]]:
    """The dialogues of a part with the answer given to each last question."""
    asked = [dialogue(part, seed, i) for i in range(count)]
    with ThreadPoolExecutor(SLOTS) as pool:
        yield from zip(asked, pool.map(lambda d: ask(messages(d)), asked), strict=True)


def score(results: Iterable[tuple[Dialogue, str]]) -> dict[str, Any]:
    """Shares: exact, unknown recall (of what the table lacks), false unknown (of what it has); exact by intent."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    false = 0
    for d, said in results:
        turn = d.turns[-1]
        total[turn.intent] += 1
        right[turn.intent] += said == turn.answer
        false += said == UNKNOWN and turn.answer != UNKNOWN
    lacking = [intent for intent in total if intent.startswith("unknown.")]
    lacks = sum(total[intent] for intent in lacking)
    has = sum(total.values()) - lacks
    return {
        "count": sum(total.values()),
        "exact": sum(right.values()) / max(1, sum(total.values())),
        "unknown_recall": sum(right[intent] for intent in lacking) / max(1, lacks),
        "false_unknown": false / max(1, has),
        "by_intent": {intent: [right[intent], total[intent]] for intent in sorted(total)},
    }


def wrong(results: Iterable[tuple[Dialogue, str]]) -> list[dict[str, str]]:
    """What went wrong, to read."""
    return [
        {"system": d.system, "question": d.turns[-1].question, "right": d.turns[-1].answer, "said": said}
        for d, said in results
        if said != d.turns[-1].answer
    ]


def rounded(value: Any) -> Any:
    """Floats to four places, at any depth."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the near model.")
    parser.add_argument("--train", type=Path, help="directory of recipes.facts.train, exported")
    parser.add_argument("--count", type=int, default=1000, help="questions a part; a quarter for files not shipped")
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers a part")
    parser.add_argument("--write", action="store_true", help="write figures.json beside the shipped model")
    args = parser.parse_args()
    folder = args.train / "files" if args.train else EMBEDDED
    files: dict[str, Any] = {}
    for path in sorted(folder.glob("*.gguf")):
        files[path.name] = {"bytes": path.stat().st_size}
        with asking(path) as ask:
            for part in TEST_PARTS:
                results = list(outcomes(ask, part, args.count if path.name == SHIPPED else args.count // 4))
                files[path.name][part] = score(results)
                print(path.name, part, json.dumps(rounded(files[path.name][part])), file=sys.stderr)
                for case in wrong(results)[: args.show]:
                    print(part, json.dumps(case), file=sys.stderr)
    record: dict[str, Any] = {
        "model": "facts",
        "date": datetime.date.today().isoformat(),
        "test_seed": TEST_SEED,
        "files": files,
        "versions": {"python": platform.python_version(), "xllamacpp": metadata.version("xllamacpp")},
    }
    for name, path in (("training", folder / "../training.json"), ("agreement", folder / "agreement.json")):
        if path.exists():
            record[name] = json.loads(path.read_text(encoding="utf-8"))
    if args.write:
        (EMBEDDED / "figures.json").write_text(json.dumps(rounded(record), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rounded(record)))


if __name__ == "__main__":
    main()
