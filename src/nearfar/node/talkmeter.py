"""What a language service measures of itself: first token, prefill and decode, from the engine's own timings."""

from __future__ import annotations

import threading

import msgspec

from nearfar.types.request import Stages
from nearfar.types.telemetry import TextReport
from nearfar.types.units import Milliseconds

RECENT = 0.1
"""Weight of the newest answer in the recent means."""


class _Timings(msgspec.Struct):
    """llama.cpp's `timings`: milliseconds and tokens of the prompt (without what was reused) and of the answer."""

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Last(msgspec.Struct):
    """What the last piece of an answer says beside its text."""

    timings: _Timings | None = None
    usage: _Usage | None = None


_last = msgspec.json.Decoder(_Last)


class TextMeter:
    """Recent means of one service; its threads add, the reporting thread reads."""

    def __init__(self, context: int) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._first_ms = self._prefill = self._decode = 0.0
        self._in = self._reused = self._out = 0
        self.embedding = False
        self.build = ""
        """Of the states that can be taken; "" for none."""
        self.prices: tuple[float, float, str] = (0.0, 0.0, "")
        """Of a far end: for a million tokens in, a million out, and the currency."""

    def answered(self, last: bytes, waited: float, start: float, first: float, end: float) -> Stages:
        """Count an answer; its stages: prefill counts as preprocessing, decode as inference. `waited` in ms; `start`,
        `first` (piece) and `end` are moments of the monotonic clock."""
        timings, usage = _timings(last)
        spent = (end - start) * 1000
        with self._lock:
            if timings is not None:
                before = min(timings.prompt_ms, spent)
                self._in += timings.prompt_n + timings.cache_n
                self._reused += timings.cache_n
                self._out += timings.predicted_n
                if timings.prompt_ms > 0 and timings.prompt_n:
                    self._prefill = _mean(self._prefill, timings.prompt_n / timings.prompt_ms * 1000)
                if timings.predicted_ms > 0 and timings.predicted_n > 1:
                    self._decode = _mean(self._decode, (timings.predicted_n - 1) / timings.predicted_ms * 1000)
                self._first_ms = _mean(self._first_ms, before)
            else:
                before = min((first - start) * 1000, spent) if first else spent
                self._first_ms = _mean(self._first_ms, before)
                if usage is not None:
                    self._in += usage.prompt_tokens
                    self._out += usage.completion_tokens
        return Stages(0.0, waited, before, max(0.0, spent - before), 0.0)

    def report(self) -> TextReport:
        with self._lock:
            return TextReport(
                self._context,
                Milliseconds(self._first_ms),
                self._prefill,
                self._decode,
                self._in,
                self._reused,
                self._out,
                *self.prices,
                self.embedding,
                self.build,
            )


def _timings(last: bytes) -> tuple[_Timings | None, _Usage | None]:
    try:
        said = _last.decode(last)
    except msgspec.MsgspecError:  # an engine that says it in another way
        return None, None
    return said.timings, said.usage


def _mean(recent: float, value: float) -> float:
    return recent + RECENT * (value - recent) if recent else value
