"""A small JPEG of very many scans would keep a service busy for a minute: it is refused by its header."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from nearfar.errors import InputError
from nearfar.models.images import MOST_SCANS, pixels_of
from nearfar.types.image import Image


def test_a_jpeg_of_very_many_scans_is_refused_and_a_progressive_one_is_not() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    assert pixels_of(Image.encoded(data)).shape == (64, 64, 3)
    start = data.index(b"\xff\xda")
    bomb = data[:start] + data[start:-2] * (MOST_SCANS + 1) + b"\xff\xd9"
    with pytest.raises(InputError, match="scans"):
        pixels_of(Image.encoded(bomb))
