"""The real models as manifests, and engines to run them with: for tests of this room only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.models.accuracy import Truths
from nearfar.models.manifest import Manifest, manifest_of
from nearfar.types.tensor import DType, TensorSpec

Run = Callable[[dict[str, NDArray[Any]]], Sequence[NDArray[Any]]]

IMAGENET_BGR = {"mean": [103.53, 116.28, 123.675], "std": [57.375, 57.12, 58.395]}
IMAGENET_RGB = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}

# file, AP50 that its README states, input, decoder
DETECTORS: dict[str, tuple[str, float, dict[str, Any], dict[str, Any]]] = {
    "ssd": (
        "ssd_mobilenet_v1_coco_quant_postprocess.tflite",
        0.380,
        {"width": 300, "height": 300, "colour": "rgb"},
        {"kind": "ssd-postprocess"},
    ),
    "yolox-nano": (
        "yolox_nano_416.onnx",
        0.504,
        {"width": 416, "height": 416, "colour": "bgr", "resize": "letterbox-top-left", "pad": 114},
        {"kind": "yolox"},
    ),
    "nanodet-m": (
        "nanodet_m_320.onnx",
        0.451,
        {"width": 320, "height": 320, "colour": "bgr", **IMAGENET_BGR},
        {"kind": "nanodet"},
    ),
    "picodet-s": (
        "picodet_s_320_coco.onnx",
        0.514,
        {"width": 320, "height": 320, "colour": "rgb", **IMAGENET_RGB},
        {"kind": "picodet"},
    ),
    "fastestdet": (
        "fastestdet_352.onnx",
        0.398,
        {"width": 352, "height": 352, "colour": "bgr", "scale": 1 / 255},
        {"kind": "fastestdet"},
    ),
}


def manifest_for(name: str, file: Path) -> Manifest:
    _, _, picture, decoder = DETECTORS[name]
    data = file.read_bytes()
    lite = file.suffix == ".tflite"
    variant = {
        "id": "v",
        "format": "tflite" if lite else "onnx",
        "file": file.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "layout": "nhwc" if lite else "nchw",
        "dtype": "uint8" if lite else "float32",
    }
    labels = "coco90" if name == "ssd" else "coco80"
    return manifest_of(
        {
            "schema": 1,
            "name": name,
            "task": "object-detection",
            "labels": labels,
            "input": picture,
            "decoder": decoder,
            "variants": [variant],
        }
    )


def load(file: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Run]:
    """Inputs, outputs and a function that runs the file, with the engine's own API."""
    return _lite(file) if file.suffix == ".tflite" else _onnx(file)


def _onnx(file: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def specs(nodes: Any) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(n.name, DType.FLOAT32, tuple(d if isinstance(d, int) else -1 for d in n.shape)) for n in nodes
        )

    return specs(session.get_inputs()), specs(session.get_outputs()), lambda feed: session.run(None, feed)


def _lite(file: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], Run]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    ins, outs = interpreter.get_input_details(), interpreter.get_output_details()

    def specs(details: Any) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                d["name"],
                DType(np.dtype(d["dtype"]).name),
                tuple(int(n) for n in d["shape"]),
                float(d["quantization"][0]),
                int(d["quantization"][1]),
            )
            for d in details
        )

    def run(feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        for d in ins:
            interpreter.set_tensor(d["index"], feed[d["name"]])
        interpreter.invoke()
        return [interpreter.get_tensor(d["index"]) for d in outs]

    return specs(ins), specs(outs), run


def coco_truth(text: str, width: int, height: int) -> Truths:
    """YOLO lines (class cx cy w h, 0 to 1) as boxes in pixels."""
    rows = np.array([[float(v) for v in line.split()] for line in text.splitlines() if line.strip()]).reshape(-1, 5)
    centre, half = rows[:, 1:3], rows[:, 3:5] / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1) * [width, height, width, height]
    return Truths(boxes, rows[:, 0].astype(np.int64))
