"""What a caller may state in headers, on every path: `Nearfar-Deadline`, `-Privacy`, `-Node`, `-Stream`, `-Max-Cost`,
`-Degrade`, `-Tokens-Per-Second`.

A percentile is of no use to one request, so there is no header for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from nearfar.errors import InputError
from nearfar.types.ids import is_name
from nearfar.types.request import FOR_ONE, STAGE_NAMES, Answer, Degrade, Privacy, Qos, parse_degrade
from nearfar.types.units import Milliseconds, parse_milliseconds

LONGEST_DEADLINE_MS = 600_000.0


def qos_of(headers: Iterable[tuple[bytes, bytes]], default_deadline_ms: float = 0.0) -> Qos:
    """The QoS that the headers (lower-case names) state. Raises `InputError` naming the header."""
    return stated(headers, default_deadline_ms)[0]


def stated(headers: Iterable[tuple[bytes, bytes]], default_deadline_ms: float = 0.0) -> tuple[Qos, str]:
    """As `qos_of`, with the name of the stream that the request belongs to; empty for one that stands alone."""
    stream = ""
    deadline = Milliseconds(default_deadline_ms) if default_deadline_ms else None
    privacy = Privacy.ANY
    node: str | None = None
    cost: float | None = None
    speed: float | None = None
    degrade: tuple[Degrade, ...] = ()
    for name, value in headers:
        if not name.startswith(b"nearfar-"):
            continue
        text = value.decode("latin-1").strip()
        if name == b"nearfar-deadline":
            try:
                deadline = Milliseconds(min(parse_milliseconds(text), LONGEST_DEADLINE_MS))
            except InputError as error:
                raise InputError(f"Nearfar-Deadline: {error.message}", error.hint) from None
        elif name == b"nearfar-privacy":
            try:
                privacy = Privacy(text)
            except ValueError:
                raise InputError(f"Nearfar-Privacy is {text!r}.", f"Use one of {', '.join(Privacy)}.") from None
        elif name == b"nearfar-node":
            node = text
        elif name == b"nearfar-stream":
            if not is_name(text):
                raise InputError(
                    f"Nearfar-Stream is {text[:80]!r}, which is no name.",
                    "Use lower-case letters, digits, '.', '_' and '-', at most 64.",
                )
            stream = text
        elif name == b"nearfar-max-cost":
            cost = _cost(text)
        elif name == b"nearfar-tokens-per-second":
            speed = _speed(text)
        elif name == b"nearfar-degrade":
            try:
                degrade = parse_degrade(text, FOR_ONE)
            except InputError as error:
                raise InputError(f"Nearfar-Degrade: {error.message}", error.hint) from None
    return Qos(deadline, privacy, node, max_cost=cost, degrade=degrade, tokens_per_s=speed), stream


def _cost(text: str) -> float:
    try:
        cost = float(text)
    except ValueError:
        cost = math.nan
    if not (0 <= cost < math.inf):
        raise InputError(f"Nearfar-Max-Cost is {text[:40]!r}.", "Use a number from 0, such as 0.02.")
    return cost


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not (0 < speed < math.inf):
        raise InputError(f"Nearfar-Tokens-Per-Second is {text[:40]!r}.", "Use a number above 0, such as 8.")
    return speed


def told(answer: Answer) -> list[tuple[bytes, bytes]]:
    """Response headers that say who answered and where the time went (W3C Server Timing, in milliseconds)."""
    stages = answer.stages
    timing = ", ".join(f"{name};dur={getattr(stages, name):.3f}" for name in STAGE_NAMES)
    return [(b"nearfar-served-by", answer.served_by.encode()), (b"server-timing", timing.encode())]
