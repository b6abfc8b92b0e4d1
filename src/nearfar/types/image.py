"""An image as it travels: encoded (JPEG, PNG, WebP, BMP) or raw pixels."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ImageKind(StrEnum):
    ENCODED = "encoded"
    """A file's bytes; width and height are 0, the decoder finds them."""
    BGR = "bgr"
    """Raw uint8 pixels [height, width, 3] in OpenCV's order."""


class Image(msgspec.Struct, frozen=True):
    """One picture. `buffer` is not copied."""

    kind: ImageKind
    width: int
    height: int
    buffer: Any  # bytes | memoryview: msgspec has no name for the latter

    @classmethod
    def encoded(cls, data: bytes | memoryview) -> Image:
        return cls(ImageKind.ENCODED, 0, 0, data)

    @classmethod
    def bgr(cls, pixels: NDArray[Any]) -> Image:
        """Raw pixels, uint8 [height, width, 3]; copies only when not contiguous."""
        import numpy as np

        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"not a uint8 [height, width, 3] image: {pixels.dtype}{list(pixels.shape)}")
        solid = np.ascontiguousarray(pixels)
        return cls(ImageKind.BGR, int(pixels.shape[1]), int(pixels.shape[0]), solid.reshape(-1).data)

    @property
    def nbytes(self) -> int:
        return len(self.buffer)
