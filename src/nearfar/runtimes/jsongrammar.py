"""A JSON schema as a tight grammar in GBNF, llama.cpp's own form (its grammars/README.md).

Tight: at most one blank after a comma or a colon. With the free white space of JSON a weak model can emit blanks until
its tokens are used up. And ours, as xllamacpp's own conversion of a schema goes through a library that, on
vocabularies of bytes, gives up with a warning and lets the model say anything.

What a property may follow is what is declared: properties that a schema leaves open are not invented, and come in the
order in which it names them, those that are required first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

MOST_RULES = 2000
MOST_REPEATED = 1000
_BASE = {
    "ws": '" "?',
    "char": r'[^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    "string": r'"\"" char* "\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,3})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "array": '"[" (value ("," ws value)*)? "]"',
    "object": '"{" (string ":" ws value ("," ws string ":" ws value)*)? "}"',
    "value": "object | array | string | number | boolean | null",
}
_SILENT = frozenset({"title", "description", "default", "examples", "example", "$schema", "$id", "$comment", "$defs",
                     "definitions", "strict", "x-guidance", "deprecated", "readOnly", "writeOnly"})  # fmt: skip
"""Keywords that ask nothing of a value."""


class Unsupported(Exception):
    """The schema asks for what is not written as a grammar here; the text names it."""


def grammar_of(schema: Any) -> str:
    """GBNF with the rule `root`. Raises `Unsupported`.

    >>> schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    >>> print(grammar_of(schema).splitlines()[-1])
    root ::= "{" "\\"n\\"" ":" ws integer "}"
    """
    return _Writer(schema).text()


class _Writer:
    def __init__(self, schema: Any) -> None:
        self._top = schema
        self._rules = dict(_BASE)
        self._named: dict[str, str] = {}
        self._rules["root"] = self._of(schema)

    def text(self) -> str:
        return "".join(f"{name} ::= {rule}\n" for name, rule in self._rules.items())

    def _of(self, schema: Any, depth: int = 0) -> str:
        """The right side of a rule."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise Unsupported("a schema that is no object")
        if depth > 32 or len(self._rules) > MOST_RULES:
            raise Unsupported("a schema of this size")
        if "$ref" in schema:
            self._only(schema, "$ref")
            return self._referred(schema["$ref"])
        if "const" in schema:
            self._only(schema, "const", "type")
            return _literal(schema["const"])
        if "enum" in schema:
            self._only(schema, "enum", "type")
            return _any(_literal(value) for value in _list(schema["enum"], "enum"))
        for word in ("anyOf", "oneOf"):
            if word in schema:
                self._only(schema, word, "type")
                return _any(self._rule(part, depth) for part in _list(schema[word], word))
        kind = schema.get("type")
        if isinstance(kind, list):
            rest = {key: value for key, value in schema.items() if key != "type"}
            return _any(self._rule({**_for(rest, one), "type": one}, depth) for one in _list(kind, "type"))
        if kind is None:
            kind = "object" if "properties" in schema else "array" if "items" in schema else None
        makers: dict[Any, Callable[[Mapping[str, Any], int], str]] = {
            "object": self._object, "array": self._array, "string": self._string,
        }  # fmt: skip
        if kind in makers:
            return makers[kind](schema, depth)
        if kind in ("integer", "number", "boolean", "null"):
            self._only(schema, "type")
            return str(kind)
        raise Unsupported(f"the type {str(kind)[:40]!r}" if kind else f"only {', '.join(map(str, schema))[:80]}")

    def _object(self, schema: Mapping[str, Any], depth: int) -> str:
        self._only(schema, "type", "properties", "required", "additionalProperties")
        properties = schema.get("properties") or {}
        required = schema.get("required") or []
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise Unsupported("properties or required of another form")
        if not properties:
            more = schema.get("additionalProperties", True)
            if required:
                raise Unsupported("required properties that are not described")
            if more is False:
                return '"{" "}"'
            if more is True or more == {}:
                return "object"
            pair = f'string ":" ws {self._rule(more, depth)}'
            return f'"{{" ({pair} ("," ws {pair})*)? "}}"'
        if not set(required) <= set(properties):
            raise Unsupported("required properties that are not described")
        pairs = {name: f'{_literal(name)} ":" ws {self._rule(part, depth)}' for name, part in properties.items()}
        first = [pairs[name] for name in properties if name in required]
        rest = [f'("," ws {pairs[name]})?' for name in properties if name not in required]
        if first:
            return " ".join(['"{"', ' "," ws '.join(first), *rest, '"}"'])
        spare = [pairs[name] for name in properties]
        ways = [" ".join([pair, *rest[place + 1 :]]) for place, pair in enumerate(spare)]
        return f'"{{" ({" | ".join(ways)})? "}}"'

    def _array(self, schema: Mapping[str, Any], depth: int) -> str:
        self._only(schema, "type", "items", "minItems", "maxItems")
        item = self._rule(schema.get("items", True), depth)
        least, most = _bounds(schema, "minItems", "maxItems")
        if most == 0:
            return '"[" "]"'
        more = f'("," ws {item}){{{max(0, least - 1)},{"" if most is None else most - 1}}}'
        return f'"[" {item} {more} "]"' if least else f'"[" ({item} {more})? "]"'

    def _string(self, schema: Mapping[str, Any], depth: int) -> str:
        self._only(schema, "type", "minLength", "maxLength")
        least, most = _bounds(schema, "minLength", "maxLength")
        if not least and most is None:
            return "string"
        return f'"\\"" char{{{least},{"" if most is None else most}}} "\\""'

    def _rule(self, schema: Any, depth: int) -> str:
        """The name of a rule for a part, or a part that needs none."""
        made = self._of(schema, depth + 1)
        if made in self._rules:
            return made
        name = f"r{len(self._rules)}"
        self._rules[name] = made
        return name

    def _referred(self, reference: Any) -> str:
        if reference in self._named:
            return self._named[reference]
        found: Any = self._top
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise Unsupported("a reference to another document")
        for step in reference.split("/")[1:]:
            if not isinstance(found, Mapping) or step not in found:
                raise Unsupported("a reference that leads nowhere")
            found = found[step]
        name = self._named[reference] = f"ref{len(self._named)}"
        self._rules[name] = ""  # its place, as it may refer to itself
        made = self._of(found)
        if made == name or made.startswith("ref"):
            raise Unsupported("a reference to a reference")
        self._rules[name] = made
        return name

    def _only(self, schema: Mapping[str, Any], *known: str) -> None:
        if unknown := set(schema) - set(known) - _SILENT:
            raise Unsupported(f"{sorted(map(str, unknown))[0][:40]!r}")


