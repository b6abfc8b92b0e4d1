"""What a body asks, as plain text: the last question, what stands around it, and the format it wants.

Pure; reads the conventional JSON body of a chat or completion request that has been decoded already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


class Asked(msgspec.Struct, frozen=True):
    """A request in the judge's words."""

    prompt: str
    """The last thing that the user said, or the prompt of a completion."""
    before: str = ""
    """System message and earlier turns, in their order."""
    schema: Mapping[str, Any] | None = None
    """JSON schema that the answer must fit, from `response_format` or `json_schema`."""
    wants_json: bool = False
    """`response_format` asks for JSON, with a schema or without."""
    tools: tuple[str, ...] = ()


def asked(body: Mapping[str, Any]) -> Asked:
    """Read a body. What is not there is empty; pictures and other parts without text are passed over.

    >>> asked({"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 + 2?"}]})
    Asked(prompt='2 + 2?', before='Be short.', schema=None, wants_json=False, tools=())
    """
    format_ = body.get("response_format")
    kind = format_.get("type") if isinstance(format_, Mapping) else None
    schema = body.get("json_schema")
    if kind == "json_schema" and isinstance(format_, Mapping):
        stated = format_.get("json_schema")
        schema = stated.get("schema", schema) if isinstance(stated, Mapping) else schema
    tools = tuple(
        str(tool["function"].get("name", ""))
        for tool in body.get("tools") or ()
        if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)
    )
    prompt, before = _texts(body)
    return Asked(
        prompt,
        before,
        schema if isinstance(schema, Mapping) else None,
        kind in ("json_object", "json_schema") or isinstance(schema, Mapping),
        tools,
    )


def _texts(body: Mapping[str, Any]) -> tuple[str, str]:
    messages = body.get("messages")
    if not isinstance(messages, (list, tuple)):
        prompt = body.get("prompt", "")
        if isinstance(prompt, (list, tuple)):
            prompt = "\n".join(part for part in prompt if isinstance(part, str))
        return (prompt if isinstance(prompt, str) else ""), ""
    turns = [(str(m.get("role", "")), text_of(m.get("content"))) for m in messages if isinstance(m, Mapping)]
    last = max((i for i, (role, _) in enumerate(turns) if role == "user"), default=len(turns) - 1)
    if last < 0:
        return "", ""
    return turns[last][1], "\n".join(text for i, (_, text) in enumerate(turns) if i != last and text)


def text_of(content: Any) -> str:
    """The text of a message's content, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "\n".join(part for part in parts if isinstance(part, str))
    return ""


def only_text(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether `asked` sees all of a conversation: no pictures or other parts, no calls of tools.

    >>> only_text([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}])
    True
    >>> only_text([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])
    False
    """
    return not any(
        m.get("tool_calls") or m.get("function_call") or m.get("role") == "tool" or not _is_text(m.get("content"))
        for m in messages
    )


def _is_text(content: Any) -> bool:
    if isinstance(content, (list, tuple)):
        return all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content)
    return content is None or isinstance(content, str)
