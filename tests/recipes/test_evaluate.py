"""The reference decoder and the accuracy figure, on cases small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.yard.evaluate import Detections, average_precision, decode, ious, working_point
from recipes.yard.scene import Truth


def raw_outputs() -> dict[str, np.ndarray]:
    raw = {}
    for stride in (8, 16):
        shape = (240 // stride, 320 // stride)
        raw[f"box{stride}"] = np.zeros((*shape, 4), np.float32)
        raw[f"score{stride}"] = np.full((*shape, 3), -8.0, np.float32)
    return raw


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return table[:, :4], table[:, 4], table[:, 5].astype(np.int64)


def test_decode_places_a_cell_where_the_manifest_says() -> None:
    raw = raw_outputs()
    raw["box16"][3, 5] = (0.5, 0.25, np.log(2.0), np.log(3.0))
    raw["score16"][3, 5, 1] = 0.0
    boxes, scores, labels = decode(raw)
    assert boxes.tolist() == [pytest.approx([88 - 16, 52 - 24, 88 + 16, 52 + 24], abs=1e-4)]
    assert scores.tolist() == [0.5]
    assert labels.tolist() == [1]


def test_decode_clips_to_the_picture_and_suppresses_within_a_class_only() -> None:
    raw = raw_outputs()
    for column, label, logit in ((0, 0, 3.0), (1, 0, 2.0), (1, 2, 1.0)):
        raw["box8"][0, column] = (0.5 - column, 0.5, np.log(4.0), np.log(4.0))
        raw["score8"][0, column, label] = logit
    boxes, scores, labels = decode(raw)
    assert labels.tolist() == [0, 2]
    assert scores[0] > scores[1]
    assert boxes.tolist() == [[0, 0, 20, 20]] * 2


def test_nothing_found_is_an_empty_answer_of_the_right_shape() -> None:
    boxes, scores, labels = decode(raw_outputs())
    assert boxes.shape == (0, 4)
    assert scores.shape == labels.shape == (0,)


def test_ious_of_known_boxes() -> None:
    a = np.array([[0, 0, 10, 10]], np.float32)
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], np.float32)
    assert ious(a, b).tolist() == [pytest.approx([1.0, 1 / 3, 0.0])]


def test_perfect_detections_score_one() -> None:
    truth = [[Truth(0, (0, 0, 10, 20), 1.0, 1), Truth(1, (30, 30, 90, 90), 1.0, 2), Truth(2, (5, 50, 25, 70), 0.5, 3)]]
    answer = found((0, 0, 10, 20, 0.9, 0), (30, 30, 90, 90, 0.8, 1), (5, 50, 25, 70, 0.7, 2))
    figures = average_precision([answer], truth)
    assert figures["ap50"] == pytest.approx(1.0)
    assert figures["map"] == pytest.approx(1.0)


def test_a_false_alarm_above_the_hit_halves_precision() -> None:
    truth = [[Truth(0, (0, 0, 10, 20), 1.0, 1)]]
    answer = found((100, 100, 120, 140, 0.9, 0), (0, 0, 10, 20, 0.5, 0))
    assert average_precision([answer], truth)["ap50_per_class"]["person"] == pytest.approx(0.5)
    point = working_point([answer], truth, 0.3)
    assert (point["precision"], point["recall"]) == (0.5, 1.0)


def test_hidden_truth_is_neither_hit_nor_miss() -> None:
    truth = [[Truth(0, (0, 0, 10, 20), 1.0, 1), Truth(0, (50, 0, 60, 20), 0.1, 2)]]
    silent = found((0, 0, 10, 20, 0.5, 0))
    spoken = found((50, 0, 60, 20, 0.9, 0), (0, 0, 10, 20, 0.5, 0))
    for answer in (silent, spoken):
        assert average_precision([answer], truth)["ap50_per_class"]["person"] == pytest.approx(1.0)
        point = working_point([answer], truth, 0.3)
        assert (point["precision"], point["recall"]) == (1.0, 1.0)
