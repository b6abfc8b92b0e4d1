"""What only LiteRT has: quantisation, names that repeat, the Edge TPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nearfar.errors import InferenceError, InputError, ModelFileError, RuntimeUnavailable
from nearfar.runtimes import accelerators, engine
from nearfar.runtimes.base import LoadOptions
from nearfar.runtimes.litert import LiteRtRuntime, LoadedLiteRt
from nearfar.types.tensor import DType
from tests.realdata import need_data
from tests.runtimes import tiny

pytest.importorskip("ai_edge_litert")


def test_quantisation_is_stated(tmp_path: Path) -> None:
    with LiteRtRuntime().load(tiny.tflite_add(tmp_path / "m.tflite", int8=True)) as variant:
        assert [(s.dtype, s.scale, s.zero_point) for s in variant.inputs] == [(DType.INT8, 0.5, -3)] * 2
        assert (variant.outputs[0].scale, variant.outputs[0].zero_point) == (0.5, -3)
        one, two = np.full((1, 4), -1, np.int8), np.full((1, 4), 1, np.int8)  # 1.0 and 2.0
        assert variant.infer({"a": one, "b": two})[0].tolist() == [[3] * 4]  # 3.0


def test_names_that_repeat_are_made_unique(tmp_path: Path) -> None:
    with LiteRtRuntime().load(tiny.tflite_add(tmp_path / "m.tflite", names=("x", "x", "x"))) as variant:
        assert [spec.name for spec in variant.inputs] == ["x", "x#2"]
        first, second = np.full((1, 4), 1, np.float32), np.full((1, 4), 5, np.float32)
        assert variant.infer({"x": first, "x#2": second})[0].tolist() == [[6] * 4]


def test_a_batch_that_cannot_be_leaves_the_variant_usable(tmp_path: Path) -> None:
    with LiteRtRuntime().load(tiny.tflite_add(tmp_path / "m.tflite", batch=-1)) as variant:
        with pytest.raises(InputError, match="empty"):
            variant.infer({name: np.zeros((0, 4), np.float32) for name in "ab"})
        with pytest.raises(InputError, match="shapes"):
            variant.infer({"a": np.zeros((2, 4), np.float32), "b": np.zeros((3, 4), np.float32)})
        ones = np.ones((2, 4), np.float32)
        assert variant.infer({"a": ones, "b": ones})[0].tolist() == [[2] * 4] * 2


def test_the_engines_refusal_is_an_inference_error(tmp_path: Path) -> None:
    with LiteRtRuntime().load(tiny.tflite_add(tmp_path / "m.tflite")) as variant:
        with pytest.raises(InferenceError, match="LiteRT failed"):
            variant.infer({name: np.zeros((1, 4), np.int64) for name in "ab"})


def test_a_text_tensor_is_refused() -> None:
    detail = {
        "name": "words",
        "index": 0,
        "shape": np.array([1]),
        "dtype": np.bytes_,
        "quantization_parameters": {"scales": [], "zero_points": []},
    }
    interpreter = SimpleNamespace(get_input_details=lambda: [detail], get_output_details=list)
    with pytest.raises(ModelFileError, match="words"):
        LoadedLiteRt(interpreter, "m.tflite")


def test_the_edge_tpu_is_listed_only_with_library_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def units(library: bool, place: str) -> list[str]:
        monkeypatch.setattr(accelerators, "has_edgetpu_library", lambda: library)
        monkeypatch.setattr(accelerators, "coral", lambda: place)
        return [unit.name for unit in LiteRtRuntime().units()]

    assert units(True, "/dev/apex_0") == ["coral", "cpu"]
    assert units(True, "") == ["cpu"]
    assert units(False, "/dev/apex_0") == ["cpu"]


def test_an_edge_tpu_library_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accelerators, "has_edgetpu_library", lambda: True)
    monkeypatch.setattr(accelerators, "coral", lambda: "/dev/apex_0")
    with pytest.raises(RuntimeUnavailable, match=r"libedgetpu\.so\.1 cannot be used"):  # it is not there
        LiteRtRuntime().load(tiny.tflite_add(tmp_path / "m.tflite"), LoadOptions(unit="coral"))


def test_accelerators_are_found_where_they_are(tmp_path: Path) -> None:
    assert accelerators.coral(tmp_path) == accelerators.nvidia(tmp_path) == ""
    port = tmp_path / "sys/bus/usb/devices/2-1"
    port.mkdir(parents=True)
    (port / "idVendor").write_text("18d1\n")
    (port / "idProduct").write_text("4ee7\n")
    assert accelerators.coral(tmp_path) == ""  # another device of the same vendor
    (port / "idProduct").write_text("9302\n")
    assert accelerators.coral(tmp_path) == "USB port 2-1"
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert accelerators.nvidia(tmp_path) == ""  # the driver is loaded, no device is
    (tmp_path / "dev/nvidia0").touch()
    (tmp_path / "dev/apex_0").touch()
    assert accelerators.nvidia(tmp_path) == "/dev/nvidia0"
    assert accelerators.coral(tmp_path) == "/dev/apex_0"


def test_a_real_classifier_says_what_it_is_and_decides_the_same_twice() -> None:
    path = need_data("classification_models", "mobilenet_v1_0.25_128_quant.tflite")
    image = np.random.default_rng(2).integers(0, 256, (1, 128, 128, 3), np.uint8)
    with LiteRtRuntime().load(path) as variant:
        assert (variant.inputs[0].scale, variant.inputs[0].zero_point) == (0.0078125, 128)
        assert variant.outputs[0].shape == (1, 1001)
        first = variant.infer({"input": image})[0]
        assert first.tobytes() == variant.infer({"input": image})[0].tobytes()
        assert 200 <= int(first.astype(int).sum()) <= 312  # uint8 probabilities of scale 1/256 add up to about one


def test_a_real_detector_with_its_own_post_processing_has_four_outputs() -> None:
    path = need_data("detection_models", "ssd_mobilenet_v1_coco_quant_postprocess.tflite")
    with LiteRtRuntime().load(path) as variant:
        image = np.zeros((1, 300, 300, 3), np.uint8)
        results = variant.infer({variant.inputs[0].name: image})
        assert [result.shape for result in results] == [spec.shape for spec in variant.outputs]


def test_a_real_model_with_flipped_bytes_crashes_nobody(tmp_path: Path) -> None:
    """In child processes, as `models add` looks at files: either it loads, or our error says why not."""
    from nearfar.runtimes import registry

    whole = bytearray(need_data("mcu_models", "ad01_int8.tflite").read_bytes())
    generator = np.random.default_rng(11)
    for attempt in range(3):
        hostile = bytearray(whole)
        for at in generator.integers(8, 400, 12):  # the tables at the front, not the weights
            hostile[at] = int(generator.integers(0, 256))
        path = tmp_path / f"{attempt}.tflite"
        path.write_bytes(hostile)
        try:
            assert registry.inspect_file(path).inputs
        except ModelFileError as error:
            assert error.hint


def test_the_engine_is_asked_for_the_threads_of_the_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    litert: Any = engine.load_engine("ai_edge_litert.interpreter", "")

    class Spy(litert.Interpreter):  # type: ignore[misc]  # an untyped base
        def __init__(self, **options: Any) -> None:
            asked.append(options["num_threads"])
            super().__init__(**options)

    monkeypatch.setattr(litert, "Interpreter", Spy)
    LiteRtRuntime().load(tiny.tflite_add(tmp_path / "m.tflite"), LoadOptions(threads=3)).close()
    assert asked == [3]
