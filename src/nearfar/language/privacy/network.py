"""Addresses of machines: IPv4, IPv6, hardware (MAC).

Four numbers with points between are an address also when they could be a version (`1.2.3.4`), unless a word or a sign
of a version stands before or after them; to keep a version at home costs little, to send an address away may not. What
names no machine in particular (loopback, unspecified, broadcast, netmasks) is passed over.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from nearfar.language.privacy.findings import Finding, Kind

_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_V4 = re.compile(
    rf"(?<![\d.])(?<!\d-){_OCTET}(?:(?:\.|\[\.\]|\(\.\)){_OCTET}){{3}}"
    r"(?!\d|\.\d|-?(?:rc|alpha|beta|dev|post)\d{0,3}\b)"
)
# What is searched for first begins with one certain sign or digit: that costs a tenth of the rule itself.
_MAYBE_V4 = re.compile(r"\d[.)\](\[]{1,3}\d{1,3}[.)\](\[]{1,3}\d")
_MAYBE_V6 = re.compile(r":[0-9A-Fa-f]{0,4}:")
_MAYBE_MAC = re.compile(r"[:-][0-9A-Fa-f]{2}[:-][0-9A-Fa-f]{2}[:-]")
_VERSION = re.compile(r"(?:\bv|\bver\.?|version|release|build|firmware|[<>=~!]=|==|\^|~)[\s:=]{0,2}$", re.I)
_V6 = re.compile(r"(?<![\w:.])[0-9A-F]{0,4}:[0-9A-F]{0,4}:[0-9A-F:.]{0,40}(?![\w:])", re.I)
_MAC = re.compile(r"(?<![\w:-])[0-9A-F]{2}([:-])(?:[0-9A-F]{2}\1){4}[0-9A-F]{2}(?![\w:-])", re.I)


def addresses(text: str) -> Iterator[Finding]:
    """IP and hardware addresses in folded text."""
    for found in _V4.finditer(text) if _MAYBE_V4.search(text) else ():
        address = ipaddress.IPv4Address(found[0].translate(_NO_BRACKETS)) if _decimal(found[0]) else None
        if address is None or address.is_loopback or address.packed[0] in (0, 255):
            continue
        if not _VERSION.search(text[max(0, found.start() - 12) : found.start()]):
            yield Finding(found.start(), found.end(), Kind.IP, 0.6 if address.is_private else 0.85)
    if _MAYBE_V6.search(text):
        for found in _V6.finditer(text):
            yield from _v6(found)
    if _MAYBE_MAC.search(text):
        for found in _MAC.finditer(text):
            if len(set(found[0].replace(found[1], ""))) > 1:
                yield Finding(found.start(), found.end(), Kind.HARDWARE, 0.8)


_NO_BRACKETS = {ord(bracket): None for bracket in "[]()"}


def _decimal(text: str) -> bool:
    """No part with a leading zero: 01.02.03.04 is something else (and other readers take it for octal)."""
    return all(part == "0" or part[0] != "0" for part in text.translate(_NO_BRACKETS).split("."))


def _v6(found: re.Match[str]) -> Iterator[Finding]:
    text = found[0].rstrip(".")
    if text.endswith(":") and not text.endswith("::"):
        text = text[:-1]
    groups = [group for group in text.split(":") if group]
    if len(groups) < 3 and not any(len(group) == 4 for group in groups):
        return  # `a::b` is a name in many programming languages
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return
    if not (address.is_loopback or address.is_unspecified):
        yield Finding(found.start(), found.start() + len(text), Kind.IP, 0.6 if address.is_private else 0.85)
