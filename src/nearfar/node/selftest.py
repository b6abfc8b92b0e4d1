"""A service asks itself a question whose answer is known: before it is ready, and every few seconds from then on.

It goes through the same engine and the same lock as every request, is counted as none, and gives way to requests: while
any waits or is worked on the question is put off, until three periods have passed since the last one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from nearfar.errors import InferenceError, NearfarError, SelfTestFailed
from nearfar.node.meter import Meter
from nearfar.node.worker import Engine
from nearfar.runtimes import known_answer
from nearfar.runtimes.known_answer import KnownAnswer
from nearfar.types.telemetry import SelfTest, ServiceState

log = logging.getLogger(__name__)

PATIENCE = 3
"""Periods after which the question is asked whatever waits."""
LOOK_EVERY = 0.05
"""Seconds between looks for a moment without work, once the question is due."""
TRIES = 3
"""An inference that fails is no wrong answer: callers are told of it, and the error rate counts it. So many in a row
are more than a caller should find out."""


class Question:
    """What one service asks its engines. Made from the answer that was recorded when the model came into the store;
    where there is none from the first answer of the first engine, which shows later damage but not a wrong start."""

    def __init__(self, engine: Engine, recorded: str, model: str = "NAME", failed: int = 0) -> None:
        """`failed` counts the self-tests of this service that failed before, since its node started."""
        self._model = model
        self._failed = failed
        specs = engine.loaded.inputs
        self.known: KnownAnswer | None = None
        self.untold = ""
        """Why nothing can be asked; "" when it can."""
        self.against = "its recorded answer"
        known = known_answer.decode(recorded) if recorded else None
        if known is not None:
            try:
                self.inputs = known_answer.question(specs, known.shapes)
                self.known = known
                return
            except ValueError as error:  # recorded of another file: never by us
                log.warning("the recorded answer is not used: %s", error)
        self.against = "its own first answer, as none was recorded"
        try:
            shapes = known_answer.shapes_of(specs, _sizes(engine))
            self.inputs = known_answer.question(specs, shapes)
            outputs, _ = engine.run(self.inputs)
            self.known = known_answer.record([outputs], shapes, "itself")
        except (NearfarError, ValueError) as error:
            self.untold = f"not asked, as the question cannot be put to this model: {error}"

    def ask(self, engine: Engine) -> str:
        """What is wrong with the answer; "" when it is the known one. Call it with the engine taken."""
        assert self.known is not None
        for tried in range(TRIES):
            try:
                return known_answer.compare(self.known, engine.run(self.inputs)[0])
            except Exception as error:  # an engine may fail in any way
                failed = f"{type(error).__name__}: {error}"
                if isinstance(error, InferenceError) and tried + 1 < TRIES:
                    continue
        return f"it failed {TRIES} times in a row: {failed}"

    def result(self, wrong: str) -> SelfTest:
        failed = self._failed
        if self.known is None:
            return SelfTest(None, self.untold, failed=failed)
        if wrong:
            return SelfTest(False, wrong, failed=failed + 1)
        weak = "" if self.known.tells else "; the answer is all zeros, so that only its form tells"
        return SelfTest(True, f"as {self.against}{weak}", failed=failed)

    def error(self, wrong: str) -> SelfTestFailed:
        return SelfTestFailed(
            f"The self-test was answered wrongly: {wrong}, compared with {self.against}.",
            f"It starts again by itself. If it stays so: `nearfar models remove {self._model}` and add it again, or "
            "set [node] self_test_every_ms = 0.",
        )


def _sizes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """Concrete sizes of a picture's input, where the file leaves them open and the manifest does not."""
    if engine.pipeline is None:
        return {}
    import numpy as np

    from nearfar.types.image import Image

    inputs, _ = engine.pipeline.prepare(Image.bgr(np.zeros((8, 8, 3), np.uint8)))
    return {name: array.shape for name, array in inputs.items()}


def first_test(engines: Sequence[Engine], recorded: str, meter: Meter, failed: int) -> Question:
    """Ask once before the service is ready. Raises `SelfTestFailed`."""
    question = Question(engines[0], recorded, meter.model, failed)
    for place, engine in enumerate(engines):
        if question.known is None or (place == 0 and question.known.by == "itself"):
            continue  # it was just asked
        if wrong := question.ask(engine):
            raise question.error(wrong)
    meter.tested(question.result(""))
    return question


class SelfTester:
    """Asks on a thread of its own. After a wrong answer all engines are `broken` and `error` says why."""

    def __init__(
        self,
        question: Question,
        engines: Sequence[Engine],
        every: float,
        meter: Meter,
        on_wrong: Callable[[], None],
    ) -> None:
        self.error: SelfTestFailed | None = None
        self.busy_since: float | None = None
        """Moment of the monotonic clock at which the present question was put."""
        self._question = question
        self._engines = engines
        self._every = every
        self._meter = meter
        self._on_wrong = on_wrong
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="self-test", daemon=True)
        if every > 0 and question.known is not None:
            self._thread.start()

    def _run(self) -> None:
        asked = time.monotonic()
        while not self._stop.wait(max(LOOK_EVERY, asked + self._every - time.monotonic())):
            overdue = time.monotonic() - asked >= PATIENCE * self._every
            if not overdue and not self._meter.idle:
                continue
            for engine in self._engines:
                if overdue:
                    engine.take()
                elif not engine.take_at_once():
                    break  # somebody came just now
                try:
                    if self._wrong(engine):
                        return
                finally:
                    engine.busy.release()
            else:
                asked = time.monotonic()

    def _wrong(self, engine: Engine) -> bool:
        self.busy_since = time.monotonic()
        wrong = self._question.ask(engine)
        self.busy_since = None
        if not wrong:
            self._meter.tested(self._question.result(""))
            return False
        error = self._question.error(wrong)
        for other in self._engines:  # before the lock is given back: nobody gets another answer
            other.broken = error
        self._meter.state, self._meter.reason = ServiceState.FAILED, error.message
        self._meter.tested(self._question.result(wrong))
        self.error = error
        self._on_wrong()
        return True

    def longest(self, now: float) -> float:
        """Seconds that the present question has taken so far; 0 when none is asked."""
        since = self.busy_since
        return 0.0 if since is None else now - since

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1)
