"""Reading a request's body from ASGI: bounded, decompressed when the client compressed it, and joined at most once."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from nearfar.errors import Cancelled, InputError, TooLarge
from nearfar.types.units import show_bytes

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first header of that lower-case name."""
    for have, value in headers:
        if have == name:
            return value
    return None


async def read(receive: Receive, headers: Iterable[tuple[bytes, bytes]], limit: int) -> bytes:
    """The whole body, at most `limit` bytes after decompression.

    Raises `TooLarge` before reading more than the limit, `InputError` for a broken or unknown encoding, `Cancelled`
    when the client left.
    """
    stated = header(headers, b"content-length")
    if stated is not None and stated.isdigit() and int(stated) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("The client left before its request was complete.")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        if part:
            parts.append(part)
        more = message.get("more_body", False)
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    encoding = (header(headers, b"content-encoding") or b"identity").strip().lower()
    return body if encoding == b"identity" else _decompress(body, encoding, limit)


def _decompress(body: bytes, encoding: bytes, limit: int) -> bytes:
    windows = {b"gzip": 31, b"deflate": 15}
    if encoding not in windows:
        raise InputError(f"Content-Encoding {encoding.decode('latin-1')!r} is not known.", "Use gzip or deflate.")
    stream = zlib.decompressobj(windows[encoding])
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise InputError(f"The body is not valid {encoding.decode()}: {error}.") from None
    if len(plain) > limit:
        raise _too_large(limit)
    if not stream.eof:
        raise InputError(f"The {encoding.decode()} body is cut short.")
    return plain


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {show_bytes(limit)}.", "Send less, or raise [gateway] max_body.")
