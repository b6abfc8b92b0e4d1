"""Training the n-gram router: ridge regression in plain numpy, calibrated on rows it did not see.

One head learns how much better the far answer is (from -1 to 1), one how good the near answer is (0 to 1). Rows that
were trained on look too certain, so the calibration is fitted on the predictions of other folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError
from nearfar.language.calibration import expected_error, fit
from nearfar.language.routers.features import BITS, KINDS, NAMES, Features, features
from nearfar.language.routers.weights import COLUMNS, Weights

Floats = NDArray[np.float64]
GRAM_RIDGE, COUNT_RIDGE = 5.0, 1.0
"""Pull to zero of n-gram weights and of the weights of counts (these scaled to variance 1 / number of columns)."""


class Row(msgspec.Struct, frozen=True):
    """One prompt, and how well both models did on it, each from 0 to 1."""

    prompt: str
    near: float
    far: float
    group: str = ""
    """Rows of one group never stand on both sides of a fold: near-duplicates, one conversation. Empty: by itself."""
    source: str = ""
    """Where the row is from. Sources may differ in their means; the router learns what holds within each."""
    weight: float = 1.0

    @property
    def good(self) -> float:
        """1: the far answer is not better; else less, by how much better it is."""
        return 1.0 - max(0.0, self.far - self.near)


class Trained(NamedTuple):
    weights: Weights
    rows: int
    error: float
    """Expected calibration error of predictions for rows that were not seen."""
    unseen: Floats
    """For each row, P(good) by a model that was trained without its group."""


class Table(NamedTuple):
    """Rows as a sparse matrix: the n-grams of row i are `indices[starts[i]:starts[i+1]]`."""

    indices: NDArray[np.int64]
    values: Floats
    starts: NDArray[np.int64]
    counts: Floats
    """(rows, COLUMNS): the counts, again for the kind of the prompt, and which kind it is."""

    def pick(self, rows: NDArray[np.int64]) -> Table:
        sizes = self.starts[rows + 1] - self.starts[rows]
        ends = np.cumsum(sizes)
        where = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(self.starts[rows] - (ends - sizes), sizes)
        return Table(self.indices[where], self.values[where], np.concatenate(([0], ends)), self.counts[rows])

    def rarity(self) -> Floats:
        """ln((1 + rows) / (1 + rows with it)) + 1 of each n-gram; 0 for those of one row only, which teach nothing."""
        spread = np.bincount(self.indices, minlength=1 << BITS)
        return np.where(spread > 1, np.log((1 + len(self.counts)) / (1 + spread)) + 1.0, 0.0)

    def weighed(self, rarity: Floats) -> Table:
        """Values times rarity, each row scaled to length 1 again (tf-idf with cosine normalisation)."""
        values = self.values * rarity[self.indices]
        squares = np.concatenate(([0.0], np.cumsum(values**2)))
        lengths = np.sqrt(np.maximum(squares[self.starts[1:]] - squares[self.starts[:-1]], 1e-12))
        return self._replace(values=values / np.repeat(lengths, np.diff(self.starts)))

    def times(self, weights: Floats) -> Floats:
        sums = np.concatenate(([0.0], np.cumsum(self.values * weights[self.indices])))
        return np.asarray(sums[self.starts[1:]] - sums[self.starts[:-1]])

    def transposed_times(self, rows: Floats) -> Floats:
        spread = np.repeat(rows, np.diff(self.starts)) * self.values
        return np.asarray(np.bincount(self.indices, spread, minlength=1 << BITS), np.float64)


class Solved(NamedTuple):
    """One head. `grams` goes with values that `rarity` weighed."""

    grams: Floats
    columns: Floats
    bias: float
    rarity: Floats


def columns(found: Features) -> Floats:
    """The dense part: counts, the same again in the place of the prompt's kind, and the kind: COLUMNS values."""
    out = np.zeros(COLUMNS)
    width = len(NAMES)
    out[:width] = found.counts
    at = width * (1 + found.kind)
    out[at : at + width] = found.counts
    out[width * (1 + len(KINDS)) + found.kind] = 1.0
    return out


def table(prompts: Sequence[str]) -> Table:
    found = [features(prompt) for prompt in prompts]
    starts = np.cumsum([0, *(len(f.buckets) for f in found)])
    return Table(
        np.concatenate([f.buckets for f in found]),
        np.concatenate([f.values for f in found]).astype(np.float64),
        starts,
        np.stack([columns(f) for f in found]),
    )


