"""Constant-velocity Kalman filters over many boxes at once (Kalman 1960), float64.

A box is four measured quantities, each with a speed. Every noise here is independent from quantity to quantity, so the
8 x 8 covariance is four blocks of 2 x 2 for ever, and the filter is written out on these: additions, products and
quotients of single numbers. There is no matrix library whose order of summation could differ between machines.

A bank is float64 [n, 5, 4]: for n boxes the value, its speed per frame, the variance of the value, the covariance of
value and speed, and the variance of the speed, each for the four quantities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

VALUE, SPEED, VAR, COV, SPEED_VAR = range(5)
Four = tuple[float, float, float, float]


class Noise(NamedTuple):
    """Standard deviations, each as a share of the quantity's scale (`Form.scale`)."""

    measured: Four
    """Of a detector's box."""
    drift: Four
    """Of the value's own change per frame, beside its speed."""
    swerve: Four
    """Of the speed's change per frame; 0 for a quantity that has none."""
    born_speed: Four
    """Of the speed of a box that was seen once; 0 for a quantity that has none."""


class Form(NamedTuple):
    """Which four quantities stand for a box, and their noise."""

    by_area: bool
    """(x centre, y centre, area, width / height) as in SORT; else (x centre, y centre, width / height, height)."""
    noise: Noise

    def quantities(self, boxes: NDArray[Any]) -> NDArray[np.float64]:
        """[n, 4] of x1 y1 x2 y2 boxes with area."""
        b = np.asarray(boxes, np.float64)
        wide, tall = b[:, 2] - b[:, 0], b[:, 3] - b[:, 1]
        x, y = b[:, 0] + wide / 2, b[:, 1] + tall / 2
        if self.by_area:
            return np.stack((x, y, wide * tall, wide / tall), axis=1)
        return np.stack((x, y, wide / tall, tall), axis=1)

    def boxes(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """x1 y1 x2 y2 of quantities [n, 4]."""
        x, y = values[:, 0], values[:, 1]
        if self.by_area:
            wide = np.sqrt(values[:, 2] * values[:, 3])
            tall = values[:, 2] / wide
        else:
            tall = values[:, 3]
            wide = values[:, 2] * tall
        return np.stack((x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2), axis=1)

    def scale(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the noise of each quantity is a share of, [n, 4]: the box's height for places, else the value itself.

        A box of 400 pixels jitters by more of them than one of 20.
        """
        if self.by_area:
            tall = np.sqrt(values[:, 2] / values[:, 3])
            return np.stack((tall, tall, values[:, 2], values[:, 3]), axis=1)
        tall = values[:, 3]
        return np.stack((tall, tall, values[:, 2], tall), axis=1)


def born(form: Form, boxes: NDArray[Any]) -> NDArray[np.float64]:
    """A bank of boxes seen for the first time: at rest, with much doubt about the speed."""
    values = form.quantities(boxes)
    scale = form.scale(values)
    bank = np.zeros((len(values), 5, 4))
    bank[:, VALUE] = values
    bank[:, VAR] = (scale * form.noise.measured) ** 2
    bank[:, SPEED_VAR] = (scale * form.noise.born_speed) ** 2
    return bank


def predict(form: Form, bank: NDArray[np.float64], steps: int) -> None:
    """Move the bank on by `steps` frames, in place: what so many single steps of equal noise would give, at once."""
    scale = form.scale(bank[:, VALUE])
    drift, swerve = (scale * form.noise.drift) ** 2, (scale * form.noise.swerve) ** 2
    k = float(steps)
    value = bank[:, VALUE] + k * bank[:, SPEED]
    # Sizes and shapes stay positive: one that would shrink to nothing stays as it is.
    shrunk = value[:, 2:] < 0.1 * bank[:, VALUE, 2:]
    value[:, 2:] = np.where(shrunk, bank[:, VALUE, 2:], value[:, 2:])
    bank[:, SPEED, 2:] = np.where(shrunk, 0.0, bank[:, SPEED, 2:])
    bank[:, VALUE] = value
    # The speed's noise of i frames ago has moved the value i times: the sums of i and of i squared over 0 .. k - 1.
    bank[:, VAR] += 2 * k * bank[:, COV] + k * k * bank[:, SPEED_VAR] + k * drift
    bank[:, VAR] += swerve * ((k - 1) * k * (2 * k - 1) / 6)
    bank[:, COV] += k * bank[:, SPEED_VAR] + swerve * (k * (k - 1) / 2)
    bank[:, SPEED_VAR] += k * swerve


def correct(form: Form, bank: NDArray[np.float64], boxes: NDArray[Any]) -> NDArray[np.float64]:
    """A new bank after measuring box i for row i."""
    measured = form.quantities(boxes)
    noise = (form.scale(measured) * form.noise.measured) ** 2
    total = bank[:, VAR] + noise
    gain, speed_gain = bank[:, VAR] / total, bank[:, COV] / total
    surprise = measured - bank[:, VALUE]
    out = np.empty_like(bank)
    out[:, VALUE] = bank[:, VALUE] + gain * surprise
    out[:, SPEED] = bank[:, SPEED] + speed_gain * surprise
    rest = noise / total  # 1 - gain, without its rounding
    out[:, VAR] = bank[:, VAR] * rest
    out[:, COV] = bank[:, COV] * rest
    out[:, SPEED_VAR] = np.maximum(bank[:, SPEED_VAR] - speed_gain * bank[:, COV], 0.0)
    return out
