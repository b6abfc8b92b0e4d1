"""`tritonclient[http]`, as it comes from its makers, against `nearfar up`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nearfar.types.tensor import DType
from tests.fleetlab import Node

triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
utils = pytest.importorskip("tritonclient.utils")

SHAPE = (2, 3)
SAMPLES: dict[DType, list[Any]] = {
    DType.BOOL: [True, False, True, True, False, False],
    DType.UINT8: [0, 1, 127, 128, 254, 255],
    DType.UINT16: [0, 1, 2, 3, 65534, 65535],
    DType.UINT32: [0, 1, 2, 3, 4, 2**32 - 1],
    DType.UINT64: [0, 1, 2, 3, 2**63, 2**64 - 1],
    DType.INT8: [-128, -1, 0, 1, 2, 127],
    DType.INT16: [-32768, -1, 0, 1, 2, 32767],
    DType.INT32: [-(2**31), -1, 0, 1, 2, 2**31 - 1],
    DType.INT64: [-(2**63), -1, 0, 1, 2, 2**63 - 1],
    DType.FLOAT16: [0.0, -0.0, 1.5, 65504.0, 6e-8, -2.25],
    DType.FLOAT32: [0.0, -0.0, 0.1, 3.4028235e38, 1e-45, -2.5],
    DType.FLOAT64: [0.0, -0.0, 0.1, 1.7976931348623157e308, 5e-324, -2.5],
}


def sample(dtype: DType) -> np.ndarray[Any, Any]:
    return np.array(SAMPLES[dtype], dtype.value).reshape(SHAPE)


@pytest.fixture
def client(house: Node) -> Iterator[Any]:
    made = triton.InferenceServerClient(house.url.removeprefix("http://"))
    yield made
    made.close()


def given(name: str, array: np.ndarray[Any, Any], *, binary: bool) -> Any:
    made = triton.InferInput(name, list(array.shape), utils.np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("identity") and client.is_model_ready("identity", "1")
    assert not client.is_model_ready("identity", "2") and not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server["name"] == "nearfar" and "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("add")
    assert model["name"] == "add" and model["versions"] == ["1"] and model["platform"] == "onnx_v"
    assert model["inputs"] == [{"name": n, "datatype": "FP32", "shape": [1, 4]} for n in ("a", "b")]
    assert model["outputs"] == [{"name": "sum", "datatype": "FP32", "shape": [1, 4]}]


@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("binary_in", [False, True])
def test_infer_as_json_and_as_binary(client: Any, binary_in: bool, binary_out: bool) -> None:
    a = np.array([[0.1, -2.5, 1e-45, 3e38]], np.float32)
    b = np.array([[0.2, 7.25, 1e-45, 1e37]], np.float32)
    answer = client.infer(
        "add",
        [given("a", a, binary=binary_in), given("b", b, binary=binary_in)],
        outputs=[triton.InferRequestedOutput("sum", binary_data=binary_out)],
        request_id="request-7",
    )
    np.testing.assert_array_equal(answer.as_numpy("sum"), a + b)
    told = answer.get_response()
    assert told["id"] == "request-7" and told["model_name"] == "add" and told["model_version"] == "1"
    assert ("data" in told["outputs"][0]) is not binary_out


def test_every_dtype_in_one_request_some_of_it_binary(client: Any) -> None:
    arrays = {dtype: sample(dtype) for dtype in DType}
    as_binary = set(list(DType)[::2]) | {DType.FLOAT16}  # this client sends half precision in binary alone
    inputs = [given(f"x-{d.value}", array, binary=d in as_binary) for d, array in arrays.items()]
    outputs = [triton.InferRequestedOutput(f"y-{d.value}", binary_data=d not in as_binary) for d in DType]
    answer = client.infer("every-dtype", inputs, outputs=outputs)
    for dtype, array in arrays.items():
        back = answer.as_numpy(f"y-{dtype.value}")
        assert back.dtype == array.dtype and back.shape == array.shape
        assert back.tobytes() == array.tobytes(), dtype  # -0.0 is not 0.0


def test_outputs_not_asked_for_are_not_sent(client: Any) -> None:
    inputs = [given(f"x-{d.value}", sample(d), binary=True) for d in DType]
    answer = client.infer("every-dtype", inputs, outputs=[triton.InferRequestedOutput("y-int8")])
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["y-int8"]


def test_without_stated_outputs_all_come_in_binary(client: Any) -> None:
    inputs = [given(f"x-{d.value}", sample(d), binary=True) for d in DType]
    told = client.infer("every-dtype", inputs).get_response()["outputs"]  # the client asks for binary_data_output
    assert [output["name"] for output in told] == [f"y-{d.value}" for d in DType]
    assert all("binary_data_size" in output["parameters"] for output in told)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [False, True])
def test_compressed_requests(client: Any, algorithm: str, binary: bool) -> None:
    x = np.arange(1000, dtype=np.float32).reshape(1, -1)
    answer = client.infer(
        "identity",
        [given("x", x, binary=binary)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,  # may be answered as it is
    )
    np.testing.assert_array_equal(answer.as_numpy("y"), x)


def test_empty_tensors(client: Any) -> None:
    x = np.zeros((1, 0), np.float32)
    for binary in (False, True):
        answer = client.infer("identity", [given("x", x, binary=binary)])
        assert answer.as_numpy("y").shape == (1, 0)


@pytest.mark.parametrize("version", ["", "1"])
def test_a_version_may_be_stated(client: Any, version: str) -> None:
    x = np.ones((1, 2), np.float32)
    np.testing.assert_array_equal(
        client.infer("identity", [given("x", x, binary=True)], model_version=version).as_numpy("y"), x
    )


FLOATS = np.zeros((1, 4), np.float32)


@pytest.mark.parametrize(
    ("model", "inputs", "told"),
    [
        ("ad", {"a": FLOATS, "b": FLOATS}, "knows the model ad; did you mean add"),
        ("add", {"a": FLOATS[:, :3], "b": FLOATS}, r"Input 'a' is float32\[1x3\]. Send a float32\[1x4\]"),
        ("add", {"a": FLOATS, "b": FLOATS.astype(np.int64)}, r"Input 'b' is int64\[1x4\]. Send b float32\[1x4\]"),
        ("add", {"a": FLOATS, "z": FLOATS}, "Input 'b' is missing. Send b float32"),
        ("add", {"a": FLOATS, "b": FLOATS, "z": FLOATS}, "There is no input 'z'. The model takes: a float32"),
        ("add", {"a": FLOATS}, "Input 'b' is missing"),
    ],
    ids=["unknown model", "shape", "dtype", "name", "one too many", "missing"],
)
@pytest.mark.parametrize("binary", [False, True])
def test_errors_say_what_to_do(
    client: Any, model: str, inputs: dict[str, np.ndarray[Any, Any]], told: str, binary: bool
) -> None:
    with pytest.raises(utils.InferenceServerException, match=told):
        client.infer(model, [given(name, array, binary=binary) for name, array in inputs.items()])


def test_an_output_that_is_not_there(client: Any) -> None:
    x = given("x", FLOATS, binary=True)
    with pytest.raises(utils.InferenceServerException, match=r"There is no output 'q'\. The model gives: y"):
        client.infer("identity", [x], outputs=[triton.InferRequestedOutput("q")])


def test_a_version_that_is_not_there(client: Any) -> None:
    with pytest.raises(utils.InferenceServerException, match=r"identity has no version 7\. It has 1"):
        client.infer("identity", [given("x", FLOATS, binary=True)], model_version="7")


@pytest.mark.parametrize("call", ["get_model_config", "get_inference_statistics"])
def test_what_is_not_offered_is_a_clear_404(client: Any, call: str) -> None:
    with pytest.raises(utils.InferenceServerException, match="There is nothing at this path") as raised:
        getattr(client, call)("identity")
    assert raised.value.status() == "404"


def test_many_at_once_from_one_client(house: Node) -> None:
    client = triton.InferenceServerClient(house.url.removeprefix("http://"), concurrency=8)
    try:
        waiting = [
            client.async_infer("identity", [given("x", np.full((1, 8), i, np.float32), binary=True)]) for i in range(40)
        ]
        for i, answer in enumerate(waiting):
            np.testing.assert_array_equal(answer.get_result().as_numpy("y"), np.full((1, 8), i, np.float32))
    finally:
        client.close()
