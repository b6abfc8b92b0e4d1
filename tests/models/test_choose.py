"""Which variant a node serves, and why not the others."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.models.choose import Choice, Offer, choose
from nearfar.models.manifest import Manifest, Task, Variant
from nearfar.types.telemetry import ComputeUnit, UnitKind

CPU = ComputeUnit(UnitKind.CPU, "cpu", "always there")
NPU = ComputeUnit(UnitKind.NPU, "npu0", "driver found")
ONNX = Offer("onnx", ("onnx",), (CPU,))
LITERT = Offer("litert", ("tflite",), (CPU,))
OPENVINO = Offer("openvino", ("onnx", "openvino"), (NPU, CPU))


def variant(format_: str, precision: str, runtimes: tuple[str, ...] = ()) -> Variant:
    return Variant(f"{format_}-{precision}", format_, precision, "m", "ab" * 32, 1, runtimes=runtimes)


def model(*variants: Variant) -> Manifest:
    return Manifest("m", Task.TENSORS, variants)


F32, F16, I8, LITE8 = (
    variant("onnx", "fp32"),
    variant("onnx", "fp16"),
    variant("onnx", "int8"),
    variant("tflite", "int8"),
)


@pytest.mark.parametrize(
    ("variants", "offers", "want"),
    [
        ([F32, I8], [ONNX], ("onnx-int8", "onnx", "cpu")),
        ([F32, F16], [ONNX], ("onnx-fp32", "onnx", "cpu")),
        ([F32, LITE8], [ONNX], ("onnx-fp32", "onnx", "cpu")),
        ([F32, LITE8], [ONNX, LITERT], ("tflite-int8", "litert", "cpu")),
        ([F32, LITE8], [ONNX, LITERT, OPENVINO], ("onnx-fp32", "openvino", "npu0")),
        ([F32, F16, I8], [OPENVINO], ("onnx-int8", "openvino", "npu0")),
        ([F32, F16], [OPENVINO], ("onnx-fp16", "openvino", "npu0")),
        ([I8, LITE8], [ONNX, LITERT], ("onnx-int8", "onnx", "cpu")),
        ([I8, LITE8], [LITERT, ONNX], ("tflite-int8", "litert", "cpu")),
        ([variant("onnx", "fp32", ("onnx",))], [OPENVINO, ONNX], ("onnx-fp32", "onnx", "cpu")),
    ],
)
def test_the_best_way(variants: list[Variant], offers: list[Offer], want: tuple[str, str, str]) -> None:
    found = choose(model(*variants), offers)
    assert isinstance(found, Choice)
    assert (found.variant.id, found.runtime, found.unit.name) == want
    assert found.runtime in found.reason
    assert "\n" not in found.reason


@pytest.mark.parametrize(
    ("variants", "offers", "why"),
    [
        ([LITE8], [ONNX], "no runtime here loads tflite (onnx)"),
        ([LITE8], [], "no runtime here loads tflite (none is available)"),
        ([F32], [Offer("onnx", ("onnx",), ())], "onnx found no compute unit here"),
        ([variant("onnx", "fp32", ("openvino",))], [ONNX], "it may only run on openvino, which is not available here"),
    ],
)
def test_nothing_to_choose_says_why(variants: list[Variant], offers: list[Offer], why: str) -> None:
    found = choose(model(*variants), offers)
    assert not isinstance(found, Choice)
    assert [r.reason for r in found] == [why]


def test_a_pinned_variant_is_the_only_one() -> None:
    found = choose(model(F32, I8), [ONNX], only="onnx-fp32")
    assert isinstance(found, Choice)
    assert found.variant is F32
    assert [r.reason for r in found.others] == ["only onnx-fp32 was asked for"]


ALL = [variant(f, p) for f, p in itertools.product(("onnx", "tflite"), ("fp32", "fp16", "int8"))]


@given(
    st.lists(st.sampled_from(ALL), min_size=1, max_size=6, unique=True),
    st.lists(st.sampled_from([ONNX, LITERT, OPENVINO, Offer("dead", ("onnx",), ())]), unique=True, max_size=4),
)
def test_every_variant_is_chosen_or_has_its_reason(variants: list[Variant], offers: list[Offer]) -> None:
    found: Any = choose(model(*variants), offers)
    others = found.others if isinstance(found, Choice) else found
    chosen = [found.variant.id] if isinstance(found, Choice) else []
    assert sorted([*chosen, *(r.variant for r in others)]) == sorted(v.id for v in variants)
    assert all(r.reason for r in others)
    if isinstance(found, Choice) and found.unit.kind is UnitKind.CPU:
        assert not any(o is OPENVINO and v.format in o.formats for o in offers for v in variants)
