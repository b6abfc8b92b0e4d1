"""Training and calibrating a judge: ridge logistic regression by Newton's method, then Platt scaling out of fold.

Plain numpy, a second for a thousand rows. The strength of the ridge is the one of a short list with the lowest log-loss
out of fold; the calibration is fitted on out-of-fold logits too, since the logits of rows that were trained on are too
sure of themselves (Platt, 1999; Niculescu-Mizil and Caruana, 2005). Rows of one prompt stay on one side of every fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.language.judge.features import NAMES
from nearfar.language.judge.final import normal
from nearfar.language.judge.model import CLIP, Judge

Floats = NDArray[np.float64]
RIDGES = (3.0, 10.0, 30.0, 100.0, 300.0)
FOLDS = 5
LEAST_ROWS = 40
"""Fewer cannot tell 40 weights from chance; and each outcome must be there `LEAST_EACH` times."""
LEAST_EACH = 10


class Row(msgspec.Struct, frozen=True):
    """One judged answer of the past."""

    prompt: str
    """Only compared with the other rows': those of one prompt stay together. A digest does as well."""
    features: Mapping[str, float]
    good: bool
    """Whether the near answer was good enough."""


def train(
    rows: Sequence[Row],
    provenance: str,
    *,
    start: Judge | None = None,
    names: Sequence[str] = NAMES,
    seed: int = 0,
) -> Judge:
    """Train a judge on these rows.

    With `start` its weights are where the ridge pulls to, instead of zero: few rows of one's own correct it, many
    replace it. Features that `start` never saw vary are learned from zero. `names` leaves features out (ablation).
    Raises `InputError` when there are too few rows or of one outcome only.
    """
    good = np.array([row.good for row in rows], np.float64)
    if len(rows) < LEAST_ROWS or min(good.sum(), (1 - good).sum()) < LEAST_EACH:
        raise InputError(
            f"{len(rows)} rows, {int(good.sum())} of them good, are too few to train a judge on.",
            f"Collect {LEAST_ROWS} rows with {LEAST_EACH} of each outcome at least.",
        )
    values = np.array([[row.features.get(name, np.nan) for name in names] for row in rows], np.float64)
    fold = folds([row.prompt for row in rows], FOLDS, seed)
    held = {ridge: _out_of_fold(values, good, fold, ridge, names, start) for ridge in RIDGES}
    ridge = min(RIDGES, key=lambda one: log_loss(held[one], good))
    fitted = _fit(values, good, ridge, names, start)
    slope, offset = platt(held[ridge], good)
    return msgspec.structs.replace(fitted, slope=slope, offset=offset, rows=len(rows), provenance=provenance)


