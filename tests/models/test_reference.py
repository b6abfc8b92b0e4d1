"""docs/reference-manifest.md: its example is a manifest, and every field, kind and value has its place in it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from nearfar.models.labels import BUILT_IN
from nearfar.models.manifest import (
    DECODER_FIELDS,
    Colour,
    DecoderSpec,
    InputSpec,
    Manifest,
    Resize,
    Task,
    Variant,
    parse_manifest,
)

TEXT = (Path(__file__).parents[2] / "docs" / "reference-manifest.md").read_text(encoding="utf-8")


def test_the_example_is_a_manifest() -> None:
    example = re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert example is not None
    assert parse_manifest(example[1], "reference-manifest.md").name == "yolox-nano"


WORDS = [
    *(f.name for cls in (Manifest, InputSpec, DecoderSpec, Variant) for f in msgspec.structs.fields(cls)),
    *(word for enum in (Task, Resize, Colour) for word in enum),
    *DECODER_FIELDS,
    *BUILT_IN,
]


@pytest.mark.parametrize("word", sorted({str(w) for w in WORDS}))
def test_every_word_is_described(word: str) -> None:
    assert f"`{word}`" in TEXT or f'`"{word}"`' in TEXT or f"`[{word}]`" in TEXT or f"`[[{word}]]`" in TEXT


@pytest.mark.parametrize("kind", DECODER_FIELDS)
def test_each_field_says_for_which_kinds_it_is(kind: str) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", TEXT.split("## `[decoder]`")[1].split("\n\n| Kind")[0], re.M))
    detector = kind != "classification"
    for field, kinds in rows.items():
        named = kinds == "all" or kind in kinds.split(", ") or (kinds == "detectors" and detector)
        assert named == (field in DECODER_FIELDS[kind]), (field, kind)
