"""Telephone numbers: international (`+49 30 123456`, `0049 ...`), and national ones in common spellings.

A bare row of digits is a number of something, not a telephone, unless a word before it says so. What has the form of a
date, an ISBN, a version or a decimal number is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from nearfar.language.privacy.findings import Finding, Kind

LEAST, MOST = 7, 15
"""Digits of an international number: E.164 allows 15; shorter ones than 7 are service numbers."""
_NATIONAL = (9, 12)
"""Digits of a national number with its trunk 0."""
_COUNTRY = re.compile(
    "1[2-9]|7[0-9]|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|"
    "21[0-9]|22[0-9]|23[0-9]|24[0-9]|25[0-8]|26[0-9]|29[017-9]|35[0-9]|37[0-9]|38[0-9]|42[013]|50[0-9]|59[0-9]|"
    "67[0-9]|68[0-9]|69[0-2]|80[08]|85[0-6]|87[08]|88[0-368]|96[0-8]|97[0-9]|99[2-68]"
)
"""Country calling codes (ITU-T E.164, list of 2016); in zone 1 an area begins with 2 to 9."""
# Each begins with one certain sign or digit, so that most of a text is passed over at the speed of a search for it;
# what may not stand before is looked at afterwards.
_PLUS = re.compile(r"\+[ (]{0,2}[1-9](?:[ ().\-/]{0,3}\d){6,18}+")
_ZEROS = re.compile(r"00[ (/-]?[1-9](?:[ ().\-/]{0,3}\d){6,18}+")
_NORTH_AMERICA = (
    re.compile(r"\([2-9]\d\d\)[ -]?[2-9]\d\d[ .-]?\d{4}(?!\d|[.-]\d)"),
    re.compile(r"[2-9]\d\d([ .-])[2-9]\d\d\1\d{4}(?!\d|[.-]\d)"),
)
_TRUNK = (
    re.compile(r"\(0[1-9]\d{0,4}\)[ /-]{0,3}\d{2,9}(?:[ -]\d{1,8}){0,4}(?!\w|[.,:]\d)"),
    re.compile(
        r"0[1-9](?:(?:[ .-]\d\d){4}|\d{0,4}(?:[ -]?/[ -]?|[ -])\d{2,9}(?:[ -]\d{1,8}){0,4}|\d{8,9}(?=$|[\s,;)\]\"']))"
        r"(?!\w|[.,:]\d)"
    ),
)
_DATE = re.compile(r"\d{1,2}([./-])\d{1,2}\1\d{2,4}\b(?![./-]\d)|\d{1,2}[./-](?:19|20)\d\d\b|\d{4}([./-])\d\d\2\d\d\b")
_WORD = re.compile(
    r"(?:\b(?:tele?(?:ph|f)on\w*|t[eé]l[eé]phone|tel[eé]fono|telefone|tel|phone|mobile?|cell(?:phone| phone)?|"
    r"celular|m[oó]vil|handy(?:nummer)?|mobilnummer|rufnummer|durchwahl|fax|whatsapp|sms|call|"
    r"dial|anrufen|appelle[rz]?|llama(?:r|me)?)\b|☎|📞|📱)"
    r"(?:[\s.:#=()\[\]\"'*+-]|is|ist|at|on|me|nr|no|number|nummer|num[eé]ro|n[uú]mero|us|him|her|unter|est|al){0,8}$",
    re.I,
)
_CONTEXT = 48
_RUN = re.compile(r"\d(?:[ ().\-/]{0,2}\d){5,14}+(?!\d)")


def phones(text: str) -> Iterator[Finding]:
    """Telephone numbers in folded text."""
    for pattern, confidence in ((_PLUS, 0.9), (_ZEROS, 0.7)):
        for found in pattern.finditer(text):
            end = _end(text, found)
            if end is not None and (pattern is _PLUS or not _in_row(text, found.start())):
                yield Finding(found.start(), end, Kind.PHONE, confidence)
    for pattern in _NORTH_AMERICA:
        for found in pattern.finditer(text):
            if not _in_number(text, found.start()) or text[found.start() - 2 : found.start()] in ("1-", "1.", "1 "):
                spaced = bool(found.lastindex) and found[1] == " "
                yield Finding(found.start(), found.end(), Kind.PHONE, 0.6 if spaced else 0.8)
    for pattern in _TRUNK:
        yield from _national(text, pattern)
    for found in _RUN.finditer(text):
        before = text[max(0, found.start() - _CONTEXT) : found.start()]
        if not before[-1:].isdigit() and _WORD.search(before) and not _DATE.match(text, found.start()):
            yield Finding(found.start(), found.end(), Kind.PHONE, 0.8)


def _in_number(text: str, start: int) -> bool:
    """Whether what begins there goes on a number or a word that began before."""
    before = text[start - 1] if start else " "
    return before.isalnum() or before in ".,+-_"


def _in_row(text: str, start: int) -> bool:
    """As `_in_number`, also when only a blank parts them."""
    return _in_number(text, start) or (text[start - 1] == " " and text[start - 2 : start - 1].isdigit())


def _national(text: str, pattern: re.Pattern[str]) -> Iterator[Finding]:
    """Numbers of 9 to 12 digits with the 0 of a trunk call. One that follows another after a blank is its own."""
    behind = -1
    found = pattern.search(text)
    while found is not None:
        start, end, digits = found.start(), found.start(), 0
        for group in re.finditer(r"\d+", found[0]):
            if digits >= _NATIONAL[0] and (group[0][0] == "0" or digits + len(group[0]) > _NATIONAL[1]):
                break
            digits += len(group[0])
            end = start + group.end()
        good = _NATIONAL[0] <= digits <= _NATIONAL[1] and not _DATE.match(text, start)
        if good and (start == behind + 1 or not _in_row(text, start)):
            yield Finding(start, end, Kind.PHONE, 0.6)
            behind = end
        else:
            end = found.end()
        found = pattern.search(text, end)


def _end(text: str, found: re.Match[str]) -> int | None:
    """Where an international number ends: with its 15th digit at the latest, never inside a group of digits. None
    when the country is none, or too few digits are left."""
    start = found.start() + (1 if found[0][0] == "+" else 2)
    digits, end, count = [], found.start(), 0
    for group in re.finditer(r"\d+", text[start : found.end() + MOST]):
        if start + group.start() >= found.end():
            break
        if count + len(group[0]) > MOST:
            break
        digits.append(group[0])
        count += len(group[0])
        end = start + group.end()
    number = "".join(digits)
    return end if count >= LEAST and _COUNTRY.match(number) else None
