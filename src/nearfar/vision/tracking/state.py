"""Memory as bytes: what it is, of which version, whole or not. MessagePack, so reading it runs no code."""

from __future__ import annotations

import zlib
from typing import TypeVar

import msgspec

from nearfar.errors import InputError

MAGIC = "nearfar-state"
LARGEST = 64 << 20
"""Bytes. More than any tracker or counter exports; what is larger is refused unread."""
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for hostile bytes; text that is not UTF-8 is none of its own errors."""
T = TypeVar("T", bound=msgspec.Struct)


class Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    magic: str
    kind: str
    """Who can read the body, such as `tracker/sort`."""
    version: int
    crc: int
    """CRC-32 of the body: against accidents on the way, not against forgery."""
    body: bytes


def pack(kind: str, version: int, memory: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(memory)
    return msgspec.msgpack.encode(Envelope(MAGIC, kind, version, zlib.crc32(body), body))


def kind_of(data: bytes) -> str:
    """Whose memory this is. Raises `InputError` when it is none."""
    return _open(data).kind


def unpack(data: bytes, kind: str, version: int, memory: type[T]) -> T:
    """The memory, its types checked; what the values mean is for the caller to check.

    Raises `InputError` for other bytes, those of another kind or version, and those that were cut or changed.
    """
    envelope = _open(data)
    if envelope.kind != kind:
        raise InputError(
            f"This is the state of {envelope.kind!r}, not of {kind!r}.", f"Import it into {envelope.kind}."
        )
    if envelope.version != version:
        raise InputError(
            f"The state of {kind!r} is of version {envelope.version}; this program reads version {version}.",
            "Use the same version of nearfar on both nodes.",
        )
    if zlib.crc32(envelope.body) != envelope.crc:
        raise InputError(f"The state of {kind!r} was changed on its way.", "Export it again.")
    try:
        return msgspec.msgpack.decode(envelope.body, type=memory)
    except _UNREADABLE as error:
        raise damaged(kind, str(error)) from None


def damaged(kind: str, why: str) -> InputError:
    return InputError(f"This is no state of {kind!r}: {why}.", "Export it again.")


def _open(data: bytes) -> Envelope:
    if len(data) > LARGEST:
        raise InputError(f"{len(data)} bytes are too many for a state; at most {LARGEST}.", "Export it again.")
    try:
        envelope = msgspec.msgpack.decode(data, type=Envelope)
    except _UNREADABLE as error:
        raise InputError(
            f"These {len(data)} bytes are no exported state, or cut: {error}.", "Export it again."
        ) from None
    if envelope.magic != MAGIC:
        raise InputError(f"These {len(data)} bytes are no exported state.", "Export it with export_state().")
    return envelope
