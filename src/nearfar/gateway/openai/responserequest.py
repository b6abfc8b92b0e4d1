"""A request of `/v1/responses` as the chat completion that is asked for it.

The engines, the far ends and the privacy gate know one form of a conversation, so a request is put into that form
before anything else looks at it: what the gate rules on is what is sent. Fields that mean the same in both forms, ours
(`nearfar`, `private`) and those that nobody here knows travel as they came. `metadata` and `store` do not travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from nearfar.gateway.openai.errors import WrongField
from nearfar.language.call import fitting

_KEPT_NOWHERE = "nearfar keeps no conversations: send the whole of it in input."
_ELSEWHERE = "/v1/chat/completions has it."
_REFUSED: Mapping[str, str] = {
    "previous_response_id": _KEPT_NOWHERE,
    "conversation": _KEPT_NOWHERE,
    "prompt": "nearfar keeps no prompts: send the text itself in input and instructions.",
    "messages": "Send input.",
    "max_tokens": "Send max_output_tokens.",
    "max_completion_tokens": "Send max_output_tokens.",
    "response_format": "Send text.format.",
    "functions": "Send tools.",
    "n": _ELSEWHERE,
    "logprobs": _ELSEWHERE,
    "top_logprobs": _ELSEWHERE,
}
"""Fields that would not do what they say, and what to do instead."""
_HERE = frozenset(
    ("background", "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata",
     "reasoning", "store", "stream_options", "text", "tool_choice", "tools", "truncation")
)  # fmt: skip
"""Fields that a chat completion does not have, or has in another form."""
_ECHOED: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
}
"""Fields that the response repeats, and what stands there when they did not come."""
_ALWAYS = {"background": False, "previous_response_id": None, "store": False, "truncation": "disabled"}
"""What is done here, whatever was asked."""
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct):
    """Of any type; a message may come without one."""

    type: str | None = None
    role: str = ""
    content: str | list[_Part] | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[_Part] | None = None


class _Format(msgspec.Struct, omit_defaults=True):
    type: str
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class _Text(msgspec.Struct):
    format: _Format | None = None
    verbosity: str | None = None


class _Tool(msgspec.Struct, omit_defaults=True):
    type: str
    name: str = ""
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None


class _Asked(msgspec.Struct):
    input: str | list[_Item] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: _Text | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _Tool | None = None
    reasoning: _Reasoning | None = None
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    stream: bool | None = None
    background: bool | None = None


class ResponseRequest(NamedTuple):
    chat: bytes
    """The chat completion to ask for."""
    echo: dict[str, Any]
    """What the response repeats of its request."""


def read_request(body: bytes) -> ResponseRequest:
    """Raises `InputError`, and `WrongField` for what has no meaning here, with what to send instead."""
    raw, asked = fitting(_read, body, '{"model": ..., "input": ...}')
    for name, hint in _REFUSED.items():
        if raw.get(name) is not None:
            raise WrongField(name, f"{name} is not taken here.", hint)
    if asked.background:
        raise WrongField("background", "Nothing is answered in the background.", "Leave it away, or stream the answer.")
    if any("logprobs" in name for name in asked.include or ()):
        raise WrongField("include", "Log-probabilities are not given here.", _ELSEWHERE)
    told = {name: value for name, value in raw.items() if name not in _HERE and name not in _REFUSED}
    told["messages"] = _messages(asked)
    if asked.max_output_tokens is not None:
        told["max_tokens"] = asked.max_output_tokens
    if asked.stream:
        told["stream_options"] = {"include_usage": True}
    if asked.reasoning and asked.reasoning.effort:
        told["reasoning_effort"] = asked.reasoning.effort
    if asked.text:
        told |= _form(asked.text)
    if asked.tools:
        told["tools"] = [_function(tool, f"tools[{place}]") for place, tool in enumerate(asked.tools)]
    if asked.tool_choice is not None:
        chosen = asked.tool_choice
        told["tool_choice"] = chosen if isinstance(chosen, str) else _function(chosen, "tool_choice")
    return ResponseRequest(msgspec.json.encode(told), _echo(raw, asked))


def _read(body: bytes) -> tuple[dict[str, Any], _Asked]:
    raw = msgspec.json.decode(body, type=dict[str, Any])
    return raw, msgspec.convert(raw, _Asked)


def _echo(raw: dict[str, Any], asked: _Asked) -> dict[str, Any]:
    """What was understood of the fields, never what was passed over: nobody looked at that."""
    given = {name: getattr(asked, name, raw.get(name)) for name in _ECHOED}
    if asked.text and asked.text.format is None:
        del given["text"]
    return {**_ECHOED, **{name: value for name, value in given.items() if value is not None}, **_ALWAYS}


def _form(text: _Text) -> dict[str, Any]:
    told: dict[str, Any] = {"verbosity": text.verbosity} if text.verbosity else {}
    kind = text.format.type if text.format else "text"
    if kind == "json_schema":
        told["response_format"] = {"type": kind, kind: _inner(text.format)}
    elif kind == "json_object":
        told["response_format"] = {"type": kind}
    elif kind != "text":
        said = f"text.format.type is {kind[:40]!r}."
        raise WrongField("text.format.type", said, "Use text, json_object or json_schema.")
    return told


def _function(tool: _Tool, where: str) -> dict[str, Any]:
    if tool.type != "function" or not tool.name:
        told = f"{where} is of the type {tool.type[:40]!r}, or has no name; no tools are run here."
        raise WrongField(where, told, 'Send {"type": "function", "name": ...}.')
    return {"type": "function", "function": _inner(tool)}


def _inner(told: _Format | _Tool | None) -> dict[str, Any]:
    """Its fields but for the type: chat has them one level deeper."""
    return {name: value for name, value in msgspec.to_builtins(told).items() if name != "type"}


def _messages(asked: _Asked) -> list[dict[str, Any]]:
    if not asked.input:
        raise WrongField("input", "input is missing or empty.", "Send a text, or a list of messages.")
    made: list[dict[str, Any]] = []
    if asked.instructions:
        made.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        return [*made, {"role": "user", "content": asked.input}]
    for place, item in enumerate(asked.input):
        _add(made, item, f"input[{place}]")
    if not made:
        raise WrongField("input", "input holds nothing to answer.", "Send a message.")
    return made


def _add(made: list[dict[str, Any]], item: _Item, where: str) -> None:
    match item.type or "message":
        case "message":
            if item.role not in _ROLES:
                raise WrongField(
                    f"{where}.role", f"The role is {item.role[:40]!r}.", f"Use one of {', '.join(_ROLES)}."
                )
            made.append({"role": _ROLES[item.role], "content": _content(item.content, f"{where}.content")})
        case "function_call":
            if not item.name or not item.call_id:
                raise WrongField(where, "The function_call has no name or no call_id.", "Send it as it came.")
            if not made or made[-1]["role"] != "assistant":  # what a model says and calls at once is one message
                made.append({"role": "assistant", "content": None})
            function = {"name": item.name, "arguments": item.arguments}
            called = {"id": item.call_id, "type": "function", "function": function}
            made[-1].setdefault("tool_calls", []).append(called)
        case "function_call_output":
            if not item.call_id:
                raise WrongField(where, "The function_call_output has no call_id.", "Send that of its function_call.")
            content = _content(item.output, f"{where}.output")
            made.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
        case "reasoning":  # what a model thought before it answered is not shown to it again
            return
        case other:
            hint = "Send messages, function_call and function_call_output themselves; nothing is kept to refer to."
            raise WrongField(f"{where}.type", f"Items of the type {other[:40]!r} are not taken.", hint)


def _content(content: str | list[_Part] | None, where: str) -> Any:
    """A text alone as it is, several as the parts that they were: the gate reads them in either form."""
    if isinstance(content, str):
        return content
    texts = [_text(part, f"{where}[{place}]") for place, part in enumerate(content or ())]
    if not texts:
        raise WrongField(where, "There is nothing in it.", "Send a text.")
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _text(part: _Part, where: str) -> str:
    if part.type == "input_image":
        hint = "Send text; /v1/chat/completions passes pictures on to a far end that takes them."
        raise WrongField(where, "Pictures are not taken here.", hint)
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in ("input_text", "output_text", "text", "refusal") or text is None:
        told = f"The part is of the type {part.type[:40]!r}, or has no text."
        raise WrongField(where, told, 'Send {"type": "input_text", "text": ...}.')
    return text
