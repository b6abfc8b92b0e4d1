"""Encoded pictures: what their headers say, checked before a decoder allocates anything, and their pixels.

Taken are JPEG, PNG, WebP and BMP. EXIF orientation is respected, as browsers do: width, height and every box are those
of the picture the right way up. (Raw pixels carry no orientation and are taken as they are.)
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nearfar.errors import InputError, TooLarge
from nearfar.types.image import Image, ImageKind

MOST_PIXELS = 64_000_000
"""Pixels of the largest picture that is decoded (192 MB of BGR): a few kilobytes can ask for gigabytes."""
LARGEST_SIDE = 65_535

_ACCEPTED = "Send a JPEG, PNG, WebP or BMP picture."


class Header(NamedTuple):
    """What a file says of itself before it is decoded; width and height before EXIF orientation is applied."""

    format: str
    width: int
    height: int


def read_header(data: bytes | memoryview) -> Header:
    """The format and size of an encoded picture, from its first bytes alone.

    Raises `InputError` when it is none of the four formats, is empty, or is cut off.
    """
    if not len(data):
        raise InputError("The picture has no bytes.", _ACCEPTED)
    head = bytes(data[:64])
    try:
        if head.startswith(b"\xff\xd8\xff"):
            return _jpeg(memoryview(data))
        if head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR":
            return _whole(Header("png", *struct.unpack_from(">II", head, 16)), _ends(data, b"IEND", 33))
        if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            whole = struct.unpack_from("<I", head, 4)[0] + 8 <= len(data)
            return _whole(_webp(head), whole)
        if head.startswith(b"BM") and struct.unpack_from("<I", head, 14)[0] >= 40:
            width, height = struct.unpack_from("<ii", head, 18)
            return Header("bmp", abs(width), abs(height))
        if head.startswith(b"BM") and struct.unpack_from("<I", head, 14)[0] == 12:
            return Header("bmp", *struct.unpack_from("<HH", head, 18))
    except (struct.error, IndexError):
        raise InputError("The picture is cut off inside its header.", _ACCEPTED) from None
    raise InputError(f"These {len(data)} bytes are not a picture of a known format.", _ACCEPTED)


def _whole(header: Header, whole: bool) -> Header:
    """A cut-off picture decodes to grey where data is missing; objects there would be missed without a word."""
    if not whole:
        raise InputError(f"The {header.format.upper()} picture is cut off.", "Send the whole file.")
    return header


def _ends(data: bytes | memoryview, mark: bytes, start: int) -> bool:
    """Whether the end mark is there: as a rule in the last bytes, but cameras pad and tools append."""
    return mark in bytes(data[-64:]) or mark in bytes(data[start:])


MOST_SCANS = 100
"""Scans of a progressive JPEG; ten are usual. Each costs a pass over all pixels, however small its data is."""
_MOST_SEGMENTS = 10_000
"""Segments before a JPEG's size that are walked through; a file of fill bytes must not cost seconds."""

# JPEG (ITU-T T.81, table B.1): SOF0 to SOF15 without DHT (C4), JPG (C8) and DAC (CC).
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg(data: memoryview) -> Header:
    at, end = 2, len(data)
    for _ in range(_MOST_SEGMENTS):
        if at + 4 > end:
            break
        if data[at] != 0xFF:
            raise InputError("The JPEG picture has bytes where a marker must be.", _ACCEPTED)
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
            continue
        if marker in _SOF:
            height, width = struct.unpack_from(">HH", data, at + 5)
            if bytes(data[at:]).count(b"\xff\xda") > MOST_SCANS:
                raise InputError(f"The JPEG picture has more than {MOST_SCANS} scans.", "Save it with fewer.")
            # FFD9 cannot occur inside entropy-coded data, so where it stands the picture ends.
            return _whole(Header("jpeg", width, height), _ends(data, b"\xff\xd9", at))
        if marker in (0xD9, 0xDA):
            break
        at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    raise InputError("The JPEG picture is cut off before its size.", _ACCEPTED)


def _webp(head: bytes) -> Header:
    # RFC 9649: VP8 (lossy), VP8L (lossless) and VP8X (extended) say their size in three ways.
    kind = head[12:16]
    if kind == b"VP8X":
        return Header("webp", 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little"))
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", head, 21)[0]
        return Header("webp", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return Header("webp", width & 0x3FFF, height & 0x3FFF)
    raise InputError("The WebP picture has no known image chunk.", _ACCEPTED)


def check_size(width: int, height: int) -> None:
    """Raise `InputError` for a picture without pixels, `TooLarge` for one above `MOST_PIXELS`."""
    if width < 1 or height < 1:
        raise InputError(f"The picture is {width} x {height} pixels.", "Send one with at least one pixel.")
    if width * height > MOST_PIXELS or max(width, height) > LARGEST_SIDE:
        raise TooLarge(
            f"The picture is {width} x {height} pixels.",
            f"Send at most {MOST_PIXELS // 1_000_000} megapixels, and {LARGEST_SIDE} on a side.",
        )


def pixels_of(image: Image) -> NDArray[np.uint8]:
    """The picture as uint8 [height, width, 3] in the order blue, green, red; a view when it came raw.

    Raises `InputError` for what is not a picture, `TooLarge` above `MOST_PIXELS` (before anything is allocated).
    """
    if image.kind is ImageKind.BGR:
        check_size(image.width, image.height)
        want = image.width * image.height * 3
        if image.nbytes != want:
            raise InputError(
                f"A raw picture of {image.width} x {image.height} needs {want} bytes, got {image.nbytes}.",
                "Send 3 bytes a pixel: blue, green, red.",
            )
        raw: NDArray[np.uint8] = np.frombuffer(image.buffer, np.uint8).reshape(image.height, image.width, 3)
        return raw
    header = read_header(image.buffer)
    check_size(header.width, header.height)
    return _decode(image.buffer, header)


def _decode(data: bytes | memoryview, header: Header) -> NDArray[np.uint8]:
    import cv2

    _quiet(cv2)
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as e:
        raise InputError(f"The {header.format.upper()} picture cannot be decoded: {e.err}.", "Is it whole?") from None
    if pixels is None:
        raise InputError(f"The {header.format.upper()} picture cannot be decoded.", "Is it whole? Open it in a viewer.")
    decoded: NDArray[np.uint8] = pixels
    return decoded


_silenced = False


def _quiet(cv2: Any) -> None:
    """OpenCV writes to stderr about each bad picture; the caller gets an error instead."""
    global _silenced
    if not _silenced:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        _silenced = True
