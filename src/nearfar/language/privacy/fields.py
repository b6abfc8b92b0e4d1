"""What stands in a field with a telling name: `password: ...`, `"ssn": "..."`, `Geburtsdatum = ...`, `my PIN is ...`.

The rule goes from each separator (':', '=', 'is') to the at most four words before it, looks them up, and takes what
stands behind. It does the same amount of work for each separator, whatever the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import chain

from nearfar.language.privacy.findings import Finding, Kind
from nearfar.language.privacy.fold import lowered
from nearfar.language.privacy.names import COMMON_WORDS, FIELDS, LAST_WORDS, LONGEST, NEEDS_DIGITS, PASSWORDS, PINS

_SIGN = re.compile(r"[:=]")
_SPOKEN = re.compile(r" (?:is|ist|lautet|est|es|e|was|war) ")
_SENTENCE_END = re.compile(r"[.!?;,](?: |$)| (?:and|und|et|y|e|but|aber) ")
_REACH = 48
"""Characters before a separator that may hold the field's name."""
_LONGEST_VALUE = 200
_WORDS = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_OPENING = re.compile(r"[:=>]?[ \t]{0,8}(?:\r?\n[ \t]{0,8})?[\\\"'`*_(\[{ ]{0,6}")
_LINE = re.compile(rf"[^\n\r;|\"`}}\]\\]{{1,{_LONGEST_VALUE}}}")
_ONE = re.compile(rf"[^\s,;\"'`\\]{{1,{_LONGEST_VALUE}}}")
_QUOTED = re.compile(rf"[^\n\r\"]{{1,{_LONGEST_VALUE}}}")
_OWNER = re.compile(
    r"\b(?:my|our|his|her|their|your|mein\w*|unser\w*|sein\w*|ihr\w*|mon|ma|notre|mi|nuestr[oa]|mio|mia|meu|minha)\b",
    re.I,
)
_PLACEHOLDER = re.compile(r"<[A-Z][A-Z_]{0,19}_\d{1,9}>")
_CODE = re.compile(
    r"(?:(?:str|string|text|bytes|bool|int|float|any|none|null|nil|undefined|true|false|optional|required|object|"
    r"number|varchar|char|input|password|secret|token|hidden|redacted|n/a|na|unknown|tbd|todo|example|placeholder|"
    r"invalid|wrong|missing|empty|not|too|the|a|an|this|that|to|of|in)\b[^\w@#$!-]?(?:\W|$)"
    r"|[A-Za-z_][\w.]{0,60}[(\[]|(?:os|process|env|self|this|request|config|settings|args|req)\.|[$%<{][({\w]|"
    r"[^\w]{1,200}$|[xX*.•-]{3,200}$)",
    re.I,
)
"""What stands behind a field's name in code, in a schema or in a sentence about the field."""
_LONG_SECRET = 8


def fields(text: str) -> Iterator[Finding]:
    """Values of telling fields in folded text. The finding covers the value, not the field's name."""
    low = lowered(text)
    for separator in chain(_SIGN.finditer(text), _SPOKEN.finditer(low)):
        if not _may_end_a_name(text, separator.start()):
            continue
        name, kind, owned = _named(text, separator.start())
        if kind is None:
            continue
        sign = len(separator[0]) == 1
        if not sign and name in COMMON_WORDS and kind is not Kind.BIRTH_DATE:
            continue
        opening = _OPENING.match(text, separator.end())
        start = opening.end() if opening else separator.end()
        value = _value(text, start, kind, quoted=text[start - 1 : start] == '"', spoken=not sign)
        if value is not None and _tells(value[0], name, kind, spoken=not sign, owned=owned):
            yield Finding(start, value[1], kind, 0.85 if sign else 0.7)


def named(key: str) -> Kind | None:
    """What a field of this name holds, for the keys of a JSON object; None for an ordinary name.

    >>> named("dateOfBirth"), named("x-api-key"), named("colour")
    (<Kind.BIRTH_DATE: 'date of birth'>, <Kind.SECRET: 'secret or key'>, None)
    """
    return _named(key[-_REACH:], min(len(key), _REACH))[1]


