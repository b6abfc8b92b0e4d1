"""The n-gram router's weights: values that go to one file, come back checked, and can be averaged.

The file is a plain .npz of fixed names, types and shapes, read without pickle; what is not exactly that is refused.
Weights of several fleets average to weights (McMahan et al. 2017), nearly so where their n-grams are as rare.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError, ModelFileError
from nearfar.language.calibration import Calibration
from nearfar.language.routers.features import BITS, KINDS, NAMES

VERSION = 1
COLUMNS = len(NAMES) * (1 + len(KINDS)) + len(KINDS)
LARGEST = 8 << 20
"""Bytes of a file that is read at all."""
_SHAPES: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
    "version": ((), np.int64),
    "grams": ((2, 1 << BITS), np.float16),
    "rarity": ((1 << BITS,), np.float16),
    "columns": ((2, COLUMNS), np.float32),
    "bias": ((2,), np.float64),
    "usual": ((len(KINDS), len(NAMES)), np.float32),
    "calibration": ((5,), np.float64),
    "rows": ((), np.int64),
}
_HINT = "Train it again (docs/explanation-routing.md), or leave the option out to use the shipped weights."


class Weights(NamedTuple):
    """Row 0 of grams, columns and bias: how much better the far answer is. Row 1: how good the near one is."""

    grams: NDArray[np.float16]
    rarity: NDArray[np.float16]
    """What an n-gram's count is multiplied with before the counts are scaled to length 1; the same for both heads."""
    columns: NDArray[np.float32]
    bias: NDArray[np.float64]
    usual: NDArray[np.float32]
    """Mean counts of each kind of prompt; only the reasons look at it."""
    calibration: Calibration
    rows: int
    """How many rows they were trained on; what they weigh in an average."""

    def export(self) -> bytes:
        """One .npz; equal weights give equal bytes of content."""
        c = self.calibration
        out = io.BytesIO()
        np.savez_compressed(
            out,
            version=np.int64(VERSION),
            grams=self.grams,
            rarity=self.rarity,
            columns=self.columns,
            bias=self.bias,
            usual=self.usual,
            calibration=np.array([c.slope, c.offset, *c.precision]),
            rows=np.int64(self.rows),
        )
        return out.getvalue()


def read(data: bytes) -> Weights:
    """What `export` gave. Raises `ModelFileError` for anything else: truncated, other shapes, objects, not finite."""
    if len(data) > LARGEST:
        raise ModelFileError(f"The router's file has {len(data)} bytes; {LARGEST} are the most.", _HINT)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inside = {info.filename: info.file_size for info in archive.infolist()}
        expected = {
            f"{name}.npy": int(np.prod(shape)) * np.dtype(kind).itemsize + 1024
            for name, (shape, kind) in _SHAPES.items()
        }
        if set(inside) != set(expected) or any(size > expected[name] for name, size in inside.items()):
            raise ModelFileError("The file does not hold the weights of an n-gram router.", _HINT)
        with np.load(io.BytesIO(data), allow_pickle=False) as archive_:
            found = {name: archive_[name] for name in _SHAPES}
    except ModelFileError:
        raise
    except Exception as error:  # zipfile, zlib, struct and numpy each have their own for a hostile file
        raise ModelFileError(f"The router's file cannot be read: {error}.", _HINT) from error
    for name, (shape, kind) in _SHAPES.items():
        value = found[name]
        if value.shape != shape or value.dtype != kind or not np.isfinite(value).all():
            raise ModelFileError(f"{name!r} in the router's file has another shape or type, or is not finite.", _HINT)
    if int(found["version"]) != VERSION:
        raise ModelFileError(f"The router's file is of version {int(found['version'])}, not {VERSION}.", _HINT)
    slope, offset, *precision = found["calibration"].tolist()
    a, b, c = precision
    if not (0 < slope <= 1e3 and a > 0 and a * c > b * b) or int(found["rows"]) < 0:
        raise ModelFileError("The calibration in the router's file is out of bounds.", _HINT)
    return Weights(
        found["grams"],
        found["rarity"],
        found["columns"],
        found["bias"],
        found["usual"],
        Calibration(slope, offset, (a, b, c)),
        int(found["rows"]),
    )


def load(path: Path) -> Weights:
    """Weights from a file. Raises `ModelFileError`."""
    try:
        if path.stat().st_size > LARGEST:
            raise ModelFileError(f"{path} has more than {LARGEST} bytes.", _HINT)
        return read(path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"The router's file {path} cannot be read: {error}.", _HINT) from error


def average(several: Sequence[Weights]) -> Weights:
    """The mean, each weighing as many rows as it was trained on. Raises `InputError` for none, or none with rows."""
    total = sum(w.rows for w in several)
    if not total:
        raise InputError("There is nothing to average.", "Give weights that were trained on at least one row.")
    shares = [w.rows / total for w in several]

    def mean(pick: str) -> NDArray[np.float64]:
        parts = [s * np.asarray(getattr(w, pick), np.float64) for s, w in zip(shares, several, strict=True)]
        return np.asarray(np.sum(parts, axis=0))

    slope = sum(s * w.calibration.slope for s, w in zip(shares, several, strict=True))
    offset = sum(s * w.calibration.offset for s, w in zip(shares, several, strict=True))
    return Weights(
        mean("grams").astype(np.float16),
        mean("rarity").astype(np.float16),
        mean("columns").astype(np.float32),
        mean("bias"),
        mean("usual").astype(np.float32),
        Calibration(slope, offset),
        total,
    )
