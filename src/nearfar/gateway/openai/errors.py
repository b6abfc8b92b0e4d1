"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code", "nearfar"}}`.

The clients of that API choose their exception by the status and show `message`; what else nearfar knows of an error
stands in `error.nearfar`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from nearfar.errors import InputError, NearfarError, UnknownModel
from nearfar.gateway.problems import Forbidden, TooManyRequests, Unauthorized, problem

Headers = list[tuple[bytes, bytes]]

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_CODES: Mapping[type[NearfarError], str] = {
    Unauthorized: "invalid_api_key",
    Forbidden: "forbidden",
    UnknownModel: "model_not_found",
    TooManyRequests: "rate_limit_exceeded",
}
"""Codes that programs written for OpenAI look for; every other one is nearfar's own with `_` for `-`."""
_OWN = ("code", "hint", "refusals", "retry_after")
_PLACE = re.compile(r"at `\$\.([^`]{1,80})`")


class WrongField(InputError):
    """A field of the body is missing or empty; `param` names it."""

    def __init__(self, param: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.param = param


class MethodNotAllowed(NearfarError):
    """The path is there, the method is not; `allow` names those that are."""

    code = "method-not-allowed"
    http_status = 405

    def __init__(self, allow: str) -> None:
        super().__init__(f"This path takes {allow}.", "See /openapi.json.")
        self.allow = allow


def error_of(error: NearfarError, request: str = "") -> tuple[int, Headers, dict[str, Any]]:
    """(status, headers, object) of an error; `request` is the id that the ledger and the log name, when there is one.

    >>> status, _, told = error_of(WrongField("messages", "There are no messages."), "req-1")
    >>> status, told["error"]["type"], told["error"]["param"], told["error"]["nearfar"]
    (400, 'invalid_request_error', 'messages', {'code': 'invalid-input', 'request': 'req-1'})
    """
    status, plain, detailed = problem(error)
    known: dict[str, Any] = msgspec.json.decode(detailed)
    own: dict[str, Any] = {name: known[name] for name in _OWN if name in known}
    if request:
        own["request"] = request
    told = {
        "message": str(error),
        "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": _param(error),
        "code": _CODES.get(type(error), error.code.replace("-", "_")),
        "nearfar": own,
    }
    headers = [(name.encode(), value.encode()) for name, value in plain.items() if name != "content-type"]
    headers.append((b"content-type", b"application/json"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if request:
        headers += [(b"nearfar-request-id", request.encode()), (b"x-request-id", request.encode())]
    return status, headers, {"error": told}


def _param(error: NearfarError) -> str | None:
    if isinstance(error, WrongField):
        return error.param
    if isinstance(error, UnknownModel):
        return "model"
    found = _PLACE.search(error.message) if isinstance(error, InputError) else None
    return found[1] if found else None
