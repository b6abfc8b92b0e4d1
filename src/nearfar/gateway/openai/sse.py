"""A streamed answer as server-sent events (WHATWG HTML, 9.2): `data: {...}` for each chunk, `[DONE]` at its end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec

from nearfar.gateway.body import Send
from nearfar.gateway.openai.told import request_headers, with_about
from nearfar.language.call import About, TextCall

KEEP_ALIVE = 15.0
"""Seconds without an event after which a comment tells the client, and what stands between, that work goes on."""
_COMMENT = b": still at work\n\n"
_HEAD = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that collects the answer first would make streaming pointless
]
_REASON, _REASON_SPACED = b'"finish_reason":"', b'"finish_reason": "'
_USAGE, _USAGE_SPACED = b'"usage":{', b'"usage": {'
_DONE = b"data: [DONE]\n\n"


class _Named(msgspec.Struct):
    """What all chunks of one answer share."""

    id: str = ""
    object: str = "chat.completion.chunk"
    created: int = 0
    model: str = ""


_named = msgspec.json.Decoder(_Named)


class Events:
    """One answer on its way to one client. Nothing is sent before the first chunk, so that what fails before it has a
    status of its own, unless that takes longer than `KEEP_ALIVE`."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self._held = b""
        """The chunk that ends the text: the next may be the last one, and `nearfar` belongs on the last."""
        self._seen = b""
        self._loop = asyncio.get_running_loop()
        self._written = self._loop.time()
        self._timer = self._loop.call_later(KEEP_ALIVE, self._beat)
        self._beating: asyncio.Task[None] | None = None
        self.started = False

    async def give(self, lines: bytes) -> None:
        """Chunks, a JSON object a line; all of them in one write."""
        if self._held:
            lines, self._held = (b"%b\n%b" % (self._held, lines) if lines else self._held), b""
        cut = lines.rfind(b"\n") + 1
        last = lines[cut:] if cut else lines
        if _ends(last):
            self._held = last
            lines = lines[: max(0, cut - 1)]
        self._seen = last
        if lines:
            await self._write(_events(lines))

    async def end(self, lines: bytes, about: About) -> None:
        """The last chunks, what is to be said of the answer on the last of them, and the end."""
        lines = b"\n".join(filter(None, (self._held, lines)))
        if lines:
            before, newline, last = lines.rpartition(b"\n")
        else:
            before, newline, last = b"", b"", _own(self._seen)
        await self._write(_events(before + newline + with_about(last, about)) + _DONE, more=False)

    async def fail(self, error: dict[str, Any]) -> None:
        """The error as an event, and the end, without `[DONE]`: what came is not the whole answer."""
        held = _events(self._held) if self._held else b""
        await self._write(held + _events(msgspec.json.encode(error)), more=False)

    def close(self) -> None:
        self._timer.cancel()
        if self._beating is not None:
            self._beating.cancel()

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        if self._beating is not None:
            with contextlib.suppress(OSError):
                await self._beating
            self._beating = None
        await self._put(data, more)

    async def _put(self, data: bytes, more: bool) -> None:
        self._written = self._loop.time()
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEAD + self._headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def _beat(self) -> None:
        idle = self._loop.time() - self._written
        if idle >= KEEP_ALIVE * 0.99 and (self._beating is None or self._beating.done()):
            self._beating = self._loop.create_task(self._put(_COMMENT, True), name="keep alive")
            idle = 0.0
        self._timer = self._loop.call_later(max(KEEP_ALIVE - idle, KEEP_ALIVE / 100), self._beat)


class AsItCame:
    """The form of all paths but one: what comes in goes to the engine, and what that says goes out."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def whole(self, call: TextCall, answer: bytes, about: About) -> bytes:
        return with_about(answer, about)

    def events(self, call: TextCall, send: Send) -> Events:
        return Events(send, request_headers(call.id))


def _events(lines: bytes) -> bytes:
    """
    >>> _events(b'{"a":1}\\n{"a":2}')
    b'data: {"a":1}\\n\\ndata: {"a":2}\\n\\n'
    """
    return b"data: %b\n\n" % lines.replace(b"\n", b"\n\ndata: ")


def _ends(chunk: bytes) -> bool:
    """Whether it says why the text ended, or what was used. A text that holds these words has escaped quotes there."""
    return _REASON in chunk or _REASON_SPACED in chunk or _USAGE in chunk or _USAGE_SPACED in chunk


def _own(seen: bytes) -> bytes:
    """A chunk without text, of the same answer as the one that was seen."""
    try:
        named = _named.decode(seen)
    except msgspec.MsgspecError:
        named = _Named()
    return msgspec.json.encode(msgspec.structs.asdict(named) | {"choices": []})
