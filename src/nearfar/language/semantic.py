"""The semantic cache: an answer to a question that means nearly the same. Off by default.

Only the words of the last message are compared by meaning. All the rest (earlier messages, system prompt, sampling,
tools, model, caller, level of privacy) must be equal byte for byte, as in the exact cache. Two questions count as one
when the cosine between their vectors is at least the bound, which is stated in the settings; the cosine is part of the
answer, so that who gets it can say so. In memory only, bounded in entries, bytes and age.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from nearfar.errors import InputError, SettingsError
from nearfar.language.cache import AN_HOUR, OVERHEAD, Counters, ExactCache, Key, Scope
from nearfar.language.privacy.redact import Redaction
from nearfar.types.request import Privacy
from nearfar.types.units import Seconds

if TYPE_CHECKING:
    from numpy.typing import NDArray

Embed = Callable[[str], Sequence[float]]
"""A text as a vector, always of the same length: any embedding model that runs where the text may be."""
_LARGEST = 1e18
"""Largest number of a vector: its square is still a finite float32."""


class Hit(msgspec.Struct, frozen=True):
    """An answer that was given to another question, and how near that one was."""

    answer: bytes
    similarity: float
    """Cosine between the two questions, from the bound to 1."""

    def __repr__(self) -> str:
        return f"Hit({len(self.answer)} bytes, similarity {self.similarity:.4f})"


class Question(msgspec.Struct, frozen=True, eq=False):
    """A request as this cache sees it: everything but its last words as a digest, and those as a vector of length 1."""

    rest: Key
    vector: NDArray[Any]

    def __repr__(self) -> str:
        return f"Question({len(self.vector)} numbers)"


class _Entry(msgspec.Struct, eq=False):
    vector: NDArray[Any]
    answer: bytes
    kept: Seconds

    @property
    def size(self) -> int:
        return len(self.answer) + int(self.vector.nbytes) + OVERHEAD


class SemanticCache:
    """Answers by meaning. It asks `embed` for each question, on the level of privacy of the question: `far_embedding`
    says that `embed` hands texts to a far end, and then nothing private is given to it."""

    def __init__(
        self,
        embed: Embed,
        bound: float,
        max_bytes: int = 64 * 1024 * 1024,
        max_entries: int = 1_000,
        max_age: Seconds = AN_HOUR,
        *,
        far_embedding: bool = False,
    ) -> None:
        """`bound`: from 0.5 to 1. Raises `SettingsError` for another."""
        if not 0.5 <= bound <= 1:
            raise SettingsError(
                f"A similarity of {bound} is no bound for answers.", "Set [cache] similarity from 0.5 to 1."
            )
        self.bound, self.max_bytes, self.max_entries, self.max_age = bound, max_bytes, max_entries, max_age
        self.counters = Counters()
        self.bytes = 0
        self._embed = embed
        self._far_embedding = far_embedding
        # It makes the digests, and decides by putting an answer into it what may be kept at all.
        self._exact = ExactCache(max_bytes, 1, max_age)
        self._entries: OrderedDict[int, tuple[bytes, _Entry]] = OrderedDict()  # the least recently used first
        self._by_rest: dict[bytes, set[int]] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"SemanticCache({len(self)} answers, {self.bytes} bytes, bound {self.bound})"

    def question(self, request: Mapping[str, Any], scope: Scope, redaction: Redaction | None = None) -> Question | None:
        """None when the request has no last words of a user in plain text, or when they may not be embedded. Raises
        `InputError` when the vector is empty, not finite or 0, and what `embed` raises."""
        # A request that goes near may hold what its redacted form would not: only what goes far anyway is embedded far.
        if self._far_embedding and not (scope.privacy is Privacy.ANY and scope.served.startswith("far:")):
            return None
        parted = _parted(request)
        if parted is None:
            return None
        rest, words = parted
        key = self._exact.key(rest, scope, redaction)
        return Question(key, _unit(self._embed(words))) if key is not None else None

    def get(self, question: Question | None, now: Seconds) -> Hit | None:
        """The answer to the nearest question of the same kind, when it is near enough and not too old."""
        best: tuple[float, int] | None = None
        for number in sorted(self._by_rest.get(question.rest.digest, ())) if question is not None else ():
            entry = self._entries[number][1]
            if now - entry.kept > self.max_age:
                self._drop(number)
                self.counters.expired += 1
            elif question is not None and entry.vector.shape == question.vector.shape:
                similarity = min(1.0, float(entry.vector @ question.vector))
                if similarity >= self.bound and (best is None or similarity > best[0]):
                    best = similarity, number
        if best is None:
            self.counters.misses += 1
            return None
        self._entries.move_to_end(best[1])
        self.counters.hits += 1
        return Hit(self._entries[best[1]][1].answer, best[0])

    def put(self, question: Question | None, answer: bytes, now: Seconds) -> bool:
        """Keep an answer. False for one that `ExactCache.put` would not keep either."""
        kept = question is not None and self._exact.put(question.rest, answer, now)
        self._exact.clear()
        if question is None or not kept:
            self.counters.refused += 1
            return False
        entry = _Entry(question.vector, answer, now)
        if entry.size > self.max_bytes:
            self.counters.refused += 1
            return False
        self._number += 1
        self._entries[self._number] = (question.rest.digest, entry)
        self._by_rest.setdefault(question.rest.digest, set()).add(self._number)
        self.bytes += entry.size
        self.counters.kept += 1
        while self.bytes > self.max_bytes or len(self._entries) > self.max_entries:
            self._drop(next(iter(self._entries)))
            self.counters.evicted += 1
        return True

    def _drop(self, number: int) -> None:
        digest, entry = self._entries.pop(number)
        self.bytes -= entry.size
        alike = self._by_rest[digest]
        alike.discard(number)
        if not alike:
            del self._by_rest[digest]


def _parted(request: Mapping[str, Any]) -> tuple[dict[str, Any], str] | None:
    """The request without its last words, and those: of the last message if a user wrote it, or of the prompt."""
    messages, prompt = request.get("messages"), request.get("prompt")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        last = messages[-1]
        words = last.get("content")
        if last.get("role") == "user" and isinstance(words, str) and words:
            return {**request, "messages": [*messages[:-1], {**last, "content": None}]}, words
    elif isinstance(prompt, str) and prompt and messages is None:
        return {**request, "prompt": None}, prompt
    return None


def _unit(vector: Sequence[float]) -> NDArray[Any]:
    import numpy as np

    found = np.asarray(vector, dtype=np.float64)
    hint = "Use another embedding model for the semantic cache, or switch it off."
    if found.ndim != 1 or not found.size or not np.isfinite(found).all() or float(np.abs(found).max()) > _LARGEST:
        raise InputError("An embedding is no row of finite numbers.", hint)
    length = math.sqrt(float(found @ found))
    if length == 0:
        raise InputError("An embedding is 0 everywhere, which is like nothing.", hint)
    return (found / length).astype(np.float32)
