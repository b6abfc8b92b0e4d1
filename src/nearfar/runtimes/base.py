"""The seam between nearfar and an engine.

A runtime is made without arguments, imports its engine only in `available()` or `load()`, and never raises an exception
of the engine's own: `ModelFileError` for a file it cannot load, `RuntimeUnavailable` when the engine is missing,
`InferenceError` when running fails.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InferenceError, InputError
from nearfar.types.telemetry import ComputeUnit
from nearfar.types.tensor import DType, TensorSpec

NUMPY_DTYPES: Mapping[DType, np.dtype[Any]] = {dtype: np.dtype(dtype.value) for dtype in DType}
"""What each element type is in numpy, in this machine's byte order."""
DTYPES: Mapping[np.dtype[Any], DType] = {theirs: ours for ours, theirs in NUMPY_DTYPES.items()}
"""The way back; a dtype that is not in here has no place in a tensor of nearfar."""


class LoadOptions(msgspec.Struct, frozen=True):
    """How to load. `threads` counts the engine's own; spinning is always off (it collapses on a busy host)."""

    threads: int = 1
    unit: str = "cpu"
    """Name of one of the runtime's `units()`."""


class LoadedVariant(ABC):
    """A variant in memory. Not safe for two threads at once; a service has one per worker."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    """Names, dtypes and shapes as the file states them."""

    @abstractmethod
    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """Run once. Arrays were checked by `check_inputs`; results are in the order of `outputs`."""

    @abstractmethod
    def close(self) -> None:
        """Give the memory back; may be called twice. `infer` afterwards raises `InferenceError`."""

    def __enter__(self) -> LoadedVariant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Runtime(ABC):
    """One engine on this machine."""

    name: str
    formats: tuple[str, ...]
    """File formats it loads: `onnx`, `tflite`, ..."""

    @abstractmethod
    def available(self) -> str | None:
        """None when the engine can be used here, else the reason why not with what to install."""

    @abstractmethod
    def units(self) -> tuple[ComputeUnit, ...]:
        """Compute units it can use here, best first, each with its reason; empty when it is not available."""

    @abstractmethod
    def load(self, path: Path, options: LoadOptions = LoadOptions()) -> LoadedVariant:  # noqa: B008 - frozen
        """Load a file. Raises `ModelFileError`, `RuntimeUnavailable`."""


def check_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise `InputError` naming the first input that is missing, unknown or of a wrong dtype, rank or dimension.

    A foreign byte order is a wrong dtype: engines read memory as it is. Values are not looked at: NaN in a float
    tensor is the caller's data (detections from NaN are refused later).
    """
    for spec in specs:
        array = inputs.get(spec.name)
        if array is None:
            raise InputError(f"Input {spec.name!r} is missing.", f"Send {spec}.")
        if array.dtype != NUMPY_DTYPES[spec.dtype] or not _fits(spec.shape, array.shape):
            order = "" if array.dtype.isnative else " of foreign byte order"
            got = f"{array.dtype.name}[{'x'.join(map(str, array.shape))}]{order}"
            raise InputError(f"Input {spec.name!r} is {got}.", f"Send {spec}.")
    if len(inputs) > len(specs):
        known = {spec.name for spec in specs}
        unknown = next(name for name in inputs if name not in known)
        raise InputError(f"There is no input {unknown!r}.", f"The model takes: {'; '.join(map(str, specs))}.")


class OutputForms:
    """The count, dtypes and fixed dimensions of a file's outputs, made ready to be compared with every answer."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = tuple(specs)
        # An output without a free dimension is compared at once, one with them by its fixed ones.
        self._forms = [(NUMPY_DTYPES[spec.dtype], spec.shape, -1 in spec.shape) for spec in specs]

    def check(self, outputs: Sequence[NDArray[Any]]) -> None:
        """Raise `InferenceError` for outputs of another form than the file states: they are another model's answer, or
        a broken one, and must not be delivered."""
        if len(outputs) != len(self._forms):
            raise InferenceError(
                f"The engine gave {len(outputs)} outputs, the model has {len(self._forms)}.", "Ask another service."
            )
        for place, (dtype, shape, free) in enumerate(self._forms):
            array = outputs[place]
            # numpy has one object for each of its own dtypes, so that comparing them is hardly ever needed.
            fits = array.dtype is dtype or array.dtype == dtype
            if array.shape != shape and shape != ():  # which is also what engines say of a shape that is left open
                fits = fits and free and _fits(shape, array.shape)
            if not fits:
                spec = self._specs[place]
                got = f"{array.dtype.name}[{'x'.join(map(str, array.shape))}]"
                raise InferenceError(
                    f"Output {spec.name!r} is {got}, but the file states {spec}.", "Ask another service."
                )


def _fits(want: Sequence[int], have: Sequence[int]) -> bool:
    return len(want) == len(have) and all(w in (-1, h) for w, h in zip(want, have, strict=True))
