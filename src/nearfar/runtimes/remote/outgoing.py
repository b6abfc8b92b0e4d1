"""What leaves: the caller's own JSON, with the far end's name of the model and without what is only for us."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from nearfar.errors import InputError, PrivateRefused
from nearfar.runtimes.remote.description import FarEnd
from nearfar.types.wire import Operation

PATHS: Mapping[Operation, str] = {
    Operation.CHAT: "/chat/completions",
    Operation.COMPLETE: "/completions",
    Operation.EMBED: "/embeddings",
}
BYTES_PER_TOKEN = 4
"""Rule of thumb for English text ("one token is about 4 characters", OpenAI's help pages); for other languages and for
code it counts too few."""
TOKENS_PER_MESSAGE = 4
"""What a chat template adds to each message (OpenAI's cookbook, "How to count tokens": 3, and 1 for the role)."""
_OURS = ("private", "privacy")
_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Outgoing(NamedTuple):
    """A body ready to be sent."""

    path: str
    """Behind the far end's base URL."""
    body: bytes
    streamed: bool
    usage_asked: bool
    """Whether the caller wants the chunk with the usage itself."""
    tokens_in: int
    """Estimated."""
    text_only: bool
    """No picture or sound, whose tokens cannot be told from their bytes."""


def outgoing(operation: Operation, body: bytes, far: FarEnd) -> Outgoing:
    """Raises `InputError` for a body that is no JSON object, `PrivateRefused` for one that says that it is private."""
    if operation not in PATHS:
        raise InputError(f"A far end does not answer {operation.value!r}.", "Ask it for chat, completion or embedding.")
    fields = _fields(body)
    for name in [name for name in fields if name in _OURS or name.startswith("nearfar")]:
        if _private(name, fields.pop(name)):
            raise PrivateRefused("The request itself says that it is private.", "Ask a model of the fleet.")
    streamed = _is_true(fields.get("stream"))
    usage_asked = False
    if streamed and far.stream_usage:
        options = _table(fields.get("stream_options"))
        usage_asked = _is_true(options.get("include_usage"))
        fields["stream_options"] = msgspec.Raw(msgspec.json.encode({**options, "include_usage": True}))
    fields["model"] = msgspec.Raw(msgspec.json.encode(far.model))
    tokens_in, text_only = _estimate(fields)
    return Outgoing(PATHS[operation], msgspec.json.encode(fields), streamed, usage_asked, tokens_in, text_only)


def tokens_of(text_bytes: int) -> int:
    """Estimated tokens of so many bytes of UTF-8 text.

    >>> tokens_of(0), tokens_of(1), tokens_of(400)
    (0, 1, 100)
    """
    return math.ceil(text_bytes / BYTES_PER_TOKEN)


def _fields(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        msgspec.json.decode(body)  # all of it: a field that is left as it is must be JSON, too
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        told = str(error).partition(" - at")[0].rstrip(".")[:100]
        raise InputError(f"The request is no JSON object: {told}.", "Send a JSON object with messages.") from None


def _private(name: str, raw: msgspec.Raw) -> bool:
    """Whether a field of ours forbids to go far: `private: true`, `privacy` or `nearfar...privacy` other than any."""
    value: Any = msgspec.json.decode(raw)
    if name == "private" or name.endswith("private"):
        return value not in (False, None)
    if name.endswith("privacy"):
        return value not in (None, "any")
    if isinstance(value, dict):
        return value.get("private") not in (False, None) or value.get("privacy") not in (None, "any")
    return False


def _is_true(raw: msgspec.Raw | None) -> bool:
    return raw is not None and bytes(raw).strip() == b"true"


def _table(raw: msgspec.Raw | None) -> dict[str, msgspec.Raw]:
    if raw is None or bytes(raw).strip() == b"null":
        return {}
    try:
        return _decoder.decode(raw)
    except msgspec.DecodeError:
        raise InputError("stream_options is no table.", 'Write {"include_usage": true}, or leave it away.') from None


def _estimate(fields: Mapping[str, msgspec.Raw]) -> tuple[int, bool]:
    """Tokens of the prompt: messages, prompt or input, tools and schema; and whether it is text alone."""
    size = messages = 0
    text_only = True
    for name in ("messages", "prompt", "input", "suffix", "tools", "functions", "response_format"):
        if name in fields:
            value = msgspec.json.decode(fields[name])
            found, plain = _text_bytes(value)
            size += found
            text_only &= plain
            messages += len(value) if name == "messages" and isinstance(value, list) else 0
    return tokens_of(size) + TOKENS_PER_MESSAGE * messages, text_only


def _text_bytes(value: Any) -> tuple[int, bool]:
    """Bytes of all texts in a JSON value, without keys; pictures and sounds (data or addresses) count as none."""
    match value:
        case str():
            return len(value.encode()), True
        case list():
            if value and all(type(item) is int for item in value):
                return BYTES_PER_TOKEN * len(value), True  # tokens themselves
            parts = [_text_bytes(item) for item in value]
        case dict():
            if value.get("type") in ("image_url", "input_audio", "file", "image", "video_url"):
                return 0, False
            parts = [_text_bytes(item) for item in value.values()]
        case _:
            return 0, True
    return sum(size for size, _ in parts), all(plain for _, plain in parts)
