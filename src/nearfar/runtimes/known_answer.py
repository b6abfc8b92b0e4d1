"""A question whose answer is known: what a variant once answered to a seeded input, and whether it still does.

A service that loads, runs in time and answers nonsense (a damaged cache, a driver that lost its device, weights of
another model) looks well from outside. So each file's answer to a fixed pseudo-random input is recorded when it comes
into the store, and every service asks itself the same question again.

**Tolerance.** The answer must survive other thread counts, instruction sets and versions of the engine, and a
quantised network may move by many steps of its last layer when one rounding falls the other way. The unit is therefore
the answer's own spread: values may be off by half of their standard deviation (root mean square over the samples), plus
what they moved by when the question itself was nudged. All zeros are off by at least one standard deviation, an
unrelated answer of the same spread by 1.4; rounding stays below 0.1 in what was measured (docs/explanation-health.md).
Values that jump when the input is nudged (rows sorted by scores that are nearly equal) are not compared, nor is what is
not finite: an output of only such values is held to its dtype and shape.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from nearfar.runtimes.base import NUMPY_DTYPES
from nearfar.types.tensor import TensorSpec

QUESTION = 1
"""Version of the question: an answer to another one is no answer to this."""
SAMPLES = 32
"""Values that are kept of each output."""
OFF = 0.5
"""Standard deviations of the recorded values by which an answer may be off."""
MOST_OFF = 0.8
"""As many at most, however much a nudge moved them: all zeros are off by at least 1."""
NUDGES = (1, 2, 4)
"""Grey levels of 256 by which the question is nudged, to see what stands still. The kernels of two engines for one int8
network differ by about as much as the largest."""
STILL = 0.25
"""Standard deviations that a value may move by under a nudge and still be compared."""
_TINY = 1e-6
_LARGEST = 1 << 28
"""Elements of one input; a larger question is not asked."""

Arrays = Mapping[str, NDArray[Any]]
Ask = Callable[[Arrays], Sequence[NDArray[Any]]]
"""Runs the variant once."""


class OutputAnswer(msgspec.Struct, frozen=True):
    """One output: `values` at the flat `places` that stand still, and mean and standard deviation of all of it."""

    dtype: str
    shape: tuple[int, ...]
    places: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    moved: float = 0.0
    """Root mean square of what the values moved by when the question was nudged."""
    mean: float = 0.0
    std: float = 0.0


class KnownAnswer(msgspec.Struct, frozen=True):
    """What a variant answered. `shapes` are those of the question's inputs, `by` is who answered."""

    shapes: Mapping[str, tuple[int, ...]]
    outputs: tuple[OutputAnswer, ...]
    by: str = ""
    question: int = QUESTION

    @property
    def tells(self) -> bool:
        """Whether all zeros would be noticed."""
        return any(_compare_one(output, np.zeros(output.shape, output.dtype)) for output in self.outputs)


def encode(answer: KnownAnswer) -> str:
    return msgspec.json.encode(answer).decode()


def decode(text: str) -> KnownAnswer | None:
    """None when it is no answer to the question as it is asked today."""
    try:
        answer = msgspec.json.decode(text, type=KnownAnswer)
    except (msgspec.MsgspecError, UnicodeError):
        return None
    return answer if answer.question == QUESTION else None


def shapes_of(specs: Sequence[TensorSpec], concrete: Mapping[str, Sequence[int]] | None = None) -> dict[str, Any]:
    """The shapes to ask with: those given by name, else the file's own with 1 for every free dimension."""
    concrete = concrete or {}
    return {spec.name: tuple(concrete.get(spec.name, [max(1, d) for d in spec.shape])) for spec in specs}


def question(
    specs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]], nudge: int = 0
) -> dict[str, NDArray[Any]]:
    """The seeded input: floats 0 to 1, 8-bit integers over their range, other integers and booleans 0 or 1.

    Drawn by numpy's legacy generator, whose sequence never changes (NEP 19). `nudge` moves floats and 8-bit integers by
    up to so many grey levels. Raises `ValueError` for shapes that do not fit the specs, or that are too large.
    """
    asked: dict[str, NDArray[Any]] = {}
    for place, spec in enumerate(specs):
        shape = tuple(shapes[spec.name]) if spec.name in shapes else ()
        if not spec.accepts(spec.dtype, shape) or math.prod(shape) > _LARGEST:
            raise ValueError(f"{spec} cannot be asked with the shape {list(shape)}")
        rng = np.random.RandomState(zlib.crc32(f"nearfar question {QUESTION} input {place}".encode()))
        dtype = NUMPY_DTYPES[spec.dtype]
        values: NDArray[Any]
        if dtype.kind == "f":
            values = rng.random_sample(shape)
            if nudge:
                values = values + nudge / 128 * (_nudger(place, nudge).random_sample(shape) - 0.5)
        elif dtype.itemsize == 1 and dtype.kind in "iu":
            bounds = np.iinfo(dtype)
            values = rng.randint(bounds.min, bounds.max + 1, shape)
            if nudge:
                values = np.clip(
                    values + _nudger(place, nudge).randint(-nudge, nudge + 1, shape), bounds.min, bounds.max
                )
        else:
            values = rng.randint(0, 2, shape)
        asked[spec.name] = np.ascontiguousarray(values, dtype=dtype).reshape(shape)
    return asked


def _nudger(place: int, nudge: int) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(f"nearfar nudge {nudge} input {place}".encode()))


