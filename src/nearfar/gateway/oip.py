"""Open Inference Protocol v2: its JSON and its binary tensor data extension, to and from tensors.

Sources: the KServe "Open Inference Protocol" (REST) and the Triton "Binary Tensor Data Extension".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from nearfar.errors import InputError, TooLarge
from nearfar.types.request import Answer
from nearfar.types.tensor import MOST_DIMENSIONS, DType, Tensor, TensorSpec
from nearfar.types.units import show_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

OIP_NAMES = {
    DType.BOOL: "BOOL",
    DType.UINT8: "UINT8",
    DType.UINT16: "UINT16",
    DType.UINT32: "UINT32",
    DType.UINT64: "UINT64",
    DType.INT8: "INT8",
    DType.INT16: "INT16",
    DType.INT32: "INT32",
    DType.INT64: "INT64",
    DType.FLOAT16: "FP16",
    DType.FLOAT32: "FP32",
    DType.FLOAT64: "FP64",
}
_FLOATS = frozenset({DType.FLOAT16, DType.FLOAT32, DType.FLOAT64})
DTYPES = {name: dtype for dtype, name in OIP_NAMES.items()}
MOST_JSON = 16 * 1024 * 1024
"""Bytes of the JSON part of a request: numbers as Python objects take twenty times as much memory."""
MOST_NESTED = 1024 * 1024
"""Bytes of a tensor that is not one flat list: reading it holds everybody else up for a second a few MiB."""
MOST_INPUTS = 256

Parameters = dict[str, bool | int | float | str | None]


class InputTensor(msgspec.Struct):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: Parameters = {}
    data: msgspec.Raw = msgspec.Raw(b"")


class OutputWish(msgspec.Struct):
    name: str
    parameters: Parameters = {}


class InferRequest(msgspec.Struct):
    inputs: list[InputTensor]
    id: str = ""
    parameters: Parameters = {}
    outputs: list[OutputWish] = []


class Parsed(msgspec.Struct):
    """A request as the client means it. `binary` names outputs to send as binary; None stands for all."""

    tensors: list[Tensor]
    wanted: tuple[str, ...]
    binary: frozenset[str] | None
    id: str


_request = msgspec.json.Decoder(InferRequest)
_flat_floats = msgspec.json.Decoder(list[float])
_flat_integers = msgspec.json.Decoder(list[int])
_encoder = msgspec.json.Encoder()


def parse(body: bytes | memoryview, header_length: int | None) -> Parsed:
    """A request body; `header_length` is that of the JSON part when binary tensors follow it, else None.

    Raises `InputError` naming the field. Binary tensors are views into the body.
    """
    view = memoryview(body)
    if header_length is not None and not 0 <= header_length <= len(view):
        raise InputError(
            f"Inference-Header-Content-Length is {header_length}, but the body has {len(view)} bytes.",
            "It is the length of the JSON part.",
        )
    if (len(view) if header_length is None else header_length) > MOST_JSON:
        raise TooLarge(f"The JSON part is larger than {show_bytes(MOST_JSON)}.", "Send large tensors as binary data.")
    try:
        request = _request.decode(view if header_length is None else view[:header_length])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"The request is not valid: {error}.", 'See GET /v2/models/NAME for its "inputs".') from None
    except RecursionError:
        raise InputError("The request is nested too deeply.", "Send data as one flat list.") from None
    if len(request.inputs) > MOST_INPUTS:
        raise InputError(f"The request has {len(request.inputs)} inputs; no model takes more than {MOST_INPUTS}.")
    at = header_length if header_length is not None else len(view)
    tensors = []
    for tensor in request.inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            tensors.append(_from_json(tensor))
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 0 or at + size > len(view):
            left = len(view) - at
            raise InputError(f"Input {tensor.name!r} states binary_data_size {size!r}, but {left} bytes are left.")
        tensors.append(Tensor(tensor.name, _dtype(tensor), tensor.shape, view[at : at + size]).check())
        at += size
    if at != len(view):
        raise InputError(f"{len(view) - at} bytes follow the last tensor.", "Check every binary_data_size.")
    return Parsed(tensors, tuple(o.name for o in request.outputs), _binary(request), request.id)


def _binary(request: InferRequest) -> frozenset[str] | None:
    everything = bool(request.parameters.get("binary_data_output", False))
    if not request.outputs:
        return None if everything else frozenset()
    return frozenset(o.name for o in request.outputs if o.parameters.get("binary_data", everything))


def _dtype(tensor: InputTensor) -> DType:
    found = DTYPES.get(tensor.datatype)
    if found is None:
        raise InputError(f"Input {tensor.name!r} has datatype {tensor.datatype!r}.", f"Use one of {', '.join(DTYPES)}.")
    return found


def _from_json(tensor: InputTensor) -> Tensor:
    dtype = _dtype(tensor)
    if not bytes(tensor.data):
        raise InputError(f"Input {tensor.name!r} has neither data nor binary_data_size.")
    array = _flat_array(tensor.data, dtype)
    if array is None:
        array = _nested_array(tensor, dtype)
    if len(tensor.shape) > MOST_DIMENSIONS or array.size != math.prod(tensor.shape):
        raise InputError(
            f"Input {tensor.name!r} has {array.size} values; its shape {str(list(tensor.shape))[:100]} is of others."
        )
    flat = Tensor.of(tensor.name, array)
    return Tensor(tensor.name, dtype, tensor.shape, flat.buffer).check()


def _flat_array(data: msgspec.Raw, dtype: DType) -> NDArray[Any] | None:
    """The usual case, quickly: one flat list of numbers that all fit. None for everything else."""
    import numpy as np

    try:
        if dtype in _FLOATS:
            with np.errstate(over="ignore"):  # what is too large for the type becomes infinite, and is refused below
                floats = np.array(_flat_floats.decode(data), dtype.value)
            return floats if np.isfinite(floats).all() else None
        if dtype is not DType.BOOL:
            return np.array(_flat_integers.decode(data), dtype.value)
    except (msgspec.MsgspecError, OverflowError, ValueError, RecursionError):
        pass
    return None


def _nested_array(tensor: InputTensor, dtype: DType) -> NDArray[Any]:
    """Nested lists, and the words for what does not fit."""
    import numpy as np

    try:
        if len(bytes(tensor.data)) > MOST_NESTED:
            raise ValueError(f"nested or mixed data may have {show_bytes(MOST_NESTED)}; send one flat list, or binary")
        values = msgspec.json.decode(tensor.data)
        if dtype is not DType.BOOL and (b"true" in (given := bytes(tensor.data)) or b"false" in given):
            raise ValueError("true and false are no numbers")  # numpy takes them for 1 and 0
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype.value)
            kept = _kept(values, array, dtype)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:  # also not UTF-8
        text = str(error).splitlines()[0]
        raise InputError(f"The data of input {tensor.name!r} is not {tensor.datatype}: {text}.") from None
    if not kept:
        raise InputError(f"The data of input {tensor.name!r} does not fit {tensor.datatype}.", "Check its values.")
    return array


def _kept(values: Any, array: NDArray[Any], dtype: DType) -> bool:
    """Whether numpy took the values for what they are: 1.5 must not become the integer 1, nor "3" a number."""
    import numpy as np

    raw = np.asarray(values)
    kind = raw.dtype.kind
    if dtype is DType.BOOL:
        return kind == "b" or raw.size == 0
    if array.dtype.kind in "iu":
        if dtype is DType.UINT64 and kind == "f":  # what numpy makes of small integers beside those from 2**63
            return all(type(value) is int for value in np.asarray(values, dtype=object).flat)
        return (kind in "iu" and bool((raw == array).all())) or raw.size == 0
    return (kind in "iuf" and bool(np.isfinite(array).all())) or raw.size == 0


def encode(model: str, version: str, answer: Answer, parsed: Parsed) -> tuple[list[bytes | memoryview], int | None]:
    """The response body in parts, and the length of its JSON part when binary tensors follow it."""
    described: list[dict[str, Any]] = []
    binaries: list[bytes | memoryview] = []
    for tensor in answer.outputs:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": OIP_NAMES[tensor.dtype],
            "shape": tensor.shape,
        }
        if parsed.binary is None or tensor.name in parsed.binary:
            entry["parameters"] = {"binary_data_size": tensor.nbytes}
            binaries.append(tensor.buffer)
        else:
            entry["data"] = _to_json(tensor)
        described.append(entry)
    response: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if parsed.id:
        response["id"] = parsed.id
    text = _encoder.encode(response)
    return ([text, *binaries], len(text)) if binaries else ([text], None)


def _to_json(tensor: Tensor) -> list[Any]:
    import numpy as np

    array = tensor.array().reshape(-1)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"Output {tensor.name!r} holds NaN or infinity, which JSON cannot carry.",
            'Ask for it with "parameters": {"binary_data": true}.',
        )
    values: list[Any] = array.tolist()
    return values


def metadata(
    name: str, version: str, platform: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Mapping[str, Any]:
    """What `GET /v2/models/NAME` answers."""

    def told(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [{"name": s.name, "datatype": OIP_NAMES[s.dtype], "shape": list(s.shape)} for s in specs]

    return {
        "name": name,
        "versions": [version],
        "platform": platform,
        "inputs": told(inputs),
        "outputs": told(outputs),
    }
