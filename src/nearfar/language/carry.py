"""A streamed answer that goes on elsewhere when its service goes.

Under greedy decoding another service writes the whole answer again, and what the caller has already is left out: text
by text compared, so that not a letter is repeated, missing or spliced. Giving the produced text to the engine to
continue would be faster, but a text does not tell its tokens, and it may go another way
(docs/explanation-conversations.md). Where a service with the same variant writes another text all the same (what it has
cached of the prompt changes the rounding, and two tokens were about as likely), it is given what was produced to
continue; one with another variant is left, and the next one asked.

A service that is asked to end offers what it has computed of the answer (`StateTicket`), and the next one with the same
model file and engine fetches it: it then has the delivered text without writing it, which is compared as any other, and
the prompt is not read again. Where that fails the text is written, as if nothing had been offered.

With a temperature no text is the one that would have come: the produced text is given to continue, which is one of
those that could have come, also when a seed was stated.

A grammar's state, several answers at once, tools and log-probabilities are not carried on: they end with an error. So
does everything at a far end, which does neither promise to write the same again nor continue a text, and is paid twice.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from nearfar.client.talking import Piece, Talking, TextRequest
from nearfar.errors import Moved, NearfarError, NoCandidate, StreamCut, UnknownModel
from nearfar.language.call import View, with_fields
from nearfar.placement.filters import FAR_RUNTIMES
from nearfar.types.ids import ServiceId
from nearfar.types.wire import Operation, StateTicket

MOST_MOVES = 8
SAMPLED = 0.8
"""Temperature where a request states none: llama.cpp's default."""


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: Any = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    index: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    id: str = ""


_chunk = msgspec.json.Decoder(_Chunk)


class _Differs(StreamCut):
    """A service writes another text than the one that was begun."""


