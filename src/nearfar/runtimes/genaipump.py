"""Keeps a `ContinuousBatchingPipeline` of OpenVINO GenAI at work, so that calls join and leave while others go on.

The pipeline's own `step()` does not let go of Python's lock: through a long prompt nothing else in the process would be
heard, not even that it is alive. Its `generate()` does, and works until no call is left, also on those that other
threads add meanwhile. So one thread calls `generate()` with a prompt of one token; its first word says that the
pipeline is at work, callers add theirs, and it is cancelled. That costs the first call after a rest the time of two or
three tokens.

Under a load that never rests `generate()` never returns, and keeps some 24 bytes of times for each step: 20 MiB for a
million steps, which it gives back when it rests.

A call that is added just when `generate()` ends would wait for ever; before the next `generate()` it is taken out and
added again.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

from nearfar.errors import InferenceError, NearfarError
from nearfar.runtimes.engine import one_line


class Job:
    """One answer that is being written."""

    def __init__(self, tokens: Any, config: Any) -> None:
        self.tokens = tokens
        self.config = config
        self.handle: Any = None
        """The pipeline's; None while the call waits to be added."""
        self.failed: NearfarError | None = None

    def cancel(self) -> None:
        if self.handle is not None:
            self.handle.cancel()

    @property
    def state(self) -> str:
        """`RUNNING`, `FINISHED`, `IGNORED` (no room), `CANCEL` or `STOP`."""
        handle = self.handle
        return "RUNNING" if handle is None else str(handle.get_status().name)

    def read(self) -> list[Any]:
        """What was written since the last time; empty when nothing was. Raises the engine's failure."""
        handle = self.handle
        found: list[Any] = []
        while handle is not None and handle.can_read():
            found += handle.read().values()
        if not found and self.failed is not None:
            raise self.failed
        return found


class Pump:
    """`module` is openvino_genai, `pipe` the pipeline, `token` a tensor of one token."""

    def __init__(self, module: Any, pipe: Any, token: Any) -> None:
        self._pipe = pipe
        self._token = token
        self._config = module.GenerationConfig()
        self._config.max_new_tokens = 1 << 20  # until it is cancelled
        self._config.ignore_eos = True
        self._signal = _signal(module, self._at_work)
        self._numbers = itertools.count(1)
        self._waiting: list[Job] = []
        self._active: set[Job] = set()
        self._working = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="openvino-genai", daemon=True)
        self._thread.start()

    def add(self, tokens: Any, config: Any) -> Job:
        """Raises `InferenceError` when the engine does not take it, or is closed."""
        job = Job(tokens, config)
        with self._changed:
            if self._closed:
                raise _closed()
            self._active.add(job)
            if self._working:
                self._add(job)
            else:
                self._waiting.append(job)
                self._changed.notify()
            if job.failed is not None:
                self._active.discard(job)
                raise job.failed
        return job

    def leave(self, job: Job) -> None:
        """Nobody waits for it any more, or it is done."""
        with self._changed:
            self._active.discard(job)
            if job in self._waiting:
                self._waiting.remove(job)
            job.cancel()

    def close(self) -> None:
        """Ends every call; may be called twice."""
        with self._changed:
            self._closed = True
            self._fail(_closed())
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(10)

    def _add(self, job: Job) -> None:
        try:
            job.handle = self._pipe.add_request(next(self._numbers), job.tokens, job.config)
        except Exception as error:  # of the engine's own kinds
            job.failed = _failure(error)

    def _at_work(self) -> None:
        """Called by the pipeline's own thread, when it is inside `generate()`."""
        with self._changed:
            self._working = True
            for job in self._waiting:
                self._add(job)
            self._waiting.clear()

    def _fail(self, failure: NearfarError) -> None:
        for job in self._active:
            job.failed = failure
            job.cancel()
        self._waiting.clear()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
            failure: NearfarError | None = None
            try:
                self._pipe.generate([self._token], [self._config], self._signal)
            except Exception as error:
                failure = _failure(error)
            with self._changed:
                self._working = False
                if failure is not None:  # whatever was under way is lost
                    self._fail(failure)
                self._recover()

    def _recover(self) -> None:
        """Take out what was added when `generate()` had just ended, and let it wait anew."""
        if not self._pipe.has_non_finished_requests():
            return
        # Outside of `generate()` all that the pipeline began is finished.
        late = [job for job in self._active if job.failed is None and job.handle is not None and job.state == "RUNNING"]
        late = [job for job in late if not job.handle.can_read()]
        for job in late:
            job.cancel()
            job.handle = None
        try:
            while self._pipe.has_non_finished_requests():
                self._pipe.step()
        except Exception as error:
            self._fail(_failure(error))
            return
        self._waiting = [*late, *self._waiting]


def _signal(module: Any, at_work: Callable[[], None]) -> Any:
    """What the pipeline tells its tokens: at the first one it is at work, and need not go on with this one."""

    class Signal(module.StreamerBase):  # type: ignore[misc]
        def write(self, token: Any) -> Any:
            at_work()
            return module.StreamingStatus.CANCEL

        def end(self) -> None:
            pass

    return Signal()


def _closed() -> InferenceError:
    return InferenceError("The model is closed.", "Ask another service.")


def _failure(error: Exception) -> NearfarError:
    return InferenceError(f"OpenVINO GenAI failed: {one_line(error)}.", "Ask another service.")
