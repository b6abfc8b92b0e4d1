"""A language service asks itself a short question now and then and compares the answer with the first one it gave.

What is compared is the greedy text, token by token. Other conversations in the same batch change the last bits of the
numbers, so where a token differs it counts as the same when its log-probability was as good as tied with that of the
first one; damaged weights or a lost device change it by far more.

The question waits in the service's own queue, takes no slot from anybody, is counted as no call, and gives way to
requests: while any is there it is put off, until three periods have passed.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from nearfar.errors import InferenceError, NearfarError, SelfTestFailed
from nearfar.node.meter import Meter
from nearfar.node.selftest import LOOK_EVERY, PATIENCE, TRIES
from nearfar.runtimes.text import LoadedText
from nearfar.types.telemetry import SelfTest, ServiceState
from nearfar.types.wire import Operation, TextContext

log = logging.getLogger(__name__)

PROMPT = "One, two, three,"
TOKENS = 4
TIED = 0.25
"""Difference of log-probabilities, in nats, within which either of two tokens may be the greedy one."""
ALIKE = 0.99
"""Least cosine between a vector and the first one."""
_TOLD = "as its own first answer"


class _Alternative(msgspec.Struct):
    token: str = ""
    logprob: float = 0.0


class _Said(_Alternative):
    top_logprobs: list[_Alternative] = []


class _Logprobs(msgspec.Struct):
    content: list[_Said] = []


class _Choice(msgspec.Struct):
    text: str = ""
    logprobs: _Logprobs | None = None


class _Row(msgspec.Struct):
    embedding: list[float] = []


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    data: list[_Row] = []


_answer = msgspec.json.Decoder(_Answer)


class TextQuestion:
    """What one service asks its engine, and its first answer. Raises what the engine raises when that fails, and
    `InferenceError` when it says what cannot be read."""

    def __init__(self, loaded: LoadedText, embedding: bool, model: str, failed: int = 0) -> None:
        """`failed` counts the self-tests of this service that failed before, since its node started."""
        self._loaded = loaded
        self._operation = Operation.EMBED if embedding else Operation.COMPLETE
        beside = min(5, loaded.alternatives)
        text = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "logprobs": beside, "cache_prompt": False}
        self._body = msgspec.json.encode({"input": PROMPT} if embedding else text)
        self._model, self._failed = model, failed
        self._first = self._asked()

    def _asked(self) -> _Answer:
        pieces: list[bytes] = []

        def take(piece: bytes) -> bool:
            if piece:
                pieces.append(piece)
            return False

        self._loaded.run(self._operation, self._body, take, TextContext())
        try:
            answer = _answer.decode(pieces[0])
        except (msgspec.MsgspecError, UnicodeDecodeError, IndexError):
            raise InferenceError("The engine's answer cannot be read.", "Use another variant.") from None
        if not answer.choices and not answer.data:
            raise InferenceError("The engine answered nothing.", "Use another variant.")
        return answer

    def ask(self) -> str:
        """What is wrong with the answer; "" when it is the first one."""
        for tried in range(TRIES):
            try:
                return compare(self._first, self._asked(), self._loaded.alternatives == 1)
            except Exception as error:  # an engine may fail in any way
                failed = f"{type(error).__name__}: {error}"
                if isinstance(error, InferenceError) and tried + 1 < TRIES:
                    continue
        return f"it failed {TRIES} times in a row: {failed}"

    def result(self, wrong: str) -> SelfTest:
        return SelfTest(not wrong, wrong or _TOLD, failed=self._failed + bool(wrong))

    def error(self, wrong: str) -> SelfTestFailed:
        return SelfTestFailed(
            f"The self-test was answered wrongly: {wrong}, compared with its own first answer.",
            f"It starts again by itself. If it stays so: `nearfar models remove {self._model}` and add it again, or "
            "set [node] self_test_every_ms = 0.",
        )


def compare(first: Any, now: Any, alone: bool = False) -> str:
    """What is wrong; "" when both are the same but for rounding. `alone`: the engine tells of the best token only, so
    that of two which are tied each is seen in its own answer, as probable as the other."""
    if first.data:
        cosine = _cosine(first.data[0].embedding, now.data[0].embedding if now.data else ())
        return "" if cosine >= ALIKE else f"the vector's cosine to the first one is {cosine:.3f}"
    if not now.choices:
        return "there was no answer"
    a, b = first.choices[0], now.choices[0]
    if a.text == b.text:
        return ""
    known, said = (choice.logprobs.content if choice.logprobs else [] for choice in (a, b))
    for place, (one, other) in enumerate(zip(known, said, strict=False)):
        if one.token == other.token:
            continue
        rank = {found.token: found.logprob for found in one.top_logprobs}
        if other.token in rank and one.logprob - rank[other.token] <= TIED:
            return ""  # a tie; what follows is another text
        if alone and abs(one.logprob - other.logprob) <= TIED:
            return ""
        return f"token {place + 1} was {one.token!r} and is {other.token!r}"
    return f"the text was {a.text!r} and is {b.text!r}"


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """-1 for vectors that cannot be compared: of other lengths, of zeros, or with what is no number."""
    if len(a) != len(b) or not a:
        return -1.0
    length = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / length if length else -1.0
    return cosine if math.isfinite(cosine) else -1.0


class Probe:
    """A question in the queue of a service, among its calls."""

    cancelled = False

    def __init__(self, question: TextQuestion) -> None:
        self._question = question
        self.wrong: str | None = None
        self.done = threading.Event()

    def run(self) -> None:
        """Called by the thread that takes it from the queue."""
        try:
            self.wrong = self._question.ask()
        finally:
            self.done.set()


class TextTester:
    """Asks on a thread of its own. After a wrong answer the service refuses every call and `error` says why."""

    def __init__(
        self,
        question: TextQuestion,
        put: Callable[[Probe], None],
        every: float,
        meter: Meter,
        on_wrong: Callable[[NearfarError], None],
    ) -> None:
        self.error: SelfTestFailed | None = None
        self._question = question
        self._put = put
        self._every = every
        self._meter = meter
        self._on_wrong = on_wrong
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="self-test", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asked = time.monotonic()
        while not self._stop.wait(max(LOOK_EVERY, asked + self._every - time.monotonic())):
            overdue = time.monotonic() - asked >= PATIENCE * self._every
            if not overdue and not self._meter.idle:
                continue
            probe = Probe(self._question)
            self._put(probe)
            while not probe.done.wait(LOOK_EVERY):
                if self._stop.is_set():
                    return
            asked = time.monotonic()
            if self._judged(probe.wrong):
                return

    def _judged(self, wrong: str | None) -> bool:
        """Whether it was wrong."""
        if not wrong:
            self._meter.tested(self._question.result(""))
            return False
        error = self._question.error(wrong)
        self._meter.state, self._meter.reason = ServiceState.FAILED, error.message
        self._meter.tested(self._question.result(wrong))
        self.error = error
        self._on_wrong(error)
        return True

    def longest(self, now: float) -> float:
        """The pool counts the question among its calls."""
        return 0.0

    def close(self) -> None:
        self._stop.set()
        self._thread.join(1)
