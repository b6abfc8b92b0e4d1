"""Personal data and secrets in a text: all rules over one folded text, in time that grows with its length only.

    >>> [found.shown for found in find("write to ada@example.org or +44 20 7946 0958")]
    ['[e-mail address, 15 characters]', '[phone number, 16 characters]']

What is found and what is not is told in docs/explanation-privacy.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from nearfar.language.privacy.banking import cards, ibans
from nearfar.language.privacy.dates import births, identities, places
from nearfar.language.privacy.email import emails
from nearfar.language.privacy.fields import fields
from nearfar.language.privacy.findings import Finding, merged
from nearfar.language.privacy.fold import Folded
from nearfar.language.privacy.network import addresses
from nearfar.language.privacy.phone import phones
from nearfar.language.privacy.secrets import secrets

LEAST_CONFIDENCE = 0.5
"""A rule that is less sure says nothing."""

Rule = Callable[[str], Iterator[Finding]]
_WITHOUT_DIGITS: tuple[Rule, ...] = (emails, secrets, fields)
_WITH_DIGITS: tuple[Rule, ...] = (births, phones, ibans, cards, addresses, identities, places)
"""Their findings hold a digit each."""
_DIGIT = re.compile(r"\d")
_HEX_PAIR = re.compile(r"[0-9A-Fa-f]{2}:|::")


def find(text: str) -> tuple[Finding, ...]:
    """Everything found, in the order of the text and without overlaps. Pure; the text is not kept."""
    folded = Folded(text)
    found: list[Finding] = []
    rules = _WITHOUT_DIGITS
    if _DIGIT.search(folded.text):
        rules += _WITH_DIGITS
    elif _HEX_PAIR.search(folded.text):
        rules += (addresses,)
    for rule in rules:
        found += rule(folded.text)
    sure = [one for one in found if one.confidence >= LEAST_CONFIDENCE]
    if sure and folded.text is not text:
        sure = [Finding(*folded.origin(one.start, one.end), one.kind, one.confidence) for one in sure]
    return merged(sure)
