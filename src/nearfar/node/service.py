"""The service process: one variant, loaded by one runtime, reachable over the mesh.

Started by an agent as `python -m nearfar.node.service` with a `ServiceSpec` on standard input, which stays open: when
it closes, the agent is gone and the service answers what waits and ends. It prints one `Word` as a JSON line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from nearfar.errors import InferenceError, ModelFileError, NearfarError, SelfTestFailed
from nearfar.node import keys
from nearfar.node.meter import Meter
from nearfar.node.selftest import SelfTester, first_test
from nearfar.node.spec import Milestone, ServiceSpec, Word
from nearfar.node.worker import Description, Engine, Pool
from nearfar.types.image import Image
from nearfar.types.telemetry import ServiceState
from nearfar.types.tensor import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nearfar.mesh.base import Call, Mesh

REPORT_EVERY = 0.5
"""Seconds between reports when nothing changes."""
REPORT_SOONEST = 0.05
"""Seconds between reports when much changes."""
WARM_UP = 2
BLANK = 64
"""Side of the blank image of the warm-up, in pixels."""
PROFILE_RUNS = 5
LOOK_EVERY = 0.25
"""Seconds between looks for an inference that hangs."""
BEAT_EVERY = 4
"""Looks between two words to the agent that say no more than that this interpreter still runs: one a second."""
LAST_WORDS = 0.2
"""Seconds between the last answers and the withdrawal, which on the mesh may overtake them."""
LAST_ORDERS = 7.0
"""Seconds a service may take to end once its agent is gone or asks it to."""


log = logging.getLogger(__name__)


class Reporter:
    """Publishes the meter twice a second, and sooner when the queue has grown or shrunk by much."""

    def __init__(self, mesh: Mesh, meter: Meter, key: str) -> None:
        self.mesh = mesh
        self._meter = meter
        self._key = key
        self._event = threading.Event()
        self._closed = False
        self._said = 0
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """Something may have changed. Cheap: called for every request."""
        if abs(self._meter.queued - self._said) >= max(4, self._said // 2) and not self._event.is_set():
            self._event.set()

    def _run(self) -> None:
        encoder = msgspec.msgpack.Encoder()
        while not self._closed:
            self._publish(encoder)
            time.sleep(REPORT_SOONEST)
            self._event.wait(REPORT_EVERY - REPORT_SOONEST)
            self._event.clear()

    def _publish(self, encoder: msgspec.msgpack.Encoder) -> None:
        try:
            report = self._meter.report()
            self._said = report.queued
            self.mesh.publish(self._key, encoder.encode(report))
        except Exception:  # without reports the service counts as dead, though it answers: try again
            log.exception("telemetry could not be sent")

    def now(self) -> None:
        """Report at once: the state has changed."""
        self._event.set()

    def close(self) -> None:
        """Say the last word: while the token is still there, so that who hears it knows that it was no accident."""
        self._closed = True
        self._event.set()
        self._thread.join(1)
        self._publish(msgspec.msgpack.Encoder())


def blank(spec: TensorSpec) -> NDArray[Any]:
    """An input of zeros for a warm-up; free dimensions are 1."""
    import numpy as np

    return np.zeros([max(1, d) for d in spec.shape], dtype=spec.dtype.value)


class _Heart(Protocol):
    """What answers calls: `worker.Pool` or `talk.TextPool`."""

    def accept(self, call: Call) -> None: ...

    def longest(self, now: float) -> float: ...

    def close(self) -> None: ...


class _Loaded(Protocol):
    """A variant that is loaded and was tried once, ready to be served."""

    meter: Meter
    profile_ms: float

    def serve(self, reporter: Reporter) -> tuple[_Heart, _Tester | None]: ...


class _Tester(Protocol):
    error: SelfTestFailed | None

    def longest(self, now: float) -> float: ...

    def close(self) -> None: ...


class _Tensors:
    """A variant that takes tensors or pictures."""

    def __init__(self, spec: ServiceSpec) -> None:
        self._spec = spec
        self._engines, self._description = _load(spec)
        self.meter = Meter(spec, 0.0)
        tested = spec.self_test_every > 0
        engines = self._engines
        self._question = first_test(engines, spec.known_answer, self.meter, spec.self_tests_failed) if tested else None
        # The question warmed the engine up; the way of a picture, which it does not take, it did not.
        warm = self._question is not None and engines[0].pipeline is None
        self.profile_ms = _profile(engines[0], WARM_UP - warm)

    def serve(self, reporter: Reporter) -> tuple[_Heart, _Tester | None]:
        spec, meter, engines = self._spec, self.meter, self._engines
        pool = Pool(engines, meter, self._description, spec.queue_limit, reporter.changed)
        question = self._question
        tester = SelfTester(question, engines, spec.self_test_every, meter, reporter.now) if question else None
        return pool, tester


def _loaded(spec: ServiceSpec) -> _Loaded:
    from nearfar.models.manifest import LANGUAGE, parse_manifest

    if parse_manifest(spec.manifest, spec.model).task in LANGUAGE:
        from nearfar.node.talkservice import Talk

        return Talk(spec)
    return _Tensors(spec)


def _load(spec: ServiceSpec) -> tuple[list[Engine], Description]:
    from nearfar.models.manifest import Task, parse_manifest
    from nearfar.models.process import Pipeline
    from nearfar.runtimes.base import LoadOptions
    from nearfar.runtimes.registry import runtime

    _limit_image_threads(spec.threads)
    manifest = parse_manifest(spec.manifest, spec.model)
    variant = manifest.variant(spec.variant)
    engine = runtime(spec.runtime)
    engines = []
    for _ in range(spec.workers):
        loaded = engine.load(Path(spec.file), LoadOptions(threads=spec.threads, unit=spec.unit))
        pipeline = None
        if manifest.task is not Task.TENSORS:
            pipeline = Pipeline(manifest, variant, loaded.inputs, loaded.outputs)
        engines.append(Engine(loaded, pipeline, spec.slowdown))
    loaded = engines[0].loaded
    return engines, Description(spec.manifest, spec.variant, spec.runtime, loaded.inputs, loaded.outputs)


def _limit_image_threads(threads: int) -> None:
    """OpenCV takes every core unless it is told; a service has its share."""
    import cv2

    cv2.setNumThreads(threads)


def _profile(engine: Engine, warm_up: int) -> float:
    """Mean milliseconds of a request on a blank input; also the warm-up, and the proof that the variant runs at all.

    `warm_up` runs are not counted."""
    import cv2
    import numpy as np

    blank_image = np.zeros((BLANK, BLANK, 3), np.uint8)
    images = [Image.bgr(blank_image), Image.encoded(cv2.imencode(".jpg", blank_image)[1].tobytes())]
    times = []
    for number in range(warm_up + PROFILE_RUNS):
        start = time.perf_counter()
        if engine.pipeline is None:
            engine.run({spec.name: blank(spec) for spec in engine.loaded.inputs})
        else:
            image = images[number % 2]  # raw and encoded: the first real one must not pay for either
            inputs, geometry = engine.pipeline.prepare(image)
            engine.pipeline.finish(engine.run(inputs)[0], geometry)
        times.append((time.perf_counter() - start) * 1000)
    return sum(times[warm_up:]) / PROFILE_RUNS


def _say(word: Word) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(word) + b"\n")
    sys.stdout.buffer.flush()


def serve(spec: ServiceSpec, stop: threading.Event) -> None:
    """Load, announce, and answer until `stop` is set. Raises what loading raises."""
    from nearfar.mesh.impaired import ImpairedMesh
    from nearfar.mesh.zenoh import ZenohMesh

    loaded = _loaded(spec)
    meter = loaded.meter
    meter.start(loaded.profile_ms)
    zenoh = ZenohMesh(spec.mesh)
    mesh: Mesh = ImpairedMesh(zenoh, spec.impairment) if spec.impairment else zenoh
    reporter = Reporter(mesh, meter, keys.service_report_key(spec.service))
    pool, tester = loaded.serve(reporter)
    handle = mesh.serve(keys.service_key(spec.service), pool.accept)
    ready = Word(Milestone.READY, profile_ms=loaded.profile_ms)
    _say(ready)
    looks = 0
    while not stop.wait(LOOK_EVERY) and not (tester and tester.error):
        looks += 1
        if looks % BEAT_EVERY == 0:
            with contextlib.suppress(OSError):  # the agent is gone, and its end stops us
                os.write(1, msgspec.json.encode(ready) + b"\n")
        longest = max(pool.longest(time.monotonic()), tester.longest(time.monotonic()) if tester else 0.0)
        if spec.stuck_after and longest > spec.stuck_after:
            _say(Word(Milestone.FAILED, InferenceError.code, f"An inference did not end in {spec.stuck_after:g} s."))
            os._exit(4)  # callers see us vanish, and ask another
    failed = tester.error if tester else None
    if failed is None:
        meter.state = ServiceState.STOPPING
        reporter.now()
    busy = not meter.idle
    pool.close()  # first answer what waits, then withdraw: a caller that still waits must not see us vanish
    if busy and meter.idle:  # what hangs says nothing any more
        time.sleep(LAST_WORDS)
    if tester is not None:
        tester.close()
    reporter.close()
    handle.close()
    zenoh.close_now()
    if failed is not None:
        raise failed


def main() -> None:
    """The process. Exit code 0 after a stop, 3 when the variant could not be loaded or failed its self-test."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the agent, which then closes our input
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=ServiceSpec)

    def watch_agent() -> None:
        sys.stdin.buffer.read()
        stop.set()
        time.sleep(LAST_ORDERS)  # as long as it is asked politely; what then still loads or hangs is never an orphan
        os._exit(0)

    threading.Thread(target=watch_agent, name="agent", daemon=True).start()
    try:
        serve(spec, stop)
    except NearfarError as error:
        _say(Word(Milestone.FAILED, error.code, str(error)))
        os._exit(3)
    except MemoryError:
        _say(Word(Milestone.FAILED, ModelFileError.code, "There is not enough memory to load the model."))
        os._exit(3)
    sys.stdout.flush()
    os._exit(0)  # engines and Zenoh run threads of their own that do not all end; nothing is left to write


if __name__ == "__main__":
    main()
