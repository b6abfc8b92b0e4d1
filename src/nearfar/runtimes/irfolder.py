"""A language model that was exported to OpenVINO is a folder; a store keeps files. So it is packed into one file: a tar
without compression, whose first member is a mark, so that the format is told by the content.

Same folder, same bytes: members come in one order and carry no times and no owners.
"""

from __future__ import annotations

import io
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from nearfar.errors import ModelFileError
from nearfar.runtimes.modelfile import IR_MARK
from nearfar.runtimes.text import TextFacts
from nearfar.types.units import show_bytes

MODEL, WEIGHTS, CONFIG = "openvino_model.xml", "openvino_model.bin", "config.json"
TOKENIZER = "openvino_tokenizer.xml"
NEEDED = (
    CONFIG, MODEL, WEIGHTS, TOKENIZER, "openvino_tokenizer.bin", "openvino_detokenizer.xml", "openvino_detokenizer.bin",
)  # fmt: skip
TEMPLATES = ("tokenizer_config.json", "chat_template.json", "chat_template.jinja")
ALSO = ("generation_config.json", "special_tokens_map.json", *TEMPLATES)
"""Taken along where they are there."""
EXPORT = "Export it: optimum-cli export openvino --model NAME --task text-generation-with-past FOLDER."
_MOST_MEMBERS = 64
_LARGEST = {CONFIG: 32 << 20, MODEL: 256 << 20}
"""Bytes of what is read here; weights have no bound."""
_CONSTANT = re.compile(rb'<data element_type="(\w+)" shape="([\d, ]{0,80})"')
_NAMES = {"i8": "int8", "u8": "int8", "i4": "int4", "u4": "int4", "nf4": "int4", "f4e2m1": "int4"}
BITS: Mapping[str, int] = {"f32": 32, "f16": 16, "bf16": 16, "int8": 8, "int4": 4}


class Ir(NamedTuple):
    """What a packed folder says of its model."""

    config: Mapping[str, Any]
    quantisation: str
    """Of the most weights: f32, f16, bf16, int8 or int4."""
    parameters: int
    weights: int
    """Bytes."""
    chat: bool

    def number(self, *names: str, default: int = 0) -> int:
        """The first of these entries of the config that is a sensible whole number."""
        for name in names:
            value = self.config.get(name)
            if type(value) is int and 0 <= value < 1 << 40:
                return value
        return default


def is_folder(path: Path) -> bool:
    """Whether it is the folder of an exported model, or looks as if it were meant for one."""
    return path.is_dir() and any((path / name).exists() for name in (MODEL, TOKENIZER, WEIGHTS))


def pack(folder: Path, target: Path) -> None:
    """Write the folder as one file. Raises `ModelFileError` naming what is missing, or why it cannot be read."""
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise ModelFileError(f"{folder} lacks {', '.join(missing)}.", EXPORT)
    try:
        with tarfile.open(target, "w:", format=tarfile.GNU_FORMAT) as packed:
            packed.addfile(tarfile.TarInfo(IR_MARK), io.BytesIO())
            for name in (*NEEDED, *ALSO):
                if (folder / name).is_file():
                    member = tarfile.TarInfo(name)
                    member.size = (folder / name).stat().st_size
                    with (folder / name).open("rb") as file:
                        packed.addfile(member, file)
    except OSError as error:
        raise ModelFileError(
            f"{folder} cannot be packed: {error}.", "Check its permissions, or set TMPDIR to a folder with more room."
        ) from error


def unpack(path: Path, folder: Path) -> None:
    """Write the files of a packed folder into an empty one. Raises `ModelFileError`, also when the disk is too full."""
    size, free = path.stat().st_size, shutil.disk_usage(folder).free
    if size > free:
        raise ModelFileError(
            f"{path.name} needs {show_bytes(size)} to be unpacked, {folder} has {show_bytes(free)}.",
            "Free some, or set TMPDIR to a folder on a larger disk.",
        )
    with _opened(path) as (packed, members):
        for name, member in members.items():
            with _file(packed, member) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            if (folder / name).stat().st_size != member.size:
                raise ModelFileError(f"{path.name} is truncated in {name}.", "Add or fetch it again.")


