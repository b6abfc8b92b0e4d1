"""What only OpenVINO has: three formats, its own names for outputs, silent casts that we refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nearfar.errors import InputError, ModelFileError
from nearfar.runtimes import engine
from nearfar.runtimes import openvino as ours
from nearfar.runtimes.base import LoadOptions
from nearfar.types.tensor import DType
from tests.realdata import need_data
from tests.runtimes import tiny

engine.prepare_environment()  # or the import reports to its maker
ov = pytest.importorskip("openvino")


def test_every_exception_of_openvino_is_mapped() -> None:
    from openvino import _pyopenvino as state

    theirs = {name for name, cls in vars(state).items() if isinstance(cls, type) and issubclass(cls, BaseException)}
    assert theirs, "OpenVINO moved its exceptions; find them and correct this test"
    assert theirs <= set(ours.ERRORS), f"map these in runtimes/openvino.py: {theirs - set(ours.ERRORS)}"


def test_the_engine_reports_to_nobody(tmp_path: Path) -> None:
    """`import openvino` posts to Google Analytics, and keeps an id of the machine for that in the home folder."""
    code = (
        "import sys, pathlib; from nearfar.runtimes.registry import runtime;"
        "from nearfar.runtimes.base import LoadOptions;"
        "runtime('openvino').load(pathlib.Path(sys.argv[1]), LoadOptions()).close();"
        "assert sys.modules['openvino_telemetry'] is None and 'openvino.tools.ovc.telemetry_stub' in sys.modules"
    )
    model = tiny.onnx_add(tmp_path / "m.onnx")
    home = tmp_path / "home"
    home.mkdir()
    # It keeps quiet where CI is set; should it speak, then to nobody.
    env = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    env |= {"HOME": str(home), "https_proxy": "http://127.0.0.1:9"}
    run = subprocess.run([sys.executable, "-c", code, str(model)], env=env, check=False)
    left = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
    assert left == [], "openvino's telemetry ran: runtimes/engine.py must keep it out before the import"
    assert run.returncode == 0


def test_precision_threads_and_hint_are_ours(tmp_path: Path) -> None:
    variant = ours.OpenVinoRuntime().load(tiny.onnx_add(tmp_path / "m.onnx"), LoadOptions(threads=2))
    compiled = variant._request.get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()) == "f32"
    assert "LATENCY" in str(compiled.get_property("PERFORMANCE_HINT"))


def test_it_loads_its_own_format(tmp_path: Path) -> None:
    model = ov.Core().read_model(str(tiny.onnx_add(tmp_path / "m.onnx")))
    ov.save_model(model, str(tmp_path / "ir.xml"), compress_to_fp16=False)
    with ours.OpenVinoRuntime().load(tmp_path / "ir.xml") as variant:
        ones = np.ones((1, 4), np.float32)
        assert variant.infer({"a": ones, "b": ones})[0].tolist() == [[2] * 4]
        assert variant.outputs[0].name == "sum"


def test_it_loads_tflite_with_and_without_the_suffix(tmp_path: Path) -> None:
    path = tiny.tflite_add(tmp_path / "m.tflite")
    blob = tmp_path / "blob"
    blob.write_bytes(path.read_bytes())
    ones = np.ones((1, 4), np.float32)
    for file in (path, blob):
        with ours.OpenVinoRuntime().load(file) as variant:
            assert [spec.name for spec in variant.inputs] == ["a", "b"]
            assert variant.infer({"a": ones, "b": ones})[0].tolist() == [[2] * 4]


def test_a_fake_is_not_for_it(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="format fake"):
        ours.OpenVinoRuntime().load(tiny.fake_identity(tmp_path / "m.toml"))


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((1, 4), np.float64), np.zeros((4, 1), np.float32), np.zeros(4, np.float32), np.zeros((1, 4), "U1")],
    ids=["another dtype", "turned", "flat", "text"],
)
def test_what_openvino_would_take_without_a_word_is_refused(tmp_path: Path, wrong: Any) -> None:
    with ours.OpenVinoRuntime().load(tiny.onnx_add(tmp_path / "m.onnx")) as variant:
        with pytest.raises(InputError, match="'a' is"):
            variant.infer({"a": wrong, "b": np.zeros((1, 4), np.float32)})


def test_devices_are_those_that_answered_best_first() -> None:
    core = SimpleNamespace(
        available_devices=["CPU", "GPU.1", "GPU.0", "NPU", "HETERO"],
        get_property=lambda device, _: {"NPU": 1 / 1}.get(device, f"the {device} "),
    )
    units = ours._units(core)
    assert [unit.name for unit in units] == ["gpu.0", "gpu.1", "npu", "cpu"]
    assert units[0].reason == "OpenVINO found the GPU.0"


def test_a_device_that_answers_only_half_is_listed_nonetheless() -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("driver")

    units = ours._units(SimpleNamespace(available_devices=["CPU"], get_property=refuse))
    assert units[0].name == "cpu"


def test_quantised_and_real_models_agree_with_onnxruntime() -> None:
    from nearfar.runtimes.onnx import OnnxRuntime

    path = need_data("detection_models", "ultraface_rfb_320.onnx")
    image = np.random.default_rng(4).standard_normal((1, 3, 240, 320)).astype(np.float32)
    with ours.OpenVinoRuntime().load(path) as theirs, OnnxRuntime().load(path) as reference:
        assert [s.name for s in theirs.outputs] == [s.name for s in reference.outputs]
        assert all(s.dtype is DType.FLOAT32 for s in theirs.outputs)
        for x, y in zip(theirs.infer({"input": image}), reference.infer({"input": image}), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-4)
