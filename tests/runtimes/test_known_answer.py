"""The question whose answer is known: rounding is not nonsense, and nonsense is not rounding."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nearfar.models import embedded
from nearfar.models.store import Store
from nearfar.runtimes import inspect as inspect_module
from nearfar.runtimes import known_answer, registry
from nearfar.runtimes.base import LoadOptions
from nearfar.runtimes.inspect import learn_isolated
from nearfar.runtimes.known_answer import SAMPLES, compare, decode, encode, learn, question, record, shapes_of
from nearfar.runtimes.modelfile import format_of
from nearfar.types.tensor import DType, TensorSpec
from tests.realdata import need_data
from tests.runtimes import tiny

SPECS = (
    TensorSpec("picture", DType.FLOAT32, (1, 3, -1, 4)),
    TensorSpec("bytes", DType.UINT8, (2, 5)),
    TensorSpec("small", DType.INT8, (64,)),
    TensorSpec("index", DType.INT64, (-1,)),
    TensorSpec("flag", DType.BOOL, (3,)),
    TensorSpec("scalar", DType.FLOAT64, ()),
)
REAL = (
    "detection_models/nanodet_m_320.onnx",
    "detection_models/ssd_mobilenet_v1_coco_quant_postprocess.tflite",
    "detection_models/movenet_lightning_ptq.tflite",
    "detection_models/traffic_lstm_detector.tflite",
    "classification_models/mobilenet_v2_1.0_224_quant.tflite",
)


def network(inputs: known_answer.Arrays) -> list[NDArray[Any]]:
    """Two outputs that follow from the picture."""
    x = np.asarray(inputs["picture"], np.float32)
    return [np.tanh(x * 3 - 1), (100 * x).astype(np.int8)]


# -- the question ------------------------------------------------------------------------------------------------------


def test_the_question_is_the_same_on_every_machine_and_fits_the_specs() -> None:
    asked = question(SPECS, shapes_of(SPECS, {"picture": (1, 3, 2, 4)}))
    again = question(SPECS, shapes_of(SPECS, {"picture": (1, 3, 2, 4)}))
    for spec in SPECS:
        assert spec.accepts(DType(asked[spec.name].dtype.name), asked[spec.name].shape)
        assert np.array_equal(asked[spec.name], again[spec.name])
    assert asked["picture"].min() >= 0 and asked["picture"].max() < 1
    assert set(asked["index"].tolist()) <= {0, 1}
    # What was asked when answers were recorded must be asked for ever, or QUESTION gets a new number.
    assert float(asked["picture"].sum()) == pytest.approx(11.615271, abs=1e-4)


def test_a_nudge_moves_little() -> None:
    shapes = shapes_of(SPECS)
    plain, nudged = question(SPECS, shapes), question(SPECS, shapes, 4)
    assert 0 < np.abs(plain["picture"] - nudged["picture"]).max() <= 4 / 256 + 1e-6
    assert 0 < np.abs(plain["small"].astype(int) - nudged["small"]).max() <= 4
    assert np.array_equal(plain["index"], nudged["index"])


def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(ValueError, match="picture float32"):
        question(SPECS, {**shapes_of(SPECS), "picture": (1, 3, 4)})
    with pytest.raises(ValueError, match="cannot be asked"):
        question([TensorSpec("x", DType.UINT8, (1 << 40,))], {"x": (1 << 40,)})


# -- the comparison ----------------------------------------------------------------------------------------------------


KNOWN = learn(network, SPECS[:1], {"picture": (1, 3, 16, 4)}, "test")
ANSWER = network(question(SPECS[:1], {"picture": (1, 3, 16, 4)}))


def test_an_answer_is_small_and_survives_its_text() -> None:
    text = encode(KNOWN)
    assert decode(text) == KNOWN and len(text) < 4096 and KNOWN.tells
    assert all(0 < len(output.values) <= SAMPLES for output in KNOWN.outputs)
    assert decode("{}") is None and decode('{"shapes":{},"outputs":[],"question":999}') is None


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.2))
def test_rounding_is_not_nonsense(seed: int, size: float) -> None:
    noise = np.random.default_rng(seed)
    rounded = [
        (ANSWER[0] + size * ANSWER[0].std() * noise.standard_normal(ANSWER[0].shape)).astype(np.float32),
        np.clip(ANSWER[1] + noise.integers(-1, 2, ANSWER[1].shape), -128, 127).astype(np.int8),
    ]
    assert compare(KNOWN, rounded) == ""


@given(
    st.integers(0, 2**32 - 1), st.sampled_from(["zeros", "other", "shuffled", "constant", "nan", "negative", "huge"])
)
def test_nonsense_is_not_rounding(seed: int, kind: str) -> None:
    noise = np.random.default_rng(seed)
    first = ANSWER[0]
    wrong = {
        "zeros": np.zeros_like(first),
        "other": noise.normal(first.mean(), first.std(), first.shape).astype(np.float32),
        "shuffled": noise.permutation(first.ravel()).reshape(first.shape),
        "constant": np.full_like(first, first.mean()),
        "nan": np.full_like(first, np.nan),
        "negative": -first,
        "huge": first * 1e9,
    }[kind]
    assert compare(KNOWN, [wrong, ANSWER[1]]).startswith("output 0")
    assert compare(KNOWN, [ANSWER[0], np.zeros_like(ANSWER[1])]).startswith("output 1")


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (ANSWER[:1], "1 outputs instead of 2"),
        ([ANSWER[0].astype(np.float64), ANSWER[1]], "float64"),
        ([ANSWER[0][:, :2], ANSWER[1]], "has the shape"),
        ([ANSWER[0][0], ANSWER[1]], "instead of float32"),
    ],
)
def test_another_form_is_nonsense(outputs: list[NDArray[Any]], told: str) -> None:
    assert told in compare(KNOWN, outputs)


def test_what_jumps_when_the_question_is_nudged_is_held_to_its_form_only() -> None:
    rng = np.random.default_rng(1)

    def jumpy(_: known_answer.Arrays) -> list[NDArray[Any]]:
        return [rng.standard_normal((1, 20)).astype(np.float32)]

    known = learn(jumpy, SPECS[:1], shapes_of(SPECS[:1]))
    assert compare(known, jumpy({})) == "" and not known.tells
    assert "float64" in compare(known, [np.zeros((1, 20))])


def test_an_answer_of_all_zeros_says_that_it_tells_nothing() -> None:
    known = record([[np.zeros((4, 4), np.float32)]], {})
    assert not known.tells and compare(known, [np.zeros((4, 4), np.float32)]) == ""
    constant = record([[np.full((4, 4), 7.0, np.float32)]], {})
    assert constant.tells and compare(constant, [np.zeros((4, 4), np.float32)])


# -- real engines ------------------------------------------------------------------------------------------------------


def engines(path: Path) -> list[tuple[str, int]]:
    names = registry.able(format_of(path))
    return [(name, threads) for name in names for threads in (1, 2)]


@pytest.mark.parametrize("variant", [v.id for v in embedded.read("yard")[0].variants])
def test_every_engine_gives_the_answer_that_came_with_the_package(variant: str, tmp_path: Path) -> None:
    stored = Store(tmp_path).get("yard")
    known = decode(stored.answer(variant))
    assert known is not None and known.tells
    path = stored.open(variant)
    tried = engines(path)
    if not tried:
        pytest.skip(f"no runtime for {path.name} is installed")
    for name, threads in tried:
        with registry.runtime(name).load(path, LoadOptions(threads=threads)) as loaded:
            outputs = loaded.infer(question(loaded.inputs, known.shapes))
            assert compare(known, outputs) == "", (name, threads)
            assert compare(known, [np.zeros_like(output) for output in outputs])


@pytest.mark.parametrize("file", REAL)
def test_real_models_give_their_answer_again_with_other_threads_and_another_load(file: str) -> None:
    path = need_data(*file.split("/"))
    tried = engines(path)
    if not tried:
        pytest.skip(f"no runtime for {path.name} is installed")
    known = None
    for name, threads in tried:
        with registry.runtime(name).load(path, LoadOptions(threads=threads)) as loaded:
            shapes = shapes_of(loaded.inputs)
            known = known or learn(loaded.infer, loaded.inputs, shapes, name)
            outputs = loaded.infer(question(loaded.inputs, shapes))
            assert compare(known, outputs) == "", (name, threads)
            assert compare(known, [np.zeros_like(output) for output in outputs])


def test_a_file_is_looked_at_and_asked_in_one_process_of_its_own(tmp_path: Path) -> None:
    found, learned = learn_isolated(tiny.onnx_add(tmp_path / "m.onnx"))
    known = decode(learned.answer)
    assert found.runtime == "onnx" and known is not None and known.by == "onnx" and known.tells


@pytest.mark.parametrize(
    ("script", "told"), [("kill -SEGV $$", "exit -11"), ("exec sleep 600", "not done in 2 s"), ("exit 0", "exit 0")]
)
def test_an_engine_that_dies_over_the_question_costs_only_the_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, told: str
) -> None:
    (tmp_path / "python").write_text(f'#!/bin/sh\necho \'{{"runtime":"onnx"}}\'\n{script}\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    found, learned = inspect_module.learn_isolated(tmp_path / "m.onnx", timeout=2.0)
    assert found.runtime == "onnx" and learned.answer == "" and told in learned.reason
