"""Metrics of routers, against values worked out by hand and against what must hold for any figure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nearfar.errors import InputError
from nearfar.language import evaluation

NEAR, FAR = np.array([1.0, 0, 1, 0]), np.array([1.0, 1, 1, 0])
"""Only the second prompt gains from the far model: weak 0.5, strong 0.75."""


def test_a_curve_by_hand() -> None:
    points = evaluation.curve([0.1, 0.9, 0.2, 0.3], NEAR, FAR, bins=2)
    # thresholds 0.1, 0.25 and 0.9: four far, the two above 0.25, none
    assert points.far.tolist() == [0.0, 0.5, 1.0]
    assert points.quality.tolist() == [0.5, 0.75, 0.75]
    # above weak: a triangle to 0.25 over the first half (0.0625), a rectangle over the second (0.125); the gap is 0.25
    assert evaluation.apgr(points, 0.5, 0.75) == pytest.approx(0.75)
    assert evaluation.cpt(points, 0.5, 0.75, 0.5) == pytest.approx(25.0)
    assert evaluation.cpt(points, 0.5, 0.75, 0.8) == pytest.approx(40.0)


def test_the_opposite_order_by_hand() -> None:
    points = evaluation.curve([0.9, 0.1, 0.8, 0.7], NEAR, FAR, bins=2)
    assert points.quality.tolist() == [0.5, 0.5, 0.75]
    assert evaluation.apgr(points, 0.5, 0.75) == pytest.approx(0.25)
    assert evaluation.cpt(points, 0.5, 0.75, 0.5) == pytest.approx(75.0)


def test_ten_quantiles_are_the_published_protocol() -> None:
    points = evaluation.curve(np.arange(100.0), np.zeros(100), np.ones(100))
    assert len(points.far) == 11
    assert points.far.tolist() == pytest.approx([i / 10 for i in range(11)])
    assert evaluation.report(np.arange(100.0), np.zeros(100), np.ones(100)).apgr == pytest.approx(0.5)


def test_equal_figures_go_together() -> None:
    points = evaluation.curve(np.zeros(4), NEAR, FAR)
    assert set(points.far.tolist()) == {0.0, 1.0}
    assert evaluation.apgr(points, 0.5, 0.75) == pytest.approx(0.5)


def test_chance_is_a_half() -> None:
    rng = np.random.default_rng(0)
    near, far = (rng.random(2000) < 0.6) * 1.0, (rng.random(2000) < 0.8) * 1.0
    values = [evaluation.report(rng.random(2000), near, far).apgr for _ in range(40)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=40), st.integers(1, 10)
)
@settings(max_examples=200, deadline=None)
def test_nothing_beats_the_oracle(rows: list[tuple[float, float, float]], bins: int) -> None:
    wish, near, far = (np.array(v) for v in zip(*rows, strict=True))
    assume(far.mean() - near.mean() > 1e-3)
    best = evaluation.curve(evaluation.oracle(near, far), near, far, bins=len(rows))
    points = evaluation.curve(wish, near, far, bins)
    assert np.all(points.quality <= np.interp(points.far, best.far, best.quality) + 1e-9)
    assert points.far[0] == 0.0 and points.far[-1] == 1.0
    assert points.quality[0] == pytest.approx(near.mean()) and points.quality[-1] == pytest.approx(far.mean())


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=30))
def test_a_hull_is_above_every_point_and_concave(points: list[tuple[int, int]]) -> None:
    cost, quality = [p[0] for p in points], [p[1] for p in points]
    top = evaluation.hull(cost, quality)
    assert np.all(np.diff(top.far) > 0) and np.all(np.diff(top.quality) > 0)
    for x, y in points:
        assert y <= np.interp(x, top.far, top.quality) + 1e-9
    assert np.all(np.diff(np.diff(top.quality) / np.diff(top.far)) < 0)
    assert set(zip(top.far.tolist(), top.quality.tolist(), strict=True)) <= {(float(x), float(y)) for x, y in points}


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="no gap"):
        evaluation.report([1, 2], [0, 1], [1, 0])
    with pytest.raises(InputError):
        evaluation.curve([1.0], NEAR, FAR)
    with pytest.raises(InputError):
        evaluation.curve([], [], [])
    with pytest.raises(InputError, match="finite"):
        evaluation.curve([float("nan"), 1, 2, 3], NEAR, FAR)
    with pytest.raises(InputError, match="bins"):
        evaluation.curve([1, 2, 3, 4], NEAR, FAR, bins=0)
