"""The filter against the textbook's with full 8 x 8 matrices, and many frames at once against one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nearfar.vision.tracking import kalman
from nearfar.vision.tracking.bytetrack import ByteTrack
from nearfar.vision.tracking.kalman import COV, SPEED, SPEED_VAR, VALUE, VAR, Form
from nearfar.vision.tracking.sort import Sort

Array = NDArray[np.float64]
each = pytest.mark.parametrize("form", [Sort.form, ByteTrack.form], ids=["sort", "bytetrack"])


class Textbook:
    """x' = F x, P' = F P F^T + Q; K = P H^T (H P H^T + R)^-1, for one box (Kalman 1960)."""

    def __init__(self, form: Form, box: Array) -> None:
        self.form = form
        z = form.quantities(box[None])
        scale = form.scale(z)[0]
        noise = form.noise
        self.x: Array = np.concatenate((z[0], np.zeros(4)))
        self.P: Array = np.diag(np.concatenate((scale * noise.measured, scale * noise.born_speed)) ** 2)

    def predict(self) -> None:
        scale = self.form.scale(self.x[None, :4])[0]
        F = np.eye(8)
        F[:4, 4:] = np.eye(4)
        Q = np.diag(np.concatenate((scale * self.form.noise.drift, scale * self.form.noise.swerve)) ** 2)
        self.x, self.P = F @ self.x, F @ self.P @ F.T + Q

    def correct(self, box: Array) -> None:
        z = self.form.quantities(box[None])
        R = np.diag((self.form.scale(z)[0] * self.form.noise.measured) ** 2)
        H = np.eye(4, 8)
        K = self.P @ H.T @ np.linalg.inv(H @ self.P @ H.T + R)
        self.x, self.P = self.x + K @ (z[0] - H @ self.x), (np.eye(8) - K @ H) @ self.P


@each
def test_it_is_the_textbooks_filter(form: Form) -> None:
    rng = np.random.default_rng(3)
    boxes = np.array([[100.0 + 4 * k, 50 + k, 140 + 4.2 * k, 150 + 1.5 * k] for k in range(30)])
    boxes += rng.normal(0, 1, boxes.shape)
    book, bank = Textbook(form, boxes[0]), kalman.born(form, boxes[:1])
    for k in range(1, 30):
        book.predict()
        kalman.predict(form, bank, 1)
        np.testing.assert_allclose(bank[0, VALUE], book.x[:4], rtol=1e-9)
        if k % 5:
            book.correct(boxes[k])
            bank = kalman.correct(form, bank, boxes[k : k + 1])
        np.testing.assert_allclose(bank[0, VALUE], book.x[:4], rtol=1e-9)
        np.testing.assert_allclose(bank[0, SPEED], book.x[4:], rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(bank[0, VAR], np.diag(book.P)[:4], rtol=1e-7)
        np.testing.assert_allclose(bank[0, COV], np.diag(book.P, 4), rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(bank[0, SPEED_VAR], np.diag(book.P)[4:], rtol=1e-7, atol=1e-12)


@each
@pytest.mark.parametrize("steps", [2, 7, 30])
def test_many_frames_at_once_are_many_single_ones(form: Form, steps: int) -> None:
    """Of a box whose size stays, so that the noise does: its places move."""
    one = kalman.born(form, np.array([[100.0, 100, 150, 220]]))
    one[0, SPEED, :2] = (3.0, -2.0)
    many = one.copy()
    for _ in range(steps):
        kalman.predict(form, one, 1)
    kalman.predict(form, many, steps)
    np.testing.assert_allclose(many, one, rtol=1e-10)


@each
def test_each_box_is_filtered_for_itself(form: Form) -> None:
    """Bit for bit: what else is tracked must not matter."""
    boxes = np.array([[10.0, 10, 60, 110], [300, 40, 420, 300], [5, 200, 25, 240]])
    together = kalman.born(form, boxes)
    kalman.predict(form, together, 3)
    together = kalman.correct(form, together, boxes + 2)
    for k in range(3):
        alone = kalman.born(form, boxes[k : k + 1])
        kalman.predict(form, alone, 3)
        alone = kalman.correct(form, alone, boxes[k : k + 1] + 2)
        assert alone.tobytes() == together[k : k + 1].tobytes()


@given(
    x=st.floats(-1e5, 1e5), y=st.floats(-1e5, 1e5), wide=st.floats(0.01, 1e5), tall=st.floats(0.01, 1e5),
    steps=st.integers(1, 1_000_000), form=st.sampled_from([Sort.form, ByteTrack.form]),
)  # fmt: skip
def test_any_box_comes_back_and_stays_a_box(
    x: float, y: float, wide: float, tall: float, steps: int, form: Form
) -> None:
    box = np.array([[x, y, x + wide, y + tall]])
    bank = kalman.born(form, box)
    np.testing.assert_allclose(form.boxes(bank[:, VALUE]), box, rtol=1e-9, atol=1e-4)
    bank[:, SPEED] = -bank[:, VALUE]  # shrinks faster than it is large
    kalman.predict(form, bank, steps)
    bank = kalman.correct(form, bank, box)
    assert np.isfinite(bank).all() and (bank[:, VALUE, 2:] > 0).all()
    assert (bank[:, [VAR, SPEED_VAR]] >= 0).all()
