"""A manifest as TOML text: `parse_manifest(to_toml(m), "")` equals `m`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from nearfar.models.manifest import DECODER_FIELDS, Manifest


def to_toml(manifest: Manifest) -> str:
    """The text form of schema 1. Fields that hold their default are written too, so that the file explains itself."""
    plain = msgspec.to_builtins(manifest)
    head = ("schema", "name", "version", "task", "description", "labels", "licence")
    lines = [f"{key} = {_value(plain[key])}" for key in head]
    if plain["provenance"]:
        lines += _table("provenance", plain["provenance"])
    if manifest.input is not None:
        lines += _table("input", plain["input"])
    if manifest.decoder is not None:
        known = DECODER_FIELDS[manifest.decoder.kind]
        lines += _table("decoder", {key: plain["decoder"][key] for key in known})
    for variant in plain["variants"]:
        lines += ["", "[[variants]]", *(f"{_key(key)} = {_value(value)}" for key, value in variant.items())]
    return "\n".join(lines) + "\n"


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    return ["", f"[{name}]", *(f"{_key(key)} = {_value(value)}" for key, value in values.items())]


def _text(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped and JSON does not.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _text(key)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _text(value)
        case Mapping():
            return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
        case _:
            return "[" + ", ".join(_value(item) for item in value) + "]"
