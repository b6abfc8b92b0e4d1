"""A runtime without an engine, for tests of one's own: a small TOML or JSON file says what the model does.

Everything above the seam (service processes, supervision, placement, gateways) runs for real on it, and can be made to
be slow, to fail, to crash, to hang and to eat memory::

    format = "nearfar-fake"         # always; it is how the file is recognised
    behaviour = "identity"          # each output is the input of the same place | "constant" | "zeros"
    value = 0.5                     # of every element, for "constant"
    delay_ms = 20                   # per call: a number, [low, high] uniform, or {median = 20, sigma = 0.3} log-normal
    delay_step_ms = 0.5             # each call takes so much longer than the one before: a board that gets hot
    seed = 7                        # of the delays; the same seed gives the same sequence
    delay_file = ""                 # a file whose number multiplies each delay; may change, be absent or come later
    load_ms = 100                   # how long loading takes
    load_while = ""                 # a file: loading waits as long as it exists
    load_error = ""                 # loading fails with these words
    fail_every = 10                 # the 10th, 20th, ... call raises InferenceError
    crash_at = 50                   # the 50th call since loading kills the process (SIGKILL: no clean-up, no core file)
    hang_at = 0                     # the nth call never returns
    zeros_from = 0                  # from the nth call on all outputs are zeros: a device that was lost
    noise_from = 0                  # from the nth call on outputs have the right form and random values
    garble_from = 0                 # from the nth call on outputs have another dtype and shape: another model's
    fault_file = ""                 # while a file of this path exists, the word in it is the fault of every call:
                                    # zeros, noise, garble, fail, hang or crash
    allocate_mib = 1.0              # kept more with every call: a leak
    allocate_at_load_mib = 64       # kept from loading to closing

    [[inputs]]
    name = "x"
    dtype = "float32"
    shape = [-1, 3]                 # -1 is free

    [[outputs]]
    name = "y"
    dtype = "float32"
    shape = [-1, 3]

A count of 0 means never; calls are counted from loading, and those of the warm-up and of self-tests are calls. For
"constant" and "zeros" a free dimension of an output has the size that the first input has at the same place, else 1.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InferenceError, InputError, ModelFileError, RuntimeUnavailable
from nearfar.runtimes.base import NUMPY_DTYPES, LoadedVariant, LoadOptions, Runtime
from nearfar.runtimes.engine import one_line
from nearfar.runtimes.modelfile import read_head
from nearfar.types.telemetry import ComputeUnit, UnitKind
from nearfar.types.tensor import DType, TensorSpec

_MIB = 1024 * 1024
_PAGE = 4096
_LOOK = 0.02
"""Seconds between looks for a file whose end is waited for."""
Count = Annotated[int, msgspec.Meta(ge=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class FakeTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As `TensorSpec`, with bounds."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    dtype: DType = DType.FLOAT32
    shape: tuple[Annotated[int, msgspec.Meta(ge=-1)], ...] = ()
    scale: float = 0.0
    zero_point: int = 0

    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.dtype, self.shape, self.scale, self.zero_point)


class LogNormal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Latencies of real services are near log-normal: median in milliseconds, sigma of the logarithm."""

    median: NotNegative
    sigma: NotNegative = 0.25


class FakeModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file says; see the module for each field. Write one with `msgspec.json.encode(FakeModel(...))`."""

    inputs: tuple[FakeTensor, ...]
    outputs: tuple[FakeTensor, ...]
    format: Literal["nearfar-fake"] = "nearfar-fake"
    behaviour: Literal["identity", "constant", "zeros"] = "identity"
    value: float = 0.0
    # Bounds are checked by hand: on a union of a bounded float and a tuple, msgspec 0.22 crashes in the collector.
    delay_ms: float | tuple[float, float] | LogNormal = 0.0
    seed: int = 0
    load_ms: NotNegative = 0.0
    load_error: str = ""
    fail_every: Count = 0
    crash_at: Count = 0
    hang_at: Count = 0
    zeros_from: Count = 0
    noise_from: Count = 0
    garble_from: Count = 0
    fault_file: str = ""
    allocate_mib: NotNegative = 0.0
    allocate_at_load_mib: NotNegative = 0.0
    delay_file: str = ""
    load_while: str = ""
    delay_step_ms: NotNegative = 0.0

    def delays(self) -> _Delays:
        return _Delays(self)


class _Delays:
    """An endless, seeded sequence of delays in milliseconds."""

    def __init__(self, model: FakeModel) -> None:
        self._random = random.Random(model.seed)  # noqa: S311 - no secret
        self._shape = model.delay_ms
        self._file = Path(model.delay_file) if model.delay_file else None
        self._stamp: tuple[int, int] | None = None
        self._factor = 1.0

    def next(self) -> float:
        return self._drawn() * self._told()

    def _told(self) -> float:
        """The number in the delay file, read when the file has changed; 1 while there is no such file or number."""
        if self._file is None:
            return 1.0
        try:
            state = self._file.stat()
            if (stamp := (state.st_ino, state.st_mtime_ns)) != self._stamp:
                self._factor, self._stamp = max(0.0, float(self._file.read_text())), stamp
        except OSError:
            self._factor, self._stamp = 1.0, None
        except ValueError:
            pass  # half written: as before, and read again with the next call
        return self._factor

    def _drawn(self) -> float:
        shape = self._shape
        if isinstance(shape, LogNormal):
            return shape.median * self._random.lognormvariate(0.0, shape.sigma)
        if isinstance(shape, tuple):
            return self._random.uniform(*shape)
        return shape


class FakeRuntime(Runtime):
    name = "fake"
    formats = ("fake",)

    def available(self) -> str | None:
        return None

    def units(self) -> tuple[ComputeUnit, ...]:
        return (ComputeUnit(UnitKind.CPU, "cpu", "the fake runtime computes nothing"),)

    def load(self, path: Path, options: LoadOptions = LoadOptions()) -> LoadedFake:  # noqa: B008 - frozen
        if options.unit != "cpu":
            raise RuntimeUnavailable(f"The fake runtime has no unit {options.unit!r}.", "Use the unit cpu.")
        model = read_fake(path)
        if model.load_ms:
            time.sleep(model.load_ms / 1000)
        while model.load_while and Path(model.load_while).exists():
            time.sleep(_LOOK)
        if model.load_error:
            raise ModelFileError(f"{path.name}: {model.load_error}", "Remove load_error from the file.")
        return LoadedFake(model)


def read_fake(path: Path) -> FakeModel:
    """Read and check a fake model's file. Raises `ModelFileError` naming the field that is wrong."""
    read_head(path)
    try:
        data = path.read_bytes()
        if data.lstrip().startswith(b"{"):
            model = msgspec.json.decode(data, type=FakeModel)
        else:
            stated = tomllib.loads(data.decode())
            if "format" not in stated:
                raise ValueError('there is no format = "nearfar-fake"')
            model = msgspec.convert(stated, FakeModel)
        _check(model)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise ModelFileError(
            f"{path.name} is not a fake model: {one_line(error)}.", "See docs/how-to-add-a-runtime.md."
        ) from error
    return model


