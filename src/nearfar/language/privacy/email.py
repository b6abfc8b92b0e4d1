"""E-mail addresses, also as people write them for other people: `name (at) example (dot) org`, `name @ example . org`.

From each sign for "at" the rule looks at most 64 characters to the left and one domain to the right, so its work grows
with the length of the text and with nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from nearfar.language.privacy.findings import Finding, Kind

LONGEST_LOCAL = 64
"""Characters before the "at" (RFC 5321, 4.5.3.1.1)."""
_AT = re.compile(r"@|%40|&#0{0,4}64;|&commat;|[(\[{<]\s?(?:at|ät|@|arroba)\s?[)\]}>]|\s(?:at|arroba)(?=\s)", re.I)
_DOMAIN = re.compile(r"(?:[\w-]{1,63}\.){1,8}[^\W\d_][\w-]{1,62}")
_DOT = r"(?:\s?[(\[{<]\s?(?:dot|punkt|punto|point|\.)\s?[)\]}>]\s?|\s(?:dot|punkt|punto)\s|\s\.\s|\.|\s\.(?=\w))"
_LOOSE_DOMAIN = re.compile(rf"\s{{0,2}}(?:[\w-]{{1,63}}{_DOT}){{1,4}}([^\W\d_]{{2,24}})(?!\w)", re.I)
_LOOSE_MARK = re.compile(r"\s(?:dot|punkt|punto)\s|[(\[{<]\s?(?:dot|punkt|punto|point|\.)\s?[)\]}>]", re.I)
_ENDS = (
    "com org net edu gov mil int info biz io ai app dev me tv co eu uk us ca au nz ie de at ch fr es pt it nl be lu dk "
    "se no fi is pl cz sk hu ro bg gr tr ru ua in cn jp kr br mx ar cl za il xyz online site cloud mail example test"
)
_KNOWN_ENDS = frozenset(_ENDS.split())
"""Ends of a domain that are taken for one in a loose spelling, where any word might follow."""
_MARKS = (
    "@", "%40", "&#", "&commat;", " dot ", " punkt ", " punto ", "(dot", "[dot", "(punkt", "[punkt",
    *(f"{word}{end}" for word in ("at", "at ", "ät", "ät ", "arroba", "arroba ") for end in ")]}>"),
)  # fmt: skip
"""Without one of these there is no sign for "at" but the bare word, which counts with a written-out dot only."""
_NOT_PEOPLE = frozenset(("git", "hg"))
"""`git@host:path` names a repository."""


def emails(text: str) -> Iterator[Finding]:
    """Addresses in folded text. One of a plain spelling is certain; a loose one ends in a common top-level domain."""
    low = text.lower()
    if not any(mark in low for mark in _MARKS):
        return
    for sign in _AT.finditer(text):
        plain = sign[0] == "@" or sign[0][0] in "%&"
        start = _local(text, sign.start())
        domain = _DOMAIN.match(text, sign.end()) if plain and start < sign.start() else None
        if domain is not None:
            if text[start : sign.start()] not in _NOT_PEOPLE:
                yield Finding(start, domain.end(), Kind.EMAIL, 0.95)
            continue
        start = _local(text, len(text[max(0, sign.start() - 2) : sign.start()].rstrip()) + max(0, sign.start() - 2))
        loose = _LOOSE_DOMAIN.match(text, sign.end())
        if start == sign.start() or loose is None or loose[1].lower() not in _KNOWN_ENDS:
            continue
        if start < sign.start() and text[start : sign.start()].strip():
            bare = not plain and sign[0][0].isspace()
            if not bare or _LOOSE_MARK.search(loose[0]):  # "look at example.org" is no address
                yield Finding(start, loose.end(), Kind.EMAIL, 0.7)


def _local(text: str, end: int) -> int:
    """Where the part before the "at" begins; `end` when there is none."""
    if end and text[end - 1] == '"':
        opening = text.rfind('"', max(0, end - 1 - LONGEST_LOCAL), end - 1)
        return opening if 0 <= opening < end - 2 else end
    start, first = end, max(0, end - LONGEST_LOCAL)
    while start > first and (text[start - 1].isalnum() or text[start - 1] in "._+-'"):
        start -= 1
    while start < end and text[start] in ".'":  # what opens a quotation is not of the name
        start += 1
    return start
