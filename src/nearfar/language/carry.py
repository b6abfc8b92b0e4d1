"""A streamed answer that goes on elsewhere when its service goes: what was delivered is given to another one to
continue. Only under greedy decoding is the text the one that would have come anyway; otherwise it is one of those that
could have come. A grammar's state, several answers at once, and tools cannot be carried on: they end with an error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec

from nearfar.client.talking import Piece, Talking, TextRequest
from nearfar.errors import StreamCut
from nearfar.language.call import View, with_fields
from nearfar.types.wire import Operation

MOST_MOVES = 8


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: Any = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    index: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    id: str = ""
    usage: _Usage | None = None


_chunk = msgspec.json.Decoder(_Chunk)


class Delivered:
    """What of one answer was given to the caller."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.tokens = 0
        """Chunks with text: an engine sends one for each token but for those that end inside a character."""
        self.id = ""
        self.finished = False
        self.special = False
        """Whether something else than plain text was in it."""

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def add(self, line: bytes) -> None:
        try:
            chunk = _chunk.decode(line)
        except msgspec.MsgspecError:
            self.special = True
            return
        self.id = self.id or chunk.id
        for choice in chunk.choices:
            if choice.index or (choice.delta and (choice.delta.tool_calls or choice.delta.reasoning_content)):
                self.special = True
            text = choice.text if choice.text is not None else choice.delta and choice.delta.content
            if text:
                self.parts.append(text)
                self.tokens += 1
            if choice.finish_reason:
                self.finished = True


def why_not(view: View, delivered: Delivered) -> str:
    """Why an answer cannot be carried on; "" when it can."""
    if (view.n or 1) > 1 or (view.best_of or 1) > 1:
        return "several answers were asked for at once"
    if view.constrained:
        return "it follows a grammar, a schema or tools, whose state ends with the service"
    if view.echo or view.logprobs:
        return "log-probabilities or an echo were asked for, which would not fit together"
    if delivered.special:
        return "it holds more than plain text"
    return ""


async def stream(talking: Talking, request: TextRequest, view: View) -> AsyncIterator[tuple[Piece, int]]:
    """Pieces of the answer, each with how often it has moved until then. Raises `StreamCut` when it cannot go on."""
    delivered = Delivered()
    moved = 0
    asked = request
    while True:
        pieces = talking.stream(asked)
        try:
            async with aclosing(pieces):  # type: ignore[type-var]
                async for piece in pieces:
                    if moved:
                        piece = _as_before(piece, delivered)
                    for line in piece.lines.splitlines():
                        delivered.add(line)
                    yield piece, moved
            return
        except StreamCut as cut:
            reason = why_not(view, delivered)
            if delivered.finished or reason or moved >= MOST_MOVES:
                why = reason or ("it had moved too often" if moved >= MOST_MOVES else "it was complete but for its end")
                told = StreamCut(f"{cut.message} It cannot be carried on: {why}.", "Ask again.")
                told.service, told.cause = cut.service, cut.cause
                raise told from None
            moved += 1
            asked = _continued(request, view, delivered, cut.service)


def _continued(request: TextRequest, view: View, delivered: Delivered, gone: str) -> TextRequest:
    """The request for what is missing of its answer."""
    text = delivered.text
    changes: dict[str, Any] = {}
    limit = view.max_completion_tokens or view.max_tokens
    if limit is not None:
        changes["max_tokens"] = max(1, limit - delivered.tokens)
        changes["max_completion_tokens"] = None
    if request.operation is Operation.CHAT and text:
        changes["messages"] = [*view.messages, {"role": "assistant", "content": text}]
    elif text:
        changes["prompt"] = str(view.prompt or "") + text
    return msgspec.structs.replace(
        request, body=with_fields(request.body, changes), incumbent=None, excluded=(*request.excluded, gone)
    )


def _as_before(piece: Piece, delivered: Delivered) -> Piece:
    """The piece as one of the same answer: the same id, no second beginning, and the tokens of both parts counted."""
    kept: list[bytes] = []
    for line in piece.lines.splitlines():
        raw: dict[str, Any] = msgspec.json.decode(line)
        raw["id"] = delivered.id or raw.get("id", "")
        choices = raw.get("choices") or []
        if any(choice.get("delta", {}).get("role") for choice in choices) and not any(
            choice.get("delta", {}).get("content") for choice in choices
        ):
            continue
        usage = raw.get("usage")
        if isinstance(usage, dict):
            usage["completion_tokens"] = usage.get("completion_tokens", 0) + delivered.tokens
            usage["prompt_tokens"] = max(0, usage.get("prompt_tokens", 0) - delivered.tokens)
        kept.append(msgspec.json.encode(raw))
    return piece._replace(lines=b"\n".join(kept))