def _check(model: FakeModel) -> None:
    for tensors in (model.inputs, model.outputs):
        if len({t.name for t in tensors}) != len(tensors):
            raise ValueError("two tensors have the same name")
    if model.behaviour == "identity":
        if [(t.dtype, t.shape) for t in model.inputs] != [(t.dtype, t.shape) for t in model.outputs]:
            raise ValueError("identity needs outputs of the dtypes and shapes of the inputs, in the same order")
    elif model.behaviour == "constant":
        for tensor in model.outputs:
            dtype = NUMPY_DTYPES[tensor.dtype]
            if dtype.kind in "iu":
                bounds = np.iinfo(dtype)
                if not (bounds.min <= model.value <= bounds.max and model.value == int(model.value)):
                    raise ValueError(f"value {model.value} is not of {tensor.name}'s dtype {dtype}")
    delay = model.delay_ms
    low, high = delay if isinstance(delay, tuple) else (0.0, 0.0 if isinstance(delay, LogNormal) else delay)
    if not 0 <= low <= high:
        raise ValueError("delay_ms must be a number from 0, or [low, high] with low at most high")


class LoadedFake(LoadedVariant):
    """Counts its calls from 1, so `crash_at = 1` crashes on the first call after each start."""

    def __init__(self, model: FakeModel) -> None:
        self.inputs = tuple(t.spec() for t in model.inputs)
        self.outputs = tuple(t.spec() for t in model.outputs)
        self.calls = 0
        self._model = model
        self._delays = model.delays()
        self._kept: list[bytearray] = []
        self._open = True
        self._keep(model.allocate_at_load_mib)

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        if not self._open:
            raise InferenceError("The model was closed.", "Load it again.")
        model = self._model
        self.calls += 1
        fault = self._fault()
        if self.calls == model.crash_at or fault == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == model.hang_at or fault == "hang":
            threading.Event().wait()  # for ever, as a driver that waits for its device
        self._keep(model.allocate_mib)
        if delay := self._delays.next() + model.delay_step_ms * self.calls:
            time.sleep(delay / 1000)
        if fault == "fail" or (model.fail_every and self.calls % model.fail_every == 0):
            raise InferenceError(f"The fake failed on call {self.calls}, as told.", "Call again.")
        outputs = self._outputs(inputs)
        return [self._spoiled(output, fault) for output in outputs] if fault else outputs

    def _fault(self) -> str:
        """What is wrong with this call; "" for nothing."""
        model = self._model
        if model.fault_file:
            with contextlib.suppress(OSError):
                return Path(model.fault_file).read_text().strip()
        for name in ("zeros", "noise", "garble"):
            start: int = getattr(model, f"{name}_from")
            if start and self.calls >= start:
                return name
        return ""

    def _spoiled(self, output: NDArray[Any], fault: str) -> NDArray[Any]:
        match fault:
            case "zeros":
                return np.zeros_like(output)
            case "noise":
                noise = np.random.default_rng(self.calls).standard_normal(output.shape)
                return (100 * noise).astype(output.dtype)
            case "garble":
                return np.ones((3, *output.shape), np.float64 if output.dtype == np.float32 else np.float32)
            case _:
                return output

    def _outputs(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        model = self._model
        try:
            if model.behaviour == "identity":
                return [np.array(inputs[spec.name], order="C") for spec in self.inputs]
        except KeyError as error:
            raise InputError(f"Input {error} is missing.", "Send every input of the model.") from error
        value = model.value if model.behaviour == "constant" else 0
        first = inputs[self.inputs[0].name].shape if self.inputs and self.inputs[0].name in inputs else ()
        return [np.full(_sizes(spec.shape, first), value, NUMPY_DTYPES[spec.dtype]) for spec in self.outputs]

    def _keep(self, mib: float) -> None:
        if mib:
            block = bytearray(int(mib * _MIB))
            block[::_PAGE] = b"\1" * len(block[::_PAGE])  # touched, so that it counts as resident
            self._kept.append(block)

    def close(self) -> None:
        self._open = False
        self._kept.clear()


def _sizes(shape: Sequence[int], first: Sequence[int]) -> tuple[int, ...]:
    return tuple(d if d >= 0 else (first[at] if at < len(first) else 1) for at, d in enumerate(shape))
