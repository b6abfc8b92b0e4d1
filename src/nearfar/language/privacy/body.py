"""The body of a language request as the gate reads it: every text in it, what no detector can read, and what may be
written over.

Not only the messages are read: whoever writes `metadata`, a tool's description or a field that nobody knows yet has
sent it to the far end all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from nearfar.errors import InputError

DEEPEST = 100
"""Levels of nesting in a body; JSON schemas of tools have some 20."""
OWN = ("nearfar", "private")
"""Fields that are ours and go to no far end, with those that begin with `nearfar.`."""
_FIXED = frozenset(
    ("model", "role", "type", "id", "tool_call_id", "call_id", "name", "object", "format", "encoding_format")
)
"""Keys whose text the far end reads as a name of something: a placeholder there would break the request."""
_TEXT_PARTS = frozenset(
    ("text", "input_text", "output_text", "refusal", "reasoning", "thinking", "summary_text", "message")
)
_OPAQUE_KEYS = frozenset(
    ("image_url", "input_audio", "audio", "file", "file_data", "file_id", "video_url", "image", "images", "b64_json",
     "prompt_embeds", "prompt_token_ids", "input_ids", "tokens")
)  # fmt: skip
_TOKENS = ("prompt", "input")
"""Fields in which numbers are tokens: text that no detector reads."""

Path = tuple[str | int, ...]


class Leaf(msgspec.Struct, frozen=True):
    """One text of a body. It holds what somebody wrote, so it shows nothing of it."""

    path: Path
    key: str
    """The nearest name above it; empty at the top."""
    text: str
    fixed: bool
    """Whether it cannot be replaced: a name, a key of an object, a number."""

    def __repr__(self) -> str:
        return f"Leaf({len(self.text)} characters)"


def parse(body: bytes) -> dict[str, Any]:
    """The body as an object. Raises `InputError` when it is none, or nested too deeply; the error quotes nothing."""
    hint = "Send a JSON object in UTF-8, as the OpenAI API describes it."
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InputError("The body is not JSON, or nested too deeply.", hint) from None
    if not isinstance(found, dict):
        raise InputError("The body is JSON, but no object.", hint)
    return found


def leaves(body: Mapping[str, Any]) -> Iterator[Leaf]:
    """Every text of the body: strings, keys of objects and numbers, in the order in which they stand. Raises
    `InputError` for more than `DEEPEST` levels."""
    yield from _leaves(body, (), "", False)


def _leaves(value: Any, path: Path, key: str, fixed: bool) -> Iterator[Leaf]:
    if len(path) > DEEPEST:
        raise InputError(f"The body is nested deeper than {DEEPEST} levels.", "Send a flatter one.")
    if isinstance(value, str):
        if value:
            yield Leaf(path, key, value, fixed)
    elif isinstance(value, dict):
        for name, member in value.items():
            yield Leaf((*path, name), "", name, True)
            yield from _leaves(member, (*path, name), name, fixed or (name in _FIXED and isinstance(member, str)))
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from _leaves(member, (*path, index), key, fixed)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield Leaf(path, key, str(value), True)


def check_depth(body: bytes, request: Mapping[str, Any]) -> None:
    """Raises `InputError` for more than `DEEPEST` levels, as `leaves` does; `body` is the JSON of `request`.

    A bound from above that costs little comes first: a body without so many brackets is not so deep."""
    if body.count(b"{") + body.count(b"[") > DEEPEST:
        for _ in leaves(request):
            pass


def unreadable(body: Mapping[str, Any]) -> str:
    """What the body holds that no detector can read, in words; empty when there is nothing of the kind."""
    for name in _TOKENS:
        if _numbers(body.get(name)):
            return f"{name} is a list of tokens"
    return _unreadable(body, False)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, int | float) or _numbers(one) for one in value)


def _unreadable(value: Any, part: bool) -> str:
    if isinstance(value, dict):
        kind = value.get("type")
        if part and kind not in _TEXT_PARTS:
            return "a part of a message is no text"
        for name, member in value.items():
            if name in _OPAQUE_KEYS and isinstance(member, str | dict | list) and member and not _schema(member):
                return "it holds a picture, sound, a file or tokens"
            if isinstance(member, str):
                if _is_data(member):
                    return _DATA
            elif isinstance(member, (dict, list)) and (
                found := _unreadable(member, name == "content" and isinstance(member, list))
            ):
                return found
    elif isinstance(value, list):
        for member in value:
            if found := _unreadable(member, part):
                return found
    elif isinstance(value, str) and _is_data(value):
        return _DATA
    return ""


_DATA = "it holds a picture, sound or a file"


def _is_data(text: str) -> bool:
    return text[:64].lstrip()[:5].lower() == "data:" and "," in text[:256]


def _schema(member: Any) -> bool:
    """A tool may well have an argument that is called `file`: then this is the description of one."""
    return isinstance(member, dict) and isinstance(member.get("type"), str) and not {"data", "url"} & set(member)


def joined(body: Mapping[str, Any]) -> Iterator[list[str]]:
    """The texts that a model reads as one although they are several: the parts of each message."""
    pending: list[Any] = [body]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            content = value.get("content")
            if isinstance(content, list):
                parts = [part.get("text") for part in content if isinstance(part, dict)]
                texts = [text for text in parts if isinstance(text, str) and text]
                if len(texts) > 1:
                    yield texts
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def rewritten(body: Mapping[str, Any], texts: Mapping[Path, str]) -> dict[str, Any]:
    """A copy without our own fields and with these texts instead of those that stood there."""
    kept = {name: value for name, value in body.items() if name not in OWN and not name.startswith("nearfar.")}
    return {name: _rewritten(value, (name,), texts) for name, value in kept.items()}


def _rewritten(value: Any, path: Path, texts: Mapping[Path, str]) -> Any:
    if isinstance(value, dict):
        return {name: _rewritten(member, (*path, name), texts) for name, member in value.items()}
    if isinstance(value, list):
        return [_rewritten(member, (*path, index), texts) for index, member in enumerate(value)]
    return texts.get(path, value) if isinstance(value, str) else value