_OF_TYPE = {
    "object": ("properties", "required", "additionalProperties"), "array": ("items", "minItems", "maxItems"),
    "string": ("minLength", "maxLength"),
}  # fmt: skip


def _for(schema: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """The keywords that speak of values of this type; others are kept only when no type of ours has them."""
    others = {word for name, words in _OF_TYPE.items() if name != kind for word in words}
    return {key: value for key, value in schema.items() if key not in others}


def _bounds(schema: Mapping[str, Any], low: str, high: str) -> tuple[int, int | None]:
    least, most = schema.get(low, 0), schema.get(high)
    if not isinstance(least, int) or not (most is None or isinstance(most, int)):
        raise Unsupported(f"{low} or {high} that is no number")
    if not 0 <= least <= MOST_REPEATED or (most is not None and not least <= most <= MOST_REPEATED):
        raise Unsupported(f"{low} or {high} beyond {MOST_REPEATED}")
    return least, most


def _list(value: Any, word: str) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise Unsupported(f"an empty {word}")
    return value


def _any(ways: Any) -> str:
    return " | ".join(dict.fromkeys(ways))


def _literal(value: Any) -> str:
    """The JSON of a value as a text of the grammar."""
    said = msgspec.json.encode(value).decode()
    escaped = said.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
