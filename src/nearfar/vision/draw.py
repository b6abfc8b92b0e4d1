"""Boxes, names and a footer on a picture."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nearfar.types.detections import Detections
from nearfar.types.request import Answer
from nearfar.vision.results import FrameResult, Outcome

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Colour = tuple[int, int, int]
_GOLDEN = 0.618033988749895  # hues this far apart around the circle never come close, however many classes there are


def draw(
    image: NDArray[np.uint8], detections: Detections, labels: Sequence[str] = (), *, footer: str = ""
) -> NDArray[np.uint8]:
    """A copy of the picture with boxes, their names and scores, and a line at the foot.

    image: uint8 [height, width, 3], blue-green-red; boxes in its pixels. A class without a label is shown by number.
    Letters beyond ASCII lose their accents, since OpenCV's fonts have none.
    """
    import cv2

    canvas = image.copy()
    height, width = canvas.shape[:2]
    scale = text_scale(height, width)
    line = max(2, round(scale * 3.5))
    for index in reversed(range(len(detections))):  # the best last, so that it lies on top
        x1, y1, x2, y2 = (round(float(v)) for v in detections.boxes[index])
        class_id = int(detections.class_ids[index])
        colour = colour_of(class_id)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, line)
        name = labels[class_id] if 0 <= class_id < len(labels) else f"class {class_id}"
        track = f" #{detections.track_ids[index]}" if detections.track_ids is not None else ""
        text = f"{name}{track} {float(detections.scores[index]):.2f}"
        _label(canvas, text, x1, y1, scale, colour, line)
    if footer:
        _footer(canvas, footer, scale)
    return canvas


def draw_result(image: NDArray[np.uint8], result: FrameResult, labels: Sequence[str] = ()) -> NDArray[np.uint8]:
    """The picture with what was seen, by whom and in what time; a failed frame says so and does not look empty."""
    if result.answer is None:
        return draw(image, Detections.empty(), footer=f"no answer: {result.reason}")
    late = ", late" if result.outcome is Outcome.LATE else ""
    return draw(image, shown(result), labels, footer=f"{footer_of(result.answer, result.total_ms)}{late}")


def seen(answer: Answer) -> Detections:
    """The boxes of a detector's answer; empty for a model that gives none."""
    return answer.detections() if any(tensor.name == "boxes" for tensor in answer.outputs) else Detections.empty()


def shown(result: FrameResult) -> Detections:
    """The boxes to show of a frame: the tracked ones where a tracker runs, else those of its answer, if any."""
    if result.tracked is not None:
        return result.tracked
    return Detections.empty() if result.answer is None else seen(result.answer)


def footer_of(answer: Answer, total_ms: float | None = None) -> str:
    """Who served it, by which variant, and in how many milliseconds."""
    spent = answer.stages.total if total_ms is None else total_ms
    return f"{answer.served_by} ({answer.variant})  {spent:.0f} ms"


def colour_of(class_id: int) -> Colour:
    """A blue-green-red colour of its own for each class, always the same."""
    red, green, blue = colorsys.hsv_to_rgb((0.07 + class_id * _GOLDEN) % 1.0, 0.85, 0.95)
    return round(blue * 255), round(green * 255), round(red * 255)


def text_scale(height: int, width: int) -> float:
    """OpenCV's font scale that is legible at this size.

    >>> text_scale(120, 160), round(text_scale(480, 640), 2), round(text_scale(1080, 1920), 2)
    (0.35, 0.53, 1.19)
    """
    return min(2.5, max(0.35, min(height, width) * 0.0011))


def ascii_of(text: str) -> str:
    """The text without what OpenCV's Hershey fonts cannot show.

    >>> ascii_of("Äpfel 🍎")
    'Apfel ?'
    """
    flat = unicodedata.normalize("NFKD", text)
    return "".join(c for c in flat if not unicodedata.combining(c)).encode("ascii", "replace").decode()


def _label(canvas: NDArray[Any], text: str, x: int, y: int, scale: float, colour: Colour, line: int) -> None:
    import cv2

    text = ascii_of(text)
    (text_width, text_height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, _weight(scale))
    tall = text_height + base + line
    x = max(0, min(x, canvas.shape[1] - text_width))
    top = y - tall if y >= tall else max(0, min(y, canvas.shape[0] - tall))  # inside the box when it touches the edge
    cv2.rectangle(canvas, (x, top), (x + text_width + line, top + tall), colour, cv2.FILLED)
    bright = 0.114 * colour[0] + 0.587 * colour[1] + 0.299 * colour[2] > 140  # luma, ITU-R BT.601
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(
        canvas, text, (x, top + text_height + line), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, _weight(scale), cv2.LINE_AA
    )


def _footer(canvas: NDArray[Any], text: str, scale: float) -> None:
    import cv2

    height, width = canvas.shape[:2]
    text = ascii_of(text)
    (text_width, text_height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, _weight(scale))
    if text_width > width - 8:  # a long reason is worth reading: shrink to fit, then cut
        scale = max(0.3, scale * (width - 8) / text_width)
        text = text[: max(8, round(len(text) * (width - 8) / cv2.getTextSize(text, 0, scale, _weight(scale))[0][0]))]
    strip = canvas[max(0, height - text_height - base - 6) :]
    strip[:] = strip // 4
    cv2.putText(
        canvas,
        text,
        (4, height - base - 2),
        cv2.FONT_HERSHEY_SIMPLEX,
        scale,
        (255, 255, 255),
        _weight(scale),
        cv2.LINE_AA,
    )


def _weight(scale: float) -> int:
    return max(1, round(scale * 1.6))
