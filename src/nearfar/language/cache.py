"""The exact cache: the same request of the same caller, at the same level of privacy, gets the same answer again.

In memory only, bounded in bytes, entries and age, the least recently used going first. Its keys are keyed digests, so
neither a dump of them nor a guess says what was asked. Used from one thread (the gateway's event loop); the clock is
passed in.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec

from nearfar.language.privacy.gate import Ruling
from nearfar.language.privacy.redact import Redaction
from nearfar.types.request import Privacy
from nearfar.types.units import Bytes, Seconds

AN_HOUR = Seconds(3600.0)
OVERHEAD = Bytes(400)
"""Bytes that one entry takes beside its answer: digest, entry and place in the order, measured and rounded up."""
NOT_OF_THE_ANSWER = frozenset(
    ("stream", "stream_options", "user", "metadata", "store", "nearfar", "private", "service_tier", "safety_identifier",
     "prompt_cache_key", "timeout")
)  # fmt: skip
"""Fields that do not change what the answer says. Every field that is not listed does, known or not."""
_ENDED = frozenset(("stop",))
"""The one way in which an answer is complete. `length` was cut, `tool_calls` waits for a tool, the rest has failed."""


class Counters(msgspec.Struct):
    """What a cache has done. `refused` are answers that may not be kept, `expired` those that were too old."""

    hits: int = 0
    misses: int = 0
    kept: int = 0
    refused: int = 0
    evicted: int = 0
    expired: int = 0


class Scope(msgspec.Struct, frozen=True):
    """Who may see an answer again: nothing is shared between two scopes that differ in anything."""

    caller: str
    """Name of the API key (`KeyPolicy.name`), never the key."""
    privacy: Privacy
    served: str
    """Which model answers: the served variant or the far end's model, with whatever else makes its answers its own."""
    redacted: bool = False
    """Whether the request goes far with placeholders: its answers are kept as the far end gave them, placeholders and
    all, and no request without placeholders gets them."""


class Key(msgspec.Struct, frozen=True, eq=False):
    """Where an answer is kept. `redaction` is there to refuse an answer into which values were put back already."""

    digest: bytes
    redaction: Redaction | None = None


def scope_of(ruling: Ruling, caller: str, served: str, *, far: bool) -> Scope:
    """The scope of a request that the gate has ruled on and that goes near, or far."""
    return Scope(caller, ruling.privacy, f"{'far' if far else 'near'}:{served}", far and ruling.redaction is not None)


def repeatable(request: Mapping[str, Any], *, asked: bool = False) -> bool:
    """Whether the same request is to have the same answer: temperature 0, a seed, or nothing that is sampled at all (an
    embedding). `asked`: the caller wants the cache all the same, by header."""
    if asked:
        return True
    if "input" in request and "messages" not in request and "prompt" not in request and "temperature" not in request:
        return True
    temperature, seed = request.get("temperature"), request.get("seed")
    zero = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0
    return zero or (isinstance(seed, int) and not isinstance(seed, bool))


def complete(answer: bytes) -> bool:
    """Whether this is a whole answer of the OpenAI API (not a chunk): no error, every choice ended by itself, and no
    tool asked for. An embedding is whole when it has data."""
    try:
        found = msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    if not isinstance(found, dict) or found.get("error") is not None:
        return False
    choices = found.get("choices")
    if choices is None:
        data = found.get("data")
        return isinstance(data, list) and bool(data)
    return isinstance(choices, list) and bool(choices) and all(map(_ended, choices))


def _ended(choice: Any) -> bool:
    if not isinstance(choice, dict) or choice.get("finish_reason") not in _ENDED:
        return False
    message = choice.get("message")
    return not (isinstance(message, dict) and (message.get("tool_calls") or message.get("function_call")))


class Entry(msgspec.Struct):
    answer: bytes
    kept: Seconds


