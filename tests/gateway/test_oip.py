"""The wire format, without a wire: whatever comes is a request or an `InputError`, and what is sent comes back."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.extra.numpy as arrays_of
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import InputError
from nearfar.gateway import oip
from nearfar.types.ids import ServiceId
from nearfar.types.request import Answer, Stages
from nearfar.types.tensor import DType, Tensor

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
tensors = st.fixed_dictionaries(
    {"name": st.text(max_size=3), "shape": json_values | st.lists(st.integers(), max_size=4)},
    optional={
        "datatype": st.sampled_from([*oip.DTYPES, "BYTES"]),
        "data": json_values,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "x"]), json_values, max_size=2),
    },
)
requests = st.fixed_dictionaries({"inputs": st.lists(tensors, max_size=3)}, optional={"outputs": json_values})


@given(st.binary(max_size=200), st.none() | st.integers(-5, 250))
def test_any_bytes(body: bytes, length: int | None) -> None:
    must_parse_or_refuse(body, length)


@given(requests, st.binary(max_size=40), st.booleans(), st.integers(-3, 3))
def test_anything_that_looks_like_a_request(request: Any, more: bytes, stated: bool, off: int) -> None:
    head = json.dumps(request).encode()
    must_parse_or_refuse(head + more, len(head) + off if stated else None)


def must_parse_or_refuse(body: bytes, length: int | None) -> None:
    try:
        parsed = oip.parse(body, length)
    except InputError as refused:
        assert refused.http_status in (400, 413) and refused.message
    else:
        for tensor in parsed.tensors:
            assert tensor.array().shape == tensor.shape  # whole: nothing behind it can fail on it


def numbers(dtype: DType) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    shapes = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.value.startswith("float") else {}
    made: st.SearchStrategy[np.ndarray[Any, Any]] = arrays_of.arrays(np.dtype(dtype.value), shapes, elements=finite)
    return made


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("nested", [False, True])
@given(data=st.data())
def test_what_is_sent_comes_back(data: st.DataObject, binary_in: bool, binary_out: bool, nested: bool) -> None:
    sent = [data.draw(numbers(dtype)) for dtype in data.draw(st.lists(st.sampled_from(list(DType)), max_size=3))]
    body, length = encode_request(sent, binary_in, binary_out, nested)
    parsed = oip.parse(body, length)
    assert [tensor.name for tensor in parsed.tensors] == [f"t{at}" for at in range(len(sent))]
    answer = Answer(parsed.tensors, ServiceId("n/m"), "v", Stages())
    parts, length = oip.encode("m", "1", answer, parsed)
    got = decode_answer(b"".join(bytes(part) for part in parts), length)
    for want, back in zip(sent, got, strict=True):
        assert (back.dtype, back.shape) == (want.dtype, want.shape)
        assert back.tobytes() == want.tobytes()


def encode_request(sent: list[np.ndarray[Any, Any]], binary: bool, out: bool, nested: bool) -> tuple[bytes, int | None]:
    inputs: list[dict[str, Any]] = []
    for at, array in enumerate(sent):
        made = {"name": f"t{at}", "shape": array.shape, "datatype": oip.OIP_NAMES[DType(array.dtype.name)]}
        if binary:
            made["parameters"] = {"binary_data_size": array.nbytes}
        else:
            made["data"] = (array if nested else array.reshape(-1)).tolist()
        inputs.append(made)
    request = {"inputs": inputs, "parameters": {"binary_data_output": out}}
    head = json.dumps(request).encode()
    return (head + b"".join(array.tobytes() for array in sent), len(head)) if binary else (head, None)


def decode_answer(body: bytes, length: int | None) -> list[np.ndarray[Any, Any]]:
    told = json.loads(body[:length])
    at, found = length or 0, []
    for output in told["outputs"]:
        dtype = oip.DTYPES[output["datatype"]].value
        if size := output.get("parameters", {}).get("binary_data_size", 0):
            flat = np.frombuffer(body[at : at + size], dtype)
            at += size
        else:
            flat = np.array(output.get("data", []), dtype)
        found.append(flat.reshape(output["shape"]))
    assert length is None or at == len(body)
    return found


def test_large_shapes_cost_nothing() -> None:
    shape = [2**62] * 200_000
    body = json.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": [1]}]}).encode()
    with pytest.raises(InputError, match="has 1 values"):
        oip.parse(body, None)
    with pytest.raises(InputError, match="200000 dimensions"):
        Tensor("x", DType.FLOAT32, tuple(shape), b"").check()
