"""A router over a vector: any embedding model of the fleet, and a logistic head in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearfar.errors import InputError, SettingsError
from nearfar.language.calibration import Calibration, fit
from nearfar.language.routers.base import Prompt, Router, Score

Embed = Callable[[str], Sequence[float] | NDArray[np.float32]]
"""A text's vector; always of one length. May ask a service of the fleet; its errors come through."""


class Head(msgspec.Struct, frozen=True):
    """Logistic regression over a vector scaled to length 1."""

    weights: tuple[float, ...]
    calibration: Calibration = Calibration()

    def probability(self, vector: ArrayLike) -> float:
        """Raises `InputError` for a vector of another length, or not finite."""
        v = _unit(vector)
        if v.shape != (len(self.weights),):
            raise InputError(
                f"The embedding has {v.size} values, the router was trained on {len(self.weights)}.",
                "Use the embedding model that it was trained with, or train it again.",
            )
        return self.calibration.probability(float(v @ np.array(self.weights)))


class Embedding(Router):
    """`embed`: text to vector. `head`: from `train_head`."""

    name = "embedding"

    def __init__(self, embed: Embed | None = None, head: Head | None = None) -> None:
        if embed is None or head is None:
            raise SettingsError(
                "The embedding router needs a function that embeds, and a trained head.",
                'Give embed=... and head=train_head(...), or use the router "ngram", which needs neither.',
            )
        self._embed, self.head = embed, head

    def score(self, prompt: Prompt) -> Score:
        return Score(self.head.probability(self._embed(prompt.text)), ("what it means, by its embedding",))


def train_head(vectors: ArrayLike, good: ArrayLike, ridge: float = 1.0, folds: int = 5, seed: int = 0) -> Head:
    """A head from rows of (vector, outcome in [0, 1]): ridge regression on the outcome, calibrated across folds.

    Raises `InputError` for fewer rows than 2 * folds, unequal lengths or values that are not finite or out of range.
    """
    x, y = np.asarray(vectors, np.float64), np.asarray(good, np.float64)
    if x.ndim != 2 or y.shape != (len(x),) or len(x) < 2 * folds or not np.isfinite(x).all():
        raise InputError("Vectors and outcomes do not fit together, or are too few.", f"Give {2 * folds} rows or more.")
    if not (np.isfinite(y).all() and y.min() >= 0 and y.max() <= 1) or ridge <= 0:
        raise InputError("An outcome is outside 0..1, or ridge is not above 0.", "Scale outcomes to 0..1; use ridge=1.")
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    side = np.random.default_rng(seed).permutation(len(x)) % folds
    raw = np.zeros(len(x))
    for fold in range(folds):
        raw[side == fold] = x[side == fold] @ _ridge(x[side != fold], y[side != fold], ridge)
    return Head(tuple(_ridge(x, y, ridge).tolist()), fit(raw, y))


def _ridge(x: NDArray[np.float64], y: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    return np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ (y - y.mean()))


def _unit(vector: ArrayLike) -> NDArray[np.float64]:
    v = np.asarray(vector, np.float64)
    if v.ndim != 1 or not np.isfinite(v).all():
        raise InputError("The embedding is no row of finite numbers.", "Check the embedding model.")
    return np.asarray(v / max(float(np.linalg.norm(v)), 1e-12))
