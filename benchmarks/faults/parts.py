"""A third party's package for the nodes of a soak: a runtime that misbehaves on demand, and a clock that can be moved.

`install` writes it into a folder as pip would (an entry point in a `.dist-info`), with a `sitecustomize.py` beside it
that moves `time.time` in every process that has the folder on its PYTHONPATH. Both look at small files while they run,
so that a fault begins and ends in a process that is in use:

- `SOAK_ORDERS/<node>~<model>.json`: what the service of that name does wrong, as JSON (`Orders`); absent: nothing.
- `SOAK_CLOCK`: a file with the seconds to add to the wall clock of one node; absent: none.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InferenceError, InputError
from nearfar.runtimes.base import LoadedVariant, LoadOptions, Runtime
from nearfar.types.telemetry import ComputeUnit, UnitKind
from nearfar.types.tensor import DType, TensorSpec

FORMAT = "x-mirror"
ORDERS = "SOAK_ORDERS"
CLOCK = "SOAK_CLOCK"
_MIB = 1 << 20

_CUSTOMISE = """\
import os, time

_real = time.time


def _moved():
    try:
        with open(os.environ["SOAK_CLOCK"]) as file:
            return _real() + float(file.read() or 0)
    except (KeyError, OSError, ValueError):
        return _real()


if "SOAK_CLOCK" in os.environ:
    time.time = _moved
"""


class Orders(msgspec.Struct, frozen=True):
    """What a service does wrong until the file is gone."""

    wrong: Literal["zeros", "other", "shape", "dtype", "count", "hang", "leak", "starve"]
    mib: int = 0
    """Kept with every call (`leak`), or asked for with every call under a limit of 64 MiB more (`starve`)."""


class MirrorRuntime(Runtime):
    """Answers what it is sent, float32 [1, n], unless it has orders to do otherwise."""

    name = "mirror"
    formats = (FORMAT,)

    def available(self) -> str | None:
        return None

    def units(self) -> tuple[ComputeUnit, ...]:
        return (ComputeUnit(UnitKind.CPU, "cpu", "a mirror needs nothing else"),)

    def load(self, path: Path, options: LoadOptions = LoadOptions()) -> LoadedVariant:  # noqa: B008 - frozen
        return _Mirror()


class _Mirror(LoadedVariant):
    def __init__(self) -> None:
        self.inputs = (TensorSpec("x", DType.FLOAT32, (1, -1)),)
        self.outputs = (TensorSpec("y", DType.FLOAT32, (1, -1)),)
        folder = os.environ.get(ORDERS, "")
        self._file = Path(folder) / f"{sys.argv[-1].replace('/', '~')}.json"  # a service's last word is its name
        self._kept: list[bytearray] = []

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        try:
            x = inputs["x"]
        except KeyError:
            raise InputError("Input 'x' is missing.", "Send it.") from None
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return self._obey(msgspec.json.decode(self._file.read_bytes(), type=Orders), x)
        return [np.array(x)]

    def _obey(self, orders: Orders, x: NDArray[Any]) -> Sequence[NDArray[Any]]:
        match orders.wrong:
            case "zeros":
                return [np.zeros_like(x)]
            case "other":  # as another model's output may look: the right shape and dtype, other numbers
                return [np.sort(x)[:, ::-1].copy()]
            case "shape":
                return [np.array(x[:, :-1, None])]
            case "dtype":
                return [x.astype(np.float64)]
            case "count":
                return [np.array(x), np.array(x)]
            case "hang":
                re.match(r"(a+)+$", "a" * 64 + "b")  # takes longer than the universe has, and keeps the interpreter
            case "leak":
                self._kept.append(bytearray(b"\1") * (orders.mib * _MIB))
            case "starve":
                used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                _, hard = resource.getrlimit(resource.RLIMIT_AS)
                resource.setrlimit(resource.RLIMIT_AS, (used + 64 * _MIB, hard))
                self._kept.append(bytearray(b"\1") * (orders.mib * _MIB))
        return [np.array(x)]

    def close(self) -> None:
        self._kept.clear()
        self.infer = _closed  # type: ignore[method-assign]


def _closed(inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
    raise InferenceError("The model was closed.", "Load it again.")


def install(folder: Path) -> None:
    """Write the package's metadata and the clock into a folder, which then belongs on a PYTHONPATH with this one."""
    info = folder / "soakparts-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: soakparts\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[nearfar.runtimes]\nmirror = {__name__}:MirrorRuntime\n")
    (folder / "sitecustomize.py").write_text(_CUSTOMISE)
