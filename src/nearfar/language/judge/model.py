"""The judge: a logistic model over the features, calibrated, with its plain faults on top.

    logit = bias + sum over features of  weight * clip((value - mean) / scale, -4, 4)   where the value is there
                                         absent                                         where it is NaN
    probability = 1 / (1 + exp(-(slope * logit + offset)))  and at most the lowest cap of `findings.py`

So a feature without evidence counts as an average one, corrected by what its absence itself told in training; one that
never varied in training (such as log-probabilities, where the rows have none) has weight 0: it is looked at and does
not count until the judge is trained on rows that have it. The weights are numbers in an npz file: no code comes along.
"""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

import msgspec

from nearfar.errors import ModelFileError
from nearfar.language.answer import Answer
from nearfar.language.judge.features import GROUP_OF, NAMES, observe
from nearfar.language.judge.findings import Finding, findings, lowest
from nearfar.language.judge.formats import forms
from nearfar.language.prompt import Asked

FORMAT = 1
CLIP = 4.0
"""Standard deviations; a feature far outside of what training showed counts no more than this."""
COMMON = 0.95
"""Share of the training rows; what so many had belongs to the kind of answer that the judge knows."""
MOST_BYTES = 256 * 1024
"""Of an npz file and of what is packed in it; the default has 8 KiB."""
_COLUMNS = ("mean", "scale", "weight", "absent", "there")
_BROKEN = (
    ValueError, KeyError, TypeError, OSError, EOFError, RuntimeError, OverflowError, MemoryError, SyntaxError,
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip
"""What zipfile and numpy raise for damaged files, as found by damaging them."""
_SCALARS = ("bias", "slope", "offset", "rows")


class Judgement(msgspec.Struct, frozen=True):
    """How likely the answer is good enough, and why."""

    probability: float
    """From 0 to 1, calibrated on what the judge was trained on."""
    learned: float
    """The same without the caps of the findings."""
    findings: tuple[Finding, ...]
    features: Mapping[str, float]
    """NaN where there was nothing to go by."""
    familiar: bool
    """The answer has what nearly all answers had that the judge was trained on. Else the learned part is a guess."""
    reasons: tuple[str, ...]
    """Plain faults first, then what moved the probability most."""


class Judge(msgspec.Struct, frozen=True):
    """Weights by feature, in the order of `names`. Made by `train.train`, `load` or `default`."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    """0 for a feature that never varied in training; it does not count."""
    weight: tuple[float, ...]
    absent: tuple[float, ...]
    there: tuple[float, ...]
    """Share of the training rows that had the feature."""
    bias: float
    slope: float = 1.0
    offset: float = 0.0
    rows: int = 0
    """How many it was trained on."""
    provenance: str = ""
    """What it was trained on, from where, under which licence."""

    def judge(self, asked: Asked, answer: Answer, others: Sequence[str] = ()) -> Judgement:
        """Judge a near answer. `others` are further samples of the same model to the same prompt."""
        kept = forms(asked, answer)
        values = observe(asked, answer, others, kept)
        plain = findings(asked, answer, values, kept)
        learned = self.probability(values)
        reasons = [finding.reason for finding in plain] + self._told(values)
        missing = self.unfamiliar(values)
        if missing:
            groups = ", ".join(sorted({GROUP_OF.get(name, name) for name in missing}))
            reasons.append(f"unlike what the judge was trained on: nothing to go by for {groups}")
        return Judgement(min(learned, lowest(plain)), learned, plain, values, not missing, tuple(reasons))

    def logit(self, values: Mapping[str, float]) -> float:
        """Before calibration; what averages and ranks."""
        return self.bias + sum(self.contributions(values).values())

    def probability(self, values: Mapping[str, float]) -> float:
        return sigmoid(self.slope * self.logit(values) + self.offset)

    def contributions(self, values: Mapping[str, float]) -> dict[str, float]:
        """What each feature adds to the logit. A name that `values` lacks counts as NaN."""
        told = {}
        for name, mean, scale, weight, absent in zip(
            self.names, self.mean, self.scale, self.weight, self.absent, strict=True
        ):
            value = values.get(name, math.nan)
            if math.isnan(value):
                told[name] = absent
            else:
                told[name] = weight * max(-CLIP, min(CLIP, (value - mean) / scale)) if scale else 0.0
        return told

    def unfamiliar(self, values: Mapping[str, float]) -> tuple[str, ...]:
        """Features that nearly all rows of the training had and this answer has not."""
        shares = zip(self.names, self.there, strict=True)
        return tuple(name for name, share in shares if share >= COMMON and math.isnan(values.get(name, math.nan)))

    def _told(self, values: Mapping[str, float], most: int = 3) -> list[str]:
        added = self.contributions(values)
        by_size = sorted(added, key=lambda name: -abs(added[name]))
        return [
            f"{name.replace('_', ' ')} ({GROUP_OF.get(name, 'other')}) "
            f"{'raises' if added[name] > 0 else 'lowers'} it: {_shown(values.get(name, math.nan))}"
            for name in by_size[:most]
            if abs(added[name]) >= 0.1
        ]

    def export(self) -> bytes:
        """As npz: names, five columns, four scalars, provenance. `load` reads it."""
        import numpy as np

        file = io.BytesIO()
        arrays = {name: np.array(getattr(self, name), np.float64) for name in (*_COLUMNS, *_SCALARS)}
        labels = {"format": np.array(FORMAT), "names": np.array(self.names), "provenance": np.array(self.provenance)}
        np.savez_compressed(file, allow_pickle=False, **arrays, **labels)
        return file.getvalue()


def _shown(value: float) -> str:
    return "nothing to go by" if math.isnan(value) else f"{value:.2f}"


def sigmoid(logit: float) -> float:
    """
    >>> sigmoid(0.0), sigmoid(1000.0)
    (0.5, 1.0)
    """
    logit = max(-700.0, min(700.0, logit))
    return 1 / (1 + math.exp(-logit))


def load(data: bytes) -> Judge:
    """The judge that `export` wrote.

    Raises `ModelFileError` when it is truncated, too large, of another format, or its numbers are not finite; nothing
    in the file is run.
    """
    import numpy as np

    try:
        if len(data) > MOST_BYTES:
            raise ValueError("it is too large")
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if sum(entry.file_size for entry in packed.infolist()) > MOST_BYTES:
                raise ValueError("it unpacks to too much")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            wanted = {"format", "names", "provenance", *_COLUMNS, *_SCALARS}
            if set(file.files) != wanted:
                raise ValueError(f"it holds {sorted(set(file.files) ^ wanted)[:3]} too much or too little")
            arrays = {name: file[name] for name in file.files}
        if arrays["format"].shape or int(arrays["format"]) != FORMAT:
            raise ValueError("it is of another version")
        names = tuple(str(name) for name in arrays["names"].reshape(-1))
        if len(set(names)) != len(names) or not set(names) <= set(NAMES):
            raise ValueError("it names features that are not there")
        columns = {name: _numbers(arrays[name], (len(names),)) for name in _COLUMNS}
        scalars = {name: _numbers(arrays[name], ())[0] for name in _SCALARS}
        if min(columns["scale"], default=0.0) < 0 or scalars["slope"] <= 0:
            raise ValueError("a scale or the slope is not positive")
        provenance = str(arrays["provenance"])
        rows = int(scalars.pop("rows"))
        return Judge(names=names, **columns, **scalars, rows=rows, provenance=provenance)  # type: ignore[arg-type]
    except _BROKEN as error:
        raise ModelFileError(
            f"This is no judge's file: {str(error)[:120]}.", "Export it again, or leave it out to use the default."
        ) from error


def _numbers(array: object, shape: tuple[int, ...]) -> tuple[float, ...]:
    import numpy as np

    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.float64:
        raise ValueError("an array has another shape or type")
    if not np.isfinite(array).all() or np.abs(array).max(initial=0.0) > 1e9:
        raise ValueError("a number is not finite")
    return tuple(float(value) for value in array.reshape(-1))


@cache
def default() -> Judge:
    """The judge that comes with the package; its `provenance` says what it was trained on."""
    return load(resources.files(__package__).joinpath("default.npz").read_bytes())
