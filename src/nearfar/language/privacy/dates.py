"""Dates of birth in a sentence, identity numbers of a known form, and coordinates of a place."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nearfar.language.privacy.findings import Finding, Kind

_MONTH = (
    r"(?:jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz]|janvier|f[eé]vrier|mars|avril|juin|juillet|"
    r"ao[uû]t|enero|abril|agosto|dic|gennaio|maggio|giugno|luglio|set|ott)[^\W\d_]{0,9}"
)
_DATE = (
    rf"(?:\d{{1,4}}[./-]\d{{1,2}}[./-]\d{{1,4}}|\d{{1,2}}(?:st|nd|rd|th|\.|er)?[ ]{{0,2}}(?:of |de )?{_MONTH}\.?,?"
    rf"(?:[ ]{{1,2}}(?:of |de )?(?:\d{{4}}|\d\d))?|{_MONTH}\.?[ ]{{1,2}}\d{{1,2}}(?:st|nd|rd|th)?"
    r"(?:,?[ ]{1,2}\d{4})?|(?:19|20)\d\d)"
)
_BORN = re.compile(
    rf"\b(?:born|birthday|birth|geboren|geb\.|n[eé]e?|nacid[oa]|nat[oa]|nascid[oa]|geboorte)[ ]{{0,2}}"
    rf"(?:(?:is|was|on|in|am|im|le|en|el|il|em|of|date|:|:)[ ]{{0,2}}){{0,3}}({_DATE})",
    re.I,
)
_BIRTH_WORDS = ("born", "birth", "geboren", "geb.", "né", "nee ", "nacid", "nato ", "nata ", "nascid", "geboorte")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}([- ])(?!00)\d\d\1(?!0000)\d{4}(?![\w-])")
"""United States: areas 000, 666 and 900 to 999, groups 00 and serials 0000 are not given out (20 CFR 422)."""
_NINO = re.compile(r"\b[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]\b")
_PAIR = re.compile(
    r"(?<![\d.,\w-])(?<!\d[,;] )([+-]?\d{1,2}\.\d{4,15}),? {0,2}([+-]?\d{1,3}\.\d{4,15})"
    r"(?!\d|[,;] ?[+-]?\d|\.\d)"
)
_DECIMALS = re.compile(r"\d\.\d\d\d\d")
_DEGREES = re.compile(
    r"\d{1,3} ?° ?(?:\d{1,2}(?:\.\d{1,8})? ?['′’] ?(?:\d{1,2}(?:\.\d{1,6})? ?[\"″”])?)? ?[NS],?[ ]{0,3}"
    r"\d{1,3} ?° ?(?:\d{1,2}(?:\.\d{1,8})? ?['′’] ?(?:\d{1,2}(?:\.\d{1,6})? ?[\"″”])?)? ?[EWO]"
)


def births(text: str) -> Iterator[Finding]:
    """Dates that a word of birth stands before."""
    low = text.lower()
    if not any(word in low for word in _BIRTH_WORDS):
        return
    for found in _BORN.finditer(text):
        yield Finding(found.start(1), found.end(1), Kind.BIRTH_DATE, 0.8)


def identities(text: str) -> Iterator[Finding]:
    """Social security numbers (United States, with their separators) and national insurance numbers (Britain)."""
    for found in _SSN.finditer(text):
        yield Finding(found.start(), found.end(), Kind.NATIONAL_ID, 0.75 if found[1] == "-" else 0.5)
    for found in _NINO.finditer(text):
        yield Finding(found.start(), found.end(), Kind.NATIONAL_ID, 0.7)


def places(text: str) -> Iterator[Finding]:
    """Pairs of latitude and longitude with four decimals (about ten metres) or more, that are no part of a longer list
    of numbers, and not both below 1."""
    for found in _PAIR.finditer(text) if _DECIMALS.search(text) else ():
        latitude, longitude = abs(float(found[1])), abs(float(found[2]))
        if latitude <= 90 and longitude <= 180 and max(latitude, longitude) > 1:
            yield Finding(found.start(), found.end(), Kind.PLACE, 0.6)
    if "°" in text:
        for found in _DEGREES.finditer(text):
            yield Finding(found.start(), found.end(), Kind.PLACE, 0.8)
