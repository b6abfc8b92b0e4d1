"""Checks of plain values (as TOML or JSON gives them) that name the field in every message.

A checker takes the value and its path (`variants[0].layout`) and returns the value to keep, or raises `ManifestError`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nearfar.errors import ManifestError

Check = Callable[[Any, str], Any]


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()


class Field(NamedTuple):
    """One key of a table: how it is checked, and what it is when absent."""

    check: Check
    default: Any = REQUIRED


def show(value: object) -> str:
    """A value as it stands in a message: short, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(word: str, known: Sequence[str]) -> str:
    """` (did you mean 'x'?)` for the known word that is most alike, else an empty text.

    >>> nearest("lables", ["labels", "licence"])
    " (did you mean 'labels'?)"
    """
    found = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def table(raw: object, path: str, fields: Mapping[str, Field]) -> dict[str, Any]:
    """Every field of a table, checked, with defaults filled in; an unknown or a missing key is an error."""
    if not isinstance(raw, Mapping):
        raise ManifestError(f"{path or 'the manifest'} is {show(raw)}.", f"Make it a table with {', '.join(fields)}.")
    prefix = f"{path}." if path else ""
    for key in raw:
        if key not in fields:
            raise ManifestError(
                f"{prefix}{key} is not a field of a manifest{nearest(str(key), list(fields))}.",
                f"Use one of {', '.join(fields)}.",
            )
    values: dict[str, Any] = {}
    for key, field in fields.items():
        if key in raw:
            values[key] = field.check(raw[key], prefix + key)
        elif field.default is REQUIRED:
            raise ManifestError(
                f"{prefix}{key} is missing.", f"Add {key} = ... to {path or 'the top'} of the manifest."
            )
        else:
            values[key] = field.default
    return values


def text(longest: int = 500, empty: bool = True) -> Check:
    def check(value: Any, path: str) -> str:
        if not isinstance(value, str) or len(value) > longest or not (value or empty):
            raise ManifestError(f"{path} is {show(value)}.", f"Write a text of at most {longest} characters.")
        return value

    return check


def one_of(*allowed: str) -> Check:
    allowed = tuple(str(word) for word in allowed)  # members of a StrEnum show as plain texts

    def check(value: Any, path: str) -> str:
        if value not in allowed or not isinstance(value, str):
            guess = nearest(value, allowed) if isinstance(value, str) else ""
            raise ManifestError(f"{path} is {show(value)}{guess}.", f"Use one of {', '.join(allowed)}.")
        return value

    return check


def integer(least: int, most: int) -> Check:
    def check(value: Any, path: str) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ManifestError(f"{path} is {show(value)}.", f"Use a whole number from {least} to {most}.")
        return value

    return check


def number(least: float = -math.inf, most: float = math.inf, zero: bool = True) -> Check:
    """A finite number within the range; `zero=False` refuses 0."""

    def check(value: Any, path: str) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
            limits = "" if least == -math.inf else f" from {least:g} to {most:g}"
            raise ManifestError(f"{path} is {show(value)}.", f"Use a number{limits}.")
        if value == 0 and not zero:
            raise ManifestError(f"{path} is 0.", "Use any other number.")
        return float(value)

    return check


def boolean(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise ManifestError(f"{path} is {show(value)}.", "Use true or false.")
    return value


def list_of(check_item: Check, least: int, most: int) -> Check:
    def check(value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            raise ManifestError(f"{path} is {show(value)}.", f"Use a list of {least} to {most} entries.")
        return tuple(check_item(item, f"{path}[{i}]") for i, item in enumerate(value))

    return check
