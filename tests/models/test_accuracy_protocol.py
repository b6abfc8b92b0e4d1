"""Average precision against cases whose answer is known by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from nearfar.models.accuracy import Truths, average_precision, overlaps
from nearfar.types.detections import Detections

BOX = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def found(*rows: tuple[list[float], float, int]) -> Detections:
    boxes = np.array([r[0] for r in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([r[1] for r in rows], np.float32), np.array([r[2] for r in rows], np.int32))


def truth(*rows: tuple[list[float], int], ignored: Any = None) -> Truths:
    return Truths(np.array([r[0] for r in rows]).reshape(-1, 4), np.array([r[1] for r in rows], np.int64), ignored)


def test_all_found_is_one_and_nothing_found_is_zero() -> None:
    assert average_precision([found((BOX, 0.9, 0))], [truth((BOX, 0))]).ap50 == 1.0
    nothing = average_precision([found()], [truth((BOX, 0))])
    assert (nothing.ap50, nothing.hits, nothing.misses, nothing.false_alarms) == (0.0, 0, 1, 0)
    assert math.isnan(average_precision([found((BOX, 0.9, 0))], [truth()]).ap50)


def test_half_of_the_objects_found_is_half_of_the_recalls() -> None:
    result = average_precision([found((BOX, 0.9, 0))], [truth((BOX, 0), (FAR, 0))])
    assert result.ap50 == pytest.approx(51 / 101)  # recalls 0.00 to 0.50


def test_a_false_alarm_above_costs_precision_and_one_below_costs_nothing() -> None:
    above = average_precision([found((FAR, 0.9, 0), (BOX, 0.5, 0))], [truth((BOX, 0))])
    assert above.ap50 == pytest.approx(0.5)
    below = average_precision([found((FAR, 0.1, 0), (BOX, 0.5, 0))], [truth((BOX, 0))])
    assert below.ap50 == 1.0
    assert below.false_alarms == 1


def test_a_second_box_on_the_same_object_is_a_false_alarm() -> None:
    result = average_precision([found((BOX, 0.9, 0), (BOX, 0.8, 0))], [truth((BOX, 0))])
    assert (result.hits, result.false_alarms) == (1, 1)


def test_another_class_or_too_little_overlap_is_no_hit() -> None:
    assert average_precision([found((BOX, 0.9, 1))], [truth((BOX, 0))]).ap50 == 0.0
    shifted = [0.0, 0.0, 10.0, 4.9]
    assert average_precision([found((shifted, 0.9, 0))], [truth((BOX, 0))]).ap50 == 0.0
    assert average_precision([found((shifted, 0.9, 0))], [truth((BOX, 0))], iou=0.4).ap50 == 1.0


def test_the_mean_is_over_classes_that_occur() -> None:
    result = average_precision([found((BOX, 0.9, 0), (FAR, 0.9, 7))], [truth((BOX, 0), (FAR, 1))])
    assert dict(result.per_class) == {0: 1.0, 1: 0.0}
    assert result.ap50 == 0.5


def test_images_do_not_mix() -> None:
    result = average_precision([found((BOX, 0.9, 0)), found()], [truth(), truth((BOX, 0))])
    assert result.ap50 == 0.0
    with pytest.raises(ValueError, match="1 images"):
        average_precision([found()], [])


def test_ignored_regions_neither_cost_nor_count() -> None:
    ignored = truth((BOX, 0), (FAR, 0), ignored=[False, True])
    inside = [52.0, 52.0, 55.0, 55.0]
    result = average_precision([found((inside, 0.99, 0), (FAR, 0.98, 0), (BOX, 0.5, 0))], [ignored])
    assert (result.ap50, result.hits, result.misses, result.false_alarms) == (1.0, 1, 0, 0)
    of_any = truth((BOX, 0), (FAR, -1), ignored=[False, True])
    assert average_precision([found((inside, 0.99, 0), (BOX, 0.5, 0))], [of_any]).ap50 == 1.0
    of_other = truth((BOX, 0), (FAR, 3), ignored=[False, True])
    assert average_precision([found((inside, 0.99, 0), (BOX, 0.5, 0))], [of_other]).ap50 == 0.5


def test_overlaps() -> None:
    got = overlaps(np.array([BOX, FAR, [0, 0, 0, 0]]), np.array([[0, 0, 5, 10], [0, 0, 0, 0]]))
    assert got.tolist() == [[0.5, 0], [0, 0], [0, 0]]
