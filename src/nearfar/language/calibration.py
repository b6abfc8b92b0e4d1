"""From a router's raw figure to a probability, kept true by outcomes.

A logistic curve with two parameters (Platt 1999), fitted by Newton's method on outcomes in [0, 1]. It goes on learning:
each outcome is one step of an extended Kalman filter over slope and offset, whose memory fades, so that it follows a
near model that was exchanged. Values are frozen; an update makes a new one; what is exported goes on elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from nearfar.errors import InputError

FADING = 0.998
"""What an older outcome weighs after each new one: about the last 500 count."""
STEEPEST, FLATTEST = 100.0, 1e-3
"""Bounds of the slope. It stays positive: what outcomes teach moves probabilities, never the order of prompts."""
_FARTHEST = 30.0


class Calibration(msgspec.Struct, frozen=True):
    """probability = 1 / (1 + exp(-(slope * raw + offset)))."""

    slope: float = 1.0
    offset: float = 0.0
    precision: tuple[float, float, float] = (25.0, 0.0, 25.0)
    """How sure slope and offset are: (slope, both, offset) of the symmetric 2 x 2 inverse covariance."""
    outcomes: int = 0
    """How many it has learnt from since it was fitted."""

    def probability(self, raw: float) -> float:
        """In [0, 1], never falling as `raw` rises. A raw figure that is not finite counts as none: 0."""
        return _sigmoid(self.slope * (raw if math.isfinite(raw) else 0.0) + self.offset)

    def raw(self, probability: float) -> float:
        """The figure that gives this probability."""
        p = min(max(probability, 1e-9), 1 - 1e-9)
        return (math.log(p / (1 - p)) - self.offset) / self.slope

    def update(self, raw: float, good: float, fading: float = FADING) -> Calibration:
        """With one more outcome: `good` from 0 (the far answer would have been better) to 1.

        Raises `InputError` when an argument is not finite or `good` is outside [0, 1].
        """
        if not (math.isfinite(raw) and 0.0 <= good <= 1.0):
            raise InputError(
                f"The outcome ({raw!r}, {good!r}) cannot be learnt from.", "Give a finite raw, and good in 0..1."
            )
        if not 0.0 < fading <= 1.0:
            raise InputError(f"fading={fading!r} is outside (0, 1].", f"Use fading={FADING}.")
        x = min(max(raw, -_FARTHEST), _FARTHEST)
        p = self.probability(x)
        doubt = max(p * (1.0 - p), 1e-4)
        a = self.precision[0] * fading + doubt * x * x
        b = self.precision[1] * fading + doubt * x
        c = self.precision[2] * fading + doubt
        a, c = max(a, 1.0), max(c, 1.0)  # what faded away must not make one outcome decide all
        b = min(max(b, -0.999 * math.sqrt(a * c)), 0.999 * math.sqrt(a * c))
        wrong, determinant = good - p, a * c - b * b
        slope = self.slope + wrong * (c * x - b) / determinant
        offset = self.offset + wrong * (a - b * x) / determinant
        slope, offset = min(max(slope, FLATTEST), STEEPEST), min(max(offset, -_FARTHEST), _FARTHEST)
        return Calibration(slope, offset, (a, b, c), self.outcomes + 1)

    def export(self) -> bytes:
        """JSON, for `restore`."""
        return msgspec.json.encode(self)


def restore(data: bytes) -> Calibration:
    """What `export` gave. Raises `InputError` for anything else, not finite and out of bounds too."""
    try:
        found = msgspec.json.decode(data, type=Calibration)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"This is no calibration: {error}.", "Export it again with Calibration.export().") from error
    a, b, c = found.precision
    sound = all(map(math.isfinite, (found.slope, found.offset, a, b, c))) and found.outcomes >= 0
    if not (
        sound and FLATTEST <= found.slope <= STEEPEST and abs(found.offset) <= _FARTHEST and a > 0 and a * c > b * b
    ):
        raise InputError("The calibration's values are out of bounds.", "Export it again with Calibration.export().")
    return found


def fit(raw: ArrayLike, good: ArrayLike, rounds: int = 50) -> Calibration:
    """Slope and offset of the least log-loss over rows of (raw, outcome in [0, 1]), with a weak pull to slope 1.

    Raises `InputError` for no rows, unequal lengths, or values that are not finite or out of range.
    """
    x, y = np.asarray(raw, np.float64), np.asarray(good, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise InputError(
            "Raw figures and outcomes are not two rows of equal length.", "Give one outcome for each figure."
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all() and y.min() >= 0 and y.max() <= 1):
        raise InputError("An outcome or figure is not finite, or an outcome is outside 0..1.", "Leave such rows out.")
    design = np.stack((x, np.ones_like(x)), 1)
    prior, middle = np.array([1e-2, 1e-2]), np.array([1.0, 0.0])
    theta, best = middle.copy(), math.inf
    step = np.zeros(2)
    for _ in range(rounds):
        z = design @ theta
        loss = float(np.sum(np.logaddexp(0, z) - y * z) + 0.5 * prior @ (theta - middle) ** 2)
        if loss > best:  # too far: half the way back
            step = step / 2
            theta = theta - step
            continue
        best = loss
        p = 0.5 * (1 + np.tanh(z / 2))
        gradient = design.T @ (y - p) - prior * (theta - middle)
        curved = (design * (p * (1 - p))[:, None]).T @ design + np.diag(prior)
        step = np.linalg.solve(curved, gradient)
        theta = theta + step
        if float(np.abs(step).max()) < 1e-9:
            break
    slope = float(np.clip(theta[0], FLATTEST, STEEPEST))
    offset = float(np.clip(theta[1], -_FARTHEST, _FARTHEST))
    return Calibration(slope, offset)


def expected_error(probabilities: Sequence[float] | ArrayLike, good: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error in [0, 1]: the mean over rows of |mean probability - mean outcome| of the row's bin.

    Bins hold equally many rows of rising probability; equal probabilities stay together (Nixon et al. 2019, adaptive).
    A perfect probability has an error above 0 on few rows, by chance: with n rows a bin about 0.8 * sd / sqrt(n).
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(good, np.float64)
    if p.ndim != 1 or p.shape != y.shape or not len(p) or bins < 1:
        raise InputError("Probabilities and outcomes are not two rows of equal length.", "Give one outcome for each.")
    order = np.argsort(p, kind="stable")
    p, y = p[order], y[order]
    first = np.searchsorted(p, p, side="left")  # the place of the first equal probability decides the bin
    place = first * bins // len(p)
    total = 0.0
    for b in np.unique(place):
        inside = place == b
        total += float(np.count_nonzero(inside)) * abs(float(p[inside].mean() - y[inside].mean()))
    return total / len(p)


def _sigmoid(z: float) -> float:
    if z >= 0:
        return 1.0 / (1.0 + math.exp(-min(z, 700.0)))
    e = math.exp(max(z, -700.0))
    return e / (1.0 + e)
