"""An answer in chat's form as a `response`: one object, or the typed events that tell of it while it is written."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from nearfar.errors import InferenceError
from nearfar.gateway.body import Send
from nearfar.gateway.openai.responserequest import read_request
from nearfar.gateway.openai.sse import Events
from nearfar.gateway.openai.told import request_headers
from nearfar.language.call import About, TextCall

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Finish reasons that are no good end, and what they are called here."""
_TEXTS = (("reasoning_content", "reasoning_text"), ("content", "output_text"), ("refusal", "refusal"))
"""Fields of a message, and the type of the part that each becomes."""


class _Function(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function = _Function()


class _Message(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Piece(msgspec.Struct):
    """A chunk, or a whole answer."""

    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


_piece = msgspec.json.Decoder(_Piece)


class Responding:
    """A request, and the form that its answer goes out in."""

    def __init__(self, body: bytes) -> None:
        """Raises `InputError`."""
        self.body, self._echo = read_request(body)

    def whole(self, call: TextCall, answer: bytes, about: About) -> bytes:
        """Raises `InferenceError` when that is no answer."""
        response = Response(call, self._echo)
        response.add(answer)
        response.end(about)
        return msgspec.json.encode(response.object)

    def events(self, call: TextCall, send: Send) -> Events:
        return ResponseEvents(send, request_headers(call.id), Response(call, self._echo))


class ResponseEvents(Events):
    """Each event has a name, the last one holds the whole response, and there is no `[DONE]`."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]], response: Response) -> None:
        super().__init__(send, headers)
        self._response = response

    async def give(self, lines: bytes) -> None:
        if events := self._response.feed(lines):
            await self._write(events)

    async def end(self, lines: bytes, about: About) -> None:
        await self._write(self._response.feed(lines) + self._response.end(about), more=False)

    async def fail(self, error: dict[str, Any]) -> None:
        await self._write(self._response.fail(error["error"]), more=False)


class Response:
    """One response as it grows: what it is fed gives events, and `object` is how it stands."""

    def __init__(self, call: TextCall, echo: dict[str, Any]) -> None:
        self._id = call.id.removeprefix("req-")
        self.object: dict[str, Any] = {
            "id": f"resp_{self._id}", "object": "response", "created_at": int(time.time()), "completed_at": None,
            "status": "in_progress", "error": None, "incomplete_details": None, "model": call.model, **echo,
            "output": [], "usage": None,
        }  # fmt: skip
        self._events: list[bytes] = []
        self._told = 0
        self._item: dict[str, Any] | None = None
        """The last of the output, while it grows."""
        self._kind: str | int = ""
        """Of it: the type of its part, or the number of its call."""
        self._texts: list[str] = []
        self._calls: set[int] = set()
        self._answered = False
        self._finish = ""
        self._usage: _Usage | None = None

    def feed(self, lines: bytes) -> bytes:
        """The events of chunks, a JSON object a line. Raises `InferenceError` for what is none."""
        for line in lines.splitlines():
            self.add(line)
        return self._flush()

    def add(self, data: bytes) -> None:
        """A chunk, or a whole answer."""
        try:
            piece = _piece.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InferenceError(f"The model said what is no chunk: {type(error).__name__}.", "Ask again.") from None
        self._begin(piece.model)
        self._usage = piece.usage or self._usage
        for choice in piece.choices:
            self._take(choice.delta or choice.message or _Message())
            self._finish = choice.finish_reason or self._finish
            self._answered = True

    def end(self, about: About) -> bytes:
        """The last events of an answer that is complete. Raises `InferenceError` when there is none."""
        if not self._answered:
            raise InferenceError(f"{about.served_by} ended without an answer.", "Ask again.")
        if not self.object["output"]:
            self._text("output_text", "")
        reason = _INCOMPLETE.get(self._finish)
        status = "incomplete" if reason else "completed"
        self._close(status)
        self.object |= {"status": status, "usage": _counted(self._usage, about), "nearfar": about}
        self.object |= {"incomplete_details": {"reason": reason}} if reason else {"completed_at": int(time.time())}
        self._event(f"response.{status}", response=self.object)
        return self._flush()

    def fail(self, error: dict[str, Any]) -> bytes:
        """The last events of an answer that broke off: that it failed, and the error, which clients raise."""
        self._begin(None)
        if self._item is not None:
            self._write_down("incomplete")
        self.object |= {"status": "failed", "error": {**error, "code": "server_error"}}
        self._event("response.failed", response=self.object)
        self._event("error", code=error["code"], message=error["message"], param=error["param"], error=error)
        return self._flush()

    # -- the output ---------------------------------------------------------------------------------------------------

    def _begin(self, model: str | None) -> None:
        if not self._told:
            self.object["model"] = model or self.object["model"]
            self._event("response.created", response=self.object)
            self._event("response.in_progress", response=self.object)

    def _take(self, message: _Message) -> None:
        for field, kind in _TEXTS:
            text = getattr(message, field)
            if isinstance(text, list):
                text = "".join(str(part.get("text") or "") for part in text)
            if text:
                self._text(kind, text)
        for place, call in enumerate(message.tool_calls or ()):
            self._call(place if call.index is None else call.index, call)

    def _text(self, kind: str, text: str) -> None:
        if self._kind != kind:
            thought = kind == "reasoning_text"
            own = {"type": "reasoning", "summary": []} if thought else {"type": "message", "role": "assistant"}
            self._open(kind, "rs" if thought else "msg", {**own, "content": []})
            self._at("response.content_part.added", content_index=0, part=_part(kind, ""))
        self._texts.append(text)
        logprobs: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
        self._at(f"response.{kind}.delta", content_index=0, delta=text, **logprobs)

    def _call(self, number: int, call: _Call) -> None:
        if self._kind != number:
            if number in self._calls or not call.function.name:
                raise InferenceError("The model mixes up its calls of functions.", "Ask again.")
            self._calls.add(number)
            call_id = call.id or f"call_{self._id}_{number}"
            own = {"type": "function_call", "call_id": call_id, "name": call.function.name, "arguments": ""}
            self._open(number, "fc", own)
        if call.function.arguments:
            self._texts.append(call.function.arguments)
            self._at("response.function_call_arguments.delta", delta=call.function.arguments)

    def _open(self, kind: str | int, prefix: str, own: dict[str, Any]) -> None:
        self._close("completed")
        output = self.object["output"]
        self._kind, self._item = kind, {"id": f"{prefix}_{self._id}_{len(output)}", "status": "in_progress", **own}
        output.append(self._item)
        self._event("response.output_item.added", output_index=len(output) - 1, item=self._item)

    def _close(self, status: str) -> None:
        if self._item is None:
            return
        self._write_down(status)
        if isinstance(self._kind, int):
            self._at("response.function_call_arguments.done", arguments=self._item["arguments"])
        else:
            (part,) = self._item["content"]
            text = {name: value for name, value in part.items() if name in ("text", "refusal", "logprobs")}
            self._at(f"response.{self._kind}.done", content_index=0, **text)
            self._at("response.content_part.done", content_index=0, part=part)
        self._event("response.output_item.done", output_index=len(self.object["output"]) - 1, item=self._item)
        self._item, self._kind = None, ""

    def _write_down(self, status: str) -> None:
        """Put what came of it into the item that grew."""
        text, self._texts = "".join(self._texts), []
        own = {"arguments": text} if isinstance(self._kind, int) else {"content": [_part(self._kind, text)]}
        assert self._item is not None
        self._item.update(own, status=status)

    # -- events -------------------------------------------------------------------------------------------------------

    def _at(self, kind: str, **fields: Any) -> None:
        """An event of the item that grows."""
        assert self._item is not None
        self._event(kind, item_id=self._item["id"], output_index=len(self.object["output"]) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> None:
        data = msgspec.json.encode({"type": kind, "sequence_number": self._told, **fields})
        self._events.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))
        self._told += 1

    def _flush(self) -> bytes:
        events, self._events = b"".join(self._events), []
        return events


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "output_text":
        return {"type": kind, "text": text, "annotations": [], "logprobs": []}
    return {"type": kind, "refusal" if kind == "refusal" else "text": text}


def _counted(usage: _Usage | None, about: About) -> dict[str, Any]:
    usage = usage or _Usage(about.tokens_in, about.tokens_out)
    read, written = usage.prompt_tokens_details or _Details(), usage.completion_tokens_details or _Details()
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": read.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": written.reasoning_tokens or 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
