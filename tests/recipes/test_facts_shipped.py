"""The near model in the package is small, is the one its manifest names, and answers what it promises to answer."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from nearfar.models import embedded
from nearfar.models.manifest import Task
from recipes.facts import evaluate, llama2c
from recipes.facts.dialogues import UNKNOWN, dialogue
from recipes.facts.export import LARGEST, SHIPPED
from recipes.facts.prompt import TEMPLATE, messages, prompt_ids
from recipes.facts.vocabulary import BEGIN, END, Vocabulary

FILE = evaluate.EMBEDDED / "facts-q8_0.gguf"
QUESTIONS = 60  # of each part; the figures are measured on a thousand
SEED = 902


def need_engine() -> None:
    pytest.importorskip("xllamacpp", reason="needs the extra `language`")


@pytest.fixture(scope="module")
def ask() -> Iterator[evaluate.Ask]:
    need_engine()
    with evaluate.asking(FILE, slots=evaluate.SLOTS) as function:
        yield function


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load(evaluate.EMBEDDED / "vocabulary.json")


def test_the_manifest_names_the_files_that_are_there() -> None:
    manifest, files = embedded.read("facts")
    assert manifest.task is Task.CHAT
    assert manifest.licence == "Apache-2.0"
    for variant in manifest.variants:
        content = files[variant.id].read_bytes()
        assert len(content) == variant.bytes
        assert hashlib.sha256(content).hexdigest() == variant.sha256
    assert sum((evaluate.EMBEDDED / name).stat().st_size for name in SHIPPED) <= LARGEST


def test_the_record_is_about_these_files() -> None:
    record = json.loads((evaluate.EMBEDDED / "figures.json").read_text(encoding="utf-8"))
    manifest, _ = embedded.read("facts")
    assert record["training"]["seed"] == manifest.provenance["seed"]
    assert record["training"]["weights"] == manifest.provenance["parameters"] <= 3_000_000
    figures = record["files"][FILE.name]
    assert figures["bytes"] == FILE.stat().st_size
    for part in ("tables", "names", "phrasings"):
        assert figures[part]["exact"] >= 0.85
        assert figures[part]["unknown_recall"] >= 0.85


@pytest.mark.parametrize("part", ["tables", "names", "phrasings"])
def test_unseen_questions_are_answered(part: str, ask: evaluate.Ask) -> None:
    found = evaluate.score(evaluate.outcomes(ask, part, QUESTIONS, SEED))
    assert found["exact"] >= 0.8, found


def test_what_the_table_lacks_is_not_known(ask: evaluate.Ask) -> None:
    lacking = []
    for index in range(2000):
        d = dialogue("tables", SEED, index)
        if d.turns[-1].answer == UNKNOWN:
            lacking.append(d)
        if len(lacking) == 40:
            break
    said = [ask(messages(d)) for d in lacking]
    assert said.count(UNKNOWN) >= 34, [s for s in said if s != UNKNOWN]


def test_the_example_of_the_documentation(ask: evaluate.Ask) -> None:
    system = {"role": "system", "content": "[fridge] eggs: 6; milk: 2 bottles; brown sugar: 300 g"}

    def answer(question: str) -> str:
        return ask([system, {"role": "user", "content": question}])

    assert answer("fridge, how many eggs do I have?") == "You have 6 eggs."
    assert answer("How much brown sugar is left?") == "You have 300 g of brown sugar."
    assert answer("Do we have any butter?") == UNKNOWN


def test_llama_cpp_cuts_text_as_the_vocabulary_does(vocabulary: Vocabulary) -> None:
    """Through the engine's own port, the only way to its tokenizer."""
    need_engine()
    import xllamacpp as xlc

    p = xlc.CommonParams()
    p.model.path = str(FILE)
    p.n_ctx, p.n_parallel, p.verbosity, p.cache_ram_mib = 768, 1, -1, 0
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
    server = xlc.Server(p)

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return dict(json.loads(answer.read()))

    for index in range(40):
        d = dialogue("turns", SEED, index)
        text = post("/apply-template", {"messages": messages(d)})["prompt"]
        ids = post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
        assert ids == prompt_ids(vocabulary, d)
    for text in ("Grüße, 3 €?", "eggs\t\x01 “x”", "A" * 40):
        ids = post("/tokenize", {"content": text, "add_special": False})["tokens"]
        assert ids == vocabulary.encode(text)


def test_llama2c_and_llama_cpp_say_the_same(ask: evaluate.Ask, vocabulary: Vocabulary) -> None:
    interpreter = llama2c.Interpreter(evaluate.EMBEDDED / "facts-q80.bin")
    asked = [dialogue("tables", SEED, i) for i in range(12)]
    same = 0
    for d in asked:
        ids = interpreter.greedy(prompt_ids(vocabulary, d), (END, BEGIN), evaluate.LONGEST_ANSWER)
        same += vocabulary.decode(ids) == ask(messages(d))
    assert same >= 11  # 8 bits are rounded in two ways


def test_the_template_in_the_package_is_that_of_the_recipe() -> None:
    assert TEMPLATE.encode() in FILE.read_bytes()
