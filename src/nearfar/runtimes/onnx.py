"""ONNX models on onnxruntime: CPU everywhere, CUDA where the provider and a device are both there.

`session.run` with plain arrays is the quickest way through Python that onnxruntime 1.31 has on a CPU (an identity over
64 bytes and over 2 MB: run 4 and 52 us, io-binding 7 and 105 us, OrtValues 37 and 89 us), so there is one path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nearfar.errors import InferenceError, InputError, ModelFileError, NearfarError, RuntimeUnavailable
from nearfar.runtimes import accelerators, engine
from nearfar.runtimes.base import LoadedVariant, LoadOptions, Runtime
from nearfar.runtimes.modelfile import read_head
from nearfar.types.telemetry import ComputeUnit, UnitKind
from nearfar.types.tensor import DType, TensorSpec

_INSTALL = "pip install onnxruntime"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FATAL = 4
"""Severity from which onnxruntime writes to stderr: what goes wrong comes back as an exception and is said once."""

_DTYPES = {
    "tensor(bool)": DType.BOOL,
    "tensor(uint8)": DType.UINT8,
    "tensor(uint16)": DType.UINT16,
    "tensor(uint32)": DType.UINT32,
    "tensor(uint64)": DType.UINT64,
    "tensor(int8)": DType.INT8,
    "tensor(int16)": DType.INT16,
    "tensor(int32)": DType.INT32,
    "tensor(int64)": DType.INT64,
    "tensor(float16)": DType.FLOAT16,
    "tensor(float)": DType.FLOAT32,
    "tensor(double)": DType.FLOAT64,
}

LOAD_ERRORS: Mapping[str, type[NearfarError]] = {
    "DeviceReset": RuntimeUnavailable,
    "EPFail": RuntimeUnavailable,
    "EngineError": RuntimeUnavailable,
    "Fail": ModelFileError,
    "InvalidArgument": ModelFileError,
    "InvalidGraph": ModelFileError,
    "InvalidProtobuf": ModelFileError,
    "ModelLoadCanceled": ModelFileError,
    "ModelLoaded": ModelFileError,
    "ModelRequiresCompilation": ModelFileError,
    "NoModel": ModelFileError,
    "NoSuchFile": ModelFileError,
    "NotFound": ModelFileError,
    "NotImplemented": ModelFileError,
    "RuntimeException": ModelFileError,
}
"""Every exception class of onnxruntime, by name, and what it means while a file is loaded."""

RUN_ERRORS: Mapping[str, type[NearfarError]] = {
    **dict.fromkeys(LOAD_ERRORS, InferenceError),
    # onnxruntime's word for a feed of the wrong shape or type, and for data that an operator refuses (a bad index).
    "InvalidArgument": InputError,
}
"""The same classes while a model runs."""


class OnnxRuntime(Runtime):
    name = "onnx"
    formats = ("onnx",)

    def available(self) -> str | None:
        return None if engine.installed("onnxruntime") else f"onnxruntime is not installed. Type: {_INSTALL}"

    def units(self) -> tuple[ComputeUnit, ...]:
        if self.available():
            return ()
        ort = engine.load_engine("onnxruntime", _INSTALL)
        cpu = ComputeUnit(UnitKind.CPU, "cpu", f"onnxruntime {ort.__version__} always has its CPU provider")
        if _PROVIDERS["cuda"] in ort.get_available_providers() and (device := accelerators.nvidia()):
            reason = f"onnxruntime {ort.__version__} was built with CUDA and {device} is there"
            return (ComputeUnit(UnitKind.GPU, "cuda", reason), cpu)
        return (cpu,)

    def load(self, path: Path, options: LoadOptions = LoadOptions()) -> LoadedOnnx:  # noqa: B008 - frozen
        ort = engine.load_engine("onnxruntime", _INSTALL)
        read_head(path)
        if options.unit not in {unit.name for unit in self.units()}:
            there = ", ".join(unit.name for unit in self.units())
            raise RuntimeUnavailable(f"onnxruntime has no unit {options.unit!r} here.", f"Use one of: {there}.")
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = max(1, options.threads)
        settings.inter_op_num_threads = 1
        settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        settings.log_severity_level = _FATAL
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
        wanted = _PROVIDERS[options.unit]
        try:
            session = ort.InferenceSession(
                str(path), settings, providers=list(dict.fromkeys((wanted, _PROVIDERS["cpu"])))
            )
        except Exception as error:
            raise _load_error(path, error) from error
        if session.get_providers()[0] != wanted:  # onnxruntime falls back without a word
            raise RuntimeUnavailable(
                f"onnxruntime could not start {wanted} and fell back to {session.get_providers()[0]}.",
                "Check the driver and the CUDA libraries, or use the unit cpu.",
            )
        return LoadedOnnx(session, path.name)


class LoadedOnnx(LoadedVariant):
    """One session. Inputs are read in place; outputs are arrays of their own that the next call leaves alone."""

    def __init__(self, session: Any, file: str) -> None:
        self.inputs = tuple(_spec(node, file) for node in session.get_inputs())
        self.outputs = tuple(_spec(node, file) for node in session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        self._session: Any = session

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        session = self._session
        if session is None:
            raise InferenceError("The model was closed.", "Load it again.")
        try:
            # A strided array needs no copy here: onnxruntime makes its own when it must.
            results: list[NDArray[Any]] = session.run(self._names, inputs)
        except Exception as error:
            raise _run_error(error) from error
        return results

    def close(self) -> None:
        self._session = None


def _spec(node: Any, file: str) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise ModelFileError(
            f"{file}: {node.name!r} is a {node.type}, which nearfar cannot carry.",
            "Export the model with plain tensors of numbers.",
        )
    return TensorSpec(node.name, dtype, tuple(d if isinstance(d, int) and d >= 0 else -1 for d in node.shape))


_NOISE = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |/[\w./-]+/onnxruntime/\S+ ")


def _words(error: BaseException) -> str:
    return _NOISE.sub("", engine.one_line(error))


def _load_error(path: Path, error: Exception) -> NearfarError:
    cls = LOAD_ERRORS.get(type(error).__name__, ModelFileError)
    if cls is RuntimeUnavailable:
        return cls(f"onnxruntime cannot run {path.name}: {_words(error)}.", "Use the unit cpu.")
    return cls(
        f"onnxruntime cannot load {path.name}: {_words(error)}.", "Export it again, or try: nearfar models add --help"
    )


def _run_error(error: Exception) -> NearfarError:
    cls = RUN_ERRORS.get(type(error).__name__, InferenceError)
    hint = "Check the inputs with: nearfar models show MODEL" if cls is InputError else "Load the model again."
    return cls(f"onnxruntime failed: {_words(error)}.", hint)