def holds(key: str, value: str) -> Kind | None:
    """As `named`, if the value is also one: not empty, no word of code, enough digits."""
    if not _may_end_a_name(key, len(key)):
        return None
    name, kind, _ = _named(key[-_REACH:], min(len(key), _REACH))
    told = value.strip()[:_LONGEST_VALUE]
    return kind if kind is not None and told and _tells(told, name, kind, spoken=False, owned=False) else None


def _may_end_a_name(text: str, end: int) -> bool:
    """A quick no for most separators: the last word before them ends the name of no field."""
    last, first = end, max(0, end - 6)
    while last > first and not text[last - 1].isalnum():
        last -= 1
    start, first = last, max(0, last - _REACH)
    while start > first and text[start - 1].isalnum():
        start -= 1
    word = text[start:last]
    if not word.isascii():
        return True  # with accents: let the dearer rule say
    if not (word.islower() or word.isupper()):
        word = _HUMP.sub(" ", word).rpartition(" ")[2]
    return word.lower() in LAST_WORDS


def _named(text: str, end: int) -> tuple[str, Kind | None, bool]:
    """The longest name of a field that ends there (but for quotes), its kind, and whether somebody's is said before."""
    before = text[max(0, end - _REACH) : end]
    line = before.rpartition("\n")[2]
    closing = len(line)
    while closing and not line[closing - 1].isalnum():
        closing -= 1
    if len(line) - closing > 6:
        return "", None, False
    plain = line[:closing]
    if not plain.isascii():
        plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
        plain = plain.replace("ß", "ss")
    words = [word.lower() for word in _WORDS.findall(_HUMP.sub(" ", plain))[-LONGEST:]]
    for first in range(len(words)):
        name = " ".join(words[first:])
        kind = FIELDS.get(name)
        if kind is not None:
            return name, kind, _OWNER.search(line) is not None
    return "", None, False


def _value(text: str, start: int, kind: Kind, *, quoted: bool, spoken: bool) -> tuple[str, int] | None:
    if quoted:
        pattern = _QUOTED
    elif kind is Kind.SECRET or (spoken and kind not in (Kind.NAME, Kind.BIRTH_DATE, Kind.POSTAL)):
        pattern = _ONE
    else:
        pattern = _LINE
    found = pattern.match(text, start)
    if found is None:
        return None
    told = _SENTENCE_END.split(found[0], maxsplit=1)[0] if spoken else found[0]
    value = told.rstrip(" \t.,!?\\'*_") if not quoted else told.rstrip("\\")
    return (value, start + len(value)) if value else None


def _tells(value: str, name: str, kind: Kind, *, spoken: bool, owned: bool) -> bool:
    """Whether the value is one, and not a word about the field."""
    if not _PLACEHOLDER.sub("", value).strip(" ,.;:/-"):
        return False  # all of it has been replaced already
    if _CODE.match(value) or (value[0] in "$%<{" and value[-1] in ">})%"):
        return False
    digits = sum(map(str.isdigit, value))
    if kind is Kind.SECRET:
        if name in PINS:
            return 3 <= digits <= 12
        if name in PASSWORDS:
            return len(value) >= 3 and (not spoken or owned or digits > 0)
        return len(value) >= _LONG_SECRET and (digits > 0 or len(value) >= 16) and value[0].isalnum()
    if kind is Kind.EMAIL:
        return False  # an address is known by its form
    if digits < NEEDS_DIGITS.get(kind, 0):
        return False
    if kind in (Kind.NAME, Kind.HEALTH, Kind.POSTAL) and not any(map(str.isalpha, value)):
        return kind is Kind.POSTAL and digits >= 4
    if kind is Kind.POSTAL and name in COMMON_WORDS:
        return digits > 0 and any(map(str.isalpha, value))
    return not spoken or owned or digits > 0