class Delivered:
    """What of one answer was given to the caller. Only kept as it passes; read when it is cut."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._parts: list[str] = []
        self.tokens = 0
        """Chunks with text: an engine sends one for each token but for those that end inside a character."""
        self.id = ""
        self.finished = False
        self.special = False
        """Whether something else than plain text was in it."""

    def add(self, lines: bytes) -> None:
        """Chunks that were passed on. As cheap as can be: nearly no answer is ever cut."""
        self._lines.append(lines)

    @property
    def text(self) -> str:
        self.read()
        return "".join(self._parts)

    def read(self) -> None:
        """Look at what was only kept until now."""
        kept, self._lines = self._lines, []
        for line in b"\n".join(kept).splitlines():
            try:
                self._read(_chunk.decode(line))
            except msgspec.MsgspecError:
                self.special = True

    def _read(self, chunk: _Chunk) -> None:
        self.id = self.id or chunk.id
        for choice in chunk.choices:
            if choice.index or (choice.delta and (choice.delta.tool_calls or choice.delta.reasoning_content)):
                self.special = True
            text = choice.text if choice.text is not None else choice.delta and choice.delta.content
            if text:
                self._parts.append(text)
                self.tokens += 1
            if choice.finish_reason:
                self.finished = True


def greedy(view: View) -> bool:
    """Whether the same question has the same answer."""
    return view.temperature is not None and view.temperature <= 0


def why_not(view: View, delivered: Delivered) -> str:
    """Why an answer cannot be carried on; "" when it can."""
    delivered.read()
    if (view.n or 1) > 1 or (view.best_of or 1) > 1:
        return "several answers were asked for at once"
    if view.constrained:
        return "it follows a grammar, a schema or tools, whose state ends with the service"
    if view.echo or view.logprobs:
        return "log-probabilities or an echo were asked for, which would not fit together"
    if not _prompt_is_text(view) and not greedy(view):
        return "its prompt is a list, which no text can be added to"
    if delivered.special:
        return "it holds more than plain text"
    if delivered.finished:
        return "it was complete but for its end"
    return ""


async def stream(talking: Talking, request: TextRequest, view: View) -> AsyncGenerator[tuple[Piece, int], None]:
    """Pieces of the answer, each with how often it has moved until then. Raises `StreamCut` when it cannot go on."""
    delivered = Delivered()
    moved = 0
    asked = without = request
    rest: _Rest | None = None
    cut: StreamCut | None = None
    began = variant = ""
    while True:
        pieces = talking.stream(asked)
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    if rest is not None:
                        piece = rest.of(piece)
                        if not piece.lines and piece.last is None:
                            continue
                    delivered.add(piece.lines)
                    if not began:  # now, as little is known of a service that is gone
                        began, variant = piece.served_by, _variant(talking, piece.served_by)
                    yield piece, moved
            return
        except _Differs as error:
            if without is not asked:  # the state is not trusted
                asked, rest = without, _Rest(delivered, request.operation, again=greedy(view))
                continue
            if _prompt_is_text(view) and variant and variant == _variant(talking, error.service):
                again = msgspec.structs.replace(asked, incumbent=ServiceId(error.service))
                asked = without = _continued(again, view, delivered)
                rest = _Rest(delivered, request.operation, again=False)
                continue
            cut = error
        except StreamCut as error:
            cut = error
        except NearfarError as error:  # nobody takes what is left of it
            if cut is None:
                raise
            if without is not asked:  # none of those that could take the state along
                asked = without
                continue
            raise _ended(cut, _nobody(error)) from None
        reason = why_not(view, delivered)
        if reason or moved >= MOST_MOVES:
            raise _ended(cut, reason or "it had moved too often") from None
        moved += 1
        near = _left_out(talking, asked)
        asked = msgspec.structs.replace(request, incumbent=None, excluded=tuple(dict.fromkeys((*near, cut.service))))
        if not greedy(view):
            asked = _continued(asked, view, delivered)
        without = asked
        asked = _with_state(talking, asked, cut, len(delivered.text) if greedy(view) else -1) or asked
        rest = _Rest(delivered, request.operation, again=greedy(view))


def _prompt_is_text(view: View) -> bool:
    return view.prompt is None or isinstance(view.prompt, str)


def _variant(talking: Talking, service: str) -> str:
    """What a service serves; "" when nothing is known of it."""
    view = talking.snapshot().services.get(ServiceId(service))
    return view.report.variant if view is not None else ""


def _ended(cut: StreamCut, why: str) -> StreamCut:
    told = StreamCut(f"{cut.message} It cannot be carried on: {why}.", "Ask again.")
    told.service, told.cause = cut.service, cut.cause
    return told


def _nobody(error: NearfarError) -> str:
    if isinstance(error, NoCandidate | UnknownModel):
        return f"no other service takes it ({error.message.rstrip('. ')})"
    return error.message.rstrip(". ")


def _left_out(talking: Talking, asked: TextRequest) -> tuple[Any, ...]:
    far = [s for s, view in talking.snapshot().services.items() if view.report.runtime in FAR_RUNTIMES]
    return (*asked.excluded, *far)


def _with_state(talking: Talking, asked: TextRequest, cut: StreamCut, written: int) -> TextRequest | None:
    """The request for those services alone that can take the state along; None when none was offered, or nobody can."""
    ticket: StateTicket | None = cut.cause.state if isinstance(cut.cause, Moved) else None
    if ticket is None or ticket.service != cut.service:
        return None
    views = {s: view for s, view in talking.snapshot().services.items() if view.report.model == asked.model}
    able = {
        s for s, view in views.items() if view.alive and view.report.text and view.report.text.build == ticket.build
    }
    if not able - set(asked.excluded):
        return None
    context = msgspec.structs.replace(asked.context, state=msgspec.structs.replace(ticket, written=written))
    excluded = tuple(dict.fromkeys((*asked.excluded, *(service for service in views if service not in able))))
    return msgspec.structs.replace(asked, context=context, excluded=excluded)


def _continued(request: TextRequest, view: View, delivered: Delivered) -> TextRequest:
    """The request for what is missing of a sampled answer, with what there is of it given to continue."""
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
    return msgspec.structs.replace(request, body=with_fields(request.body, changes))


class _Rest:
    """Makes the pieces of a second service those of the same answer: the same id, no second beginning, and of an answer
    that is written `again` only what the caller does not have."""

    def __init__(self, delivered: Delivered, operation: Operation, *, again: bool) -> None:
        self._id = delivered.id
        self._known = delivered.text if again else ""
        self._began = bool(delivered.id)
        self._before = 0 if again else delivered.tokens
        self._chat = operation is Operation.CHAT

    def of(self, piece: Piece) -> Piece:
        """Raises `StreamCut` when the second service writes another text."""
        kept = []
        for line in piece.lines.splitlines():
            raw: dict[str, Any] = msgspec.json.decode(line)
            if self._keep(raw, piece):
                kept.append(msgspec.json.encode(raw))
        if self._known and piece.last is not None:
            raise self._other(piece)
        return piece._replace(lines=b"\n".join(kept))

    def _keep(self, raw: dict[str, Any], piece: Piece) -> bool:
        raw["id"] = self._id or raw.get("id", "")
        usage = raw.get("usage")
        if self._before and isinstance(usage, dict):
            usage["completion_tokens"] = usage.get("completion_tokens", 0) + self._before
            usage["prompt_tokens"] = max(0, usage.get("prompt_tokens", 0) - self._before)
        for choice in raw.get("choices") or ():
            holder = choice.get("delta") if self._chat else choice
            if not isinstance(holder, dict):
                continue
            field = "content" if self._chat else "text"
            text = holder.get(field)
            if self._began and holder.pop("role", None) and not text:
                return False
            if choice.get("finish_reason") and not text:
                if self._known:
                    raise self._other(piece)
                continue
            if text and self._known:
                same = min(len(text), len(self._known))
                if text[:same] != self._known[:same]:
                    raise self._other(piece)
                self._known = self._known[same:]
                if not text[same:] and not choice.get("finish_reason"):
                    return False
                holder[field] = text[same:]
        return True

    def _other(self, piece: Piece) -> _Differs:
        error = _Differs(
            f"{piece.served_by} writes another text than the one that was begun.", "Serve the same variant everywhere."
        )
        error.service = piece.served_by
        return error
