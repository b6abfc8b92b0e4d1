"""Text as the rules read it: without what hides a value from a rule but not from a person or a language model.

Characters that are not seen (zero-width, soft hyphen, control) are left out; full-width and other forms of letters and
digits become the plain ones (NFKC, where that is one character); digits of every script become 0 to 9; every dash
becomes '-', every blank ' ', every ideographic full stop '.'. Positions lead back to the text as it was given.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right

_DROPPED = "\x00"
_MOST_KNOWN = 20_000
"""Characters whose form is remembered; a text that uses more of them is read more slowly, not with more memory."""
_FULL_STOPS = "。．｡․"


def _form(codepoint: int) -> str:
    character = chr(codepoint)
    if character in "\t\n\r":
        return character
    kind = unicodedata.category(character)
    if kind in ("Cc", "Cf") or character in "\u034f\u115f\u1160\u3164\ufe0e\ufe0f":
        return _DROPPED
    if codepoint < 0x80:
        return character
    if kind == "Nd":
        return str(unicodedata.decimal(character))
    if character in _FULL_STOPS:
        return "."
    if character in "\u2028\u2029\x85":
        return "\n"
    plain = unicodedata.normalize("NFKC", character)
    if len(plain) == 1 and plain != character:
        character, kind = plain, unicodedata.category(plain)
    if kind == "Pd" or character == "\u2212":
        return "-"
    return " " if kind == "Zs" else character


def lowered(text: str) -> str:
    """In small letters and of the same length: the few characters that grow (such as `İ`) stay as they are."""
    low = text.lower()
    return low if len(low) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


class _Forms(dict[int, str]):
    def __missing__(self, codepoint: int) -> str:
        form = _form(codepoint)
        if len(self) < _MOST_KNOWN:
            self[codepoint] = form
        return form


_forms = _Forms()


class Folded:
    """`text` is what the rules read; `origin` maps a span of it back.

    >>> folded = Folded("٠١\u200b2")
    >>> folded.text, folded.origin(1, 3)
    ('012', (1, 4))
    """

    __slots__ = ("_shifted", "text")

    def __init__(self, given: str) -> None:
        self._shifted: list[int] = []
        text = given.translate(_forms)
        if _DROPPED in text:
            # The k-th character that is left out, at d, moves all that stand at d - k or later in what is left.
            dropped = [at for at, character in enumerate(text) if character == _DROPPED]
            self._shifted = [at - k for k, at in enumerate(dropped)]
            text = text.replace(_DROPPED, "")
        self.text = text

    @property
    def moved(self) -> bool:
        """Whether positions differ from those of the given text."""
        return bool(self._shifted)

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """The span of the given text that holds the characters `start` to `end` (start < end) of the folded one."""
        if not self._shifted:
            return start, end
        last = end - 1
        return start + bisect_right(self._shifted, start), last + bisect_right(self._shifted, last) + 1
