"""From pixels to a model's input: each step against its plain formula, and the way back."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import ManifestError
from nearfar.models.manifest import Colour, InputSpec, Layout, Resize, Variant
from nearfar.models.preprocess import Preprocessor, plan
from nearfar.types.image import Image
from nearfar.types.tensor import DType, TensorSpec


def variant(layout: Layout, dtype: str) -> Variant:
    return Variant("v", "onnx", "fp32", "m.onnx", "ab" * 32, 1, layout, dtype)


def processor(spec: InputSpec, layout: Layout, dtype: str, scale: float = 0.0, zero: int = 0) -> Preprocessor:
    c, h, w = spec.colour.channels, spec.height, spec.width
    shape = (1, c, h, w) if layout is Layout.NCHW else (1, h, w, c)
    return Preprocessor(spec, variant(layout, dtype), TensorSpec("x", DType(dtype), shape, scale, zero))


def picture(width: int, height: int) -> Any:
    return np.random.default_rng(width + height).integers(0, 256, (height, width, 3), dtype=np.uint8)


MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("colour", [Colour.RGB, Colour.BGR])
@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_values_are_those_of_the_formula(layout: Layout, colour: Colour, dtype: str) -> None:
    spec = InputSpec(8, 6, colour=colour, scale=0.5, mean=MEAN, std=STD)
    pixels = picture(8, 6)
    got, _ = processor(spec, layout, dtype, 0.02, 5).of_pixels(pixels)
    ordered = pixels[:, :, ::-1] if colour is Colour.RGB else pixels
    real = (ordered.astype(np.float64) * 0.5 - MEAN) / STD
    if layout is Layout.NCHW:
        real = np.moveaxis(real, 2, 0)
    assert got.dtype.name == dtype
    assert got.shape == (1, *real.shape)
    if dtype == "float32":
        np.testing.assert_allclose(got[0], real, rtol=1e-6, atol=1e-6)
    else:
        limits = np.iinfo(dtype)
        assert np.array_equal(got[0], np.clip(np.rint(real / 0.02) + 5, limits.min, limits.max))


@pytest.mark.parametrize("layout", list(Layout))
def test_pixels_go_into_uint8_as_they_are(layout: Layout) -> None:
    pixels = picture(8, 6)
    got, _ = processor(InputSpec(8, 6), layout, "uint8", 1 / 128, 128).of_pixels(pixels)
    want = pixels[:, :, ::-1]
    assert np.array_equal(got[0], want if layout is Layout.NHWC else np.moveaxis(want, 2, 0))


def test_a_stretched_uint8_input_is_a_resize_and_nothing_more() -> None:
    pixels = picture(33, 17)
    got, _ = processor(InputSpec(8, 6, colour=Colour.BGR), Layout.NHWC, "uint8").of_pixels(pixels)
    assert np.array_equal(got[0], cv2.resize(pixels, (8, 6), interpolation=cv2.INTER_LINEAR))


def test_the_callers_pixels_are_never_written() -> None:
    pixels = picture(8, 6)
    before = pixels.copy()
    for dtype in ("uint8", "float32"):
        for layout in Layout:
            processor(InputSpec(8, 6), layout, dtype).of_pixels(pixels)
    assert np.array_equal(pixels, before)


def test_two_results_share_no_memory() -> None:
    make = processor(InputSpec(8, 6), Layout.NCHW, "float32")
    first, _ = make.of_pixels(picture(8, 6))
    kept = first.copy()
    make.of_pixels(picture(9, 7))
    assert np.array_equal(first, kept)


def test_grey_models_take_luminance() -> None:
    pixels = picture(8, 6)
    got, _ = processor(InputSpec(8, 6, colour=Colour.GRAY), Layout.NHWC, "uint8").of_pixels(pixels)
    assert np.array_equal(got[0, :, :, 0], cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))


def test_a_grey_input_may_lack_the_channel() -> None:
    spec = InputSpec(8, 6, colour=Colour.GRAY, scale=1 / 255)
    make = Preprocessor(spec, variant(Layout.NHWC, "float32"), TensorSpec("x", DType.FLOAT32, (1, 6, 8)))
    assert make.of_pixels(picture(8, 6))[0].shape == (1, 6, 8)


def test_letterbox_pads_with_the_grey_asked_for() -> None:
    white = np.full((10, 20, 3), 255, np.uint8)
    for resize, rows in ((Resize.LETTERBOX, range(4, 12)), (Resize.LETTERBOX_TOP_LEFT, range(8))):
        spec = InputSpec(16, 16, resize=resize, pad=7)
        got, _ = processor(spec, Layout.NHWC, "uint8").of_pixels(white)
        assert [r for r in range(16) if (got[0, r] == 255).all()] == list(rows)
        assert all((got[0, r] == 7).all() for r in range(16) if r not in rows)


def test_centre_crop_takes_the_middle() -> None:
    pixels = picture(40, 20)
    got, _ = processor(InputSpec(20, 20, resize=Resize.CENTER_CROP), Layout.NHWC, "uint8").of_pixels(pixels)
    assert np.array_equal(got[0], pixels[:, 10:30, ::-1])


@given(
    st.sampled_from(list(Resize)),
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
)
def test_the_geometry_leads_back(resize: Resize, model: tuple[int, int], image: tuple[int, int]) -> None:
    fit = plan(InputSpec(*model, resize=resize), *image)
    g = fit.geometry
    crop = fit.crop or (0, 0, *image)
    corners = np.array([[crop[0], crop[1], crop[0] + crop[2], crop[1] + crop[3]]], np.float64)
    inside = corners * [g.scale_x, g.scale_y, g.scale_x, g.scale_y]
    inside += [g.offset_x, g.offset_y] * 2
    left, top = fit.at
    want = [left, top, left + fit.size[0], top + fit.size[1]]
    np.testing.assert_allclose(inside[0], want, atol=1e-6 * max(*image, *model))
    np.testing.assert_allclose(g.to_image(inside.astype(np.float32)), corners, atol=1e-3 * max(image))
    assert 0 <= left <= model[0] - fit.size[0]
    assert 0 <= top <= model[1] - fit.size[1]


def test_boxes_are_clipped_to_the_picture() -> None:
    geometry = plan(InputSpec(10, 10), 100, 50).geometry
    got = geometry.to_image(np.array([[-5, -5, 50, 50]], np.float32))
    assert got.tolist() == [[0, 0, 100, 50]]
    assert got.dtype == np.float32


def test_an_encoded_picture_takes_the_same_way() -> None:
    pixels = picture(20, 10)
    data = bytes(cv2.imencode(".png", pixels)[1])
    make = processor(InputSpec(8, 6), Layout.NCHW, "float32")
    assert np.array_equal(make(Image.encoded(data))[0], make(Image.bgr(pixels))[0])


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorSpec("x", DType.UINT8, (1, 3, 6, 8)), "has dtype 'float32', but its file's input"),
        (TensorSpec("x", DType.FLOAT32, (1, 6, 8, 3)), "1x3x6x8 .nchw., but the file of variant 'v' takes x float32"),
        (TensorSpec("x", DType.FLOAT32, (1, 3, 8, 6)), "width, height, colour or layout"),
        (TensorSpec("x", DType.FLOAT32, (2, 3, 6, 8)), "but the file"),
    ],
)
def test_a_file_that_takes_something_else_is_refused_when_it_is_loaded(tensor: TensorSpec, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Preprocessor(InputSpec(8, 6), variant(Layout.NCHW, "float32"), tensor)


def test_free_dimensions_are_filled() -> None:
    tensor = TensorSpec("x", DType.FLOAT32, (-1, 3, -1, -1))
    make = Preprocessor(InputSpec(8, 6), variant(Layout.NCHW, "float32"), tensor)
    assert make.of_pixels(picture(3, 3))[0].shape == (1, 3, 6, 8)


def test_int8_without_a_scale_is_refused() -> None:
    with pytest.raises(ManifestError, match="without a quantisation scale"):
        processor(InputSpec(8, 6), Layout.NCHW, "int8")
