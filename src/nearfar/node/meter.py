"""What a service counts of itself, and the report it makes of it."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from nearfar.errors import InferenceError, NearfarError
from nearfar.node.spec import ServiceSpec
from nearfar.node.talkmeter import TextMeter
from nearfar.types.histogram import Histogram
from nearfar.types.request import Stages
from nearfar.types.telemetry import NOT_TESTED, SelfTest, ServiceReport, ServiceState, StageSummary
from nearfar.types.units import Bytes, Ratio, Seconds

STAGES = ("queue", "preprocess", "inference", "postprocess")
RECENT = 0.1
"""Weight of the newest answer in the recent mean service time."""
FORGET = 0.2
"""Share by which an idle service's recent mean returns to its profile with every report: what was measured during a
busy spell must not keep requests away when the spell is over."""
ERROR_WINDOW = 64
"""The error rate is that of the last so many requests, ..."""
ERROR_AGE = Seconds(30.0)
"""... none of them older than this: a service that is asked nothing because it failed must be tried again, ..."""
ERROR_LEAST = 10
"""... and 0 while there are fewer: of two requests one may fail by chance."""


class Meter:
    """Counters of one service; workers add, the reporting thread reads."""

    def __init__(self, spec: ServiceSpec, profile_ms: float) -> None:
        self._spec = spec
        self._lock = threading.Lock()
        self._histograms = {name: Histogram() for name in STAGES}
        self._recent_ms = profile_ms
        self.profile_ms = profile_ms
        self.answered = 0
        self._answered_before = 0
        self.failed = 0
        self.refused = 0
        self.waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """The service's queue itself: a count kept beside it would go stale."""
        self.in_flight = 0
        self.state = ServiceState.READY
        self.reason = spec.reason
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=ERROR_WINDOW)
        """(moment, failed by its own fault) of the last requests."""
        self._self_test = NOT_TESTED
        self._tested = time.monotonic()
        self.text: TextMeter | None = None
        """Of a language service."""
        self.workers = spec.workers
        self.price: Callable[[], float] = lambda: spec.cost
        """What the next request is expected to cost."""

    @property
    def model(self) -> str:
        return self._spec.model

    @property
    def queued(self) -> int:
        return self.waiting.qsize()

    @property
    def recent_ms(self) -> float:
        """Mean service time of the last answers in milliseconds, exponentially weighted."""
        return self._recent_ms

    def start(self, profile_ms: float) -> None:
        """What was measured at the start, before the first request."""
        self.profile_ms = self._recent_ms = profile_ms

    def answer(self, stages: Stages) -> None:
        with self._lock:
            self.answered += 1
            for name in STAGES:
                self._histograms[name].add(getattr(stages, name))
            spent = stages.service
            self._recent_ms += RECENT * (spent - self._recent_ms) if self._recent_ms else spent
            self._outcomes.append((time.monotonic(), False))

    def fail(self, error: NearfarError) -> None:
        """Count a request that was taken and not answered. What the caller did wrong, or wanted sooner than the queue
        allowed, is no fault of the service."""
        with self._lock:
            self.failed += 1
            if isinstance(error, InferenceError):
                self._outcomes.append((time.monotonic(), True))

    def error_rate(self, now: float) -> Ratio:
        """Share of the last requests that failed by the service's own fault; 0 while there are too few to tell."""
        with self._lock:
            recent = [failed for moment, failed in self._outcomes if now - moment <= ERROR_AGE]
        return Ratio(sum(recent) / len(recent)) if len(recent) >= ERROR_LEAST else Ratio(0.0)

    def count_in(self) -> None:
        """One more is worked on; called by several threads."""
        with self._lock:
            self.in_flight += 1

    def count_out(self) -> None:
        with self._lock:
            self.in_flight -= 1

    @property
    def idle(self) -> bool:
        return not self.in_flight and not self.queued

    def tested(self, result: SelfTest) -> None:
        """Note what became of a self-test that ended just now."""
        self._self_test, self._tested = result, time.monotonic()

    def refuse(self) -> None:
        """Count a request that found the queue full; callers come on several threads."""
        with self._lock:
            self.refused += 1

    def report(self) -> ServiceReport:
        spec = self._spec
        with self._lock:
            if self.answered == self._answered_before and not self.queued and not self.in_flight:
                self._recent_ms += FORGET * (self.profile_ms - self._recent_ms)
            self._answered_before = self.answered
            stages = {name: StageSummary(dict(h.counts), h.sum) for name, h in self._histograms.items()}
        return ServiceReport(
            service=spec.service,
            node=spec.node,
            model=spec.model,
            variant=spec.variant,
            runtime=spec.runtime,
            unit=spec.unit,
            state=self.state,
            reason=self.reason,
            instance=spec.instance,
            queued=self.queued,
            in_flight=self.in_flight,
            queue_limit=spec.queue_limit,
            workers=self.workers,
            answered=self.answered,
            failed=self.failed,
            refused=self.refused,
            service_ms=self._recent_ms,
            profile_ms=self.profile_ms,
            stages=stages,
            memory=resident_memory(),
            cost=self.price(),
            error_rate=self.error_rate(time.monotonic()),
            self_test=msgspec.structs.replace(self._self_test, age=Seconds(time.monotonic() - self._tested)),
            text=self.text.report() if self.text is not None else None,
            revision=spec.revision,
        )


def resident_memory() -> Bytes:
    """Resident memory of this process; 0 where the system does not tell."""
    import psutil

    info: Any = psutil.Process().memory_info()
    return Bytes(int(info.rss))
