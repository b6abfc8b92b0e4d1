"""Numbers with a check in them: IBAN (ISO 13616, mod 97) and payment cards (ISO/IEC 7812, Luhn)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nearfar.language.privacy.findings import Finding, Kind

_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
    "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
    "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
    "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 "
    "YE30"
)
IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _LENGTHS.split()}
"""Characters of an IBAN by country (SWIFT IBAN registry, release 98)."""
_IBAN_START = re.compile(r"[A-Za-z][A-Za-z][ -]?\d[ -]?\d")
_SEPARATORS = " -.\t\u00a0"


def ibans(text: str) -> Iterator[Finding]:
    """IBANs in folded text, with or without blanks, whose length is their country's and whose checksum holds."""
    for found in _IBAN_START.finditer(text):
        length = IBAN_LENGTHS.get(found[0][:2].upper())
        glued = found.start() and text[found.start() - 1].isalnum()
        if length is None or (glued and text[found.start() - 4 : found.start()].upper() != "IBAN"):
            continue
        taken: list[str] = []
        at, gap = found.start(), 0
        while at < len(text) and len(taken) < length and gap <= 2:
            character = text[at]
            if character.isascii() and character.isalnum():
                taken.append(character)
                gap = 0
            elif character in _SEPARATORS:
                gap += 1
            else:
                break
            at += 1
        ends = at == len(text) or not text[at].isalnum()
        if len(taken) == length and ends and iban_holds("".join(taken)):
            yield Finding(found.start(), at, Kind.IBAN, 0.98)


def iban_holds(iban: str) -> bool:
    """Whether the checksum of an IBAN without blanks holds (ISO 13616: the rearranged number is 1 modulo 97).

    >>> iban_holds("GB82WEST12345698765432"), iban_holds("GB82WEST12345698765433")
    (True, False)
    """
    moved = (iban[4:] + iban[:4]).upper()
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


_CARD_RUN = re.compile(r"\d(?:[ \-._/]{0,2}\d){12,}+")
_GROUP = re.compile(r"\d+")
_ISSUERS = re.compile(
    r"(?:4\d{12}(?:\d{3}){0,2}"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:30[0-5]|3095|3[689])\d{11,16}"  # Diners Club
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12,15}"  # Discover
    r"|35(?:2[89]|[3-8]\d)\d{12,15}"  # JCB
    r"|(?:62|81)\d{14,17}"  # UnionPay
    r"|220[0-4]\d{12,15}"  # Mir
    r"|(?:50|5[6-8]|6\d)\d{11,17})"  # Maestro and others
)
"""Ranges of the large issuers: one row of digits in ten passes Luhn by chance, so a card also needs one of these."""


def cards(text: str) -> Iterator[Finding]:
    """Payment cards in folded text: 13 to 19 digits, in whole groups, of a known issuer, for which Luhn holds."""
    for run in _CARD_RUN.finditer(text):
        yield from _cards_in(text, run.start(), run.end())


def _cards_in(text: str, start: int, end: int) -> Iterator[Finding]:
    groups = [(found.start(), found.end()) for found in _GROUP.finditer(text, start, end)]
    digits = "".join(text[first:last] for first, last in groups)
    plain, doubled = _sums(digits)
    behind = 0  # digits before the first group
    taken = -1  # where the last card ends: one card is not found again within itself
    for index, (first, last) in enumerate(groups):
        count = 0
        if first >= taken and not _decimals(text, first, last):
            for size, (_, until) in enumerate(groups[index : index + 19], 1):
                count += until - groups[index + size - 1][0]
                if count > 19:
                    break
                stop = behind + count
                # Seen from the window's own end, the digit at its end is not doubled.
                sums = (plain, doubled)[stop % 2]
                luhn = count >= 13 and (sums[stop] - sums[behind]) % 10 == 0
                if luhn and _ISSUERS.fullmatch(digits, behind, stop) and not _one_point(text, first, until, size):
                    yield Finding(first, until, Kind.CARD, 0.95)
                    taken = until
                    break
        behind += last - first


def _sums(digits: str) -> tuple[list[int], list[int]]:
    """Running Luhn sums for windows that end before an even and before an odd position: a window costs no loop."""
    even, odd = [0], [0]
    for at, character in enumerate(digits):
        value = ord(character) - 48
        twice = value * 2 - 9 * (value > 4)
        # A window that ends before `stop` doubles the digits whose distance from its last one is odd.
        even.append(even[-1] + (value if at % 2 else twice))
        odd.append(odd[-1] + (twice if at % 2 else value))
    return even, odd


def _decimals(text: str, first: int, last: int) -> bool:
    """Whether this group is what follows the point of a decimal number such as 0.4111111111111111."""
    point = first >= 2 and text[first - 1] == "." and text[first - 2].isdigit()
    return point and (first < 3 or not text[first - 3].isdigit() or last - first > 4)


def _one_point(text: str, first: int, until: int, size: int) -> bool:
    """Whether the digits are one decimal number: 4.11111111111111."""
    return size == 2 and "." in text[first:until]
