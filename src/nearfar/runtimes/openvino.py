"""ONNX, TensorFlow Lite and IR models on OpenVINO: its CPU, GPU and NPU devices, as they are found."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InferenceError, InputError, ModelFileError, NearfarError, RuntimeUnavailable
from nearfar.runtimes import engine
from nearfar.runtimes.base import DTYPES, LoadedVariant, LoadOptions, Runtime
from nearfar.runtimes.modelfile import check_tflite, format_of
from nearfar.types.telemetry import ComputeUnit, UnitKind
from nearfar.types.tensor import TensorSpec

_INSTALL = "pip install 'nearfar[openvino]'"
_KINDS = {"CPU": UnitKind.CPU, "GPU": UnitKind.GPU, "NPU": UnitKind.NPU}
_BEST_FIRST = ("GPU", "NPU", "CPU")
_SUFFIXES = {"onnx": ".onnx", "tflite": ".tflite", "openvino": ".xml"}

ERRORS: Mapping[str, type[NearfarError]] = {
    "GeneralFailure": ModelFileError,
    "InitializationFailure": ModelFileError,
    "NotImplementedFailure": ModelFileError,
    "OpConversionFailure": ModelFileError,
    "OpValidationFailure": ModelFileError,
    "RuntimeError": ModelFileError,
}
"""What OpenVINO's exceptions mean while a file is loaded; while a model runs all of them are `InferenceError`."""


class OpenVinoRuntime(Runtime):
    name = "openvino"
    formats = ("onnx", "tflite", "openvino")

    def available(self) -> str | None:
        return None if engine.installed("openvino") else f"openvino is not installed. Type: {_INSTALL}"

    def units(self) -> tuple[ComputeUnit, ...]:
        if self.available():
            return ()
        return _units(engine.load_engine("openvino", _INSTALL).Core())

    def load(self, path: Path, options: LoadOptions = LoadOptions()) -> LoadedOpenVino:  # noqa: B008 - frozen
        openvino = engine.load_engine("openvino", _INSTALL)
        kind = format_of(path)
        if kind not in self.formats:
            raise ModelFileError(f"{path.name} is of format {kind}.", f"OpenVINO loads {', '.join(self.formats)}.")
        if kind == "tflite":
            check_tflite(path)
        core = openvino.Core()
        units = _units(core)
        if options.unit not in {unit.name for unit in units}:
            there = ", ".join(unit.name for unit in units)
            raise RuntimeUnavailable(f"OpenVINO has no unit {options.unit!r} here.", f"Use one of: {there}.")
        device = options.unit.upper()
        config = {"PERFORMANCE_HINT": "LATENCY"}
        if device == "CPU":
            config["INFERENCE_NUM_THREADS"] = str(max(1, options.threads))
            # Or it binds its threads to the first cores, where those of every other service are bound too.
            config["ENABLE_CPU_PINNING"] = "NO"
        if device != "NPU":  # an NPU has no f32 arithmetic
            # Without it OpenVINO rounds to bf16 or f16 where the hardware can, and answers depend on the machine.
            config["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            model = _read(core, path, _SUFFIXES[kind])
            compiled = core.compile_model(model, device, config)
            return LoadedOpenVino(compiled, path.name)
        except NearfarError:
            raise
        except Exception as error:
            cls = ERRORS.get(type(error).__name__, ModelFileError)
            raise cls(
                f"OpenVINO cannot load {path.name}: {engine.one_line(error)}.", "Try the runtime onnx or litert."
            ) from error


def _units(core: Any) -> tuple[ComputeUnit, ...]:
    """OpenVINO's own list is of devices that answered, not of plug-ins that are installed."""
    found: list[ComputeUnit] = []
    for device in sorted(core.available_devices, key=lambda d: (_rank(d), d)):
        kind = _KINDS.get(device.partition(".")[0])
        if kind is not None:
            try:
                full = str(core.get_property(device, "FULL_DEVICE_NAME"))
            except Exception:  # a driver that answers only half
                full = "a device without a name"
            found.append(ComputeUnit(kind, device.lower(), f"OpenVINO found {full.strip()}"))
    return tuple(found)


def _rank(device: str) -> int:
    family = device.partition(".")[0]
    return _BEST_FIRST.index(family) if family in _BEST_FIRST else len(_BEST_FIRST)


def _read(core: Any, path: Path, suffix: str) -> Any:
    """OpenVINO goes by the suffix, which a file in a content-addressed store has not: then through a link that has."""
    if path.suffix == suffix:
        return core.read_model(str(path))
    with tempfile.TemporaryDirectory(prefix="nearfar-") as folder:
        link = Path(folder) / f"model{suffix}"
        link.symlink_to(path.resolve())
        return core.read_model(str(link))


class LoadedOpenVino(LoadedVariant):
    """One infer request. Inputs are shared with the engine for the call; outputs are copied out of it."""

    def __init__(self, compiled: Any, file: str) -> None:
        self.inputs = _specs(compiled.inputs, file)
        self.outputs = _specs(compiled.outputs, file)
        self._order = [spec.name for spec in self.inputs]
        self._free = any(-1 in spec.shape for spec in self.inputs)
        self._request: Any = compiled.create_infer_request()

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        request = self._request
        if request is None:
            raise InferenceError("The model was closed.", "Load it again.")
        try:
            feeds = {at: np.ascontiguousarray(inputs[name]) for at, name in enumerate(self._order)}
        except KeyError as error:
            raise InputError(f"Input {error} is missing.", "Send every input of the model.") from error
        for at, spec in enumerate(self.inputs):
            # OpenVINO casts a wrong dtype, and takes a wrong shape of the right size, without a word.
            if DTYPES.get(feeds[at].dtype) != spec.dtype or not spec.accepts(spec.dtype, feeds[at].shape):
                raise InputError(f"Input {spec.name!r} is {feeds[at].dtype}{list(feeds[at].shape)}.", f"Send {spec}.")
        try:
            results = request.infer(feeds, share_inputs=True, share_outputs=False)
            return [results[at] for at in range(len(self.outputs))]
        except Exception as error:
            raise InferenceError(f"OpenVINO failed: {engine.one_line(error)}.", "Load the model again.") from error

    def close(self) -> None:
        self._request = None


def _specs(ports: Sequence[Any], file: str) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for at, port in enumerate(ports):
        theirs = port.element_type.to_dtype()
        dtype = DTYPES.get(np.dtype(theirs))
        if dtype is None:
            raise ModelFileError(
                f"{file}: a tensor has element type {port.element_type}, which nearfar cannot carry.",
                "Export the model with plain tensors of numbers.",
            )
        shape = tuple(int(d.get_length()) if d.is_static else -1 for d in port.partial_shape)
        specs.append(TensorSpec(_name(port, at), dtype, shape))
    return tuple(specs)


def _name(port: Any, at: int) -> str:
    """The name that the file gives. An output behind an identity has two; the node's own name tells which is meant."""
    names = port.names
    friendly = port.get_node().friendly_name.partition("/sink_port")[0]
    if friendly in names or not names:
        return str(friendly) if names else f"tensor{at}"
    return str(min(names))
