"""A file of a language model becomes a model by what it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nearfar.errors import ManifestError, ModelFileError
from nearfar.models.adding import AddOptions, add_file
from nearfar.models.manifest import Task
from nearfar.models.manifest_toml import to_toml
from nearfar.models.store import Store
from nearfar.models.textfile import name_of_text, text_format
from nearfar.runtimes.faketext import fake_text
from nearfar.runtimes.text import TextFacts

FACTS = TextFacts("llama", 260_000, 512, "q4_k_m", chat=True, licence="mit")


def inspect(facts: Any = FACTS) -> Any:
    return lambda path: ("llamacpp", facts, ())


def gguf(folder: Path, name: str = "Qwen2.5-0.5B-Q4_K_M.gguf", data: bytes = b"") -> Path:
    (folder / name).write_bytes(b"GGUF" + data)
    return folder / name


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Qwen2.5-0.5B-Instruct-Q4_K_M.gguf", "qwen2.5-0.5b-instruct"),
        ("tiny.Q8_0.gguf", "tiny"),
        ("model-f16.GGUF", "model"),
        ("IQ2_XS.gguf", "iq2-xs"),
        ("a b..c.gguf", "a-b.c"),
    ],
)
def test_a_name_leaves_the_quantisation_out(file: str, name: str) -> None:
    assert name_of_text(file) == name


def test_a_file_is_told_by_its_content(tmp_path: Path) -> None:
    assert text_format(gguf(tmp_path)) == "gguf"
    (tmp_path / "f").write_bytes(fake_text())
    assert text_format(tmp_path / "f") == "fake-text"
    (tmp_path / "o").write_bytes(b"\x08\x07")
    assert text_format(tmp_path / "o") == ""
    assert text_format(tmp_path / "absent") == ""
    assert text_format(tmp_path) == ""


def test_its_manifest_says_what_the_file_says(tmp_path: Path) -> None:
    manifest = add_file(Store(tmp_path / "s"), gguf(tmp_path), inspect())
    assert (manifest.name, manifest.task, manifest.licence) == ("qwen2.5-0.5b", Task.CHAT, "mit")
    (variant,) = manifest.variants
    assert (variant.id, variant.format, variant.precision) == ("gguf-q4_k_m", "gguf", "int4")
    assert manifest.provenance["recognised"] == "llama, 0.3 M parameters, q4_k_m"
    assert manifest.provenance["context"] == 512
    assert "[input]" not in to_toml(manifest)


def test_a_second_quantisation_is_a_variant_and_the_same_file_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    first = gguf(tmp_path)
    add_file(store, first, inspect())
    assert len(add_file(store, first, inspect()).variants) == 1
    second = gguf(tmp_path, "Qwen2.5-0.5B-Q8_0.gguf", b"other")
    manifest = add_file(store, second, inspect(TextFacts("llama", 260_000, 512, "q8_0", chat=True)))
    assert [variant.id for variant in manifest.variants] == ["gguf-q4_k_m", "gguf-q8_0"]
    third = gguf(tmp_path, "Qwen2.5-0.5B.gguf", b"third")
    with pytest.raises(ManifestError, match="--variant"):
        add_file(store, third, inspect())


def test_an_embedding_model_is_one(tmp_path: Path) -> None:
    facts = TextFacts("bert", 1, 512, "f16", embedding=True)
    assert add_file(Store(tmp_path / "s"), gguf(tmp_path), inspect(facts)).task is Task.EMBEDDING


def test_a_chat_model_may_be_served_for_vectors(tmp_path: Path) -> None:
    manifest = add_file(Store(tmp_path / "s"), gguf(tmp_path), inspect(), AddOptions(task="embedding"))
    assert manifest.task is Task.EMBEDDING


@pytest.mark.parametrize(
    "options",
    [
        AddOptions(task="classification"),
        AddOptions(labels="coco80"),
        AddOptions(decoder="yolox"),
        AddOptions(name="UPPER"),
    ],
)
def test_what_does_not_go_with_text_is_refused_and_nothing_is_stored(tmp_path: Path, options: AddOptions) -> None:
    store = Store(tmp_path / "s")
    before = store.list()
    with pytest.raises(ManifestError):
        add_file(store, gguf(tmp_path), inspect(), options)
    assert store.list() == before


def test_a_file_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no language model"):
        add_file(Store(tmp_path / "s"), gguf(tmp_path), lambda path: ("onnx", (), ()))
