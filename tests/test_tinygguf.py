"""The model of random weights that other tests use: its file is one, and the engine takes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nearfar.runtimes import gguf
from nearfar.runtimes.llamacpp import LlamaCppRuntime
from nearfar.runtimes.text import LoadedText, TextOptions
from nearfar.types.wire import Operation, TextContext
from tests import tinygguf


def asked(loaded: LoadedText, **body: object) -> dict[str, object]:
    pieces: list[bytes] = []
    loaded.run(
        Operation.COMPLETE,
        json.dumps({"temperature": 0, **body}).encode(),
        lambda piece: pieces.append(piece) or False,  # type: ignore[func-returns-value]
        TextContext(),
    )
    told: dict[str, object] = json.loads(pieces[-1])
    return told


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    facts = gguf.facts(tinygguf.write(tmp_path / "a.gguf", context=256))
    assert (facts.architecture, facts.context, facts.quantisation) == ("llama", 256, "f32")
    assert facts.chat and not facts.embedding
    assert gguf.facts(tinygguf.write(tmp_path / "b.gguf", embedding=True)).embedding


def test_the_same_seed_is_the_same_file(tmp_path: Path) -> None:
    one, two, other = (
        tinygguf.write(tmp_path / name, seed=seed).read_bytes() for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == two != other


def test_the_engine_answers_with_it_at_full_length(tmp_path: Path) -> None:
    engine = LlamaCppRuntime()
    if why := engine.available():
        pytest.skip(why)
    loaded = engine.load_text(tinygguf.write(tmp_path / "tiny.gguf"), TextOptions("tiny", slots=1))
    try:
        first, again = (asked(loaded, prompt="Hé, who goes there?", max_tokens=64) for _ in range(2))
    finally:
        loaded.close()
    assert first["choices"] == again["choices"]
    text = first["choices"][0]["text"]  # type: ignore[index]
    assert len(text) == 64 and set(text) <= set(tinygguf.WRITTEN)
