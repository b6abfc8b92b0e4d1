"""Values replaced by placeholders such as `<EMAIL_1>`, and put back into what comes home.

The same value has the same placeholder in the whole conversation, in the order of first appearance, so the next turn
of a conversation is redacted to the same beginning. A placeholder that already stands in the text is never given out.
Nothing is kept between requests: the conversation itself holds the values, and whoever asks holds the conversation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from nearfar.language.privacy.findings import Finding, Kind, merged

PLACEHOLDER = re.compile(r"<([A-Z][A-Z_]{0,19})_(\d{1,9})>")
MOST_VALUES = 256
"""Different values in one conversation; one with more is not redacted but stays near."""
LEAST_EVERYWHERE = 4
"""Characters from which on a value is replaced wherever it stands, also where no rule would find it."""
_MOST_ROUNDS = 8

Find = Callable[[str], Sequence[Finding]]


class Redaction:
    """Which placeholder stands for which value. It shows and encodes no value, whoever prints or logs it."""

    __slots__ = ("_prefixes", "_values")

    def __init__(self, values: Mapping[str, str]) -> None:
        """`values`: placeholder -> value."""
        self._values = dict(values)
        self._prefixes = frozenset(name[:size] for name in self._values for size in range(1, len(name)))

    def __repr__(self) -> str:
        return f"Redaction({', '.join(self._values)})"

    def __len__(self) -> int:
        return len(self._values)

    @property
    def placeholders(self) -> tuple[str, ...]:
        return tuple(self._values)

    def restore(self, text: str, *, in_json: bool = False) -> str:
        """The text with the values put back. `in_json`: the text is JSON itself (a tool's arguments), and a value is
        written as it stands between its quotes. Placeholders that were not given out stay as they are."""

        def value(found: re.Match[str]) -> str:
            known = self._values.get(found[0])
            if known is None:
                return found[0]
            return json.dumps(known, ensure_ascii=False)[1:-1] if in_json else known

        return PLACEHOLDER.sub(value, text)

    def restorer(self, *, in_json: bool = False) -> Restorer:
        """One that does the same to a text that comes in pieces."""
        return Restorer(self, in_json=in_json)

    def begins(self, text: str) -> bool:
        """Whether the text is the beginning of a placeholder, and no whole one."""
        return text in self._prefixes

    def occurs_in(self, text: str) -> bool:
        """Whether a value of `LEAST_EVERYWHERE` characters or more stands in the text."""
        return any(value in text for value in self._values.values() if len(value) >= LEAST_EVERYWHERE)


class Restorer:
    """Puts values back into a stream of text. It holds back only what may be the beginning of a placeholder, which is
    shorter than the longest placeholder. One for each stream of text (each choice, each tool call)."""

    __slots__ = ("_held", "_in_json", "_redaction")

    def __init__(self, redaction: Redaction, *, in_json: bool = False) -> None:
        self._redaction = redaction
        self._in_json = in_json
        self._held = ""

    def __repr__(self) -> str:
        return f"Restorer(holds {len(self._held)} characters)"

    def feed(self, piece: str) -> str:
        """What may be shown now; empty while a placeholder is not complete."""
        text = self._held + piece
        opening = text.rfind("<")  # a placeholder holds no second '<', so only the last one can be open
        if opening >= 0 and self._redaction.begins(text[opening:]):
            self._held, text = text[opening:], text[:opening]
        else:
            self._held = ""
        return self._redaction.restore(text, in_json=self._in_json)

    def finish(self) -> str:
        """What was held back, when the stream has ended: no placeholder any more."""
        held, self._held = self._held, ""
        return held


class CannotRedact(Exception):
    """Inside this room only: why these texts stay near instead. The words hold nothing of the texts."""


def redact(texts: Sequence[str], find: Find, whole: Mapping[int, Kind] | None = None) -> tuple[list[str], Redaction]:
    """The texts of one conversation with everything that `find` finds replaced, until it finds nothing any more.

    `whole`: texts (by index) that are a finding from end to end, because of the field in which they stand. Restoring
    the texts gives the given ones. Raises `CannotRedact` when there are too many values, or no end is found.
    """
    whole = whole or {}
    names = _Names(found[0] for text in texts for found in PLACEHOLDER.finditer(text))
    spans = [_joined([*find(text), *_all_of(text, whole.get(index))]) for index, text in enumerate(texts)]
    for _ in range(_MOST_ROUNDS):
        values = {text[s.start : s.end] for text, own in zip(texts, spans, strict=True) for s in own}
        if len(values) > MOST_VALUES:
            raise CannotRedact(f"there are more than {MOST_VALUES} values to replace")
        widened = [_joined([*own, *_everywhere(text, values)]) for text, own in zip(texts, spans, strict=True)]
        rendered = [_render(text, own, names) for text, own in zip(texts, widened, strict=True)]
        again = [
            _joined([*own, *(_back(one, pieces) for one in find(text))])
            for own, (text, pieces) in zip(widened, rendered, strict=True)
        ]
        if again == spans:
            if any(find(text) for text, _ in rendered):
                raise CannotRedact("something is still found where its placeholder stands")
            return [text for text, _ in rendered], names.redaction(values)
        spans = again
    raise CannotRedact("replacing one value shows another, again and again")


class _Names:
    """Gives out placeholders, none of them one that stands in the texts already."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._by_value: dict[str, str] = {}
        self._next: dict[Kind, int] = {}

    def of(self, value: str, kind: Kind) -> str:
        name = self._by_value.get(value)
        while name is None:
            number = self._next[kind] = self._next.get(kind, 0) + 1
            candidate = f"<{kind.name}_{number}>"
            if candidate not in self._taken:
                name = self._by_value[value] = candidate
        return name

    def redaction(self, values: Iterable[str]) -> Redaction:
        wanted = set(values)
        return Redaction({name: value for value, name in self._by_value.items() if value in wanted})


def _all_of(text: str, kind: Kind | None) -> Iterator[Finding]:
    if kind is not None and text:
        yield Finding(0, len(text), kind, 0.85)


def _joined(findings: Iterable[Finding]) -> list[Finding]:
    """Without overlaps, and with nothing in it that would differ from round to round but the places and kinds."""
    return [Finding(one.start, one.end, one.kind, 1.0) for one in merged(findings)]


def _everywhere(text: str, values: Iterable[str]) -> Iterator[Finding]:
    """Where the values stand. The kind does not matter: a value keeps the placeholder that it was given first."""
    long = sorted((value for value in values if len(value) >= LEAST_EVERYWHERE), key=lambda v: (-len(v), v))
    if long:
        for found in re.finditer("|".join(map(re.escape, long)), text):
            yield Finding(found.start(), found.end(), Kind.NAME, 0.0)


_Piece = tuple[int, int, int, bool]
"""Where it begins in the redacted text, where in the given one and its length there, and whether it was replaced."""


def _render(text: str, spans: Sequence[Finding], names: _Names) -> tuple[str, list[_Piece]]:
    parts: list[str] = []
    pieces: list[_Piece] = []
    at = size = 0
    for span in spans:
        for part, start, length, replaced in (
            (text[at : span.start], at, span.start - at, False),
            (names.of(text[span.start : span.end], span.kind), span.start, span.end - span.start, True),
        ):
            pieces.append((size, start, length, replaced))
            parts.append(part)
            size += len(part)
        at = span.end
    parts.append(text[at:])
    pieces.append((size, at, len(text) - at, False))
    return "".join(parts), pieces


def _back(finding: Finding, pieces: Sequence[_Piece]) -> Finding:
    """A finding of the redacted text in the given one, over the whole of every value whose placeholder it touches."""
    from bisect import bisect_right

    begins = [piece[0] for piece in pieces]
    first = pieces[bisect_right(begins, finding.start) - 1]
    last = pieces[bisect_right(begins, finding.end - 1) - 1]
    start = first[1] if first[3] else first[1] + finding.start - first[0]
    end = last[1] + last[2] if last[3] else last[1] + finding.end - last[0]
    return Finding(start, end, finding.kind, finding.confidence)
