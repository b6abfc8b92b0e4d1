from __future__ import annotations

import numpy as np
import pytest

from nearfar.errors import NoCandidate
from nearfar.types.detections import Detections
from nearfar.types.image import Image
from nearfar.vision.draw import ascii_of, colour_of, draw, draw_result, footer_of, seen, text_scale
from nearfar.vision.results import FrameResult, Outcome
from tests.vision.helpers import answer, scene


def one(box: tuple[float, float, float, float], class_id: int = 0, tracks: bool = False) -> Detections:
    ids = np.array([7], np.int64) if tracks else None
    return Detections(np.array([box], np.float32), np.array([0.9], np.float32), np.array([class_id], np.int32), ids)


def test_a_box_is_drawn_in_its_class_colour_and_the_original_is_left_alone() -> None:
    image = np.zeros((240, 320, 3), np.uint8)
    drawn = draw(image, one((100, 100, 200, 180), 3), ("a", "b", "c", "d"))
    assert not image.any()
    assert tuple(drawn[140, 100]) == colour_of(3)
    assert tuple(drawn[180, 150]) == colour_of(3)
    assert not drawn[140, 150].any()  # the inside stays
    assert drawn[90:99, 100:140].any()  # its name stands above it


@pytest.mark.parametrize("box", [(-50, -50, 20, 20), (300, 230, 900, 900), (0, 0, 320, 240), (10, 10, 10, 10)])
def test_boxes_over_the_edge_and_names_of_unknown_classes(box: tuple[float, float, float, float]) -> None:
    drawn = draw(np.zeros((240, 320, 3), np.uint8), one(box, 99, tracks=True), ("person",), footer="x" * 300)
    assert drawn.shape == (240, 320, 3)
    assert drawn.any()


def test_a_name_at_the_upper_edge_is_drawn_inside() -> None:
    drawn = draw(np.zeros((240, 320, 3), np.uint8), one((50, 0, 250, 200)), ("person",))
    assert (drawn[2:12, 60:90] == colour_of(0)).all(axis=2).any()


def test_colours_of_neighbouring_classes_differ() -> None:
    colours = np.array([colour_of(i) for i in range(80)], int)
    assert len({tuple(c) for c in colours.tolist()}) == 80
    assert (np.abs(np.diff(colours, axis=0)).sum(axis=1) > 80).all()


def test_the_footer_says_who_and_how_long() -> None:
    image = scene(0)[0]
    reply = answer(Image.bgr(image), "pi4/square")
    assert footer_of(reply) == "pi4/square (fake)  7 ms"
    result = FrameResult(0, Outcome.LATE, answer=reply, reason="late", total_ms=120.4)
    drawn = draw_result(image, result, ("square",))
    assert (drawn[-3:].mean() < image[-3:].mean()) and drawn.shape == image.shape


def test_a_frame_without_an_answer_does_not_look_like_an_empty_scene() -> None:
    image = scene(0)[0]
    error = NoCandidate("nobody serves it")
    failed = draw_result(image, FrameResult(0, Outcome.FAILED, error=error, reason=str(error)))
    assert (failed[-12:] > 120).any() and np.median(failed[-12:]) < 40  # bright letters on a dark strip
    assert (failed[:60] == image[:60]).all()


def test_a_model_without_boxes_has_none_to_draw() -> None:
    reply = answer(Image.bgr(scene(0)[0]))
    without = type(reply)(reply.outputs[1:], reply.served_by, reply.variant, reply.stages)
    assert len(seen(without)) == 0
    assert len(seen(reply)) == 1


def test_text_grows_with_the_picture() -> None:
    scales = [text_scale(h, w) for h, w in ((90, 160), (480, 640), (1080, 1920), (4000, 6000))]
    assert scales == sorted(scales) and scales[-1] <= 2.5
    assert ascii_of("Fußgänger 人") == "Fu?ganger ?"
