"""Errors as HTTP: RFC 9457 problem details, with `error` beside them for clients of the Open Inference Protocol."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from nearfar.errors import NearfarError

_encoder = msgspec.json.Encoder()
LONGEST_RETRY = 3600.0
"""Seconds; a client told to wait longer would rather be told to stop asking."""


class TooManyRequests(NearfarError):
    """This gateway has as many requests in flight as its settings allow."""

    code = "too-many-requests"
    http_status = 429

    def __init__(self, message: str, hint: str = "", retry_after: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class Unauthorized(NearfarError):
    """The key is missing or wrong."""

    code = "unauthorized"
    http_status = 401


class Forbidden(NearfarError):
    """Asked from a web page of another site."""

    code = "forbidden"
    http_status = 403


class NotFound(NearfarError):
    """There is nothing at this path."""

    code = "not-found"
    http_status = 404


class UnsupportedMedia(NearfarError):
    """The body is of a kind that this path does not take."""

    code = "unsupported-media-type"
    http_status = 415


class Internal(NearfarError):
    """A fault of ours; the node's log has it whole."""

    code = "internal"

    @classmethod
    def of(cls, error: Exception) -> Internal:
        return cls(f"{type(error).__name__}: {error}", "This is a fault of nearfar; the node's log has more.")


def problem(error: NearfarError) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of an error."""
    status = error.http_status
    body: dict[str, Any] = {
        "type": f"urn:nearfar:problem:{error.code}",
        "title": error.code.replace("-", " "),
        "status": status,
        "detail": error.message,
        "code": error.code,
        "error": str(error),
    }
    if error.hint:
        body["hint"] = error.hint
    refusals = getattr(error, "refusals", ())
    if refusals:
        body["refusals"] = list(refusals)
    headers = {"content-type": "application/problem+json"}
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None and not 0 <= retry_after <= LONGEST_RETRY:  # it came from another node: also NaN
        retry_after = LONGEST_RETRY if retry_after > 0 else 1.0
    if status in (429, 503):
        headers["retry-after"] = str(max(1, math.ceil(retry_after or 1.0)))
        body["retry_after"] = retry_after or 1.0
    if status == 413:
        headers["connection"] = "close"  # else the rest of the body would be read, only to be thrown away
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return status, headers, _encoder.encode(body)
