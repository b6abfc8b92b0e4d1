"""Training, export and agreement of the exported files, on a few steps of a few scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra `train`")
pytest.importorskip("onnx", reason="export needs the extra `train`")
pytest.importorskip("ai_edge_litert", reason="the comparison needs the extra `litert`")

from recipes.yard.evaluate import NAMES, onnx_runner, probe_frame, torch_runner
from recipes.yard.export import LARGEST, compare, write_onnx, write_tflite
from recipes.yard.model import GRAPH, GRIDS, WEIGHT_MAX, YardNet
from recipes.yard.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("yard")
    assert train(out, seed=1, steps=8, scenes=4, batch=4, minutes=5, threads=1)
    return out


def test_a_few_steps_train_and_export(trained: Path, tmp_path: Path) -> None:
    integers = dict(np.load(trained / "integers.npz"))
    for layer in GRAPH:
        if layer.kind == "conv":
            weight = integers[f"{layer.name}/weight"]
            assert weight.dtype == np.int8
            assert np.abs(weight).max() <= WEIGHT_MAX
    onnx_path, tflite_path = tmp_path / "y.onnx", tmp_path / "y.tflite"
    write_onnx(integers, onnx_path)
    write_tflite(integers, tflite_path)
    assert max(onnx_path.stat().st_size, tflite_path.stat().st_size) <= LARGEST
    assert compare(onnx_path, tflite_path, scenes=2)["largest_difference_steps"] <= 1


def test_the_exported_network_is_the_trained_one(trained: Path, tmp_path: Path) -> None:
    import torch

    net = YardNet()
    net.fold()
    net.load_state_dict(torch.load(trained / "checkpoint.pt")["mean"])
    frame = probe_frame()
    with torch.no_grad():
        outputs = net(torch.from_numpy(frame.transpose(2, 0, 1)[None].astype(np.float32) / 255))
    write_onnx(dict(np.load(trained / "integers.npz")), tmp_path / "y.onnx")
    exported = onnx_runner(tmp_path / "y.onnx")(frame)
    for name in NAMES:
        gap = np.abs(outputs[name][0].permute(1, 2, 0).numpy() - exported[name])
        assert gap.max() <= 2.01 * GRIDS[name.rstrip("0123456789")].scale


def test_an_interrupted_run_ends_as_an_uninterrupted_one(trained: Path, tmp_path: Path) -> None:
    finished = False
    for _ in range(20):  # minutes=0 stops after every step
        finished = train(tmp_path, seed=1, steps=8, scenes=4, batch=4, minutes=0, threads=1)
        if finished:
            break
    assert finished
    whole, pieces = (dict(np.load(out / "integers.npz")) for out in (trained, tmp_path))
    assert whole.keys() == pieces.keys()
    for key in whole:
        np.testing.assert_array_equal(whole[key], pieces[key], err_msg=key)


def test_float_weights_are_kept_for_comparison(trained: Path) -> None:
    outputs = torch_runner(trained / "float.pt")(probe_frame())
    assert {name: outputs[name].shape for name in NAMES} == {
        "box8": (30, 40, 4),
        "score8": (30, 40, 3),
        "box16": (15, 20, 4),
        "score16": (15, 20, 3),
    }
