"""A folder of OpenVINO's as one file: packed, told, read and refused; needs no engine."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nearfar.errors import ModelFileError, NearfarError
from nearfar.models.textfile import name_of_text, text_format
from nearfar.runtimes import irfolder
from nearfar.runtimes.modelfile import IR_MARK, format_of

LAYERS = (
    '<layer type="Const"><data element_type="i64" shape="1" offset="0" size="8" /></layer>\n'
    '<layer type="Const"><data element_type="u4" shape="10, 32" offset="8" size="160" /></layer>\n'
    '<layer type="Const"><data element_type="f16" shape="10, 1" offset="168" size="20" /></layer>\n'
)
MODEL = f'<?xml version="1.0"?>\n<net>\n{LAYERS}<port names="logits"/>\n</net>\n'
CONFIG: dict[str, Any] = {"model_type": "qwen2", "max_position_embeddings": 2048, "num_hidden_layers": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "Qwen-int4-ov"
    place.mkdir()
    for name in irfolder.NEEDED:
        (place / name).write_bytes(name.encode() * 50)
    (place / irfolder.MODEL).write_text(MODEL)
    (place / irfolder.CONFIG).write_text(json.dumps(CONFIG))
    (place / "README.md").write_text("not taken along")
    return place


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "Qwen-int4-ov.tar"
    irfolder.pack(folder, path)
    return path


def test_it_is_told_by_its_content_in_both_rooms(packed: Path, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "blob"
    packed.rename(other)
    assert format_of(other) == text_format(other) == "openvino-text"
    assert irfolder.is_folder(folder)
    assert not irfolder.is_folder(tmp_path)
    assert not irfolder.is_folder(other)


def test_what_comes_out_is_what_went_in(packed: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    irfolder.unpack(packed, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(irfolder.NEEDED)
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in irfolder.NEEDED)


def test_the_same_folder_is_the_same_file(packed: Path, folder: Path, tmp_path: Path) -> None:
    (folder / irfolder.CONFIG).touch()
    irfolder.pack(folder, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == packed.read_bytes()


def test_it_says_what_the_model_is(packed: Path, folder: Path) -> None:
    for path in (packed, folder):
        facts = irfolder.facts(path)
        assert (facts.architecture, facts.parameters, facts.context) == ("qwen2", 320, 2048)
        assert facts.quantisation == "int4"
        assert not facts.chat
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert irfolder.facts(folder).chat


@pytest.mark.parametrize("name", irfolder.NEEDED)
def test_a_file_that_is_missing_is_named_with_how_to_make_it(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).unlink()
    for act in (lambda: irfolder.pack(folder, tmp_path / "p"), lambda: irfolder.facts(folder)):
        with pytest.raises(ModelFileError, match=name) as caught:
            act()
        assert "optimum-cli export openvino" in caught.value.hint


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (irfolder.CONFIG, "[]", "cannot be read"),
        (irfolder.CONFIG, "[" * 100_000, "cannot be read"),
        (irfolder.MODEL, "<net></net>", "no output named logits"),
        (irfolder.MODEL, MODEL.replace("logits", "last_hidden_state"), "no output named logits"),
        (irfolder.MODEL, '<data element_type="f16" shape="' + "9" * 5000 + '"', "logits"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused(folder: Path, file: str, content: str, says: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ModelFileError, match=says):
        irfolder.facts(folder)


def test_a_file_that_is_cut_anywhere_is_refused_and_never_half_read(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    used = whole.rindex(b"openvino_detokenizer.bin") + len(b"openvino_detokenizer.bin")  # the rest is padding
    bad = tmp_path / "bad"
    for cut in range(600, used, 311):
        bad.write_bytes(whole[:cut])
        with pytest.raises(ModelFileError):
            irfolder.read(bad)


def test_a_hostile_file_writes_nowhere_else(packed: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    with tarfile.open(packed) as good, tarfile.open(evil, "w:", format=tarfile.GNU_FORMAT) as made:
        for member in good:
            made.addfile(member, good.extractfile(member))
        for name in ("../escaped", "/tmp/nearfar-escaped", "sub/config.json"):
            member = tarfile.TarInfo(name)
            member.size = 4
            made.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("generation_config.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    out = tmp_path / "inner" / "out"
    out.mkdir(parents=True)
    irfolder.unpack(evil, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(irfolder.NEEDED)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_endless_members_are_not_counted_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "many"
    with tarfile.open(path, "w:", format=tarfile.GNU_FORMAT) as made:
        for number in range(200):
            made.addfile(tarfile.TarInfo(IR_MARK if not number else f"f{number}"))
    with pytest.raises(NearfarError, match="more files"):
        irfolder.read(path)


@pytest.mark.parametrize("name", ["Qwen3-1.7B-int4-ov", "Qwen3-1.7B_int8_ov", "Qwen3-1.7B-fp16-ov", "qwen3-1.7b-int8"])
def test_a_folder_s_name_is_the_model_s_without_its_precision(name: str) -> None:
    assert name_of_text(f"{name}.tar") == "qwen3-1.7b"