class ExactCache:
    """Answers by request.

    >>> cache = ExactCache()
    >>> ask = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    >>> key = cache.key(ask, Scope("kitchen", Privacy.FLEET, "near:tiny/q4_0"))
    >>> cache.put(key, b'{"choices": [{"finish_reason": "stop", "message": {"content": "ho"}}]}', Seconds(0.0))
    True
    >>> cache.get(key, Seconds(1.0)) is not None, cache.get(key, Seconds(4000.0))
    (True, None)
    """

    def __init__(
        self, max_bytes: int = 64 * 1024 * 1024, max_entries: int = 10_000, max_age: Seconds = AN_HOUR
    ) -> None:
        """`max_bytes` of 0 keeps nothing."""
        self.max_bytes, self.max_entries, self.max_age = max_bytes, max_entries, max_age
        self.counters = Counters()
        self.bytes = 0
        """Bytes held now, with the overhead of each entry."""
        self._salt = secrets.token_bytes(32)
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()  # the least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"ExactCache({len(self)} answers, {self.bytes} bytes)"

    def key(self, request: Mapping[str, Any], scope: Scope, redaction: Redaction | None = None) -> Key | None:
        """Where the answer to this request would be; None when the request cannot be written down as JSON. For a far
        end, `request` is what it gets (`Ruling.far`), and `redaction` the ruling's."""
        text = canonical(request)
        if text is None:
            return None
        head = msgspec.json.encode([scope.caller, scope.privacy, scope.served, scope.redacted])
        digest = hashlib.blake2b(key=self._salt, digest_size=32)
        digest.update(len(head).to_bytes(8, "big") + head + text)
        return Key(digest.digest(), redaction)

    def get(self, key: Key | None, now: Seconds) -> bytes | None:
        """The answer that was kept, if it is not too old. With a redaction the values are yet to be put back."""
        entry = self._entries.get(key.digest) if key is not None else None
        if key is not None and entry is not None and now - entry.kept > self.max_age:
            self._drop(key.digest)
            self.counters.expired += 1
            entry = None
        if key is None or entry is None:
            self.counters.misses += 1
            return None
        self._entries.move_to_end(key.digest)
        self.counters.hits += 1
        return entry.answer

    def put(self, key: Key | None, answer: bytes, now: Seconds) -> bool:
        """Keep a whole answer (JSON, not a stream's chunks). False when it may not be kept: it failed, was cut, asks
        for a tool, is too large, or holds a value that should be a placeholder."""
        size = len(answer) + OVERHEAD
        if key is None or size > self.max_bytes or not complete(answer) or _restored(key.redaction, answer):
            self.counters.refused += 1
            return False
        self._drop(key.digest)
        self._entries[key.digest] = Entry(answer, now)
        self.bytes += size
        self.counters.kept += 1
        while self.bytes > self.max_bytes or len(self._entries) > self.max_entries:
            self._drop(next(iter(self._entries)))
            self.counters.evicted += 1
        return True

    def clear(self) -> None:
        """Forget everything; the counters stay."""
        self._entries.clear()
        self.bytes = 0

    def _drop(self, digest: bytes) -> None:
        entry = self._entries.pop(digest, None)
        if entry is not None:
            self.bytes -= len(entry.answer) + OVERHEAD


def canonical(request: Mapping[str, Any]) -> bytes | None:
    """The request in one spelling: fields sorted, without those that do not change the answer; None for what is no
    JSON. 0 and 0.0 are two spellings, which costs a miss and no mistake."""
    kept = {
        name: value
        for name, value in request.items()
        if name not in NOT_OF_THE_ANSWER and not name.startswith("nearfar.")
    }
    try:
        return msgspec.json.encode(kept, order="deterministic")
    except (TypeError, ValueError, RecursionError):
        return None


def _restored(redaction: Redaction | None, answer: bytes) -> bool:
    """Whether a value stands in the answer, also one that JSON writes with escapes."""
    if redaction is None:
        return False
    pending: list[Any] = [msgspec.json.decode(answer)]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str) and redaction.occurs_in(value):
            return True
    return False
