"""Families by their tensors: the real files as they state themselves, and what is left open is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from nearfar.errors import ManifestError
from nearfar.models.manifest import Layout, Task
from nearfar.models.recognise import recognise
from nearfar.types.tensor import DType, TensorSpec


def f32(*shape: int, name: str = "o") -> TensorSpec:
    return TensorSpec(name, DType.FLOAT32, shape)


def u8(*shape: int, scale: float = 1 / 128, zero: int = 128) -> TensorSpec:
    return TensorSpec("x", DType.UINT8, shape, scale, zero)


def nchw(size: int) -> list[TensorSpec]:
    return [f32(1, 3, size, size)]


NANODET = [f32(n, c) for c in (80, 32) for n in (1600, 400, 100)]
PICODET = [f32(1, n, c) for c in (80, 32) for n in (1600, 400, 100, 25)]
SSD = [f32(1, 10, 4), f32(1, 10), f32(1, 10), f32(1)]
REAL: list[tuple[str, list[TensorSpec], list[TensorSpec], dict[str, Any]]] = [
    ("yolox", nchw(416), [f32(1, 3549, 85)], {"colour": "bgr", "resize": "letterbox-top-left", "pad": 114}),
    ("nanodet", nchw(320), NANODET, {"colour": "bgr", "mean": [103.53, 116.28, 123.675]}),
    ("picodet", nchw(320), PICODET, {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}),
    ("fastestdet", nchw(352), [f32(1, 85, 22, 22)], {"colour": "bgr", "scale": 1 / 255}),
    ("ssd-postprocess", [u8(1, 300, 300, 3)], SSD, {"colour": "rgb"}),
    ("classification", [u8(1, 224, 224, 3)], [TensorSpec("o", DType.UINT8, (1, 1001), 1 / 256, 0)], {"colour": "rgb"}),
]


@pytest.mark.parametrize(("kind", "inputs", "outputs", "picture"), REAL)
def test_each_real_family_is_known_with_its_own_preprocessing(
    kind: str, inputs: list[TensorSpec], outputs: list[TensorSpec], picture: dict[str, Any]
) -> None:
    found = recognise(inputs, outputs)
    assert found.decoder["kind"] == kind
    assert {k: found.input.get(k) for k in picture} == picture
    assert kind in found.reason
    assert found.layout is (Layout.NHWC if inputs[0].shape[3] == 3 else Layout.NCHW)
    assert found.labels == ("coco80" if kind not in ("ssd-postprocess", "classification") else ())


def test_outputs_in_any_order_are_the_same_family() -> None:
    for outputs in (NANODET[::-1], [NANODET[i] for i in (3, 0, 4, 1, 5, 2)]):
        assert recognise(nchw(320), outputs).decoder["kind"] == "nanodet"


def test_ssd_of_tensorflow_two_is_turned_round() -> None:
    found = recognise([u8(1, 300, 300, 3)], [f32(1, 10), f32(1, 10, 4), f32(1), f32(1, 10)])
    assert found.decoder["order"] == ["scores", "boxes", "count", "classes"]


def test_split_yolox_maps() -> None:
    outputs = [TensorSpec("o", DType.UINT8, s, 0.1, 5) for s in ((1, 24, 40, 4), (1, 24, 40, 3), (1, 12, 20, 4))]
    outputs.append(TensorSpec("o", DType.UINT8, (1, 12, 20, 3), 0.1, 5))
    found = recognise([u8(1, 192, 320, 3)], outputs)
    want = {"kind": "yolox", "heads": "split", "strides": [8, 16], "activation": "sigmoid"}
    assert found.decoder == want
    assert found.precision == "int8"


# What the other files of the collection state; none is a family that is known here.
OTHERS = {
    "ultraface": ([f32(1, 3, 240, 320)], [f32(1, 4420, 2), f32(1, 4420, 4)]),
    "yunet": (nchw(320), [f32(1, n, c) for c in (1, 1, 4, 10) for n in (1600, 400, 100)]),
    "movenet": ([u8(1, 192, 192, 3)], [f32(1, 1, 17, 3)]),
    "mcunet": ([f32(1, 128, 160, 3)], [f32(1, 4, 5, 18), f32(1, 8, 10, 18), f32(1, 16, 20, 18)]),
    "deeplab": ([u8(1, 513, 513, 3)], [TensorSpec("o", DType.INT64, (1, 513, 513))]),
    "yolov5": (nchw(640), [f32(1, 25200, 85)]),
    "speech": ([f32(1, 16000)], [f32(1, 12)]),
    "two inputs": ([f32(1, 3, 8, 8), f32(1, 4)], [f32(1, 4)]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_unknown_families_are_tensors_with_the_reason(name: str) -> None:
    inputs, outputs = OTHERS[name]
    found = recognise(inputs, outputs)
    assert found.task is Task.TENSORS
    assert found.reason.startswith("tensors only: ")
    with pytest.raises(ManifestError, match="--task tensors"):
        recognise(inputs, outputs, task="object-detection")


def test_an_embedding_may_be_classes_so_it_is_asked() -> None:
    inputs, outputs = [f32(-1, 3, 256, 128)], [f32(-1, 512)]
    with pytest.raises(ManifestError, match="--task classification or --task tensors"):
        recognise(inputs, outputs)
    assert recognise(inputs, outputs, task="classification").decoder["kind"] == "classification"
    assert recognise(inputs, outputs, task="tensors").task is Task.TENSORS
    labels = tuple(f"person {i}" for i in range(512))
    assert recognise(inputs, outputs, labels=labels).task is Task.CLASSIFICATION


def test_a_coarse_map_may_be_two_families_so_it_is_asked() -> None:
    inputs, outputs = nchw(96), [f32(1, 8, 12, 12)]
    with pytest.raises(ManifestError, match=r"--decoder fastestdet\|fomo"):
        recognise(inputs, outputs)
    assert recognise(inputs, outputs, kind="fomo").decoder["kind"] == "fomo"
    assert recognise(inputs, outputs, labels=("a", "b", "c")).decoder["kind"] == "fastestdet"
    assert recognise(inputs, outputs, labels=tuple("abcdefg")).decoder["kind"] == "fomo"


def test_a_size_left_open_is_asked_for() -> None:
    inputs, outputs = [f32(1, 3, -1, -1)], [f32(1, 3549, 85)]
    with pytest.raises(ManifestError, match="--size WIDTHxHEIGHT"):
        recognise(inputs, outputs)
    assert recognise(inputs, outputs, size=(416, 416)).input["width"] == 416
    with pytest.raises(ManifestError, match="--size is 8x8"):
        recognise(nchw(416), outputs, size=(8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "detection"}, r"task is 'detection' \(did you mean 'object-detection'"),
        ({"kind": "yolo"}, r"decoder\.kind is 'yolo' \(did you mean 'yolox'"),
        ({"task": "classification"}, "of no family that is known for classification"),
        ({"task": "classification", "kind": "yolox"}, "but the task is classification"),
    ],
)
def test_contradictions_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        recognise(nchw(416), [f32(1, 3549, 85)], **options)


def test_pixels_span_the_range_of_an_int8_input() -> None:
    outputs = [f32(1, 3549, 85)]
    zero_to_one = TensorSpec("x", DType.INT8, (1, 3, 416, 416), 1 / 255, -128)
    assert recognise([zero_to_one], outputs).input["scale"] == pytest.approx(1 / 255)
    both = TensorSpec("x", DType.INT8, (1, 3, 416, 416), 2 / 255, 0)
    found = recognise([both], outputs).input
    assert [(p - found["mean"][0]) / found["std"][0] for p in (0, 255)] == pytest.approx([-256 / 255, 254 / 255])
    with pytest.raises(ManifestError, match="states no scale"):
        recognise([TensorSpec("x", DType.INT8, (1, 3, 416, 416))], outputs)
