"""What llama.cpp is sent for a call, and what its errors mean.

The engine ignores what it does not understand, and some of what it does not like brings it down, so a body is looked at
before: that it is JSON, that there is something to answer, and that the adapters it names are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from nearfar.errors import InferenceError, InputError, NearfarError, Overloaded
from nearfar.runtimes.jsongrammar import Unsupported, grammar_of
from nearfar.types.wire import Operation

AT_ONCE = 16
"""An answer of at most so many tokens is waited for: a stop in the middle would save nothing."""
SHORT = 4096
"""Bytes of a body whose prompt is read so fast that nobody need be able to stop that."""
DEEPEST = 64
"""Levels of a body's JSON; the engine reads by recursion."""
PROGRESS = b'"prompt_progress":'
"""In a chunk that says how much of the prompt was read; inside a text the quotation marks would be escaped."""


class Lora(msgspec.Struct):
    """One adapter, by the name it has in [language] loras, or its place there."""

    name: str | None = None
    id: int | str | None = None
    scale: Annotated[float, msgspec.Meta(ge=-1000, le=1000)] = 1.0


class _Seen(msgspec.Struct):
    """The fields of a body that are looked at; the rest travels unread."""

    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n_predict: int | None = None
    messages: list[msgspec.Raw] | None = None
    prompt: msgspec.Raw = msgspec.Raw(b"null")
    input: msgspec.Raw = msgspec.Raw(b"null")
    lora: list[Lora] | None = None
    response_format: dict[str, Any] | None = None
    json_schema: Any = None
    grammar: str | None = None
    tools: list[Any] | None = None


class Prepared(NamedTuple):
    body: bytes
    whole: bool
    """Whether chunks come for an answer that the caller wants whole."""


_seen = msgspec.json.Decoder(_Seen)
_raw = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NOTHING = (b"null", b'""', b"[]")


