"""The parts of the OpenAPI document that FastAPI cannot read off a signature: bodies, headers and error answers."""

from __future__ import annotations

from typing import Any

_PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "error"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "error": {"type": "string"},
        "hint": {"type": "string"},
        "retry_after": {"type": "number"},
        "refusals": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "subject": {"type": "string"},
                    "code": {"type": "string"},
                    "reason": {"type": "string"},
                },
            },
        },
    },
}


def _answer(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/problem+json": {"schema": _PROBLEM}}}


OPEN: dict[int | str, dict[str, Any]] = {401: _answer("The API key is missing or wrong.")}
BUSY: dict[int | str, dict[str, Any]] = {503: {"description": "No service is ready."}}
MODEL: dict[int | str, dict[str, Any]] = {
    400: _answer("The request is not valid."),
    401: _answer("The API key is missing or wrong."),
    404: _answer("No such model or version."),
    422: _answer("The path is not valid."),
    503: _answer("No service can take it now, with the refusal of every candidate. See Retry-After."),
}
_ASKING: dict[int | str, dict[str, Any]] = {
    **MODEL,
    413: _answer("The body or the image is too large."),
    415: _answer("The body is not of a kind that is taken here."),
    429: _answer("Too many requests are in flight at this gateway. See Retry-After."),
}


def header_parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """A header that a request may carry, as a parameter of the document."""
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string", **schema},
    }


QOS_HEADERS = [
    header_parameter("Nearfar-Deadline", "Answer within this time, or say 503.", pattern=r"^[0-9]{1,6}(ms|s)$"),
    header_parameter("Nearfar-Privacy", "How far the data may travel.", enum=["local", "fleet", "any"]),
    header_parameter("Nearfar-Node", "Only this node may answer."),
    header_parameter(
        "Nearfar-Stream",
        "The stream that this request belongs to: it stays where it is, and leaves a trail.",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
    ),
    header_parameter(
        "Nearfar-Max-Cost", "The most that this request may cost.", pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$"
    ),
    header_parameter(
        "Nearfar-Tokens-Per-Second",
        "Least speed at which a language service must have written lately.",
        pattern=r"^[1-9][0-9]{0,8}(\.[0-9]{1,9})?$",
    ),
    header_parameter(
        "Nearfar-Degrade",
        "What to give up when nobody near is in time: ask a far end, or be refused at once with 503.",
        enum=["refuse", "far", "far,refuse", "refuse,far", ""],
    ),
]

_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {
            "type": "string",
            "enum": [
                "BOOL",
                "UINT8",
                "UINT16",
                "UINT32",
                "UINT64",
                "INT8",
                "INT16",
                "INT32",
                "INT64",
                "FP16",
                "FP32",
                "FP64",
            ],
        },
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}

_INFER_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": {"type": "string"},
                    "inputs": {"type": "array", "items": _TENSOR},
                    "outputs": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                        },
                    },
                },
            }
        },
    },
}


_OUTPUTS: dict[str, Any] = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
}
_BYTES: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_ANSWERED: dict[str, Any] = {
    "description": "The outputs; as octets when some are binary: the JSON part, then their bytes.",
    "headers": {
        "Nearfar-Served-By": {"description": "The service that answered.", "schema": {"type": "string"}},
        "Server-Timing": {"description": "Milliseconds of each stage.", "schema": {"type": "string"}},
    },
    "content": {"application/json": {"schema": _OUTPUTS}, "application/octet-stream": _BYTES},
}

_SEEN: dict[str, Any] = {
    "type": "object",
    "required": ["model", "task", "served_by", "variant", "stages_ms", "total_ms", "attempts"],
    "properties": {
        "model": {"type": "string"},
        "task": {"type": "string"},
        "served_by": {"type": "string"},
        "variant": {"type": "string"},
        "stages_ms": {"type": "object", "additionalProperties": {"type": "number"}},
        "total_ms": {"type": "number"},
        "attempts": {"type": "array", "items": {"type": "string"}},
        "detections": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["box", "score", "class_id", "label"],
                "properties": {
                    "box": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
                    "score": {"type": "number"},
                    "class_id": {"type": "integer"},
                    "label": {"type": "string"},
                },
            },
        },
        "classes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["score", "class_id", "label"],
                "properties": {
                    "score": {"type": "number"},
                    "class_id": {"type": "integer"},
                    "label": {"type": "string"},
                },
            },
        },
    },
}


def INFER(path: str) -> dict[str, Any]:
    """Arguments of the infer route: its path parameters are not in a signature either."""
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    parameters = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    length = header_parameter(
        "Inference-Header-Content-Length", "Length of the JSON part when binary tensors follow it.", pattern="^[0-9]+$"
    )
    return {
        "responses": {200: _ANSWERED, **_ASKING},
        "openapi_extra": {"parameters": [*parameters, length, *QOS_HEADERS], "requestBody": _INFER_BODY},
    }


DETECT: dict[str, Any] = {
    "responses": {
        200: {
            "description": "Detections or classes, who served them, and the stages in ms.",
            "headers": _ANSWERED["headers"],
            "content": {"application/json": {"schema": _SEEN}},
        },
        **_ASKING,
    },
    "openapi_extra": {
        "parameters": QOS_HEADERS,
        "requestBody": {
            "required": True,
            "content": {
                "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
                },
            },
        },
    },
}

_STATUS: dict[str, Any] = {
    "type": "object",
    "required": ["stream", "model", "since", "running"],
    "properties": {
        "stream": {"type": "string"},
        "model": {"type": "string"},
        "source": {"type": "string"},
        "by": {"type": "string"},
        "since": {"type": "string"},
        "last": {"type": ["string", "null"]},
        "running": {"type": "boolean"},
        "ended": {"type": ["string", "null"]},
        "served_by": {"type": ["string", "null"]},
        "answered": {"type": ["integer", "null"]},
        "lost": {"type": ["integer", "null"]},
        "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        "moved": {"type": ["integer", "null"]},
        "level": {"type": "string"},
    },
}
_ENTRY: dict[str, Any] = {
    "type": "object",
    "required": ["kind", "number", "at"],
    "properties": {"kind": {"type": "string"}, "number": {"type": "integer"}, "at": {"type": "string"}},
}


def _object(description: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "required": list(properties), "properties": properties}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


STREAMS: dict[int | str, dict[str, Any]] = {
    200: _object(
        "Those that run in the fleet first, then those that ended.", streams={"type": "array", "items": _STATUS}
    ),
    401: _answer("The API key is missing or wrong."),
    429: _answer("Too many requests are in flight at this gateway. See Retry-After."),
}
DECISIONS: dict[int | str, dict[str, Any]] = {
    200: _object(
        "The entries, oldest first; ask on with `since` set to `next`.",
        stream=_STATUS,
        entries={"type": "array", "items": _ENTRY},
        next={"type": "integer"},
        more={"type": "boolean"},
    ),
    400: _answer("`since` or `limit` is not a number in its range."),
    401: _answer("The API key is missing or wrong."),
    404: _answer("No such stream; the nearest names are offered."),
    429: _answer("Too many requests are in flight at this gateway. See Retry-After."),
    503: _answer("The stream runs, but its process does not answer."),
}
