"""Writes the trained detector as int8 ONNX and int8 TFLite, from the same integers, and compares the two.

    python -m recipes.yard.export --train DIR [--out src/nearfar/models/embedded/yard]

ONNX: QDQ, uint8 activations, int8 weights per output channel, int32 biases; opset 13. No Relu node: the
QuantizeLinear after each convolution saturates at 0 and 6. TFLite: flatbuffers by the schema of ai-edge-litert;
TFLite wants signed activations, so the same grids are shifted by 128 and the first operator turns the uint8
image into int8. Neither needs TensorFlow, neither needs calibration: the grids are those of the training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nearfar.models.store import ANSWER
from nearfar.runtimes.inspect import learn_isolated
from recipes.yard.evaluate import EMBEDDED, NAMES, onnx_runner, test_frames, tflite_runner
from recipes.yard.model import GRAPH, GRIDS, OUTPUTS, Layer, padding

WIDTH, HEIGHT = 320, 240
LARGEST = 300_000  # bytes a file may have
CHECK_SEEDS = 2_000_000

Integers = dict[str, np.ndarray]


def quantised_bias(integers: Integers, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """int32 bias [o] and its float32 scale [o]: input scale times weight scale."""
    source = GRIDS["image"] if layer.inputs[0] == "image" else GRIDS["relu6"]
    scale = (np.float32(source.scale) * integers[f"{layer.name}/scale"]).astype(np.float32)
    bias = np.rint(integers[f"{layer.name}/bias"].astype(np.float64) / scale)
    return np.clip(bias, -(2**30), 2**30).astype(np.int32), scale


def shape_of(name: str) -> tuple[int, int, int]:
    """Rows, columns, channels of a tensor."""
    if name == "image":
        return HEIGHT, WIDTH, 3
    layer = next(node for node in GRAPH if node.name == name)
    rows, columns, _ = shape_of(layer.inputs[0])
    if layer.kind == "up":
        rows, columns = rows * 2, columns * 2
    return rows // layer.stride, columns // layer.stride, layer.channels


# -- ONNX


def write_onnx(integers: Integers, path: Path) -> None:
    """Input ``image`` uint8 [1, 3, 240, 320] RGB; outputs ``OUTPUTS`` float32 [1, c, rows, columns]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: dict[str, np.ndarray] = {}

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}.{kind}", **attributes))
        return output

    for name, grid in GRIDS.items():
        constants[f"{name}.scale"] = np.array(grid.scale, np.float32)
        constants[f"{name}.zero"] = np.array(grid.zero, np.uint8)
    constants["twice"] = np.array([1, 1, 2, 2], np.float32)
    values = {"image": node("DequantizeLinear", ["image", "image.scale", "image.zero"], "image.f")}
    for layer in GRAPH:
        inputs = [values[name] for name in layer.inputs]
        real = f"{layer.name}.r"
        if layer.kind == "up":
            node(
                "Resize",
                [inputs[0], "", "twice"],
                real,
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        elif layer.kind == "concat":
            node("Concat", inputs, real, axis=1)
        else:
            bias, scale = quantised_bias(integers, layer)
            constants[f"{layer.name}.w"] = integers[f"{layer.name}/weight"]
            constants[f"{layer.name}.ws"] = integers[f"{layer.name}/scale"]
            constants[f"{layer.name}.b"], constants[f"{layer.name}.bs"] = bias, scale
            weight = node("DequantizeLinear", [f"{layer.name}.{k}" for k in ("w", "ws")], f"{layer.name}.wf", axis=0)
            offset = node("DequantizeLinear", [f"{layer.name}.{k}" for k in ("b", "bs")], f"{layer.name}.bf", axis=0)
            before, after = padding(layer)
            node(
                "Conv",
                [inputs[0], weight, offset],
                real,
                kernel_shape=[layer.kernel] * 2,
                strides=[layer.stride] * 2,
                dilations=[layer.dilation] * 2,
                pads=[before, before, after, after],
            )
        grid_of = [f"{layer.out}.scale", f"{layer.out}.zero"]
        quantised = node("QuantizeLinear", [real, *grid_of], f"{layer.name}.q")
        target = layer.name if layer.name in OUTPUTS else f"{layer.name}.f"
        values[layer.name] = node("DequantizeLinear", [quantised, *grid_of], target)
    graph = helper.make_graph(
        nodes,
        "yard",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, shape_of(n)[2], *shape_of(n)[:2]]) for n in OUTPUTS],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="nearfar recipes/yard")
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


