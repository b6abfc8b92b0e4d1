"""What a detector says: which kind of personal data stands where in a text, and never the data itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """Kinds of personal data and of secrets. The value is what people read, the name what placeholders are made of."""

    EMAIL = "e-mail address"
    PHONE = "phone number"
    IBAN = "IBAN"
    CARD = "payment card"
    ACCOUNT = "account number"
    IP = "IP address"
    HARDWARE = "hardware address"
    SECRET = "secret or key"  # noqa: S105  # what people read
    BIRTH_DATE = "date of birth"
    NATIONAL_ID = "identity number"
    NAME = "person's name"
    POSTAL = "postal address"
    HEALTH = "health record"
    PLACE = "coordinates"


class Finding(msgspec.Struct, frozen=True, order=True):
    """One place in a text: characters `start` up to but without `end`, of the text as it was given.

    It holds no character of what it found, so it may be logged.

    >>> Finding(9, 26, Kind.EMAIL, 0.95).shown
    '[e-mail address, 17 characters]'
    """

    start: int
    end: int
    kind: Kind
    confidence: float
    """0 to 1: how sure the rule is, judged by its author; no measured probability."""

    @property
    def shown(self) -> str:
        """What stands for the value where people look."""
        return f"[{self.kind.value}, {self.end - self.start} characters]"


def counted(findings: Iterable[Finding]) -> dict[Kind, int]:
    """How many there are of each kind, in the order of `Kind`."""
    counts = Counter(finding.kind for finding in findings)
    return {kind: counts[kind] for kind in Kind if counts[kind]}


def in_words(counts: dict[Kind, int]) -> str:
    """
    >>> in_words({Kind.EMAIL: 2, Kind.SECRET: 1})
    'e-mail address (2), secret or key'
    """
    return ", ".join(kind.value if count == 1 else f"{kind.value} ({count})" for kind, count in counts.items())


def merged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """In the order of the text, without overlaps: those that overlap become one over both, of the surer kind (of the
    earlier when equally sure). Removing what both cover is never too much; removing half of it would be."""
    result: list[Finding] = []
    for finding in sorted(findings):
        if result and finding.start < result[-1].end:
            before = result[-1]
            surer = finding if finding.confidence > before.confidence else before
            result[-1] = Finding(before.start, max(before.end, finding.end), surer.kind, surer.confidence)
        else:
            result.append(finding)
    return tuple(result)
