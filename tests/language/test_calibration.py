"""Calibration: a probability that rises with the figure, fits outcomes, follows them, and travels."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import InputError
from nearfar.language.calibration import STEEPEST, Calibration, expected_error, fit, restore

FINITE = st.floats(-50, 50)
OUTCOMES = st.lists(st.tuples(FINITE, st.floats(0, 1)), max_size=60)


def curve(x: np.ndarray, slope: float, offset: float) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-(slope * x + offset))))


@given(OUTCOMES, FINITE, FINITE)
def test_outcomes_never_turn_the_order_round(outcomes: list[tuple[float, float]], one: float, other: float) -> None:
    c = Calibration()
    for raw, good in outcomes:
        c = c.update(raw, good)
    low, high = sorted((one, other))
    assert 0.0 <= c.probability(low) <= c.probability(high) <= 1.0
    assert 0 < c.slope <= STEEPEST and c.outcomes == len(outcomes)
    assert restore(c.export()) == c


def test_a_fit_finds_the_curve_that_made_the_outcomes() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=20_000)
    found = fit(x, rng.random(20_000) < curve(x, 2.0, -0.7))
    assert found.slope == pytest.approx(2.0, abs=0.1) and found.offset == pytest.approx(-0.7, abs=0.1)
    soft = fit(x, curve(x, 3.0, 1.0))
    assert soft.slope == pytest.approx(3.0, abs=0.01) and soft.offset == pytest.approx(1.0, abs=0.01)


@given(st.lists(st.tuples(FINITE, st.floats(0, 1)), min_size=1, max_size=40))
def test_a_fit_is_finite_for_any_rows(rows: list[tuple[float, float]]) -> None:
    found = fit([raw for raw, _ in rows], [good for _, good in rows])
    assert np.isfinite([found.slope, found.offset]).all() and found.slope > 0
    assert 0.0 <= found.probability(rows[0][0]) <= 1.0


def test_it_follows_a_near_model_that_was_exchanged() -> None:
    rng = np.random.default_rng(2)
    c = Calibration(2.0, 2.0)
    for raw in rng.normal(size=2000).tolist():
        c = c.update(raw, float(rng.random() < curve(np.array(raw), 1.0, -1.0)))
    assert abs(c.probability(0.0) - float(curve(np.array(0.0), 1.0, -1.0))) < 0.08
    assert abs(c.probability(1.5) - float(curve(np.array(1.5), 1.0, -1.0))) < 0.12


def test_one_outcome_moves_it_the_right_way_and_a_little() -> None:
    c = Calibration()
    up, down = c.update(0.3, 1.0).probability(0.3), c.update(0.3, 0.0).probability(0.3)
    assert down < c.probability(0.3) < up
    assert up - down < 0.1


def test_raw_is_the_inverse() -> None:
    c = Calibration(3.0, -1.0)
    assert c.raw(c.probability(0.4)) == pytest.approx(0.4)
    assert c.probability(float("nan")) == c.probability(0.0)


@pytest.mark.parametrize(
    "bad", [(float("nan"), 1.0), (float("inf"), 0.5), (0.0, 1.5), (0.0, -0.1), (0.0, float("nan"))]
)
def test_an_impossible_outcome_is_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(InputError):
        Calibration().update(*bad)


def test_what_is_no_calibration_is_refused() -> None:
    for data in (
        b"",
        b"\xff",
        b"[]",
        b'{"slope": "x"}',
        msgspec.json.encode(Calibration(slope=-1.0)),
        msgspec.json.encode(Calibration(precision=(1.0, 2.0, 1.0))),
        msgspec.json.encode(Calibration(outcomes=-1)),
    ):
        with pytest.raises(InputError, match=r"export\(\)"):
            restore(data)
    with pytest.raises(InputError):
        fit([], [])
    with pytest.raises(InputError):
        fit([1.0, 2.0], [1.0])
    with pytest.raises(InputError):
        fit([1.0], [2.0])
    with pytest.raises(InputError):
        Calibration().update(0.0, 1.0, fading=0.0)


def test_expected_error_by_hand() -> None:
    assert expected_error([0.2, 0.2, 0.8, 0.8], [0, 0, 1, 1], bins=2) == pytest.approx(0.2)
    assert expected_error([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 1]) == 0.0  # equal probabilities share a bin
    assert expected_error([0.9, 0.9], [0, 0]) == pytest.approx(0.9)
    assert expected_error([0.0, 1.0, 1.0], [0, 1, 0.5], bins=2) == pytest.approx(0.5 / 3)
    with pytest.raises(InputError):
        expected_error([0.5], [1, 0])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=50), st.integers(1, 12))
def test_expected_error_is_bounded(rows: list[tuple[float, float]], bins: int) -> None:
    p, y = [a for a, _ in rows], [b for _, b in rows]
    assert 0.0 <= expected_error(p, y, bins) <= 1.0
    assert expected_error(p, p, bins) == pytest.approx(0.0, abs=1e-12)
