"""A schema as a grammar: what is written fits, and what cannot be written says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nearfar.runtimes.jsongrammar import Unsupported, grammar_of
from nearfar.runtimes.text import LoadedText, TextOptions
from tests.contract.test_text import COMPLETE, ask
from tests.runtimes import tinygguf

NEXT = {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}
NODE = {"type": "object", "properties": {"v": {"type": "integer"}, "next": NEXT}, "required": ["v"]}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedText]:
    pytest.importorskip("xllamacpp")
    from nearfar.runtimes.llamacpp import LlamaCppRuntime

    path = tinygguf.llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf", context=1024)
    made = LlamaCppRuntime().load_text(path, TextOptions("tiny", slots=1))
    yield made
    made.close()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        ({"type": "boolean"}, lambda v: isinstance(v, bool)),
        ({"const": 'a"b\n\\'}, lambda v: v == 'a"b\n\\'),
        ({"enum": [1, "ü", None]}, lambda v: v in (1, "ü", None)),
        ({"type": "integer"}, lambda v: isinstance(v, int)),
        ({"type": "string", "minLength": 2, "maxLength": 4}, lambda v: 2 <= len(v) <= 4),
        ({"type": "array", "items": {"type": "null"}, "minItems": 2, "maxItems": 3}, lambda v: 2 <= len(v) <= 3),
        ({"type": "array", "maxItems": 0}, lambda v: v == []),
        ({"type": "object", "additionalProperties": False}, lambda v: v == {}),
        ({"properties": {"a": {"const": 1}, "b": {"const": 2}}}, lambda v: set(v) <= {"a", "b"}),
        ({"properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["b"]}, lambda v: "b" in v),
        ({"type": ["string", "null"], "maxLength": 3}, lambda v: v is None or len(v) <= 3),
        ({"anyOf": [{"const": 1}, {"const": 2}]}, lambda v: v in (1, 2)),
        ({"$ref": "#/$defs/n", "$defs": {"n": NODE}}, lambda v: isinstance(v["v"], int)),
    ],
)
def test_what_a_model_writes_by_it_fits_the_schema(loaded: LoadedText, schema: Any, fits: Any, seed: int) -> None:
    body = {"prompt": "x", "grammar": grammar_of(schema), "max_tokens": 700, "temperature": 1, "seed": seed}
    choice = ask(loaded, COMPLETE, **body)["choices"][0]
    assert choice["finish_reason"] == "stop", "these seeds end within the tokens allowed"
    assert fits(json.loads(choice["text"]))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "a"},
        {"type": "string", "format": "date"},
        {"type": "integer", "minimum": 3},
        {"allOf": [{"type": "object"}]},
        {"not": {}},
        {"$ref": "https://example.org/s"},
        {"$ref": "#/$defs/none"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"type": "array", "minItems": 5, "maxItems": 2},
        {"type": "array", "minItems": 10**9},
        {"type": "object", "required": ["x"]},
        {"enum": []},
        {"type": "nonsense"},
        "text",
        7,
    ],
)
def test_what_cannot_be_written_says_so(schema: Any) -> None:
    with pytest.raises(Unsupported):
        grammar_of(schema)


def test_a_schema_without_end_is_refused() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(200):
        schema = {"type": "array", "items": schema, "minItems": 1}
    with pytest.raises(Unsupported):
        grammar_of(schema)


def test_the_page_has_a_root(tmp_path: Path) -> None:
    assert "\nroot ::= object\n" in grammar_of({"type": "object"})
