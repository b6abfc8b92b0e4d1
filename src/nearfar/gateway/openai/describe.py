"""The language paths in the OpenAPI document. They are answered before the application is reached (`routes.py`)."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from nearfar.gateway.openapi import QOS_HEADERS, header_parameter
from nearfar.gateway.problems import NotFound

_TEXT = {"type": "string"}
_WHOLE = {"type": "integer"}
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code", "nearfar"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": _TEXT,
                "nearfar": {
                    "type": "object",
                    "required": ["code"],
                    "properties": {
                        "code": _TEXT,
                        "hint": _TEXT,
                        "request": _TEXT,
                        "retry_after": {"type": "number"},
                        "refusals": {"type": "array", "items": {"type": "object"}},
                    },
                },
            },
        }
    },
}
_ABOUT: dict[str, Any] = {
    "type": "object",
    "required": ["request", "where", "model", "served_by", "cost", "tokens_in", "tokens_out", "ms"],
    "properties": {
        "request": _TEXT,
        "where": {"type": "string", "enum": ["near", "far", "split", "cascade", "cache"]},
        "model": _TEXT,
        "served_by": _TEXT,
        "cost": {"type": "number"},
        "tokens_in": _WHOLE,
        "tokens_out": _WHOLE,
        "ms": {"type": "number"},
    },
}


def _failed(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ERROR}}}


_OPEN: dict[int | str, dict[str, Any]] = {
    401: _failed("The API key is missing or wrong."),
    403: _failed("A page of another site asked, and no key protects this gateway."),
}
_FAILURES: dict[int | str, dict[str, Any]] = {
    400: _failed("The request is not valid; `param` names the field."),
    **_OPEN,
    404: _failed("No such model; the nearest names are offered."),
    413: _failed("The body is too large."),
    429: _failed("Too many requests are in flight at this gateway. See Retry-After."),
    503: _failed("Nobody can take it now or in time, with the refusal of every candidate. See Retry-After."),
}
_HEADERS = {
    name: {"description": told, "schema": _TEXT}
    for name, told in {
        "Nearfar-Served-By": "The service that answered.",
        "Nearfar-Where": "`near`, `far`, `split`, `cascade` or `cache`.",
        "Nearfar-Cost": "What the answer cost, and the currency.",
        "Nearfar-Request-Id": "The request's id, as the ledger and errors name it.",
        "Server-Timing": "Milliseconds of each stage.",
    }.items()
}
_WISHES: dict[str, Any] = {
    "type": "object",
    "properties": {
        "privacy": {"type": "string", "enum": ["local", "fleet", "any"]},
        "route": {"type": "string", "enum": ["auto", "near", "far"]},
        "cache": {"type": ["boolean", "null"]},
        "private": {"type": "boolean"},
        "personal_data": {"type": "string", "enum": ["refuse", "near", "redact", "ignore"]},
    },
}


_SAMPLING: dict[str, Any] = {
    "stream": {"type": "boolean"},
    "temperature": {"type": ["number", "null"]},
    "seed": {"type": ["integer", "null"]},
    "stop": {"description": "A text, or a list of texts, that ends the answer."},
}
_WRITING: dict[str, Any] = {
    **_SAMPLING,
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
    "max_tokens": {"type": ["integer", "null"]},
}


def _call(summary: str, required: str, own: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    properties = {"model": {"type": "string"}, **own, "nearfar": _WISHES}
    body = {"type": "object", "required": [required], "properties": properties, "additionalProperties": True}
    schema = {"type": "object", "required": [*answer, "nearfar"], "properties": {**answer, "nearfar": _ABOUT}}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if "stream" in own:
        content["text/event-stream"] = {}
    route = header_parameter("Nearfar-Route", "Who may answer.", enum=["auto", "near", "far"])
    return {
        "tags": ["OpenAI"],
        "summary": summary,
        "responses": {
            200: {"description": "The answer, and where it came from.", "headers": _HEADERS, "content": content},
            **_FAILURES,
        },
        "openapi_extra": {
            "parameters": [*QOS_HEADERS, route],
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        },
    }


_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": _TEXT, "content": _TEXT},
}
_TEXTS = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "minItems": 1, "items": {"type": "string"}}]}
_LIST = {"type": "array", "items": {"type": "object"}}
_ITEM = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": ["message", "function_call", "function_call_output", "reasoning"]},
        "role": {"type": "string", "enum": ["user", "assistant", "system", "developer"]},
        "content": {"description": "A text, or a list of parts of the type input_text or output_text."},
    },
}
_TOOL = {
    "type": "object",
    "required": ["type", "name"],
    "properties": {"type": {"type": "string", "enum": ["function"]}, "name": _TEXT, "parameters": {"type": "object"}},
}
_WHOLE_ANSWER = {"id": _TEXT, "object": _TEXT, "created": _WHOLE, "model": _TEXT, "choices": _LIST}
_CALLS = {
    "/v1/chat/completions": _call(
        "A conversation in, its next message out",
        "messages",
        {"messages": {"type": "array", "items": _MESSAGE, "minItems": 1}, **_WRITING},
        _WHOLE_ANSWER,
    ),
    "/v1/completions": _call("A text in, how it goes on out", "prompt", {"prompt": _TEXTS, **_WRITING}, _WHOLE_ANSWER),
    "/v1/responses": _call(
        "A conversation in, a response out; none is kept",
        "input",
        {
            "input": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": _ITEM, "minItems": 1}]},
            "instructions": {"type": ["string", "null"]},
            "max_output_tokens": {"type": ["integer", "null"]},
            "metadata": {"type": ["object", "null"], "additionalProperties": _TEXT},
            "store": {"type": ["boolean", "null"], "description": "Taken, and answered as false: nothing is kept."},
            "text": {"type": "object", "properties": {"format": {"type": "object", "required": ["type"]}}},
            "tools": {"type": "array", "items": _TOOL},
            **_SAMPLING,
        },
        {
            "id": _TEXT,
            "object": {"type": "string", "enum": ["response"]},
            "created_at": _WHOLE,
            "status": {"type": "string", "enum": ["completed", "incomplete"]},
            "model": _TEXT,
            "output": _LIST,
            "usage": {"type": "object", "required": ["input_tokens", "output_tokens", "total_tokens"]},
            "store": {"type": "boolean", "enum": [False]},
        },
    ),
    "/v1/embeddings": _call(
        "Texts in, vectors out",
        "input",
        {"input": _TEXTS},
        {"object": _TEXT, "data": _LIST},
    ),
}
_MODEL: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by", "nearfar"],
    "properties": {"id": _TEXT, "object": _TEXT, "created": _WHOLE, "owned_by": _TEXT, "nearfar": {"type": "object"}},
}
_MODELS = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": _TEXT, "data": {"type": "array", "items": _MODEL}},
}


def _found(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def add_openai(app: FastAPI) -> None:
    """Adds the paths to the document of the application."""

    async def elsewhere() -> None:
        raise NotFound("This path is served elsewhere.")

    for path, described in _CALLS.items():
        app.add_api_route(path, elsewhere, methods=["POST"], **described)
    app.add_api_route(
        "/v1/models",
        elsewhere,
        methods=["GET"],
        tags=["OpenAI"],
        summary="Language models, `auto` first",
        responses={200: _found("The models.", _MODELS), **_OPEN},
    )
    for method, told in (("GET", "No response: none is kept"), ("DELETE", "No response to delete: none is kept")):
        app.add_api_route(
            "/v1/responses/{response}",
            elsewhere,
            methods=[method],
            tags=["OpenAI"],
            summary=told,
            status_code=404,
            responses={**_OPEN, 404: _failed("There is none, ever.")},
            openapi_extra={"parameters": [_in_path("response")]},
        )
    app.add_api_route(
        "/v1/models/{model}",
        elsewhere,
        methods=["GET"],
        tags=["OpenAI"],
        summary="One language model",
        responses={200: _found("The model.", _MODEL), **_OPEN, 404: _FAILURES[404]},
        openapi_extra={"parameters": [_in_path("model")]},
    )