# -- TFLite


def write_tflite(integers: Integers, path: Path) -> None:
    """Input ``image`` uint8 [1, 240, 320, 3] RGB; outputs ``OUTPUTS`` int8 [1, rows, columns, c], with their grids."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    operators, kinds, buffers = schema.BuiltinOperator, schema.TensorType, [schema.BufferT()]
    tensors: list[Any] = []
    steps: list[Any] = []
    codes: list[tuple[int, int]] = []  # operator, version

    def tensor(
        name: str,
        shape: tuple[int, ...],
        kind: int,
        scale: np.ndarray | float,
        zero: int = 0,
        data: np.ndarray | None = None,
        axis: int = 0,
    ) -> int:
        t = schema.TensorT()
        t.name, t.shape, t.type, t.buffer, t.hasRank = name, list(shape), kind, 0, True
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            buffers.append(buffer)
            t.buffer = len(buffers) - 1
        scales = np.atleast_1d(np.asarray(scale, np.float32))
        if scales[0] > 0:
            q = schema.QuantizationParametersT()
            q.scale, q.zeroPoint, q.quantizedDimension = scales, np.full(len(scales), zero, np.int64), axis
            t.quantization = q
        tensors.append(t)
        return len(tensors) - 1

    def step(code: int, version: int, inputs: list[int], output: int, kind: int = 0, options: Any = None) -> None:
        if (code, version) not in codes:
            codes.append((code, version))
        o = schema.OperatorT()
        o.opcodeIndex, o.inputs, o.outputs = codes.index((code, version)), inputs, [output]
        o.builtinOptionsType, o.builtinOptions = kind, options
        steps.append(o)

    def activation(name: str, grid: str) -> int:
        return tensor(name, (1, *shape_of(name)), kinds.INT8, GRIDS[grid].scale, GRIDS[grid].zero - 128)

    raw = tensor("image", (1, HEIGHT, WIDTH, 3), kinds.UINT8, GRIDS["image"].scale, GRIDS["image"].zero)
    values = {"image": tensor("image_int8", (1, HEIGHT, WIDTH, 3), kinds.INT8, GRIDS["image"].scale, -128)}
    step(
        operators.QUANTIZE, 2, [raw], values["image"], schema.BuiltinOptions.QuantizeOptions, schema.QuantizeOptionsT()
    )
    for layer in GRAPH:
        inputs = [values[name] for name in layer.inputs]
        output = values[layer.name] = activation(layer.name, layer.out)
        if layer.kind == "up":
            size = np.array(shape_of(layer.name)[:2], np.int32)
            step(
                operators.RESIZE_NEAREST_NEIGHBOR,
                2,
                [inputs[0], tensor("size", (2,), kinds.INT32, 0.0, data=size)],
                output,
                schema.BuiltinOptions.ResizeNearestNeighborOptions,
                schema.ResizeNearestNeighborOptionsT(),
            )
        elif layer.kind == "concat":
            joined = schema.ConcatenationOptionsT()
            joined.axis = 3
            step(operators.CONCATENATION, 2, inputs, output, schema.BuiltinOptions.ConcatenationOptions, joined)
        else:
            weight = integers[f"{layer.name}/weight"].transpose(0, 2, 3, 1)  # [o, rows, columns, i]
            bias, scale = quantised_bias(integers, layer)
            w = tensor(f"{layer.name}/weight", weight.shape, kinds.INT8, integers[f"{layer.name}/scale"], data=weight)
            b = tensor(f"{layer.name}/bias", bias.shape, kinds.INT32, scale, data=bias)
            options = schema.Conv2DOptionsT()
            options.padding = schema.Padding.SAME
            options.strideW = options.strideH = layer.stride
            options.dilationWFactor = options.dilationHFactor = layer.dilation
            functions = schema.ActivationFunctionType
            options.fusedActivationFunction = functions.RELU6 if layer.out == "relu6" else functions.NONE
            step(operators.CONV_2D, 3, [inputs[0], w, b], output, schema.BuiltinOptions.Conv2DOptions, options)
    subgraph = schema.SubGraphT()
    subgraph.name, subgraph.tensors, subgraph.operators = "main", tensors, steps
    subgraph.inputs, subgraph.outputs = [raw], [values[name] for name in OUTPUTS]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0

    def named(name: str, index: int) -> Any:
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        return entry

    signature.inputs = [named("image", raw)]
    signature.outputs = [named(name, values[name]) for name in OUTPUTS]
    model = schema.ModelT()
    model.version, model.description = 3, "nearfar recipes/yard"
    model.subgraphs, model.buffers, model.signatureDefs = [subgraph], buffers, [signature]
    model.operatorCodes = []
    for code, version in codes:
        c = schema.OperatorCodeT()
        c.builtinCode = c.deprecatedBuiltinCode = code
        c.version = version
        model.operatorCodes.append(c)
    builder = flatbuffers.Builder(1 << 18)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))


# -- both


def compare(onnx_path: Path, tflite_path: Path, scenes: int = 10) -> dict[str, float]:
    """Largest difference in steps of the output grids, and the share of outputs that differ at all."""
    cv2.setNumThreads(1)
    runs = onnx_runner(onnx_path), tflite_runner(tflite_path)
    worst, differing, total = 0, 0, 0
    for rgb, _ in test_frames(scenes, CHECK_SEEDS):
        a, b = (run(rgb) for run in runs)
        for name in NAMES:
            gap = np.rint(np.abs(a[name] - b[name]) / GRIDS[name.rstrip("0123456789")].scale)
            worst = max(worst, int(gap.max()))
            differing += int(np.count_nonzero(gap))
            total += gap.size
    return {"largest_difference_steps": worst, "share_differing": differing / total}


def stamp(manifest: Path) -> None:
    """Put the sizes and hashes of the files beside it into the manifest."""
    text = manifest.read_text(encoding="utf-8")
    for variant in tomllib.loads(text)["variants"]:
        content = (manifest.parent / variant["file"]).read_bytes()
        for key, old, new in (
            ("sha256", f'"{variant["sha256"]}"', f'"{hashlib.sha256(content).hexdigest()}"'),
            ("bytes", str(variant["bytes"]), str(len(content))),
        ):
            head, mark, tail = text.partition(f'file = "{variant["file"]}"')
            text = head + mark + tail.replace(f"{key} = {old}", f"{key} = {new}", 1)
    manifest.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the trained yard detector as int8 ONNX and TFLite.")
    parser.add_argument("--train", type=Path, required=True, help="directory of recipes.yard.train")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    args = parser.parse_args()
    integers = dict(np.load(args.train / "integers.npz"))
    args.out.mkdir(parents=True, exist_ok=True)
    onnx_path, tflite_path = args.out / "yard-int8.onnx", args.out / "yard-int8.tflite"
    write_onnx(integers, onnx_path)
    write_tflite(integers, tflite_path)
    for path in (onnx_path, tflite_path):
        if path.stat().st_size > LARGEST:
            raise SystemExit(f"{path.name} has {path.stat().st_size} bytes, more than {LARGEST}: make the net smaller")
    if (args.out / "yard.toml").exists():
        stamp(args.out / "yard.toml")
    for path in (onnx_path, tflite_path):
        answer = learn_isolated(path)[1]
        if not answer.answer:
            raise SystemExit(f"{path.name} does not answer the question of the self-test: {answer.reason}")
        path.with_name(path.name + ANSWER).write_text(answer.answer + "\n", encoding="utf-8")
    sizes = {p.name: p.stat().st_size for p in (onnx_path, tflite_path)}
    print(json.dumps(sizes | compare(onnx_path, tflite_path)))


if __name__ == "__main__":
    main()
