"""Writes the near model as ONNX, and runs it.

Input ``ids`` int64 [t]; output ``logits`` float32 [t, vocabulary]: the whole text at once, every place. Opset 17,
plain operators only. A text of t tokens must fit the context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.facts.model import EPSILON, Shape, Weights, rotations


def write(path: Path, shape: Shape, weights: Weights) -> None:
    """Write the graph with float32 weights."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    s = shape
    nodes: list[Any] = []
    constants: dict[str, np.ndarray] = {}

    def node(kind: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        names = []
        for value in inputs:
            if isinstance(value, np.ndarray):
                key = f"c{len(constants)}"
                constants[key] = value
                names.append(key)
            else:
                names.append(value)
        output = f"v{len(nodes)}"
        nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def norm(x: str, gain: str) -> str:
        mean = node("ReduceMean", node("Mul", x, x), axes=[-1], keepdims=1)
        return node("Mul", node("Div", x, node("Sqrt", node("Add", mean, np.array(EPSILON, np.float32)))), gain)

    def linear(x: str, name: str) -> str:
        return node("MatMul", x, weights[name].T.copy())

    def heads(x: str, count: int) -> str:
        return node("Transpose", node("Reshape", x, np.array([0, count, s.head])), perm=[1, 0, 2])

    length = node("Shape", "ids")
    cos, sin = (node("Slice", table, np.array([0]), length, np.array([0])) for table in rotations(s))

    def turned(x: str, count: int) -> str:
        pairs = node("Reshape", x, np.array([count, -1, s.head // 2, 2]))
        a, b = (node("Gather", pairs, np.array(i), axis=3) for i in (0, 1))
        left = node("Sub", node("Mul", a, cos), node("Mul", b, sin))
        right = node("Add", node("Mul", a, sin), node("Mul", b, cos))
        last = np.array([-1])
        both = node("Concat", node("Unsqueeze", left, last), node("Unsqueeze", right, last), axis=3)
        return node("Reshape", both, np.array([count, -1, s.head]))

    places = node("Range", np.array(0), node("Squeeze", length), np.array(1))
    later = node("Less", node("Unsqueeze", places, np.array([1])), node("Unsqueeze", places, np.array([0])))
    mask = node("Where", later, np.array(-1e9, np.float32), np.array(0, np.float32))
    x = node("Gather", "embedding", "ids", axis=0)
    for i in range(s.layers):
        y = norm(x, f"{i}.attention_norm")
        q = turned(heads(linear(y, f"{i}.wq"), s.heads), s.heads)
        k = turned(heads(linear(y, f"{i}.wk"), s.kv_heads), s.kv_heads)
        v = heads(linear(y, f"{i}.wv"), s.kv_heads)
        if s.kv_heads != s.heads:
            which = np.arange(s.heads) // (s.heads // s.kv_heads)
            k, v = node("Gather", k, which, axis=0), node("Gather", v, which, axis=0)
        scores = node("MatMul", q, node("Transpose", k, perm=[0, 2, 1]))
        scores = node("Add", node("Mul", scores, np.array(s.head**-0.5, np.float32)), mask)
        mixed = node("MatMul", node("Softmax", scores, axis=-1), v)
        mixed = node("Reshape", node("Transpose", mixed, perm=[1, 0, 2]), np.array([0, s.width]))
        x = node("Add", x, linear(mixed, f"{i}.wo"))
        y = norm(x, f"{i}.ffn_norm")
        gate = linear(y, f"{i}.w1")
        y = node("Mul", node("Mul", gate, node("Sigmoid", gate)), linear(y, f"{i}.w3"))
        x = node("Add", x, linear(y, f"{i}.w2"))
    node("MatMul", norm(x, "norm"), node("Transpose", "embedding", perm=[1, 0]))
    nodes[-1].output[0] = "logits"
    constants |= {name: w for name, w in weights.items() if w.ndim == 1 or name == "embedding"}
    graph = helper.make_graph(
        nodes,
        "facts",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["t"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["t", s.vocabulary])],
        [numpy_helper.from_array(value.copy("C"), name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="nearfar recipes/facts"
    )
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def greedy(path: Path) -> Callable[[Sequence[int], Sequence[int], int], list[int]]:
    """A function (ids, stop, most) -> the most likely tokens after ``ids``, up to one of ``stop``."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(ids: Sequence[int], stop: Sequence[int], most: int = 64) -> list[int]:
        have = list(ids)
        while len(have) - len(ids) < most:
            (logits,) = session.run(None, {"ids": np.array(have, np.int64)})
            token = int(logits[-1].argmax())
            if token in stop:
                break
            have.append(token)
        return have[len(ids) :]

    return run
