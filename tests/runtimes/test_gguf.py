"""The head of a GGUF file is read without trust: whatever stands in it, there are facts or a `ModelFileError`."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearfar.errors import ModelFileError
from nearfar.runtimes import gguf
from tests.realdata import need_data
from tests.runtimes import tinygguf


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinygguf.llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_facts_of_a_file(path: Path) -> None:
    facts = gguf.facts(path)
    assert (facts.architecture, facts.context, facts.quantisation) == ("llama", 512, "f32")
    assert facts.chat
    assert not facts.embedding
    head = gguf.read(path)
    assert facts.parameters * 4 == head.bytes
    assert head.vocabulary == 259 + 95


def test_facts_of_a_real_file() -> None:
    facts = gguf.facts(need_data("slm", "stories260K.gguf"))
    assert facts.architecture == "llama"
    assert 250_000 < facts.parameters < 330_000


def test_the_sum_has_its_parts(path: Path) -> None:
    need = gguf.need(gguf.read(path), 512, 4, 1000, beside=7, kept=9)
    assert need.weights == 1000
    assert need.keys_and_values == 2 * 1 * 512 * 4 * 1 * (16 + 16)
    assert need.total == need.weights + need.keys_and_values + need.work + 16


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    lora = tinygguf.lora(tmp_path / "lora.gguf")
    assert gguf.need_beside(lora) == lora.stat().st_size
    with pytest.raises(ModelFileError):
        gguf.facts(lora)


@pytest.mark.parametrize("cut", [0, 1, 4, 10, 23, 24, 100, 1000, 5000])
def test_a_file_that_was_cut_says_so(path: Path, tmp_path: Path, cut: int) -> None:
    (tmp_path / "cut").write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelFileError):
        gguf.facts(tmp_path / "cut")


def test_a_file_without_its_last_weights_says_how_much_is_missing(path: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ModelFileError, match=r"truncated: its tensors need .* the file has"):
        gguf.facts(tmp_path / "cut")


def head(version: int = 3, tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


BIG = (1 << 64) - 1


@pytest.mark.parametrize(
    "data",
    [
        head(version=1),
        head(version=9),
        head(tensors=BIG),
        head(keys=BIG),
        head(keys=1, rest=struct.pack("<Q", BIG)),
        head(keys=1, rest=struct.pack("<Q", 1) + b"k" + struct.pack("<I", 99)),
        head(keys=1, rest=struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, BIG)),
        head(keys=1, rest=struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 4, BIG)),
        head(keys=1, rest=struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 9, 1 << 40) * 6),
        head(keys=1, rest=struct.pack("<Q", 1) + b"k" + struct.pack("<IQ", 8, BIG)),
        head(tensors=1, rest=struct.pack("<QI", 0, 4_000_000)),
        head(tensors=1, rest=struct.pack("<QI4QIQ", 0, 4, BIG, BIG, BIG, BIG, 0, 0)),
    ],
)  # fmt: skip
def test_a_head_that_claims_too_much_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "x"
    file.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError):
            gguf.facts(file)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 11_000), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_bytes_that_were_changed_never_crash_the_reader(
    path: Path, tmp_path: Path, changes: list[tuple[int, int]], near: bool
) -> None:
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % 600 if near else place] = value
    file = tmp_path / "changed"
    file.write_bytes(data)
    tracemalloc.start()
    try:
        facts = gguf.facts(file)
        gguf.need(gguf.read(file), 512, 4, len(data))
        assert facts.parameters > 0
    except ModelFileError as error:
        assert error.hint
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20