def read(path: Path) -> Ir:
    """Of a packed folder, or of a folder. Raises `ModelFileError`."""
    if path.is_dir():
        return _read(path.name, lambda name: (path / name).open("rb"), _sizes(path))
    with _opened(path) as (packed, members):
        if (end := max(member.offset_data + member.size for member in members.values())) > path.stat().st_size:
            raise ModelFileError(f"{path.name} is truncated: it should have {end} bytes.", "Add or fetch it again.")
        sizes = {name: member.size for name, member in members.items()}
        return _read(path.name, lambda name: _file(packed, members[name]), sizes)


def facts(path: Path) -> TextFacts:
    """Raises `ModelFileError`."""
    ir = read(path)
    return TextFacts(
        architecture=str(ir.config.get("model_type", "unknown"))[:64],
        parameters=ir.parameters,
        context=ir.number("max_position_embeddings", "n_positions"),
        quantisation=ir.quantisation,
        chat=ir.chat,
    )


def _sizes(folder: Path) -> dict[str, int]:
    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        raise ModelFileError(f"{folder} lacks {', '.join(missing)}.", EXPORT)
    return {name: (folder / name).stat().st_size for name in (*NEEDED, *ALSO) if (folder / name).is_file()}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]]:
    try:
        with tarfile.open(path, "r:") as packed:
            members = {}
            for count, member in enumerate(packed):
                if count > _MOST_MEMBERS:
                    raise ModelFileError(f"{path.name} has more files than such a model.", "Do not use this file.")
                if member.isreg() and member.name in (*NEEDED, *ALSO):
                    members[member.name] = member
            if missing := [name for name in NEEDED if name not in members]:
                raise ModelFileError(f"{path.name} is damaged: it lacks {', '.join(missing)}.", "Add it again.")
            yield packed, members
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ModelFileError(f"{path.name} cannot be read: {error}.", "Add or fetch it again.") from error


def _file(packed: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = packed.extractfile(member)
    if file is None:
        raise ModelFileError(f"{member.name} is no file.", "Do not use this file.")
    return file


def _read(name: str, opened: Any, sizes: Mapping[str, int]) -> Ir:
    for part, most in _LARGEST.items():
        if sizes[part] > most:
            raise ModelFileError(f"{name}: {part} has {show_bytes(sizes[part])}.", "Do not use this model.")
    try:
        with opened(CONFIG) as file:
            config = msgspec.json.decode(file.read(), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileError(f"{name}: {CONFIG} cannot be read: {error}.", EXPORT) from None
    counted: dict[str, int] = {}
    logits = False
    with opened(MODEL) as file:
        for line in file:
            logits = logits or b'"logits"' in line
            for element, shape in _CONSTANT.findall(line):
                count = 1
                for part in shape.split(b","):
                    count *= int(part) if part.strip() else 1
                counted[element.decode()] = counted.get(element.decode(), 0) + count
    weights = {one: count for one, count in counted.items() if one not in ("i64", "i32", "boolean", "string")}
    if not logits or not weights:
        raise ModelFileError(f"{name} writes no text: its {MODEL} has no output named logits.", EXPORT)
    kind = max(weights, key=lambda one: weights[one])
    chat = any(_says(opened, part, b"chat_template") for part in (TOKENIZER, *TEMPLATES) if part in sizes)
    return Ir(config, _NAMES.get(kind, kind), weights[kind], sizes[WEIGHTS], chat)


def _says(opened: Any, part: str, word: bytes) -> bool:
    if part.startswith("chat_template"):
        return True
    with opened(part) as file:
        return any(word in line for line in file)