def solve(seen: Table, target: Floats, weight: Floats, source: NDArray[np.int64], rounds: int = 40) -> Solved:
    """The least squares by conjugate gradients.

    Each source has a mean of its own while learning, pulled to the common one; what is returned has the common one.
    """
    rarity = seen.rarity()
    seen = seen.weighed(rarity)
    mean, spread = seen.counts.mean(0), seen.counts.std(0)
    scale = np.where(spread > 1e-6, 1.0 / (np.maximum(spread, 1e-6) * np.sqrt(COLUMNS)), 0.0)
    dense = (seen.counts - mean) * scale
    own = np.zeros((len(target), int(source.max(initial=0)) + 1))
    own[np.arange(len(target)), source] = 3.0
    dense = np.concatenate((dense, own, np.ones((len(target), 1))), 1)
    grams, width = 1 << BITS, dense.shape[1]
    ridge = np.concatenate((np.full(grams, GRAM_RIDGE), np.full(width, COUNT_RIDGE)))
    ridge[-1] = 1e-3
    squares = np.bincount(seen.indices, np.repeat(weight, np.diff(seen.starts)) * seen.values**2, minlength=grams)
    soften = 1.0 / (ridge + np.concatenate((squares, weight @ dense**2)))

    def back(rows: Floats) -> Floats:
        return np.concatenate((seen.transposed_times(rows), rows @ dense))

    x = np.zeros(grams + width)
    left = back(weight * target)
    goal = float(left @ left) * 1e-8
    softened = soften * left
    way, square = softened.copy(), float(left @ softened)
    for _ in range(rounds):
        if float(left @ left) <= goal:
            break
        moved = back(weight * (seen.times(way[:grams]) + dense @ way[grams:])) + ridge * way
        step = square / float(way @ moved)
        x += step * way
        left -= step * moved
        softened = soften * left
        now = float(left @ softened)
        way, square = softened + now / square * way, now
    per_column = x[grams : grams + COLUMNS] * scale
    own_mean = float(np.average(own @ x[grams + COLUMNS : -1], weights=weight))
    return Solved(x[:grams], per_column, float(x[-1]) + own_mean - float(mean @ per_column), rarity)


def train(rows: Sequence[Row], folds: int = 5, seed: int = 0) -> Trained:
    """Train on all rows; calibrate on predictions across folds.

    Raises `InputError` for fewer than 20 rows or groups than folds, and for qualities that are not in [0, 1].
    """
    check(rows)
    near, far = np.array([r.near for r in rows]), np.array([r.far for r in rows])
    good, weight = np.array([r.good for r in rows]), np.array([r.weight for r in rows])
    names = sorted({r.source for r in rows})
    source = np.array([names.index(r.source) for r in rows], np.int64)
    all_rows = table([r.prompt for r in rows])
    side = fold_of(rows, folds, seed)
    raw = np.zeros(len(rows))
    for fold in range(folds):
        seen, unseen = np.flatnonzero(side != fold), np.flatnonzero(side == fold)
        if len(seen) and len(unseen):
            solved = solve(all_rows.pick(seen), (far - near)[seen], weight[seen], source[seen])
            raw[unseen] = -predict(all_rows.pick(unseen), solved)
    calibration = fit(raw, good)
    probabilities = np.array([calibration.probability(r) for r in raw.tolist()])
    gain = solve(all_rows, far - near, weight, source)
    quality = solve(all_rows, near, weight, source)
    weights = Weights(
        coarse(np.stack((gain.grams, quality.grams))),
        gain.rarity.astype(np.float16),
        np.stack((gain.columns, quality.columns)).astype(np.float32),
        np.array([gain.bias, quality.bias]),
        usual(all_rows).astype(np.float32),
        calibration,
        len(rows),
    )
    return Trained(weights, len(rows), expected_error(probabilities, good), probabilities)


def coarse(values: Floats) -> NDArray[np.float16]:
    """float16 with five bits of fraction, so that a file of them packs well: at most 1 part in 64 off."""
    bits = (np.asarray(values, np.float16).view(np.uint16) + np.uint16(16)) & np.uint16(0xFFE0)
    return bits.view(np.float16)


def usual(rows: Table) -> Floats:
    """(len(KINDS), len(NAMES)): the mean counts of each kind; of all rows for a kind that none of them is."""
    kinds = rows.counts[:, -len(KINDS) :]
    counts = rows.counts[:, : len(NAMES)]
    number = kinds.sum(0)[:, None]
    return np.asarray(np.where(number > 0, kinds.T @ counts / np.maximum(number, 1), counts.mean(0)))


def predict(rows: Table, solved: Solved) -> Floats:
    return rows.weighed(solved.rarity).times(solved.grams) + rows.counts @ solved.columns + solved.bias


def fold_of(rows: Sequence[Row], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row, in [0, folds): by chance, the same for all rows of a group and for equal prompts."""
    keys = [r.group or r.prompt for r in rows]
    order = np.random.default_rng(seed).permutation(len(set(keys)))
    number = {key: int(order[i]) % folds for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], np.int64)


def check(rows: Sequence[Row]) -> None:
    if len(rows) < 20:
        raise InputError(
            f"{len(rows)} prompt(s) are too few to train a router.", "Collect at least 20 outcomes, better 500."
        )
    for place, row in enumerate(rows):
        if not (0.0 <= row.near <= 1.0 and 0.0 <= row.far <= 1.0 and 0.0 < row.weight < float("inf")):
            raise InputError(
                f"Row {place} has a quality outside 0..1 or a weight that is not above 0.", "Scale qualities to 0..1."
            )
