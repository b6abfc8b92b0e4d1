"""Which detection belongs to which track: the assignment with the greatest sum of similarities (Kuhn 1955)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nearfar.errors import RuntimeUnavailable
from nearfar.models.accuracy import overlaps

if TYPE_CHECKING:
    from numpy.typing import NDArray


def need_scipy() -> None:
    """Raise `RuntimeUnavailable` when scipy is not installed; a tracker says so when it is made, not at frame one."""
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise RuntimeUnavailable(
            "Tracking needs scipy, which is not installed.", "Type: pip install 'nearfar[track]'"
        ) from None


def similarity(
    boxes: NDArray[Any], class_ids: NDArray[Any], others: NDArray[Any], other_ids: NDArray[Any], class_aware: bool
) -> NDArray[np.float64]:
    """Intersection over union [n, m], 0 between boxes of different classes when `class_aware`."""
    alike = overlaps(boxes, others)
    if class_aware:
        alike[class_ids[:, None] != other_ids[None]] = 0.0
    return alike


def assign(alike: NDArray[np.float64], least: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the pairs, each used once, whose sum of similarities is greatest; none below `least` (> 0).

    >>> rows, columns = assign(np.array([[0.9, 0.8], [0.7, 0.1]]), 0.2)
    >>> rows.tolist(), columns.tolist()
    ([0, 1], [1, 0])
    """
    fit = alike >= least
    rows, columns = np.flatnonzero(fit.any(axis=1)), np.flatnonzero(fit.any(axis=0))
    if not len(rows):
        return rows, columns
    from scipy.optimize import linear_sum_assignment

    # In a street most pairs are far apart: what nobody overlaps is left out of the problem, which grows with the cube.
    gains = np.where(fit, alike, 0.0)[np.ix_(rows, columns)]
    r, c = linear_sum_assignment(gains, maximize=True)
    paired = gains[r, c] > 0
    return rows[r[paired]], columns[c[paired]]
