"""Units are types, and texts like `100ms` or `64MiB` have one parser each.

Seconds are what clocks give; milliseconds are what people and deadlines speak. Neither is a bare float in a signature.
"""

from __future__ import annotations

import math
import re
from typing import NewType

from nearfar.errors import InputError

Seconds = NewType("Seconds", float)
"""A duration, or a moment of the monotonic clock of one machine; never compared across machines."""
Milliseconds = NewType("Milliseconds", float)
Bytes = NewType("Bytes", int)
BytesPerSecond = NewType("BytesPerSecond", float)
Celsius = NewType("Celsius", float)
Ratio = NewType("Ratio", float)
"""Between 0 and 1."""

_DURATION = re.compile(r"([0-9]*\.?[0-9]+)\s*(us|ms|s|m|min|h)?")
_DURATION_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3, "min": 60e3, "h": 3600e3}
_SIZE = re.compile(r"([0-9]*\.?[0-9]+)\s*([kKmMgGtT]?)(i?)[bB]?")


def parse_milliseconds(text: str) -> Milliseconds:
    """A duration such as `100ms`, `2s`, `1.5m`; a bare number is milliseconds.

    Raises `InputError` when it is not a positive, finite duration.

    >>> parse_milliseconds("2s")
    2000.0
    """
    found = _DURATION.fullmatch(text.strip())
    value = float(found[1]) * _DURATION_MS[found[2] or "ms"] if found else math.nan
    if found and value == 0:
        raise InputError(f"{text!r} is no time at all.", "Write more than zero, such as 100ms or 2s.")
    if not (0 < value < math.inf):
        raise InputError(f"{text!r} is not a duration.", "Write a number and a unit, such as 100ms or 2s.")
    return Milliseconds(value)


def parse_bytes(text: str) -> Bytes:
    """A size such as `64MiB` or `1.5GB`; a bare number is bytes.

    >>> parse_bytes("64MiB"), parse_bytes("1kB")
    (67108864, 1000)
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise InputError(f"{text!r} is not a size.", "Write a number and a unit, such as 64MiB or 1GB.")
    power = " kmgt".index(found[2].lower() or " ")
    return Bytes(int(float(found[1]) * (1024 if found[3] else 1000) ** power))


def show_bytes(count: int) -> str:
    """
    >>> show_bytes(3 * 1024**2)
    '3.0 MiB'
    """
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
