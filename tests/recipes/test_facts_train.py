"""Training of the near model: a few steps of a small network, in one go and in pieces."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra `train`")

from recipes.facts import gguf_file, llama2c, train
from recipes.facts.dialogues import dialogue
from recipes.facts.model import Shape, load, network, random_weights, weights_of
from recipes.facts.vocabulary import Vocabulary

TINY = Shape(width=32, layers=1, heads=2, kv_heads=2, hidden=64)
DIALOGUES = 60


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHUNK", 32)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "vocabulary.json"
    train.learn_vocabulary(1, 200).save(path)
    return path


def run(out: Path, words: Path, minutes: float) -> bool:
    out.mkdir(exist_ok=True)
    (out / "vocabulary.json").write_bytes(words.read_bytes())
    return train.train(out, 1, TINY, DIALOGUES, minutes, threads=1, tokens=4096)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(words: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "whole", words, 5)
    finished = False
    for _ in range(20):  # minutes=0 stops after every step
        finished = run(tmp_path / "pieces", words, 0)
        if finished:
            break
    assert finished
    (shape, whole), (_, pieces) = (load(tmp_path / name / "weights.npz") for name in ("whole", "pieces"))
    assert shape == TINY
    for name, w in whole.items():
        np.testing.assert_array_equal(w, pieces[name], err_msg=name)
        assert np.isfinite(w).all()


def test_a_second_stage_starts_with_the_weights_of_a_file(words: Path, tmp_path: Path) -> None:
    """At a rate of nothing they stay as they are; the vocabulary is that beside the file."""
    (tmp_path / "vocabulary.json").write_bytes(words.read_bytes())
    gguf_file.write(tmp_path / "first.gguf", TINY, random_weights(TINY, 3), Vocabulary.load(words), "q8_0")
    out = tmp_path / "out"
    for _ in range(2):  # the second call goes on from the checkpoint
        train.train(out, 2, Shape(), DIALOGUES, 0, threads=1, rate=0, tokens=4096, start=tmp_path / "first.gguf")
    shape, weights = load(out / "weights.npz")
    expected_shape, expected = gguf_file.read(tmp_path / "first.gguf")
    assert shape == expected_shape == TINY
    for name, w in expected.items():
        np.testing.assert_array_equal(weights[name], w, err_msg=name)
    assert (out / "vocabulary.json").read_bytes() == words.read_bytes()
    record = json.loads((out / "training.json").read_text())
    assert record["steps"] == 2
    assert record["from"] == hashlib.sha256((tmp_path / "first.gguf").read_bytes()).hexdigest()


def test_a_second_stage_ends_with_the_mean_of_before_and_after(words: Path, tmp_path: Path) -> None:
    import torch

    (tmp_path / "vocabulary.json").write_bytes(words.read_bytes())
    gguf_file.write(tmp_path / "first.gguf", TINY, random_weights(TINY, 3), Vocabulary.load(words), "q8_0")
    out = tmp_path / "out"
    assert train.train(out, 2, TINY, DIALOGUES, 5, threads=1, rate=1, tokens=4096, start=tmp_path / "first.gguf")
    _, before = gguf_file.read(tmp_path / "first.gguf")
    after = torch.load(out / "checkpoint.pt")["net"]["weights.0_wq"].numpy()
    assert np.abs(after - before["0.wq"]).max() > 1e-3
    np.testing.assert_allclose(load(out / "weights.npz")[1]["0.wq"], 0.3 * before["0.wq"] + 0.7 * after, atol=1e-6)


def test_a_second_stage_asks_what_was_hardly_learnt_then_as_the_tests_ask() -> None:
    assert train.example(2, 5, -1) == dialogue("train", 2, 5)
    assert train.example(2, 5, 10) == dialogue("weak", 2, 5)
    assert train.example(2, 12, 10) == dialogue("weak", 2, 12)
    assert train.example(2, 13, 10) == dialogue("train", 2, train.FRESH + 13)


def test_batches_hold_every_dialogue_once(words: Path) -> None:
    made = train.batches(Vocabulary.load(words), 1, 0, 2048)
    assert sum(n for _, _, n in made) == 32
    for ids, target, n in made:
        assert ids.shape == target.shape
        assert len(ids) == n
        assert ids.numel() <= 2048
        said = target != train.IGNORED
        assert said.any(1).all()
        # what is to be said next stands next
        assert (ids[:, 1:][said[:, :-1]] == target[:, :-1][said[:, :-1]]).all()


def test_the_rate_rises_holds_and_falls() -> None:
    assert train.rate_at(0, 0) < 0.02
    assert train.rate_at(0.39, 1000) == 1
    assert 0.3 < train.rate_at(0.75, 1000) < train.rate_at(0.6, 1000) < 1
    assert 0.009 < train.rate_at(1, 9000) < 0.011


def test_torch_computes_what_the_files_compute(tmp_path: Path) -> None:
    import torch

    shape = Shape(width=64, layers=2, heads=4, kv_heads=2, hidden=96)
    weights = random_weights(shape, 5)
    net = network(shape)
    with torch.no_grad():
        for name, parameter in net.weights.items():
            parameter.copy_(torch.from_numpy(weights[name.replace("_", ".", 1) if name[0].isdigit() else name]))
    for name, w in weights_of(net).items():
        np.testing.assert_array_equal(w, weights[name])
    ids = np.random.default_rng(1).integers(3, 512, 40)
    with torch.no_grad():
        logits = net(torch.from_numpy(ids)[None])[0].numpy()
    llama2c.write_fp32(tmp_path / "f.bin", shape, weights)
    interpreter = llama2c.Interpreter(tmp_path / "f.bin")
    for token, expected in zip(ids, logits, strict=True):
        np.testing.assert_allclose(interpreter.step(int(token)), expected, atol=2e-4)
