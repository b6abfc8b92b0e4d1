"""How good a router is: cost-quality curve, its hull, APGR, CPT, beside random and oracle. Pure.

Definitions as RouteLLM publishes them (Ong et al. 2024, and its evaluation): thresholds at the ten-quantiles of the
router's figures, prompts at or above a threshold go far, and one point more where none does; APGR is the area under
(quality - weak) / (strong - weak) over the share of far calls; CPT(x) is the share in per cent at which the curve first
reaches x of the gap between weak and strong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearfar.errors import InputError

Floats = NDArray[np.float64]
BINS = 10


class Curve(NamedTuple):
    """Points by rising share."""

    far: Floats
    """Share of far calls, 0 to 1."""
    quality: Floats
    """Mean quality, in the unit of what was given."""


class Report(NamedTuple):
    apgr: float
    cpt50: float
    """Per cent of far calls."""
    cpt80: float


def curve(figure: ArrayLike, near: ArrayLike, far: ArrayLike, bins: int = BINS) -> Curve:
    """Points of a router whose `figure` rises with the wish to go far.

    `near` and `far` are each prompt's quality of the weak and of the strong model. Raises `InputError` for rows that do
    not fit together, are empty or not finite.
    """
    wish, weak, strong = _rows(figure, near, far)
    if bins < 1:
        raise InputError(f"bins={bins} makes no curve.", f"Use bins={BINS}.")
    thresholds = np.quantile(wish, np.linspace(0, 1, bins + 1))
    chosen = [wish >= t for t in thresholds[:-1]] + [wish > thresholds[-1]]
    share = np.array([c.mean() for c in chosen])
    quality = np.array([np.where(c, strong, weak).mean() for c in chosen])
    order = np.argsort(share, kind="stable")
    return Curve(share[order], quality[order])


def apgr(points: Curve, weak: float, strong: float) -> float:
    """Average performance gap recovered: about 0.5 by chance, above 1 where weak answers beat strong ones often enough.

    Raises `InputError` when weak and strong are equal: there is no gap to recover.
    """
    _gap(weak, strong)
    area = float(np.trapezoid(points.quality, points.far))
    span = float(points.far[-1] - points.far[0])
    return (area - weak * span) / ((strong - weak) * span)


def cpt(points: Curve, weak: float, strong: float, part: float) -> float:
    """Per cent of far calls for `part` of the gap, by linear interpolation of share over quality, as published.

    Where the curve is not monotone the interpolation is what numpy makes of it, as in the published evaluation.
    """
    _gap(weak, strong)
    return 100.0 * float(np.interp(part * (strong - weak) + weak, points.quality, points.far))


def report(figure: ArrayLike, near: ArrayLike, far: ArrayLike, bins: int = BINS) -> Report:
    _, weak, strong = _rows(figure, near, far)
    points, w, s = curve(figure, near, far, bins), float(weak.mean()), float(strong.mean())
    return Report(apgr(points, w, s), cpt(points, w, s, 0.5), cpt(points, w, s, 0.8))


def oracle(near: ArrayLike, far: ArrayLike) -> Floats:
    """The figure of a router that knows both answers: how much better far is. No figure has a higher APGR."""
    _, weak, strong = _rows(near, near, far)
    return np.asarray(strong - weak)


def hull(cost: ArrayLike, quality: ArrayLike) -> Curve:
    """The upper left hull of points: what can be had at each cost by mixing two of them; quality never falls.

    >>> hull([0, 1, 2, 3], [0, 3, 2, 4]).quality.tolist()
    [0.0, 3.0, 4.0]
    """
    x, y, _ = _rows(cost, quality, quality)
    kept: list[tuple[float, float]] = []
    best = -np.inf
    for at, value in sorted(zip(x.tolist(), y.tolist(), strict=True), key=lambda p: (p[0], -p[1])):
        if value <= best:
            continue
        best = value
        while len(kept) >= 2 and _below(kept[-2], kept[-1], (at, value)):
            kept.pop()
        kept.append((at, value))
    return Curve(np.array([p[0] for p in kept]), np.array([p[1] for p in kept]))


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def _rows(first: ArrayLike, near: ArrayLike, far: ArrayLike) -> tuple[Floats, Floats, Floats]:
    a, b, c = (np.asarray(v, np.float64) for v in (first, near, far))
    if a.ndim != 1 or a.shape != b.shape or b.shape != c.shape or not len(a):
        raise InputError("Figures and qualities are not rows of equal length.", "Give one of each for every prompt.")
    if not all(np.isfinite(v).all() for v in (a, b, c)):
        raise InputError("A figure or quality is not finite.", "Leave such rows out.")
    return a, b, c


def _gap(weak: float, strong: float) -> None:
    if weak == strong:
        raise InputError("Weak and strong are equally good: there is no gap to recover.", "Compare two other models.")