def learn(ask: Ask, specs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]], by: str = "") -> KnownAnswer:
    """Ask the question, nudged questions and something else between, and record what can be relied on: six runs.

    Raises `ValueError` when the question cannot be put, and what `ask` raises.
    """
    plain = question(specs, shapes)
    answers = [_copy(ask(plain))]
    ask({name: np.zeros_like(array) for name, array in plain.items()})  # so that memory nobody wrote to looks different
    answers.append(_copy(ask(plain)))
    answers += [_copy(ask(question(specs, shapes, nudge))) for nudge in NUDGES]
    return record(answers, shapes, by)


def _copy(outputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    return [np.array(output) for output in outputs]


def record(answers: Sequence[Sequence[NDArray[Any]]], shapes: Mapping[str, Sequence[int]], by: str = "") -> KnownAnswer:
    """From the answer, and answers to nudged questions if there are any."""
    outputs = []
    for place, first in enumerate(answers[0]):
        others = [answer[place] for answer in answers[1:] if place < len(answer)]
        outputs.append(_record_one(first, others))
    return KnownAnswer({name: tuple(shape) for name, shape in shapes.items()}, tuple(outputs), by)


def _record_one(first: NDArray[Any], others: Sequence[NDArray[Any]]) -> OutputAnswer:
    dtype, shape = first.dtype.name, tuple(first.shape)
    if not first.size or any(other.shape != first.shape for other in others):
        return OutputAnswer(dtype, shape)  # how many rows there are depends on the input: nothing stands still
    flat = first.reshape(-1).astype(np.float64)
    places = _places(flat)
    values = flat[places]
    moved = np.zeros_like(values)
    for other in others:
        moved = np.maximum(moved, np.abs(other.reshape(-1)[places].astype(np.float64) - values))
    finite = np.isfinite(values) & np.isfinite(moved)
    scale = float(np.std(values[finite])) if finite.any() else 0.0
    still = finite & (moved <= STILL * scale + _TINY * (1 + np.abs(values)))
    if still.sum() < max(1, len(values) // 2):
        return OutputAnswer(dtype, shape)  # the few that are left stand still by chance
    # Of all of it only when all of it can be: one NaN, or a row that jumps, would make them say nothing.
    whole = bool(still.all() and np.isfinite(flat).all())
    mean, std = (float(flat.mean()), float(flat.std())) if whole else (0.0, 0.0)
    rms = float(np.sqrt(np.mean(moved[still] ** 2)))
    kept = [float(v) for v in values[still]]
    return OutputAnswer(dtype, shape, tuple(int(p) for p in places[still]), tuple(kept), rms, mean, std)


def _places(flat: NDArray[np.float64]) -> NDArray[np.int64]:
    """Up to `SAMPLES` flat places: half by a fixed draw, so that no stride of the layout hides a column, and half where
    the values stand out most, as a classifier of a thousand classes says nothing in nearly all of its places."""
    if flat.size <= SAMPLES:
        return np.arange(flat.size, dtype=np.int64)
    drawn = np.random.RandomState(flat.size % (1 << 32)).randint(0, flat.size, SAMPLES // 2)
    finite = np.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0)
    outstanding = np.argsort(-np.abs(finite - np.median(finite)), kind="stable")[: SAMPLES // 2]
    return np.unique(np.concatenate([drawn, outstanding]).astype(np.int64))


def compare(known: KnownAnswer, outputs: Sequence[NDArray[Any]]) -> str:
    """What is wrong with an answer to the question, with the figures; "" when it is the known one."""
    if len(outputs) != len(known.outputs):
        return f"{len(outputs)} outputs instead of {len(known.outputs)}"
    for place, (want, have) in enumerate(zip(known.outputs, outputs, strict=True)):
        if wrong := _compare_one(want, have):
            return f"output {place} {wrong}"
    return ""


def _compare_one(want: OutputAnswer, have: NDArray[Any]) -> str:
    if have.dtype.name != want.dtype or (len(have.shape) != len(want.shape)):
        return f"is {have.dtype.name}{list(have.shape)} instead of {want.dtype}{list(want.shape)}"
    if not want.values:
        return ""
    if have.shape != want.shape:
        return f"has the shape {list(have.shape)} instead of {list(want.shape)}"
    flat = have.reshape(-1)
    values, expected = flat[list(want.places)].astype(np.float64), np.array(want.values)
    if not np.isfinite(values).all():
        return "is not finite where it was"
    scale = float(expected.std()) or want.std or abs(float(expected.mean()))
    if not scale:
        return ""  # all zeros: what rounding could make of that is anybody's guess
    step = 1.0 if have.dtype.kind in "iu" else 0.0  # of a quantised output, by which any rounding may move it
    off = float(np.sqrt(np.mean((values - expected) ** 2)))
    allowed = min(OFF * scale + 4 * want.moved, MOST_OFF * scale) + step + _TINY * scale
    if off > allowed:
        return f"is off by {off:.3g} (root mean square of {len(values)} values; {allowed:.3g} is allowed)"
    if want.std > 0:
        whole = flat.astype(np.float64)
        mean, std = float(whole.mean()), float(whole.std())
        room = min(OFF * want.std + 4 * want.moved, MOST_OFF * want.std) + step
        if not (abs(mean - want.mean) <= room and abs(std - want.std) <= room):
            return f"has mean {mean:.3g} and deviation {std:.3g} instead of {want.mean:.3g} and {want.std:.3g}"
    return ""
