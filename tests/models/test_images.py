"""Pictures from outside: sizes are known before anything is decoded, and what is not a whole picture is refused."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import InputError, TooLarge
from nearfar.models.images import check_size, pixels_of, read_header
from nearfar.types.image import Image, ImageKind

FORMATS = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "bmp": ".bmp"}


def picture(width: int, height: int) -> Any:
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(format_: str, pixels: Any, *parameters: int) -> bytes:
    done, data = cv2.imencode(FORMATS[format_], pixels, parameters)
    assert done
    return bytes(data)


@settings(max_examples=40)
@given(st.sampled_from(sorted(FORMATS)), st.integers(1, 70), st.integers(1, 70))
def test_the_header_says_what_the_decoder_then_finds(format_: str, width: int, height: int) -> None:
    data = encoded(format_, picture(width, height))
    assert read_header(data) == (format_, width, height)
    assert pixels_of(Image.encoded(data)).shape == (height, width, 3)


@pytest.mark.parametrize("parameters", [(cv2.IMWRITE_WEBP_QUALITY, 101), (cv2.IMWRITE_WEBP_QUALITY, 50)])
def test_both_kinds_of_webp_are_read(parameters: tuple[int, int]) -> None:
    data = encoded("webp", picture(33, 21), *parameters)
    assert read_header(data) == ("webp", 33, 21)


def test_a_progressive_jpeg_is_read() -> None:
    data = encoded("jpeg", picture(33, 21), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert read_header(data) == ("jpeg", 33, 21)


def test_lossless_formats_keep_their_pixels() -> None:
    want = picture(13, 7)
    for format_ in ("png", "bmp"):
        assert np.array_equal(pixels_of(Image.encoded(encoded(format_, want))), want)


@pytest.mark.parametrize("format_", sorted(FORMATS))
def test_a_picture_cut_off_anywhere_is_refused(format_: str) -> None:
    data = encoded(format_, picture(24, 16))
    pixels_of(Image.encoded(data))
    for end in [*range(64), *range(64, len(data) - 2, 7)]:
        with pytest.raises(InputError):
            pixels_of(Image.encoded(data[:end]))


@pytest.mark.parametrize("format_", ["jpeg", "png"])
def test_bytes_behind_the_end_do_not_matter(format_: str) -> None:
    assert pixels_of(Image.encoded(encoded(format_, picture(24, 16)) + bytes(500))).shape == (16, 24, 3)


def test_a_file_of_fill_bytes_is_given_up() -> None:
    with pytest.raises(InputError, match="before its size"):
        read_header(b"\xff\xd8" + b"\xff" * 30_000_000)


@settings(max_examples=200)
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"BM", b"RIFF"])
)
def test_any_bytes_are_refused_with_an_input_error(data: bytes, start: bytes) -> None:
    with pytest.raises(InputError):
        pixels_of(Image.encoded(start + data))


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(40), b"%PDF-1.7 ....", b"<svg/>", b"hello" * 30])
def test_what_is_no_picture_is_refused_with_what_is(data: bytes) -> None:
    with pytest.raises(InputError, match="JPEG, PNG, WebP or BMP"):
        pixels_of(Image.encoded(data))


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def _jpeg(width: int, height: int) -> bytes:
    data = encoded("jpeg", picture(16, 16))
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.parametrize("bomb", [_png(60_000, 60_000), _jpeg(65_000, 65_000), _png(2**31 - 1, 1)])
def test_a_few_bytes_that_ask_for_gigabytes_are_refused_before_decoding(
    bomb: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(TooLarge, match="at most 64 megapixels"):
        pixels_of(Image.encoded(bomb))


def test_the_limit_itself_is_allowed() -> None:
    check_size(8000, 8000)
    with pytest.raises(TooLarge):
        check_size(8000, 8001)
    with pytest.raises(InputError, match="at least one pixel"):
        check_size(0, 5)


@pytest.mark.parametrize(("orientation", "size"), [(1, (6, 4)), (3, (6, 4)), (6, (4, 6)), (8, (4, 6))])
def test_exif_orientation_is_respected(orientation: int, size: tuple[int, int]) -> None:
    plain = encoded("jpeg", picture(6, 4))
    # A TIFF of one entry: tag 0x0112 (orientation), type 3 (short), EXIF 2.32, 4.6.4.
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    body = b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + struct.pack("<I", 0)
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
    pixels = pixels_of(Image.encoded(data))
    assert (pixels.shape[1], pixels.shape[0]) == size


def test_raw_pixels_are_taken_as_a_view_and_a_wrong_length_is_refused() -> None:
    want = picture(5, 3)
    got = pixels_of(Image.bgr(want))
    assert np.array_equal(got, want)
    assert np.shares_memory(got, want)
    for width, height in ((5, 4), (4, 3), (0, 3), (-5, -3)):
        with pytest.raises(InputError):
            pixels_of(Image(ImageKind.BGR, width, height, bytes(45)))
