"""From a picture to a model's input, and the geometry that leads back from model pixels to picture pixels."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from nearfar.errors import ManifestError
from nearfar.models.images import pixels_of
from nearfar.models.manifest import Colour, InputSpec, Layout, Resize, Variant
from nearfar.types.image import Image
from nearfar.types.tensor import DType, TensorSpec


class Geometry(msgspec.Struct, frozen=True):
    """model_x = image_x * scale_x + offset_x, the same for y; all in pixels, edges (not centres) as coordinates."""

    width: int
    """Of the picture, in pixels, after EXIF orientation."""
    height: int
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float

    def to_image(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes x1 y1 x2 y2 [n, 4] from model pixels to picture pixels, clipped to the picture. A new array."""
        moved = boxes - np.array([self.offset_x, self.offset_y] * 2, np.float32)
        moved /= np.array([self.scale_x, self.scale_y] * 2, np.float32)
        return np.clip(moved, np.float32(0), np.array([self.width, self.height] * 2, np.float32), out=moved)


class _Plan(msgspec.Struct, frozen=True):
    """Which rectangle of the picture goes where in the model's input, and at which size."""

    crop: tuple[int, int, int, int] | None
    size: tuple[int, int]
    at: tuple[int, int]
    geometry: Geometry


def plan(spec: InputSpec, width: int, height: int) -> _Plan:
    """How a picture of this size fits `spec`."""
    w, h = spec.width, spec.height
    if spec.resize is Resize.STRETCH:
        return _Plan(None, (w, h), (0, 0), Geometry(width, height, w / width, h / height, 0.0, 0.0))
    if spec.resize is Resize.CENTER_CROP:
        ratio = max(w / width, h / height)
        cw, ch = min(width, max(1, round(w / ratio))), min(height, max(1, round(h / ratio)))
        x, y = (width - cw) // 2, (height - ch) // 2
        sx, sy = w / cw, h / ch
        return _Plan((x, y, cw, ch), (w, h), (0, 0), Geometry(width, height, sx, sy, -x * sx, -y * sy))
    ratio = min(w / width, h / height)
    nw, nh = min(w, max(1, round(width * ratio))), min(h, max(1, round(height * ratio)))
    left, top = ((w - nw) // 2, (h - nh) // 2) if spec.resize is Resize.LETTERBOX else (0, 0)
    return _Plan(None, (nw, nh), (left, top), Geometry(width, height, nw / width, nh / height, float(left), float(top)))


class Preprocessor:
    """Makes a model's input from pictures. Holds no state between calls; safe for several threads.

    `spec` says how, `variant` the layout and dtype, `tensor` the name, shape and quantisation as the file states them.
    Raises `ManifestError` when the manifest and the file disagree, so that it is found when a model is loaded.

    A real value is x = (pixel * scale - mean) / std. Into a quantised tensor goes round(x / s) + z, saturated; into a
    uint8 tensor with the identity (scale 1, mean 0, std 1) the pixels themselves.
    """

    def __init__(self, spec: InputSpec, variant: Variant, tensor: TensorSpec) -> None:
        self.spec = spec
        self.tensor = tensor
        self._nchw = variant.layout is Layout.NCHW
        channels = spec.colour.channels
        if tensor.dtype.value != variant.dtype:
            raise ManifestError(
                f"Variant {variant.id!r} has dtype {variant.dtype!r}, but its file's input is {tensor}.",
                f"Write dtype = {tensor.dtype.value!r} in the manifest.",
            )
        want: tuple[int, ...] = (
            (1, channels, spec.height, spec.width) if self._nchw else (1, spec.height, spec.width, channels)
        )
        if channels == 1 and len(tensor.shape) == 3:
            want = (1, spec.height, spec.width)
        self._shape = want
        if not tensor.accepts(tensor.dtype, want):
            raise ManifestError(
                f"The manifest's input is {'x'.join(map(str, want))} ({variant.layout.value}), "
                f"but the file of variant {variant.id!r} takes {tensor}.",
                "Correct width, height, colour or layout in the manifest.",
            )
        self._raw = tensor.dtype is DType.UINT8 and spec.identity
        mean = np.broadcast_to(np.asarray(spec.mean, np.float64), channels)
        std = np.broadcast_to(np.asarray(spec.std, np.float64), channels)
        self._gain = (spec.scale / std).astype(np.float32)
        self._bias = (-mean / std).astype(np.float32)
        self._table = None if self._raw else self._make_table(mean, std, variant)
        # OpenCV's pictures are BGR: plane i of the model comes from plane _source[i].
        self._source = (2, 1, 0) if spec.colour is Colour.RGB else (0, 1, 2)

    def _make_table(self, mean: NDArray[np.float64], std: NDArray[np.float64], variant: Variant) -> NDArray[Any]:
        """[1, 256, channels]: a pixel has 256 values, so what becomes of it is a table, exact in every dtype."""
        pixel = np.arange(256, dtype=np.float64)[:, None]
        real = (pixel * self.spec.scale - mean) / std
        dtype = np.dtype(self.tensor.dtype.value)
        if dtype.kind == "f":
            return real.astype(dtype)[None]
        if not self.tensor.scale:
            raise ManifestError(
                f"The input of variant {variant.id!r} is {self.tensor} without a quantisation scale.",
                "Only uint8 with scale 1, mean 0 and std 1 takes pixels as they are.",
            )
        limits = np.iinfo(dtype)
        stored = np.rint(real / self.tensor.scale) + self.tensor.zero_point
        table: NDArray[Any] = np.clip(stored, limits.min, limits.max).astype(dtype)[None]
        return table

    def __call__(self, image: Image) -> tuple[NDArray[Any], Geometry]:
        """The input, [1, c, h, w] or [1, h, w, c] as the variant's layout says, and the way back.

        Raises `InputError` (not a picture, wrong size) and `TooLarge`.
        """
        return self.of_pixels(pixels_of(image))

    def of_pixels(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[Any], Geometry]:
        """The same from uint8 [height, width, 3] in the order blue, green, red."""
        import cv2

        height, width = pixels.shape[:2]
        fit = plan(self.spec, width, height)
        if fit.crop:
            x, y, w, h = fit.crop
            pixels = pixels[y : y + h, x : x + w]
        if fit.size != (pixels.shape[1], pixels.shape[0]):
            pixels = cv2.resize(pixels, fit.size, interpolation=cv2.INTER_LINEAR)
        if fit.size != (self.spec.width, self.spec.height):
            canvas = np.full((self.spec.height, self.spec.width, 3), self.spec.pad, np.uint8)
            left, top = fit.at
            canvas[top : top + fit.size[1], left : left + fit.size[0]] = pixels
            pixels = canvas
        return self._store(pixels), fit.geometry

    def _store(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        import cv2

        if self.spec.colour is Colour.GRAY:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)[:, :, None]
        if self._nchw:
            return self._planes(pixels)
        if self.spec.colour is Colour.RGB:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        if self._table is not None:
            pixels = cv2.LUT(pixels, self._table)
        # A raw picture that already fits is handed on as a view of the caller's bytes.
        return np.ascontiguousarray(pixels).reshape(self._shape)

    def _planes(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        out = np.empty((self.spec.colour.channels, *pixels.shape[:2]), self.tensor.dtype.value)
        for i in range(len(out)):
            plane = pixels[:, :, self._source[i]]
            if self._table is None:
                out[i] = plane
            elif self.tensor.dtype is DType.FLOAT32:  # twice as fast as the table
                np.multiply(plane, self._gain[i], out=out[i])
                if self._bias[i]:
                    out[i] += self._bias[i]
            else:
                np.take(self._table[0, :, i], plane, out=out[i])
        return out.reshape(self._shape)
