"""What only onnxruntime has: its exceptions, its options, CUDA."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nearfar.errors import InferenceError, InputError, ModelFileError, RuntimeUnavailable
from nearfar.runtimes import accelerators, engine
from nearfar.runtimes import onnx as ours
from nearfar.runtimes.base import LoadOptions
from nearfar.types.tensor import DType
from tests.realdata import need_data
from tests.runtimes import tiny

ort = pytest.importorskip("onnxruntime")


def test_every_exception_of_onnxruntime_is_mapped() -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    theirs = {name for name, cls in vars(state).items() if isinstance(cls, type) and issubclass(cls, BaseException)}
    assert theirs, "onnxruntime moved its exceptions; find them and correct this test"
    assert theirs <= set(ours.LOAD_ERRORS), f"map these in runtimes/onnx.py: {theirs - set(ours.LOAD_ERRORS)}"
    assert set(ours.RUN_ERRORS) == set(ours.LOAD_ERRORS)


def test_spinning_is_off_and_threads_are_set(tmp_path: Path) -> None:
    variant = ours.OnnxRuntime().load(tiny.onnx_add(tmp_path / "m.onnx"), LoadOptions(threads=2))
    options = variant._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.inter_op.allow_spinning") == "0"
    assert variant._session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("dtype", ["BOOL", "UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64", "FLOAT16", "DOUBLE"])
def test_element_types_come_through(tmp_path: Path, dtype: str) -> None:
    with ours.OnnxRuntime().load(tiny.onnx_of_type(tmp_path / "m.onnx", dtype)) as variant:
        spec = variant.inputs[0]
        assert spec.dtype is {"DOUBLE": DType.FLOAT64}.get(dtype, DType(dtype.lower()) if dtype != "DOUBLE" else None)
        sent = np.array([[1, 0, 1, 1]], spec.dtype.value)
        np.testing.assert_array_equal(variant.infer({"x": sent})[0], sent)


@pytest.mark.parametrize("dtype", ["STRING", "BFLOAT16", "COMPLEX64"])
def test_a_model_of_what_cannot_be_carried_is_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ModelFileError):
        ours.OnnxRuntime().load(tiny.onnx_of_type(tmp_path / "m.onnx", dtype))


def test_an_identity_does_not_hand_the_callers_memory_back(tmp_path: Path) -> None:
    with ours.OnnxRuntime().load(tiny.onnx_identity(tmp_path / "m.onnx")) as variant:
        x = np.ones((1, 4), np.float32)
        (y,) = variant.infer({"x": x})
        x[:] = 7
        assert y.tolist() == [[1, 1, 1, 1]]


def test_more_threads_give_the_same_bits(tmp_path: Path) -> None:
    path = tiny.onnx_conv(tmp_path / "m.onnx")
    x = np.random.default_rng(3).standard_normal((1, 2, 6, 6)).astype(np.float32)
    results = [ours.OnnxRuntime().load(path, LoadOptions(threads=n)).infer({"x": x})[0] for n in (1, 2, 1, 2)]
    assert len({result.tobytes() for result in results}) == 1
    window = x[0, :, 0:3, 0:3].sum(dtype=np.float64)
    assert results[0].shape == (1, 8, 4, 4)
    assert results[0][0, 0, 0, 0] == pytest.approx(window, rel=1e-5)


def test_data_that_an_operator_refuses_is_the_callers_error(tmp_path: Path) -> None:
    with ours.OnnxRuntime().load(tiny.onnx_gather(tmp_path / "m.onnx")) as variant:
        assert variant.infer({"at": np.array([2], np.int64)})[0].tolist() == [3.0]
        with pytest.raises(InputError, match="onnxruntime failed") as caught:
            variant.infer({"at": np.array([99], np.int64)})
        assert "ONNXRuntimeError" not in str(caught.value)


def test_wrong_shapes_that_reach_the_engine_are_our_errors(tmp_path: Path) -> None:
    with ours.OnnxRuntime().load(tiny.onnx_add(tmp_path / "m.onnx")) as variant:
        wrong = {name: np.zeros((2, 9), np.float64) for name in "ab"}
        with pytest.raises(InputError):
            variant.infer(wrong)


def test_an_exception_that_is_new_is_an_inference_error(tmp_path: Path) -> None:
    class Unheard(Exception): ...

    def run(*_: Any) -> None:
        raise Unheard("of")

    with ours.OnnxRuntime().load(tiny.onnx_add(tmp_path / "m.onnx")) as variant:
        variant._session = SimpleNamespace(run=run)  # type: ignore[attr-defined]
        with pytest.raises(InferenceError, match="of"):
            variant.infer({})


def test_cuda_is_listed_only_with_provider_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def units(providers: list[str], device: str) -> list[str]:
        module = SimpleNamespace(__version__="1", get_available_providers=lambda: providers)
        monkeypatch.setattr(engine, "load_engine", lambda *_: module)
        monkeypatch.setattr(accelerators, "nvidia", lambda: device)
        return [unit.name for unit in ours.OnnxRuntime().units()]

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert units(both, "/dev/nvidia0") == ["cuda", "cpu"]
    assert units(both, "") == ["cpu"]
    assert units(["CPUExecutionProvider"], "/dev/nvidia0") == ["cpu"]


def test_a_cuda_session_that_fell_back_is_not_passed_off_as_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On this machine onnxruntime has no CUDA: it warns, and gives a session on the CPU."""
    path = tiny.onnx_add(tmp_path / "m.onnx")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(accelerators, "nvidia", lambda: "/dev/nvidia0")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: session)
    with pytest.raises(RuntimeUnavailable, match="fell back to CPUExecutionProvider"):
        ours.OnnxRuntime().load(path, LoadOptions(unit="cuda"))


def test_a_real_detector_loads_and_is_deterministic() -> None:
    path = need_data("detection_models", "yolox_nano_416.onnx")
    image = np.random.default_rng(1).uniform(0, 255, (1, 3, 416, 416)).astype(np.float32)
    with ours.OnnxRuntime().load(path) as one, ours.OnnxRuntime().load(path) as two:
        assert str(one.inputs[0]) == "images float32[1x3x416x416]"
        first, second = one.infer({"images": image})[0], two.infer({"images": image})[0]
        assert first.shape == (1, 3549, 85)
        assert np.isfinite(first).all()
        assert first.tobytes() == second.tobytes() == one.infer({"images": image})[0].tobytes()


def test_messages_are_free_of_the_engines_noise(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08\x12\x00\xff\xff")
    with pytest.raises(ModelFileError) as caught:
        ours.OnnxRuntime().load(path)
    assert not re.search(r"ONNXRuntimeError|onnxruntime_src|\.cc:", str(caught.value))


def test_the_engine_reports_to_nobody(tmp_path: Path) -> None:
    """The wheel has a telemetry client of its own; where it runs it leaves a session file and an id of the device."""
    home, folder = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    folder.mkdir()
    env = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY" and name[:4] != "XDG_"}
    code = (
        "import sys, pathlib; from nearfar.runtimes.registry import runtime;"
        "from nearfar.runtimes.base import LoadOptions;"
        "runtime('onnx').load(pathlib.Path(sys.argv[1]), LoadOptions()).close()"
    )
    model = Path(ours.__file__).parents[1] / "models" / "embedded" / "yard" / "yard-int8.onnx"
    run = subprocess.run(
        [sys.executable, "-c", code, str(model)], env={**env, "HOME": str(home), "TMPDIR": str(folder)}, check=False
    )
    assert run.returncode == 0
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [], "onnxruntime's telemetry ran: runtimes/engine.py must switch it off before the import"
