"""Measured traces of cellular links, in the two formats that are public.

- `.csv`: one row a second with a column `PINGAVG` (round trip in ms, `-` where absent), as in the 5G data set of
  Raca et al. (MMSys 2020). Its bit rates are what was used, not what was possible, so they are not read as capacity.
- `.up`, `.down`: Mahimahi; each line is the millisecond at which one packet of 1500 bytes can pass.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import NamedTuple

from nearfar.errors import InputError

PACKET = 1500
_LEAST_RATE = 1500.0  # bytes/s: a second without any packet must not divide by zero


class Trace(NamedTuple):
    """By the second, repeated when it ends: round trips in ms and bytes per second; empty where not measured."""

    rtts: tuple[float, ...]
    rates: tuple[float, ...]


@functools.cache
def read_trace(path: str) -> Trace:
    """Raises `InputError` when the file is absent, of another format, or holds no figure."""
    file = Path(path)
    try:
        trace = _pings(file) if file.suffix == ".csv" else _packets(file)
    except OSError as error:
        raise InputError(
            f"The trace {path} cannot be read: {error.strerror}.", "Set links.NAME.path; it counts from the scenario."
        ) from None
    except (ValueError, csv.Error, KeyError) as error:
        raise InputError(
            f"The trace {path} is not of a known format: {error}.", "See docs/reference-scenario.md."
        ) from None
    if not trace.rtts and not trace.rates:
        raise InputError(f"The trace {path} holds no round trip and no packet.", "Choose another file.")
    return trace


def _pings(file: Path) -> Trace:
    """Seconds without a ping keep the last one; those before the first one take the first."""
    rtts: list[float] = []
    missing = 0
    last: float | None = None
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if "PINGAVG" not in (reader.fieldnames or ()):
            raise ValueError("it has no column PINGAVG")
        for row in reader:
            if row["PINGAVG"] not in ("-", "", None):
                last = float(row["PINGAVG"])
            if last is None:
                missing += 1
            else:
                rtts.append(last)
    return Trace(tuple([rtts[0]] * missing + rtts if rtts else ()), ())


def _packets(file: Path) -> Trace:
    seconds: dict[int, int] = {}
    with file.open(encoding="ascii") as lines:
        for line in lines:
            second = int(line) // 1000
            seconds[second] = seconds.get(second, 0) + 1
    if not seconds:
        return Trace((), ())
    return Trace((), tuple(max(_LEAST_RATE, seconds.get(s, 0) * PACKET) for s in range(max(seconds) + 1)))
