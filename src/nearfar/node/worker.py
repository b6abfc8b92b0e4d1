"""The heart of a service: a bounded queue and the threads that answer from it.

A call comes on a thread of the mesh, waits here, is worked on by one worker and answered from that worker's thread: no
event loop, two hand-overs between threads in all.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from nearfar.errors import DeadlineExceeded, InferenceError, InputError, NearfarError, Overloaded
from nearfar.fleet.doomed import doomed, refusable
from nearfar.mesh.base import Call
from nearfar.node.meter import Meter
from nearfar.runtimes.base import LoadedVariant, OutputForms, check_inputs
from nearfar.types.image import Image, ImageKind
from nearfar.types.request import Stages
from nearfar.types.tensor import Tensor, TensorSpec
from nearfar.types.wire import (
    CallHead,
    Failure,
    Operation,
    ReplyHead,
    body_of,
    decode_call,
    encode,
    heads_of,
    tensors_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nearfar.models.process import Pipeline

log = logging.getLogger(__name__)
_NO_STAGES = Stages()
AT_ONCE_MS = 1.0
"""A service that takes less than this answers a patient call on the thread that brought it: handing it to a worker
would take longer than the work. Slower ones queue, so that telemetry sees who waits and a full queue can refuse."""


LOADED_MS = 1.0
"""A request that waited longer than the hand-over to a worker takes met others before it."""


class Description(msgspec.Struct, frozen=True):
    """What DESCRIBE answers, as JSON in the body."""

    manifest: str
    variant: str
    runtime: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Engine:
    """One loaded variant with its processing; used by one worker thread."""

    def __init__(self, loaded: LoadedVariant, pipeline: Pipeline | None, slowdown: float) -> None:
        self.loaded = loaded
        self._forms = OutputForms(loaded.outputs)
        self.pipeline = pipeline
        self.busy = threading.Lock()
        """Held while a thread works with it."""
        self._gate = threading.Lock()
        """Held by who waits for `busy`, so that a worker who is never idle cannot take it again and again."""
        self.broken: NearfarError | None = None
        """Why it must not answer any more. Set while `busy` is held."""
        self._pause = slowdown - 1.0

    def take(self) -> None:
        """Have it for oneself, in turn; `busy.release()` gives it back."""
        with self._gate:
            self.busy.acquire()

    def take_at_once(self) -> bool:
        """Have it for oneself if nobody works with it or waits for it."""
        return not self._gate.locked() and self.busy.acquire(blocking=False)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[Sequence[NDArray[Any]], float]:
        """Outputs and milliseconds of the inference, slowed down as the emulation asks.

        Raises `InferenceError` also for outputs of another form than the file states."""
        start = time.perf_counter()
        try:
            outputs = self.loaded.infer(inputs)
            self._forms.check(outputs)
        except NearfarError:
            raise
        except MemoryError:
            raise InferenceError("The inference ran out of memory.", "Use a smaller input or variant.") from None
        spent = time.perf_counter() - start
        if self._pause > 0:
            time.sleep(spent * self._pause)
            spent = time.perf_counter() - start
        return outputs, spent * 1000

    def infer(self, head: CallHead, body: bytes | memoryview) -> tuple[list[Tensor], float, float, float]:
        """Tensors in, tensors out: (outputs, preprocess, inference, postprocess) in milliseconds."""
        start = time.perf_counter()
        tensors = tensors_of(head.tensors, body)
        inputs = {tensor.name: tensor.array() for tensor in tensors}
        if len(inputs) != len(tensors):
            raise InputError("Two inputs have the same name.", "Send each input once.")
        check_inputs(self.loaded.inputs, inputs)
        names = [spec.name for spec in self.loaded.outputs]
        for name in head.wanted:
            if name not in names:
                raise InputError(f"There is no output {name!r}.", f"The model gives: {', '.join(names)}.")
        before = (time.perf_counter() - start) * 1000
        outputs, inference = self.run(inputs)
        start = time.perf_counter()
        wanted = head.wanted or names
        result = [Tensor.of(n, out) for n, out in zip(names, outputs, strict=True) if n in wanted]
        return result, before, inference, (time.perf_counter() - start) * 1000

    def see(self, head: CallHead, body: bytes | memoryview) -> tuple[list[Tensor], float, float, float]:
        """An image in, what the model sees in it out; as `infer`."""
        if self.pipeline is None:
            raise InputError("This model takes tensors, not images.", "Use /v2/models/NAME/infer, or add a decoder.")
        if head.image is None:
            raise InputError("There is no image in the request.", "Send one.")
        start = time.perf_counter()
        kind, width, height = head.image
        inputs, geometry = self.pipeline.prepare(Image(ImageKind(kind), width, height, body))
        before = (time.perf_counter() - start) * 1000
        outputs, inference = self.run(inputs)
        start = time.perf_counter()
        result = self.pipeline.finish(outputs, geometry)
        return result, before, inference, (time.perf_counter() - start) * 1000


class Worker:
    """Serves one engine from a queue that all workers of a service share."""

    def __init__(
        self,
        waiting: queue.SimpleQueue[Call | None],
        engine: Engine,
        meter: Meter,
        description: bytes,
        variant: str,
        changed: Callable[[], None],
    ) -> None:
        self._waiting = waiting
        self._engine = engine
        self._meter = meter
        self._description = description
        self._variant = variant
        self._changed = changed
        self.busy_since: float | None = None
        """Moment of the monotonic clock at which the work on the present call began."""
        self.thread = threading.Thread(target=self._run, name="worker", daemon=True)

    @property
    def broken(self) -> NearfarError | None:
        return self._engine.broken

    def _run(self) -> None:
        while (call := self._waiting.get()) is not None:
            if not call.cancelled:
                self._engine.take()
                try:
                    self._work(call)
                finally:
                    self._engine.busy.release()

    def answer_now(self, call: Call) -> bool:
        """Answer on the calling thread when nothing else is being done; False when it must wait in the queue."""
        if not self._engine.take_at_once():
            return False
        try:
            self._work(call)
        finally:
            self._engine.busy.release()
        return True

    def _work(self, call: Call) -> None:
        meter = self._meter
        meter.in_flight += 1
        self.busy_since = time.monotonic()
        try:
            self._answer(call)
        except NearfarError as error:  # the answer could not be sent: too large, or the way is gone
            with contextlib.suppress(NearfarError):
                self._refuse(call, error)
        except Exception:  # a worker that dies would leave a service that looks healthy and never answers
            log.exception("an answer could not be sent")
        finally:
            self.busy_since = None
            meter.in_flight -= 1
            self._changed()

    def _answer(self, call: Call) -> None:
        waited = (time.monotonic() - call.received) * 1000
        meter = self._meter
        try:
            head = decode_call(call.head)
            if self._engine.broken is not None:
                raise self._engine.broken
            if head.budget_ms and waited > head.budget_ms:
                raise DeadlineExceeded(f"The request waited {waited:.0f} ms, longer than its deadline allowed.")
            others = waited > LOADED_MS or meter.queued > 0
            works = head.operation is not Operation.DESCRIBE
            if works and head.budget_ms and doomed(head.budget_ms - waited, meter.recent_ms, others):
                raise DeadlineExceeded(
                    f"It waited {waited:.0f} ms and takes about {meter.recent_ms:.0f} ms more: too late for it.",
                    "Allow more time, or run the model on more nodes.",
                )
            if head.operation is Operation.DESCRIBE:
                call.reply(encode(ReplyHead(self._variant, _NO_STAGES)), [self._description])
                return
            work = self._engine.infer if head.operation is Operation.INFER else self._engine.see
            outputs, before, inference, after = work(head, call.body)
        except msgspec.MsgspecError as error:
            self._refuse(call, InputError(f"The request cannot be read: {error}."))
        except NearfarError as error:
            self._refuse(call, error)
        except Exception as error:  # a decoder or an engine broke: say so, and go on with the next call
            self._refuse(call, InferenceError(f"{type(error).__name__}: {error}", "Report it with the model's name."))
        else:
            stages = Stages(0.0, waited, before, inference, after)
            self._meter.answer(stages)
            reply = ReplyHead(self._variant, stages, heads_of(outputs), None, self._meter.queued)
            call.reply(encode(reply), body_of(outputs))

    def _refuse(self, call: Call, error: NearfarError) -> None:
        self._meter.fail(error)
        refuse(call, error, self._variant, self._meter.queued)


def refuse(call: Call, error: NearfarError, variant: str, queued: int) -> None:
    """Answer with a failure."""
    call.reply(encode(ReplyHead(variant, _NO_STAGES, (), Failure.of(error), queued)))


class Pool:
    """The queue and its workers. `accept` is the mesh's callback: it refuses at once when the queue is full."""

    def __init__(
        self, engines: Sequence[Engine], meter: Meter, description: Description, limit: int, changed: Callable[[], None]
    ) -> None:
        self._waiting: queue.SimpleQueue[Call | None] = meter.waiting
        self._meter = meter
        self._limit = limit
        self._variant = description.variant
        self._changed = changed
        self._closing: NearfarError | None = None
        """What who comes now is told."""
        encoded = msgspec.json.encode(description)
        self._workers = [
            Worker(self._waiting, engine, meter, encoded, description.variant, changed) for engine in engines
        ]
        for worker in self._workers:
            worker.thread.start()

    def accept(self, call: Call) -> None:
        queued = self._waiting.qsize()
        if self._closing is not None:
            with contextlib.suppress(NearfarError):
                refuse(call, self._closing, self._variant, queued)
            return
        if call.patient and not queued and self._meter.recent_ms < AT_ONCE_MS and self._workers[0].answer_now(call):
            return
        if queued >= self._limit:
            self._meter.refuse()
            wait = max(0.05, queued * self._meter.recent_ms / 1000 / len(self._workers))
            error = Overloaded(f"The queue is full: {queued} requests wait.", "Try again later.", retry_after=wait)
            with contextlib.suppress(NearfarError):  # the caller is gone; this thread is the mesh's
                refuse(call, error, self._variant, queued)
            return
        if self._refuse_doomed(call, queued):
            return
        self._waiting.put(call)
        if queued >= len(self._workers):
            self._changed()

    def _refuse_doomed(self, call: Call, queued: int) -> bool:
        """Say no at once to what could not be answered within its budget: its caller may have time for another."""
        meter, workers = self._meter, len(self._workers)
        if not queued and meter.in_flight < workers:
            return False  # its turn is now
        try:
            head = decode_call(call.head)
        except msgspec.MsgspecError:
            return False  # the worker tells what is wrong with it
        budget = head.budget_ms if head.operation is not Operation.DESCRIBE else 0.0
        if not budget or not refusable(budget, meter.recent_ms, queued, meter.in_flight, workers):
            return False
        meter.refuse()
        told = f"{queued} requests wait and each takes about {meter.recent_ms:.0f} ms: too late for the deadline."
        with contextlib.suppress(NearfarError):  # the caller is gone; this thread is the mesh's
            error = DeadlineExceeded(told, "Allow more time, or run the model on more nodes.")
            refuse(call, error, self._variant, queued)
        return True

    def longest(self, now: float) -> float:
        """Seconds that the call which is worked on for longest has taken so far; 0 when none is."""
        return max((now - since for worker in self._workers if (since := worker.busy_since) is not None), default=0.0)

    def close(self, patience: float = 5.0) -> None:
        """Answer what waits, then stop the workers; `patience` seconds in all. What comes meanwhile is refused.

        Where the engines are broken, what waits is refused with the reason, so that its callers ask another."""
        broken = (worker.broken for worker in self._workers)
        self._closing = next(filter(None, broken), Overloaded("The service is stopping.", "Try again.", 0.1))
        for _ in self._workers:
            self._waiting.put(None)
        end = time.monotonic() + patience
        for worker in self._workers:
            worker.thread.join(max(0.0, end - time.monotonic()))
