"""Keys and the patterns that match them."""

from __future__ import annotations


def matches(pattern: str, key: str) -> bool:
    """Whether a key matches a pattern of names, `*` (one part) and `**` (any number of parts).

    >>> matches("a/*/c", "a/b/c"), matches("a/**", "a"), matches("a/*", "a/b/c")
    (True, True, False)
    """
    return _matches(pattern.split("/"), key.split("/"))


def _matches(pattern: list[str], key: list[str]) -> bool:
    if not pattern:
        return not key
    if pattern[0] == "**":
        return any(_matches(pattern[1:], key[i:]) for i in range(len(key) + 1))
    return bool(key) and pattern[0] in ("*", key[0]) and _matches(pattern[1:], key[1:])
