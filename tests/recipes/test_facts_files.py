"""Vocabulary, quantisers and writers of the near model, on untrained weights: torch is not needed."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recipes.facts import blocks, gguf_file, llama2c, onnx_file
from recipes.facts.dialogues import TRAINING, dialogue
from recipes.facts.model import Shape, Weights, load, random_weights, save, sizes
from recipes.facts.prompt import TEMPLATE, messages, prompt_ids, training_ids
from recipes.facts.vocabulary import BEGIN, BYTES_FROM, END, SIZE, Vocabulary, learn

TINY = Shape(width=64, layers=2, heads=4, kv_heads=2, hidden=96, context=320)
ROWS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.sampled_from((32, 64, 96))),
    elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
)


def texts(count: int = 400) -> list[str]:
    out = []
    for i in range(count):
        d = dialogue("train", 7, i)
        out += [f" {d.system}", *(text for t in d.turns for text in (f"> {t.question}", t.answer))]
    return out


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return learn(texts())


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(TINY)


# -- vocabulary


def test_the_vocabulary_is_full_and_its_pieces_differ(vocabulary: Vocabulary, tmp_path: Path) -> None:
    assert len(vocabulary) == SIZE == len(set(vocabulary.pieces))
    assert all(m.strip().isalpha() for m in vocabulary.merges)
    vocabulary.save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json").pieces == vocabulary.pieces


@given(text=st.text(max_size=60) | st.text("How many egs? [x:7;]\n>", max_size=60))
def test_any_text_is_cut_by_the_rule_and_comes_back(vocabulary: Vocabulary, text: str) -> None:
    text = text.encode(errors="ignore").decode()
    assert vocabulary.encode(text, blank=False) == vocabulary.cut(text)
    assert vocabulary.decode(vocabulary.encode(text, blank=False)) == text
    if text:
        assert vocabulary.encode(text) == vocabulary.cut(f" {text}")


def test_a_name_is_cut_the_same_way_wherever_it_stands(vocabulary: Vocabulary) -> None:
    alone = vocabulary.encode("brown sugar")
    for text in ("[pantry] brown sugar: 2 kg; eggs: 6", "How much brown sugar?", "You have 2 kg of brown sugar."):
        ids = vocabulary.encode(text)
        assert any(ids[i : i + len(alone)] == alone for i in range(len(ids)))


def test_the_tokenizer_of_llama2c_holds_every_piece(vocabulary: Vocabulary) -> None:
    raw = vocabulary.llama2c()
    (longest,) = struct.unpack_from("<i", raw)
    at, found = 4, []
    while at < len(raw):
        score, length = struct.unpack_from("<fi", raw, at)
        found.append((raw[at + 8 : at + 8 + length], score))
        at += 8 + length
    assert max(len(piece) for piece, _ in found) == longest
    assert [score for _, score in found] == list(vocabulary.scores)
    assert found[BYTES_FROM][0] == b"<0x00>"
    assert [piece.decode() for piece, _ in found[259:]] == list(vocabulary.pieces[259:])


# -- the text of a dialogue


def test_a_prompt_is_the_beginning_of_what_training_sees(vocabulary: Vocabulary) -> None:
    for i in range(30):
        d = dialogue("train", 7, i)
        ids, said = training_ids(vocabulary, d)
        assert len(ids) == len(said)
        for turn in range(len(d.turns)):
            prompt = prompt_ids(vocabulary, d, turn)
            assert ids[: len(prompt)] == prompt
            answer = [*vocabulary.encode(d.turns[turn].answer, blank=False), END]
            assert ids[len(prompt) : len(prompt) + len(answer)] == answer
            assert all(said[len(prompt) : len(prompt) + len(answer)])
            assert not said[len(prompt) - 1]


def test_the_longest_dialogue_fits_the_context(vocabulary: Vocabulary) -> None:
    longest = max(len(training_ids(vocabulary, dialogue(part, 7, i))[0]) for part in TRAINING for i in range(2000))
    assert longest < Shape().context


def test_the_chat_template_writes_the_text_of_training() -> None:
    jinja2 = pytest.importorskip("jinja2", reason="jinja2 comes with the extra `train`")
    d = next(d for d in (dialogue("turns", 1, i) for i in range(9)) if len(d.turns) == 2)
    first, second = d.turns
    text = jinja2.Template(TEMPLATE).render(messages=messages(d))
    assert text == f"{d.system}\n> {first.question}\n{first.answer}</s>\n> {second.question}\n"


# -- quantisers


@given(ROWS)
def test_q8_0_is_within_half_a_step(x: np.ndarray) -> None:
    back = blocks.from_q8_0(blocks.q8_0(x))
    largest = np.abs(x.reshape(-1, 32)).max(1).repeat(32).reshape(x.shape)
    # half a step, and what the float16 scale loses: a part in 2,048, or half its smallest step
    assert (np.abs(back - x) <= largest * (0.5001 / 127 + 2.0**-11) + 127 * 2.0**-25).all()


@given(ROWS)
def test_q4_0_is_within_a_step(x: np.ndarray) -> None:
    back = blocks.from_q4_0(blocks.q4_0(x))
    largest = np.abs(x.reshape(-1, 32)).max(1).repeat(32).reshape(x.shape)
    assert (np.abs(back - x) <= largest * (1.0001 / 8 + 2.0**-11) + 8 * 2.0**-25).all()


@given(ROWS)
def test_groups_are_within_half_a_step(x: np.ndarray) -> None:
    q, scale = blocks.groups(x, 32)
    assert np.abs(q.astype(int)).max() <= 127
    largest = np.abs(x.reshape(-1, 32)).max(1).repeat(32).reshape(x.shape)
    assert (np.abs(blocks.from_groups(q, scale) - x) <= largest * 0.5001 / 127 + 2e-36).all()


@given(ROWS)
def test_quantisers_write_the_bytes_of_the_package_gguf(x: np.ndarray) -> None:
    gguf = pytest.importorskip("gguf", reason="the reference is the package gguf")
    for kind, ours in (("Q8_0", blocks.q8_0), ("Q4_0", blocks.q4_0)):
        x = np.round(x, 3)  # next to zero the package's inverse overflows
        theirs = gguf.quants.quantize(x, getattr(gguf.GGMLQuantizationType, kind))
        np.testing.assert_array_equal(ours(x), theirs)


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    for quantiser in (blocks.q8_0, blocks.q4_0, lambda x: blocks.groups(x, 32)):
        with pytest.raises(ValueError, match="whole blocks"):
            quantiser(np.ones((2, 33), np.float32))
    with pytest.raises(ValueError, match="multiple of 32"):
        Shape(hidden=100).check()


# -- files


def test_weights_survive_saving(weights: Weights, tmp_path: Path) -> None:
    save(tmp_path / "w.npz", TINY, weights)
    shape, read = load(tmp_path / "w.npz")
    assert shape == TINY
    assert {name: w.shape for name, w in read.items()} == sizes(TINY)


def test_the_interpreter_reads_back_what_was_written(weights: Weights, tmp_path: Path) -> None:
    llama2c.write_fp32(tmp_path / "f.bin", TINY, weights)
    llama2c.write_q80(tmp_path / "q.bin", TINY, weights)
    whole, groups = llama2c.Interpreter(tmp_path / "f.bin"), llama2c.Interpreter(tmp_path / "q.bin")
    assert whole.shape == groups.shape == TINY
    for name, w in weights.items():
        np.testing.assert_array_equal(whole.values[name], w)
        value = groups.values[name]
        back = blocks.from_groups(*value) if isinstance(value, tuple) else value
        assert np.abs(back - w).max() <= np.abs(w).max() / 127


def test_onnx_and_llama2c_compute_the_same(weights: Weights, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="writing ONNX needs the extra `train`")
    import onnxruntime as ort

    llama2c.write_fp32(tmp_path / "f.bin", TINY, weights)
    llama2c.write_q80(tmp_path / "q.bin", TINY, weights)
    onnx_file.write(tmp_path / "f.onnx", TINY, weights)
    ids = np.random.default_rng(3).integers(3, SIZE, 60)
    session = ort.InferenceSession(str(tmp_path / "f.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"ids": ids})
    interpreter, quantised = llama2c.Interpreter(tmp_path / "f.bin"), llama2c.Interpreter(tmp_path / "q.bin")
    for token, expected in zip(ids, logits, strict=True):
        np.testing.assert_allclose(interpreter.step(int(token)), expected, atol=2e-4)
        assert np.corrcoef(quantised.step(int(token)), expected)[0, 1] > 0.98
    run = onnx_file.greedy(tmp_path / "f.onnx")
    start = [BEGIN, *(int(i) for i in ids[:8])]
    assert run(start, (END,), 12) == interpreter.greedy(start, (END,), 12)


def test_broken_llama2c_files_are_refused(weights: Weights, tmp_path: Path) -> None:
    llama2c.write_fp32(tmp_path / "f.bin", TINY, weights)
    raw = (tmp_path / "f.bin").read_bytes()
    for bad in (b"", raw[:20], raw[: len(raw) // 2], b"\0" * 300):
        (tmp_path / "bad.bin").write_bytes(bad)
        with pytest.raises(ValueError, match=r"recipes\.facts\.export"):
            llama2c.Interpreter(tmp_path / "bad.bin")
    interpreter = llama2c.Interpreter(tmp_path / "f.bin")
    interpreter.position = TINY.context
    with pytest.raises(ValueError, match="shorter table"):
        interpreter.step(1)


@pytest.mark.parametrize("kind", sorted(gguf_file.FILE_TYPES))
def test_the_package_gguf_reads_our_file(kind: str, weights: Weights, vocabulary: Vocabulary, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the reference is the package gguf")
    path = tmp_path / "f.gguf"
    gguf_file.write(path, TINY, weights, vocabulary, kind)
    reader = gguf.GGUFReader(path)
    content: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
    assert content["tokenizer.chat_template"] == TEMPLATE
    assert content["llama.feed_forward_length"] == TINY.hidden
    assert len(content["tokenizer.ggml.tokens"]) == SIZE
    tensors = {t.name: t for t in reader.tensors}
    assert set(tensors) == {gguf_file.tensor_name(name) for name in weights}
    tolerance = {"f16": 1e-3, "q8_0": 0.01, "q4_0": 0.13}[kind]
    for name, w in weights.items():
        tensor = tensors[gguf_file.tensor_name(name)]
        back = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.abs(back.reshape(w.shape) - w).max() <= tolerance * np.abs(w).max()


@pytest.mark.parametrize("kind", sorted(gguf_file.FILE_TYPES))
def test_what_was_written_is_read_back_and_written_the_same(
    kind: str, weights: Weights, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    gguf_file.write(tmp_path / "a.gguf", TINY, weights, vocabulary, kind)
    shape, back = gguf_file.read(tmp_path / "a.gguf")
    assert shape == TINY
    assert list(back) == list(weights)
    for name, w in weights.items():
        tolerance = {"f16": 0.001, "q8_0": 0.01, "q4_0": 0.14}[kind] if w.ndim > 1 else 0
        assert np.abs(back[name] - w).max() <= tolerance * np.abs(w).max()
    if kind == "f16":  # nothing is lost by writing once more
        gguf_file.write(tmp_path / "b.gguf", shape, back, vocabulary, kind)
        assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_a_file_that_is_no_gguf_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGML" + bytes(40))
    with pytest.raises(ValueError, match="no GGUF file of version 3"):
        gguf_file.read(tmp_path / "x.gguf")
