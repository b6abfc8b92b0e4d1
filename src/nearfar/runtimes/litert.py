"""TensorFlow Lite models on LiteRT (XNNPACK): CPU, and a Coral Edge TPU where library and device are both there.

LiteRT writes "INFO: Created TensorFlow Lite XNNPACK delegate for CPU." to stderr for each model. Version 2.3 has
neither an API nor a variable that stops it, and pointing the process's stderr elsewhere would lose what other threads
say.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InferenceError, InputError, ModelFileError, RuntimeUnavailable
from nearfar.runtimes import accelerators, engine
from nearfar.runtimes.base import DTYPES, LoadedVariant, LoadOptions, Runtime
from nearfar.runtimes.modelfile import check_tflite
from nearfar.types.telemetry import ComputeUnit, UnitKind
from nearfar.types.tensor import TensorSpec

_MODULE = "ai_edge_litert.interpreter"
_INSTALL = "pip install 'nearfar[litert]'"


class LiteRtRuntime(Runtime):
    name = "litert"
    formats = ("tflite",)

    def available(self) -> str | None:
        return None if engine.installed("ai_edge_litert") else f"ai_edge_litert is not installed. Type: {_INSTALL}"

    def units(self) -> tuple[ComputeUnit, ...]:
        if self.available():
            return ()
        cpu = ComputeUnit(UnitKind.CPU, "cpu", "LiteRT always has its CPU kernels (XNNPACK)")
        if accelerators.has_edgetpu_library() and (place := accelerators.coral()):
            reason = f"{accelerators.EDGETPU} is installed and a Coral Edge TPU is at {place}"
            return (ComputeUnit(UnitKind.TPU, "coral", reason), cpu)
        return (cpu,)

    def load(self, path: Path, options: LoadOptions = LoadOptions()) -> LoadedLiteRt:  # noqa: B008 - frozen
        litert = engine.load_engine(_MODULE, _INSTALL)
        check_tflite(path)
        if options.unit not in {unit.name for unit in self.units()}:
            there = ", ".join(unit.name for unit in self.units())
            raise RuntimeUnavailable(f"LiteRT has no unit {options.unit!r} here.", f"Use one of: {there}.")
        delegates = [_coral_delegate(litert)] if options.unit == "coral" else None
        try:
            interpreter = litert.Interpreter(
                model_path=str(path), experimental_delegates=delegates, num_threads=max(1, options.threads)
            )
            interpreter.allocate_tensors()
        except Exception as error:  # ValueError, RuntimeError, TypeError: LiteRT has no exceptions of its own
            raise ModelFileError(
                f"LiteRT cannot load {path.name}: {engine.one_line(error)}.",
                "Convert it again with built-in operators.",
            ) from error
        return LoadedLiteRt(interpreter, path.name)


def _coral_delegate(litert: Any) -> Any:
    try:
        ctypes.CDLL(accelerators.EDGETPU)  # LiteRT's own Delegate raises once more, from __del__, when this fails
        return litert.load_delegate(accelerators.EDGETPU)
    except Exception as error:
        raise RuntimeUnavailable(
            f"{accelerators.EDGETPU} cannot be used: {engine.one_line(error)}.",
            "Install the Edge TPU runtime that fits this LiteRT, or use the unit cpu.",
        ) from error


class LoadedLiteRt(LoadedVariant):
    """One interpreter. Inputs are copied into its arena and outputs out of it, so results are the caller's own.

    The model's state variables (an LSTM's, say) live as long as the variant, as LiteRT defines it.
    """

    def __init__(self, interpreter: Any, file: str) -> None:
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        self.inputs = _specs(inputs, file)
        self.outputs = _specs(outputs, file)
        self._slots = [(spec.name, int(d["index"])) for spec, d in zip(self.inputs, inputs, strict=True)]
        self._output_slots = [int(d["index"]) for d in outputs]
        self._counted = _counted([spec.name for spec in self.outputs])
        self._shapes = [tuple(map(int, d["shape"])) for d in inputs]
        self._free = any(-1 in spec.shape for spec in self.inputs)
        self._interpreter: Any = interpreter

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        interpreter = self._interpreter
        if interpreter is None:
            raise InferenceError("The model was closed.", "Load it again.")
        if self._free:
            self._resize(interpreter, inputs)
        try:
            for name, slot in self._slots:
                interpreter.set_tensor(slot, inputs[name])
            interpreter.invoke()
            outputs = [interpreter.get_tensor(slot) for slot in self._output_slots]
            if self._counted:
                _clear_uncounted([outputs[place] for place in self._counted])
            return outputs
        except KeyError as error:
            raise InputError(f"Input {error} is missing.", "Send every input of the model.") from error
        except Exception as error:
            raise InferenceError(f"LiteRT failed: {engine.one_line(error)}.", "Check the inputs' shapes.") from error

    def _resize(self, interpreter: Any, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Give the free dimensions the sizes of this call. Planning memory anew is slow, so only on a change."""
        shapes = [inputs[name].shape if name in inputs else () for name, _ in self._slots]
        if shapes == self._shapes:
            return
        if any(0 in shape for shape in shapes):
            raise InputError("LiteRT takes no empty tensor.", "Send at least one element in each dimension.")
        self._shapes = []  # not known until all of it worked
        try:
            for (_, slot), shape, spec in zip(self._slots, shapes, self.inputs, strict=True):
                if -1 in spec.shape:
                    interpreter.resize_tensor_input(slot, shape, strict=True)
            interpreter.allocate_tensors()
        except Exception as error:
            raise InputError(
                f"LiteRT cannot run with shapes {shapes}: {engine.one_line(error)}.", "Send a batch of 1."
            ) from error
        self._shapes = shapes

    def close(self) -> None:
        self._interpreter = None


_POSTPROCESS = "TFLite_Detection_PostProcess"


def _counted(names: Sequence[str]) -> tuple[int, ...]:
    """Places of boxes, classes, scores and count when the model ends in LiteRT's detection post-processing."""
    places = tuple(i for i, name in enumerate(names) if name.split(":")[0] == _POSTPROCESS)
    return places if len(places) == 4 else ()


def _clear_uncounted(outputs: Sequence[NDArray[Any]]) -> None:
    """The operator writes only as many rows as it counted; the others hold old memory, which is nobody's business."""
    count = max(0, int(outputs[3].reshape(-1)[0]))
    for rows in outputs[:3]:
        rows[:, count:] = 0


def _specs(details: Sequence[Mapping[str, Any]], file: str) -> tuple[TensorSpec, ...]:
    """Specs with unique names: a converter may give two tensors the same one; the second becomes `name#2`."""
    specs: list[TensorSpec] = []
    taken: set[str] = set()
    for detail in details:
        base = name = str(detail["name"]) or "tensor"
        count = 1
        while name in taken:
            count += 1
            name = f"{base}#{count}"
        taken.add(name)
        dtype = DTYPES.get(np.dtype(detail["dtype"]))
        if dtype is None:
            raise ModelFileError(
                f"{file}: {name!r} has dtype {np.dtype(detail['dtype'])}, which nearfar cannot carry.",
                "Convert the model with plain tensors of numbers.",
            )
        shape = tuple(int(d) for d in detail.get("shape_signature", detail["shape"]))
        quantised = detail["quantization_parameters"]
        one_scale = len(quantised["scales"]) == 1  # more than one is per channel, which no input or output has
        scale = float(quantised["scales"][0]) if one_scale else 0.0
        zero_point = int(quantised["zero_points"][0]) if one_scale else 0
        specs.append(TensorSpec(name, dtype, shape, scale, zero_point))
    return tuple(specs)