def prepare(operation: Operation, body: bytes, loras: Sequence[str]) -> Prepared:
    """Raises `InputError`; never with a word of the prompt in it."""
    try:
        check_depth(body)
        seen = _seen.decode(body)
    except msgspec.ValidationError as error:
        raise InputError(f"The request does not fit: {error}.", "Correct the field.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        told = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InputError(f"The request is no JSON that can be read: {told}.", "Send a JSON object.") from None
    given = {Operation.CHAT: seen.messages, Operation.COMPLETE: seen.prompt, Operation.EMBED: seen.input}[operation]
    field = {Operation.CHAT: "messages", Operation.COMPLETE: "prompt", Operation.EMBED: "input"}[operation]
    if given is None or given == [] or (isinstance(given, msgspec.Raw) and bytes(given) in _NOTHING):
        raise InputError(f"There is nothing in {field!r}.", f"Send {field!r} with what is to be answered.")
    changes: dict[str, Any] = {}
    if seen.lora:
        changes["lora"] = _by_number(seen.lora, loras)
    if operation is Operation.EMBED:
        return Prepared(_with(body, changes), False)
    changes.update(_constrained(operation, seen))
    limits = [n for n in (seen.max_tokens, seen.max_completion_tokens, seen.n_predict) if n is not None and n >= 0]
    long = len(body) > SHORT
    whole = not seen.stream and (long or not limits or max(limits) > AT_ONCE)
    if whole:
        changes["stream"] = True
        changes["stream_options"] = {"include_usage": True}
    if long and (seen.stream or whole):
        changes["return_progress"] = True
    return Prepared(_with(body, changes), whole)


def _with(body: bytes, changes: dict[str, Any]) -> bytes:
    """The body with some fields set; None removes one. All others stay as they were, byte by byte."""
    if not changes:
        return body
    fields: dict[str, Any] = {**_raw.decode(body), **changes}
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


def _constrained(operation: Operation, seen: _Seen) -> dict[str, Any]:
    """A schema as our own tight grammar; what that does not cover is left to the engine where it can follow it."""
    if seen.grammar and seen.grammar.lstrip().startswith("%"):
        raise InputError("The grammar is not in GBNF.", "See grammars/README.md of llama.cpp for its form.")
    schema = asked_schema(seen.response_format or {}, seen.json_schema)
    if schema is None or seen.tools:  # with tools the engine's own grammar allows either
        return {}
    if seen.grammar:
        raise InputError("There is a grammar and a schema.", "Send one of them.")
    try:
        grammar = grammar_of(schema)
    except Unsupported as error:
        if operation is Operation.CHAT:
            return {}
        raise InputError(
            f"The schema holds {error}, which completions cannot follow.", "Use /v1/chat/completions, or a grammar."
        ) from None
    return {"grammar": grammar, "response_format": None, "json_schema": None}


def asked_schema(form: dict[str, Any], schema: Any) -> Any:
    """The schema that a body's `response_format` or `json_schema` asks for; None for none. Raises `InputError`."""
    kind = form.get("type", "text")
    if kind not in ("text", "json_object", "json_schema"):
        raise InputError(f"response_format.type is {str(kind)[:40]!r}.", "Use text, json_object or json_schema.")
    if schema is not None or kind == "text":
        return schema
    inner = form.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else form.get("schema")
    if schema is not None:
        return schema
    if kind == "json_schema":
        raise InputError("response_format has no json_schema.schema.", "Send the schema, or use json_object.")
    return {"type": "object"}


def _by_number(asked: Sequence[Lora], known: Sequence[str]) -> list[dict[str, Any]]:
    made = []
    for lora in asked:
        wanted = lora.name if lora.name is not None else lora.id
        if isinstance(wanted, str) and wanted in known:
            number = known.index(wanted)
        elif isinstance(wanted, int) and 0 <= wanted < len(known):
            number = wanted
        else:
            have = f"It has {', '.join(known)}" if known else "It has none"
            raise InputError(
                f"The model has no adapter {str(wanted)[:80]!r}. {have}.",
                "Give one of them, or name its file in [language] loras.",
            )
        made.append({"id": number, "scale": lora.scale})
    return made


def check_depth(body: bytes) -> None:
    """Raise `InputError` for JSON that is nested too deep. It costs little: texts may hold brackets too, so only a body
    that has many is walked."""
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return
    depth = 0
    for found in _STRUCTURE.finditer(body):
        sign = found[0]
        if sign in (b"[", b"{"):
            depth += 1
            if depth > DEEPEST:
                raise InputError(f"The request is nested deeper than {DEEPEST} levels.", "Flatten it.")
        elif sign in (b"]", b"}"):
            depth -= 1


_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class _Failure(msgspec.Struct):
    message: str = ""
    type: str = ""
    code: int = 500
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class _MaybeFailed(msgspec.Struct):
    error: _Failure | str | None = None


_failed = msgspec.json.Decoder(_MaybeFailed)
_TOO_LONG = re.compile(r"input \((\d+) tokens\) is too large")


def refused(message: str) -> InputError:
    return InputError(f"The model does not take this request: {message.rstrip('. ')}.", "Correct it.")


def too_long(tokens: int, context: int) -> InputError:
    return InputError(
        f"The prompt has {tokens} tokens, and this model takes {context} of prompt and answer together.",
        "Send a shorter one, or set [language] context higher where it is served.",
    )


def translate(piece: bytes, context: int) -> NearfarError:
    """The engine's own error as one of ours."""
    try:
        error = _failed.decode(piece).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        error = None
    if not isinstance(error, _Failure):
        return InferenceError(f"llama.cpp failed: {error or 'it does not say why'}.", "Ask another service.")
    told = error.message or error.type
    if error.type == "exceed_context_size_error":
        return too_long(error.n_prompt_tokens, error.n_ctx or context)
    if found := _TOO_LONG.search(told):
        return too_long(int(found[1]), context)
    if error.code == 503:
        return Overloaded(f"llama.cpp is busy: {told}.", "Try again.", 0.5)
    if 400 <= error.code < 500 or error.code == 501:
        return refused(told)
    return InferenceError(f"llama.cpp failed: {told.rstrip('. ')}.", "Ask another service.")


def raised(error: Exception) -> NearfarError:
    """An exception of the binding: what the caller did wrong comes as `ValueError`, or as `RuntimeError` of the parser
    or about a picture."""
    told = " ".join(str(error).split())[:300]
    if isinstance(error, UnicodeDecodeError):
        return refused("it is not UTF-8")
    if isinstance(error, ValueError) or "not supported" in told:
        return refused(told)
    if "json.exception" in told:  # its words quote the body
        return refused("a field has a value that cannot be read")
    return InferenceError(f"llama.cpp failed: {told.rstrip('. ')}.", "Ask another service.")
