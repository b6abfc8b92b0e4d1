"""Calls, engines and pools that tests of this room share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.mesh.base import Buffer
from nearfar.mesh.zenoh_options import ZenohOptions
from nearfar.node.meter import Meter
from nearfar.node.spec import ServiceSpec
from nearfar.node.worker import Description, Engine, Pool
from nearfar.runtimes.base import LoadedVariant
from nearfar.types.ids import ModelName, NodeId, VariantId
from nearfar.types.tensor import DType, Tensor, TensorSpec
from nearfar.types.wire import CallHead, Operation, ReplyHead, body_of, decode_reply, encode, heads_of
from tests.waiting import until_now


class FakeCall:
    """A request as a mesh hands it over; `answer` is the one reply. A script may make `reply` fail."""

    def __init__(self, head: bytes, body: Buffer = b"", *, age: float = 0.0, patient: bool = False) -> None:
        self.head = head
        self.body = body
        self.sender = "test"
        self.patient = patient
        self.received = time.monotonic() - age
        self.cancelled = False
        self.replies: list[tuple[bytes, bytes]] = []
        self.on_reply: Callable[[int], None] = lambda _: None
        self._tried = 0

    def reply(self, head: bytes, body: Sequence[Buffer] = (), *, last: bool = True) -> None:
        self._tried += 1
        self.on_reply(self._tried)
        self.replies.append((head, b"".join(body)))

    @property
    def answer(self) -> ReplyHead:
        until_now(lambda: self.replies, "the call is answered")
        assert len(self.replies) == 1
        return decode_reply(self.replies[0][0])

    @property
    def code(self) -> str:
        """The failure's code; "" for an answer."""
        failure = self.answer.failure
        return failure.code if failure else ""


def infer(*tensors: Tensor, age: float = 0.0, patient: bool = False, **changes: Any) -> FakeCall:
    """A call for an inference; a patient one may be worked on by the thread that brings it."""
    given = tensors or (Tensor.of("x", np.arange(4, dtype=np.float32).reshape(1, 4)),)
    head = CallHead(Operation.INFER, tensors=heads_of(given), **changes)
    return FakeCall(encode(head), b"".join(body_of(given)), age=age, patient=patient)


class Scripted(LoadedVariant):
    """float32 [-1, 4], x to y; `script(n, x)` says what becomes of the n-th call, counted from 1."""

    inputs = (TensorSpec("x", DType.FLOAT32, (-1, 4)),)
    outputs = (TensorSpec("y", DType.FLOAT32, (-1, 4)),)

    def __init__(self, script: Callable[[int, NDArray[Any]], NDArray[Any]] = lambda _, x: x) -> None:
        self.calls = 0
        self._script = script

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        self.calls += 1
        return [self._script(self.calls, inputs["x"])]

    def close(self) -> None:
        pass


class Gate:
    """A script that holds every call until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = threading.Semaphore(0)

    def __call__(self, _: int, x: NDArray[Any]) -> NDArray[Any]:
        self.inside.release()
        assert self.open.wait(30)
        return x


def spec(**changes: Any) -> ServiceSpec:
    given: dict[str, Any] = {
        "node": NodeId("n"),
        "model": ModelName("m"),
        "variant": VariantId("v"),
        "instance": "i",
        "file": "",
        "manifest": "",
        "runtime": "fake",
        "unit": "cpu",
        "reason": "a test",
        "mesh": ZenohOptions("t"),
        "queue_limit": 4,
    }
    return ServiceSpec(**{**given, **changes})


@contextmanager
def pool(loaded: LoadedVariant, limit: int = 4, profile_ms: float = 1.0) -> Iterator[tuple[Pool, Meter]]:
    """A pool of one worker, closed at the end."""
    meter = Meter(spec(queue_limit=limit), profile_ms)
    described = Description("", "v", "fake", loaded.inputs, loaded.outputs)
    made = Pool([Engine(loaded, None, 1.0)], meter, described, limit, lambda: None)
    try:
        yield made, meter
    finally:
        made.close(patience=10)
