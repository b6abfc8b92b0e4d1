"""Whether a decoded value fits a JSON schema: the part of draft 2020-12 that requests to language models use.

Checked: type, enum, const, properties, required, additionalProperties, items, prefixItems, minItems, maxItems,
uniqueItems, minLength, maxLength, minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf, anyOf, oneOf,
allOf, not, and `$ref` within the schema. `pattern` and `format` are not (a hostile pattern could take for ever), nor is
any other keyword: they are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MOST_DEPTH = 30
MOST_STEPS = 20_000


def misfit(value: Any, schema: Mapping[str, Any]) -> str:
    """What does not fit, with its place; empty when the value fits.

    A schema that is too deep or too large to follow counts as fitting, as nothing was seen that is wrong.

    >>> misfit({"eggs": "six"}, {"type": "object", "properties": {"eggs": {"type": "integer"}}})
    '$.eggs is not integer'
    """
    return _Checker(schema).check(value, schema, "$", 0)


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "number": (int, float),
    "integer": (int, float),
}  # fmt: skip


def _is(value: Any, name: Any) -> bool:
    if not isinstance(name, str) or name not in _TYPES:
        return True
    if isinstance(value, bool) and name != "boolean":
        return False
    if not isinstance(value, _TYPES[name]):
        return False
    return name != "integer" or not isinstance(value, float) or value.is_integer()


class _Checker:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._steps = 0

    def check(self, value: Any, schema: Any, at: str, depth: int) -> str:
        self._steps += 1
        if schema is False:
            return f"{at} is not allowed"
        if not isinstance(schema, Mapping) or depth > MOST_DEPTH or self._steps > MOST_STEPS:
            return ""
        if "$ref" in schema:
            return self.check(value, self._target(schema["$ref"]), at, depth + 1)
        types = schema.get("type")
        named = types if isinstance(types, list) else [types] if types is not None else []
        if named and not any(_is(value, name) for name in named):
            return f"{at} is not {' or '.join(map(str, named))}"
        if isinstance(schema.get("enum"), list) and not any(_equal(value, one) for one in schema["enum"]):
            return f"{at} is none of the {len(schema['enum'])} values allowed"
        if "const" in schema and not _equal(value, schema["const"]):
            return f"{at} is not the one value allowed"
        return (
            self._inside(value, schema, at, depth)
            or _bounds(value, schema, at)
            or self._combined(value, schema, at, depth)
        )

    def _inside(self, value: Any, schema: Mapping[str, Any], at: str, depth: int) -> str:
        if isinstance(value, dict):
            for name in _list(schema.get("required")):
                if isinstance(name, str) and name not in value:
                    return f"{at} lacks {name!r}"
            properties = schema.get("properties")
            properties = properties if isinstance(properties, Mapping) else {}
            rest = schema.get("additionalProperties", True)
            for name, part in value.items():
                if found := self.check(part, properties.get(name, rest), f"{at}.{name}"[:200], depth + 1):
                    return found
        elif isinstance(value, list):
            first = _list(schema.get("prefixItems"))
            for i, part in enumerate(value):
                wanted = first[i] if i < len(first) else schema.get("items", True)
                if found := self.check(part, wanted, f"{at}[{i}]"[:200], depth + 1):
                    return found
        return ""

    def _combined(self, value: Any, schema: Mapping[str, Any], at: str, depth: int) -> str:
        for part in _list(schema.get("allOf")):
            if found := self.check(value, part, at, depth + 1):
                return found
        for key in ("anyOf", "oneOf"):
            if key not in schema:
                continue
            fits = sum(not self.check(value, part, at, depth + 1) for part in _list(schema[key]))
            if fits == 0:
                return f"{at} fits none of {key}"
            if key == "oneOf" and fits > 1:
                return f"{at} fits {fits} of oneOf"
        if "not" in schema and not self.check(value, schema["not"], at, depth + 1):
            return f"{at} is what must not be"
        return ""

    def _target(self, reference: Any) -> Any:
        """What `#/$defs/name` points at; True (anything fits) for what points elsewhere or at nothing."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return True
        found: Any = self._root
        for part in reference[1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or part not in found:
                return True
            found = found[part]
        return found


def _bounds(value: Any, schema: Mapping[str, Any], at: str) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        tests: tuple[tuple[str, Callable[[float], bool]], ...] = (
            ("minimum", lambda limit: value >= limit),
            ("maximum", lambda limit: value <= limit),
            ("exclusiveMinimum", lambda limit: value > limit),
            ("exclusiveMaximum", lambda limit: value < limit),
            ("multipleOf", lambda limit: limit <= 0 or _multiple(value, limit)),
        )
    else:
        size = len(value) if isinstance(value, (str, list)) else 0
        low, high = ("minLength", "maxLength") if isinstance(value, str) else ("minItems", "maxItems")
        if not isinstance(value, (str, list)):
            return ""
        tests = ((low, lambda limit: size >= limit), (high, lambda limit: size <= limit))
        if isinstance(value, list) and schema.get("uniqueItems") is True and _repeats(value):
            return f"{at} repeats an item"
    for key, holds in tests:
        limit = schema.get(key)
        if isinstance(limit, (int, float)) and not isinstance(limit, bool) and not holds(limit):
            return f"{at} breaks {key} {limit:g}"
    return ""


def _multiple(value: float, step: float) -> bool:
    try:
        ratio = value / step
    except OverflowError:
        return True
    return not math.isfinite(ratio) or abs(ratio - round(ratio)) < 1e-9


def _repeats(items: Sequence[Any]) -> bool:
    return any(_equal(a, b) for i, a in enumerate(items[:200]) for b in items[:i])


def _equal(a: Any, b: Any) -> bool:
    """As JSON does: true is not 1."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
