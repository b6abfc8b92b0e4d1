"""Models of a few bytes, built on the fly, so that the engines' tests need no data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def onnx_add(path: Path, batch: int | str = 1) -> Path:
    """sum = a + b over float32 [batch, 4]; a string names a free dimension."""
    onnx = pytest.importorskip("onnx", reason="onnx builds the test models")
    shape = [batch, 4]
    return _save_onnx(
        path, [onnx.helper.make_node("Add", ["a", "b"], ["sum"])], {"a": shape, "b": shape}, {"sum": shape}
    )


def onnx_identity(path: Path) -> Path:
    onnx = pytest.importorskip("onnx", reason="onnx builds the test models")
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    return _save_onnx(path, [node], {"x": [1, 4]}, {"y": [1, 4]})


def onnx_conv(path: Path) -> Path:
    """A 3 by 3 convolution of ones over float32 [1, 2, 6, 6], eight outputs: more than one thread has work."""
    onnx = pytest.importorskip("onnx", reason="onnx builds the test models")
    weights = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [8, 2, 3, 3], [1.0] * 144)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3])
    return _save_onnx(path, [node], {"x": [1, 2, 6, 6]}, {"y": [1, 8, 4, 4]}, [weights])


def onnx_of_type(path: Path, dtype: str) -> Path:
    """An identity over one element type of `onnx.TensorProto`."""
    onnx = pytest.importorskip("onnx", reason="onnx builds the test models")
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    return _save_onnx(path, [node], {"x": [1, 4]}, {"y": [1, 4]}, dtype=dtype)


def onnx_gather(path: Path) -> Path:
    """Picks rows by an int64 index from the data: an index out of range is refused while it runs."""
    onnx = pytest.importorskip("onnx", reason="onnx builds the test models")
    helper, proto = onnx.helper, onnx.TensorProto
    table = helper.make_tensor("table", proto.FLOAT, [3], [1.0, 2.0, 3.0])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "at"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("at", proto.INT64, [1])],
        [helper.make_tensor_value_info("y", proto.FLOAT, [1])],
        [table],
    )
    return _write_onnx(path, graph)


def _save_onnx(
    path: Path,
    nodes: list[Any],
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    initialisers: list[Any] | None = None,
    dtype: str = "FLOAT",
) -> Path:
    onnx = pytest.importorskip("onnx", reason="onnx builds the test models")
    element = getattr(onnx.TensorProto, dtype)
    described = [
        [onnx.helper.make_tensor_value_info(name, element, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    return _write_onnx(path, onnx.helper.make_graph(nodes, "tiny", *described, initialisers or []))


def _write_onnx(path: Path, graph: Any) -> Path:
    onnx = pytest.importorskip("onnx", reason="onnx builds the test models")
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def tflite_add(path: Path, batch: int = 1, names: tuple[str, str, str] = ("a", "b", "sum"), int8: bool = False) -> Path:
    """sum = a + b over [batch, 4], float32 or int8 (scale 0.5, zero point -3); a batch of -1 is free."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="LiteRT's schema builds the test models")
    flatbuffers = pytest.importorskip("flatbuffers", reason="flatbuffers builds the test models")

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 2 if int8 else 1
    graph = schema.SubGraphT()
    graph.tensors = []
    for at, name in enumerate(names):
        tensor = schema.TensorT()
        tensor.name, tensor.buffer = name, at + 1
        tensor.shape = [abs(batch), 4]
        tensor.shapeSignature = [batch, 4]
        tensor.type = schema.TensorType.INT8 if int8 else schema.TensorType.FLOAT32
        if int8:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [0.5], [-3]
        graph.tensors.append(tensor)
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [0, 1], [2]
    operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
    operator.builtinOptions = schema.AddOptionsT()
    graph.operators, graph.inputs, graph.outputs = [operator], [0, 1], [2]
    model = schema.ModelT()
    model.version = 3
    model.operatorCodes, model.subgraphs = [code], [graph]
    model.buffers = [schema.BufferT() for _ in range(4)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


FAKE = """
format = "nearfar-fake"
inputs = [{{name = "a", shape = [{batch}, 4]}}, {{name = "b", shape = [{batch}, 4]}}]
outputs = [{{name = "ya", shape = [{batch}, 4]}}, {{name = "yb", shape = [{batch}, 4]}}]
"""


def fake_identity(path: Path, batch: int = 1, more: str = "") -> Path:
    """Two float32 [batch, 4] through unchanged; `more` is further keys in TOML."""
    path.write_text(FAKE.format(batch=batch) + more)
    return path
