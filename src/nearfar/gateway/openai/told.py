"""What is said of an answer beside the answer: the field `nearfar` in its JSON, and the same in short as headers."""

from __future__ import annotations

import msgspec

from nearfar.errors import InferenceError
from nearfar.language.call import About, Times
from nearfar.types.request import STAGE_NAMES

_encode = msgspec.json.Encoder().encode
_BLANK = b" \t\r\n"


def with_about(body: bytes, about: About) -> bytes:
    """The JSON object with the field `nearfar` as its last one; everything before it stays byte for byte as it came.

    Raises `InferenceError` when the body is no JSON object, as an answer that was cut short would not be.

    >>> with_about(b'{"a": 1.50}', About("r", "near", "m", "n/m"))[:23]
    b'{"a": 1.50,"nearfar":{"'
    """
    end = len(body)
    while end and body[end - 1] in _BLANK:
        end -= 1
    if not end or body[end - 1] != 0x7D or body[: end - 1].lstrip(_BLANK)[:1] != b"{":
        raise InferenceError(f"{about.served_by} answered with what is no JSON object.", "Ask another service.")
    last = end - 1
    before = last
    while body[before - 1] in _BLANK:
        before -= 1
    comma = b"" if body[before - 1] == 0x7B else b","
    return b"".join((body[:last], comma, b'"nearfar":', _encode(about), b"}"))


def request_headers(request: str) -> list[tuple[bytes, bytes]]:
    """Under both names: ours, and the one that OpenAI's clients show as `_request_id`."""
    value = request.encode()
    return [(b"nearfar-request-id", value), (b"x-request-id", value)]


def about_headers(about: About) -> list[tuple[bytes, bytes]]:
    """Who answered, where, for how much, and where the time went (W3C Server Timing, in milliseconds)."""
    cost = f"{about.cost:.6g} {about.currency}".rstrip()
    return [
        (b"nearfar-served-by", about.served_by.encode()),
        (b"nearfar-where", about.where.encode()),
        (b"nearfar-cost", cost.encode("latin-1", "replace")),
        (b"server-timing", _timing(about.stages)),
        *request_headers(about.request),
    ]


def _timing(stages: Times) -> bytes:
    values = (stages.link, stages.queue, stages.preprocess, stages.inference, stages.postprocess)
    return _FORM % values


_FORM = b", ".join(name.encode() + b";dur=%.3f" for name in STAGE_NAMES)