def folds(prompts: Sequence[str], count: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row, balanced over distinct prompts; prompts that differ in case, spaces or punctuation alone
    are the same one."""
    keys = [normal(prompt) for prompt in prompts]
    distinct = sorted(set(keys))
    order = np.random.default_rng(seed).permutation(len(distinct))
    where = {key: int(order[i]) % count for i, key in enumerate(distinct)}
    return np.array([where[key] for key in keys], np.int64)


def _out_of_fold(
    values: Floats, good: Floats, fold: NDArray[np.int64], ridge: float, names: Sequence[str], start: Judge | None
) -> Floats:
    logits = np.zeros(len(good))
    for k in np.unique(fold):
        inside = fold != k
        fitted = _fit(values[inside], good[inside], ridge, names, start)
        logits[~inside] = logits_of(fitted, values[~inside])
    return logits


def logits_of(judge: Judge, values: Floats) -> Floats:
    """The uncalibrated logits of rows whose columns are the judge's names."""
    design = _design(values, np.array(judge.mean), np.array(judge.scale))
    return np.asarray(judge.bias + design @ np.array([*judge.weight, *judge.absent]), np.float64)


def _design(values: Floats, mean: Floats, scale: Floats) -> Floats:
    missing = np.isnan(values)
    safe = np.where(scale > 0, scale, 1.0)
    scaled = np.clip((np.where(missing, mean, values) - mean) / safe, -CLIP, CLIP) * (scale > 0)
    return np.concatenate((np.where(missing, 0.0, scaled), missing.astype(np.float64)), axis=1)


def _fit(values: Floats, good: Floats, ridge: float, names: Sequence[str], start: Judge | None) -> Judge:
    mean, scale = _moments(values)
    prior = np.zeros(2 * len(names) + 1)
    if start is not None:
        at = {name: i for i, name in enumerate(start.names)}
        prior[0] = start.bias
        for i, name in enumerate(names):
            if name in at and start.scale[at[name]] > 0:
                j = at[name]
                mean[i], scale[i] = start.mean[j], start.scale[j]
                prior[1 + i], prior[1 + len(names) + i] = start.weight[j], start.absent[j]
    split = 1 + len(names)
    missing = np.isnan(values)
    # Absence that is always or never there tells nothing apart; rounding must not make it look as if it were learned.
    telling = (missing.any(axis=0) & ~missing.all(axis=0)) | (prior[split:] != 0)
    design = _design(values, mean, scale)
    design[:, len(names) :] *= telling
    weights = newton(design, good, ridge, prior)
    absent = np.where(telling, weights[split:], 0.0)
    return Judge(
        names=tuple(names),
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        weight=tuple(weights[1:split].tolist()),
        absent=tuple(absent.tolist()),
        there=tuple((1 - missing.mean(axis=0)).tolist()),
        bias=float(weights[0]),
    )


def _moments(values: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of what is there; scale 0 for what never varies."""
    there = ~np.isnan(values)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, values, 0.0).sum(axis=0) / count
    spread = np.sqrt((np.where(there, values - mean, 0.0) ** 2).sum(axis=0) / count)
    return mean, np.where(spread > 1e-9, spread, 0.0)


def newton(design: Floats, good: Floats, ridge: float, prior: Floats) -> Floats:
    """Weights (the bias first) that minimise the log-loss plus ridge / 2 * |weights - prior|^2, bias unpunished."""
    table = np.concatenate((np.ones((len(design), 1)), design), axis=1)
    pull = np.full(table.shape[1], ridge)
    pull[0] = 1e-6
    weights = prior.copy()
    loss = _objective(table, good, weights, pull, prior)
    for _ in range(50):
        chance = _sigmoid(table @ weights)
        slope = table.T @ (chance - good) + pull * (weights - prior)
        curve = (table * (chance * (1 - chance))[:, None]).T @ table + np.diag(pull)
        step = np.linalg.solve(curve, slope)
        size = 1.0
        while (new := _objective(table, good, weights - size * step, pull, prior)) > loss and size > 1e-6:
            size /= 2  # Newton may overshoot far from the optimum
        weights, loss = weights - size * step, new
        if np.abs(step).max() < 1e-9:
            break
    return weights


def _objective(table: Floats, good: Floats, weights: Floats, pull: Floats, prior: Floats) -> float:
    logits = table @ weights
    return float(np.sum(np.logaddexp(0.0, logits) - good * logits) + 0.5 * np.sum(pull * (weights - prior) ** 2))


def platt(logits: Floats, good: Floats) -> tuple[float, float]:
    """(slope, offset) that calibrate these logits. The slope is held positive: ranks stay as they are."""
    weights = newton(logits[:, None], good, 1.0, np.array([0.0, 1.0]))
    return max(float(weights[1]), 0.05), float(weights[0])


def log_loss(logits: Floats, good: Floats) -> float:
    """Mean log-loss in nats at the best constant offset and slope; what is left after calibration."""
    slope, offset = platt(logits, good)
    told = slope * logits + offset
    return float(np.mean(np.logaddexp(0.0, told) - good * told))


def calibration_error(chances: Floats, good: Floats, bins: int = 10) -> float:
    """Expected calibration error: bins of equal count by falling probability, mean of |mean probability - share good|
    weighted by count. 0 is best; with n rows chance alone gives about 0.8 * sqrt(p (1 - p) * bins / n)."""
    order = np.argsort(chances, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(p) * abs(chances[p].mean() - good[p].mean()) for p in parts) / len(chances))


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float64)
