"""A long document in parts that a small model can read, cut where a reader would pause."""

from __future__ import annotations

import re

from nearfar.errors import InputError
from nearfar.language.tokens import estimate

_BREAKS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"(?<=[.!?])\s+"), re.compile(r"\s+"))
LEAST_TOKENS = 64


def chunks(document: str, most_tokens: int) -> list[str]:
    """Parts of at most `most_tokens` (estimated) that make up the document when put together again, nothing lost and
    nothing twice. Cut at an empty line if there is one in the second half of a part, else at a line break, the end of
    a sentence, a space, and only else in the middle of a word.

    Raises `InputError` when the parts would be too small to be read.
    """
    if most_tokens < LEAST_TOKENS:
        raise InputError(
            f"Parts of {most_tokens} tokens are too small to read.", f"Allow {LEAST_TOKENS} at least: a larger context."
        )
    parts = []
    at = 0
    while at < len(document):
        end = _end(document, at, most_tokens)
        parts.append(document[at:end])
        at = end
    return parts


def _end(document: str, start: int, most: int) -> int:
    """Where the part that begins at `start` ends."""
    low, high = start + 1, min(len(document), start + 8 * most)
    if estimate(document[start:high]) <= most:
        return high if high == len(document) else _pause(document, start, high)
    while low < high:  # the longest that fits
        middle = (low + high + 1) // 2
        if estimate(document[start:middle]) <= most:
            low = middle
        else:
            high = middle - 1
    return _pause(document, start, low)


def _pause(document: str, start: int, end: int) -> int:
    for pattern in _BREAKS:
        found = [m.end() for m in pattern.finditer(document, start + (end - start) // 2, end)]
        if found:
            return found[-1]
    return end
