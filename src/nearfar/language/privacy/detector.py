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
_ALWAYS: tuple[Rule, ...] = (emails, secrets, fields, addresses)
_WITH_DIGITS: tuple[Rule, ...] = (births, places)
_WITH_SIX: tuple[Rule, ...] = (phones, ibans, cards, identities)
"""Their findings hold six digits each, with at most three signs between."""
_DIGIT = re.compile(r"\d")
_SIX = re.compile(r"\d(?:[ \t().\-/\[\]_]{0,3}\d){5}")
_LEAST = 6
"""Characters of the shortest text with a finding in it: `a@b.de`."""
_WORD = 12
"""Characters of the longest word in which nothing can be found: shorter than any token, without any sign."""


def find(text: str) -> tuple[Finding, ...]:
    """Everything found, in the order of the text and without overlaps. Pure; the text is not kept."""
    if len(text) < _LEAST or (len(text) <= _WORD and text.isalpha()):
        return ()
    folded = Folded(text)
    found: list[Finding] = []
    rules = _ALWAYS
    if _DIGIT.search(folded.text):
        rules += _WITH_DIGITS
        if _SIX.search(folded.text):
            rules += _WITH_SIX
    for rule in rules:
        found += rule(folded.text)
    sure = [one for one in found if one.confidence >= LEAST_CONFIDENCE]
    if sure and folded.moved:
        sure = [Finding(*folded.origin(one.start, one.end), one.kind, one.confidence) for one in sure]
    return merged(sure)
