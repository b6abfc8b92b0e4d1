"""A far end that misbehaves on purpose: a real HTTP server on a free port that follows a script and keeps every byte.

    with FarServer([Act(Kind.STATUS, status=429, retry_after="1"), Act(Kind.CUT, at=2)]) as server:
        ...  # server.url is its base URL

The first request gets the first act, the second the second, and so on; then `then` (good answers, unless told). What it
received is in `received`, every byte of every connection, whether or not it was a request; `requests` are those that
arrived whole. It needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any

import msgspec


class Kind(StrEnum):
    GOOD = "good"
    STATUS = "status"
    """`status`, with `retry_after` when it is set."""
    CLOSE = "close"
    """Read the request, then close without a word."""
    RESET = "reset"
    """The same, with a reset instead of an end."""
    HEAD_ONLY = "head-only"
    """The head of an answer, then the end."""
    HALF_HEAD = "half-head"
    CUT = "cut"
    """End after `at` pieces of a stream, or in the middle of an answer."""
    MALFORMED = "malformed"
    """Piece `at` of a stream, or the answer, is no JSON."""
    BAD_UTF8 = "bad-utf8"
    HTML = "html"
    """A page with status 200."""
    EMPTY = "empty"
    """A stream, or a body, with nothing in it."""
    NO_CHOICES = "no-choices"
    USAGE = "usage"
    """`usage` in place of the true one; None for no usage."""
    DRIP = "drip"
    """One byte every `delay` seconds, head and all."""
    SLOW = "slow"
    """`delay` seconds between two pieces of a stream."""
    SILENT = "silent"
    """Not a word until the caller leaves."""
    STALL = "stall"
    """Silent after `at` pieces, or after half an answer."""
    SHORT = "short"
    """The body has fewer bytes than its content-length."""
    LONG = "long"
    """The body has more bytes than its content-length."""
    HUGE = "huge"
    """`size` bytes of text."""
    ERROR_EVENT = "error-event"
    """An error object in place of piece `at`."""
    NO_DONE = "no-done"
    """A stream that ends well without [DONE]."""
    NO_FINISH = "no-finish"
    """A stream that ends without a reason and without [DONE]."""
    ODD = "odd"
    """A good stream with comments, CR LF, several data lines, other fields, and chunks that end anywhere."""
    PLAIN = "plain"
    """A whole answer though a stream was asked for."""
    REDIRECT = "redirect"


class Act(msgspec.Struct, frozen=True):
    """What to do with one request."""

    kind: Kind = Kind.GOOD
    at: int = 1
    status: int = 500
    retry_after: str = ""
    message: str = "as told"
    code: str = "server_error"
    delay: float = 0.0
    """Seconds before the answer; of DRIP between two bytes."""
    usage: Any = None
    size: int = 1 << 20
    location: str = "http://elsewhere.invalid/v1"
    words: tuple[str, ...] = ("one ", "two ", "three ", "four")
    finish: str = "stop"


class Seen(msgspec.Struct, frozen=True):
    """A request that arrived whole."""

    head: str
    body: bytes

    @property
    def path(self) -> str:
        return self.head.split(" ", 2)[1]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str:
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.strip().lower() == name.lower():
                return value.strip()
        return ""


ON_PURPOSE = (
    Act(Kind.STATUS, status=500), Act(Kind.STATUS, status=502), Act(Kind.STATUS, status=503, retry_after="0"),
    Act(Kind.STATUS, status=429, retry_after="0"), Act(Kind.STATUS, status=400), Act(Kind.STATUS, status=401),
    Act(Kind.STATUS, status=404), Act(Kind.CLOSE), Act(Kind.RESET), Act(Kind.HEAD_ONLY), Act(Kind.HALF_HEAD),
    Act(Kind.CUT, at=0), Act(Kind.CUT, at=2), Act(Kind.MALFORMED, at=0), Act(Kind.MALFORMED, at=2), Act(Kind.BAD_UTF8),
    Act(Kind.HTML), Act(Kind.EMPTY), Act(Kind.NO_CHOICES), Act(Kind.USAGE),
    Act(Kind.USAGE, usage={"prompt_tokens": -4, "completion_tokens": 2}), Act(Kind.SHORT), Act(Kind.LONG),
    Act(Kind.ERROR_EVENT, at=0), Act(Kind.ERROR_EVENT, at=2), Act(Kind.NO_DONE), Act(Kind.NO_FINISH), Act(Kind.ODD),
    Act(Kind.PLAIN), Act(Kind.REDIRECT), Act(Kind.STALL, at=0), Act(Kind.STALL, at=2),
)  # fmt: skip
"""Faults of every kind that end by themselves or with the caller's patience, for tests that draw from them."""


def script(seed: int, length: int, good: float = 0.4) -> list[Act]:
    """Acts drawn at random; the same seed gives the same script. `good` is the share of good answers."""
    chance = random.Random(seed)
    return [Act() if chance.random() < good else chance.choice(ON_PURPOSE) for _ in range(length)]


class FarServer:
    """The server, from `with` to its end. `tls` makes it an https server."""

    def __init__(self, acts: Sequence[Act] = (), then: Act = Act(), tls: ssl.SSLContext | None = None) -> None:  # noqa: B008
        self.requests: list[Seen] = []
        self.received = bytearray()
        self.connections = 0
        self.sent_whole = 0
        """Answers that were sent to their end as told."""
        self._acts = list(acts)
        self._then = then
        self._tls = tls
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FarServer:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, *acts: Act) -> None:
        """More acts behind those that are left."""
        with self._lock:
            self._acts += acts

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            left = list(self._open)
        for connection in left:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        plain = connection
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            reader = Reader(connection, self._keep)
            while (seen := reader.request()) is not None:
                with self._lock:
                    self.requests.append(seen)
                    act = self._acts.pop(0) if self._acts else self._then
                if act.delay and act.kind not in (Kind.DRIP, Kind.SLOW):
                    self._closing.wait(act.delay)
                if not Performance(connection, seen, act, self._closing).play():
                    return
                with self._lock:
                    self.sent_whole += 1
        except OSError:  # the caller left
            pass
        finally:
            with self._lock:
                self._open.discard(plain)
            connection.close()

    def _keep(self, data: bytes) -> None:
        with self._lock:
            self.received += data


class Reader:
    """Requests from a connection; everything that comes is kept."""

    def __init__(self, connection: socket.socket, keep: Any) -> None:
        self._connection = connection
        self._keep = keep
        self._rest = b""

    def request(self) -> Seen | None:
        """The next whole request; None when the caller left before there was one."""
        while b"\r\n\r\n" not in self._rest:
            if not self._more():
                return None
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        seen = Seen(head.decode("latin-1"), b"")
        length = int(seen.header("content-length") or 0)
        while len(self._rest) < length:
            if not self._more():
                return None
        body, self._rest = self._rest[:length], self._rest[length:]
        return Seen(seen.head, body)

    def _more(self) -> bool:
        data = self._connection.recv(65536)
        self._keep(data)
        self._rest += data
        return bool(data)


class Performance:
    """One act for one request. `play` says whether the connection may be used again."""

    def __init__(self, connection: socket.socket, seen: Seen, act: Act, closing: threading.Event) -> None:
        self._connection = connection
        self._act = act
        self._closing = closing
        self._path = seen.path
        try:
            asked = seen.json
        except ValueError:
            asked = {}
        self._streamed = bool(asked.get("stream"))
        self._usage_asked = bool((asked.get("stream_options") or {}).get("include_usage"))

    def play(self) -> bool:
        act = self._act
        match act.kind:
            case Kind.CLOSE:
                return False
            case Kind.RESET:
                self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            case Kind.SILENT:
                return self._silent()
            case Kind.HALF_HEAD:
                return self._say(b"HTTP/1.1 200 OK\r\ncontent-ty", False)
            case Kind.HEAD_ONLY:
                return self._say(head(200, self._kind(), 100), False)
            case Kind.STATUS:
                body = json.dumps({"error": {"message": act.message, "type": act.code, "code": act.code}}).encode()
                more = {"retry-after": act.retry_after} if act.retry_after else {}
                return self._say(head(act.status, "application/json", len(body), **more) + body)
            case Kind.REDIRECT:
                return self._say(head(307, "text/plain", 0, location=act.location))
            case Kind.HTML:
                body = b"<!doctype html><title>Welcome</title><p>Please log in."
                return self._say(head(200, "text/html", len(body)) + body)
        if self._streamed and act.kind is not Kind.PLAIN:
            return self._stream()
        return self._whole()

    def _kind(self) -> str:
        return "text/event-stream" if self._streamed else "application/json"

    def _say(self, data: bytes, again: bool = True) -> bool:
        if self._act.kind is Kind.DRIP:
            for at in range(len(data)):
                if self._closing.wait(self._act.delay):
                    return False
                self._connection.sendall(data[at : at + 1])
        else:
            self._connection.sendall(data)
        return again

    def _silent(self) -> bool:
        while not self._closing.is_set() and self._connection.recv(1024):
            pass
        return False

    # -- one answer -------------------------------------------------------------------------------------------------

    def usage(self) -> Any:
        if self._act.kind is Kind.USAGE:
            return self._act.usage
        out = 0 if self._path.endswith("/embeddings") else len(self._act.words)
        return {"prompt_tokens": 9, "completion_tokens": out, "total_tokens": 9 + out}

    def answer(self) -> dict[str, Any]:
        act, text = self._act, "".join(self._act.words)
        if act.kind is Kind.HUGE:
            text = "x" * act.size
        base: dict[str, Any] = {"id": "far-1", "created": 1, "model": "large-1-2026"}
        if self._path.endswith("/embeddings"):
            base |= {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}]}
        elif self._path.endswith("/chat/completions"):
            message = {"role": "assistant", "content": text}
            base |= {"object": "chat.completion"}
            base |= {"choices": [{"index": 0, "message": message, "finish_reason": act.finish}]}
        else:
            base |= {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": act.finish}]}
        if act.kind is Kind.NO_CHOICES:
            base |= {"choices": [], "data": []}
        if (usage := self.usage()) is not None:
            base["usage"] = usage
        return base

    def _whole(self) -> bool:
        body = json.dumps(self.answer()).encode()
        length = len(body)
        match self._act.kind:
            case Kind.EMPTY:
                body, length = b"", 0
            case Kind.MALFORMED:
                body = body[:-7] + b" " * 7
            case Kind.BAD_UTF8:
                body = body.replace(b"one", b"\xff\xfe\xfd")
            case Kind.ERROR_EVENT:
                body = json.dumps({"error": {"message": self._act.message, "code": self._act.code}}).encode()
                length = len(body)
            case Kind.CUT | Kind.NO_FINISH | Kind.SHORT | Kind.STALL:
                body = body[: length // 2]
            case Kind.LONG:
                body += b"HTTP/1.1 200 OK\r\n"
        self._say(head(200, "application/json", length) + body)
        if self._act.kind is Kind.STALL:
            return self._silent()
        return self._act.kind not in (Kind.CUT, Kind.NO_FINISH, Kind.SHORT, Kind.LONG)

    # -- a stream ---------------------------------------------------------------------------------------------------

    def chunks(self) -> Iterator[dict[str, Any]]:
        base: dict[str, Any] = {"id": "far-1", "created": 1, "model": "large-1-2026"}
        chat = self._path.endswith("/chat/completions")
        base["object"] = "chat.completion.chunk" if chat else "text_completion"
        words = self._act.words if self._act.kind is not Kind.HUGE else ("x" * 65536,) * (self._act.size // 65536)
        if self._usage_asked:
            base["usage"] = None
        if chat:
            yield {**base, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
        for word in words:
            part = {"delta": {"content": word}} if chat else {"text": word}
            yield {**base, "choices": [{"index": 0, **part, "finish_reason": None}]}
        if self._act.kind is not Kind.NO_FINISH:
            last: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
            yield {**base, "choices": [{"index": 0, **last, "finish_reason": self._act.finish}]}
        if self._usage_asked and self._act.kind is not Kind.NO_FINISH and (usage := self.usage()) is not None:
            yield {**base, "choices": [], "usage": usage}

    def _stream(self) -> bool:
        act = self._act
        more = "transfer-encoding: chunked\r\n"
        self._say(f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n{more}\r\n".encode())
        if act.kind in (Kind.EMPTY, Kind.NO_CHOICES):
            if act.kind is Kind.NO_CHOICES:
                self._event(b'data: {"id": "far-1", "object": "chat.completion.chunk"}\n\n')
            return self._say(b"0\r\n\r\n")
        for number, chunk in enumerate(self.chunks()):
            data = json.dumps(chunk).encode()
            if number == act.at:
                match act.kind:
                    case Kind.CUT | Kind.SHORT:
                        return self._say(b"ff\r\ndata: {", False)
                    case Kind.STALL:
                        return self._silent()
                    case Kind.MALFORMED:
                        data = data[:-3]
                    case Kind.BAD_UTF8:
                        data = data.replace(b"far-1", b"far\xff")
                    case Kind.ERROR_EVENT:
                        data = json.dumps({"error": {"message": act.message, "code": act.code}}).encode()
            if act.kind is Kind.SLOW and number and self._closing.wait(act.delay):
                return False
            self._event(odd(chunk, number) if act.kind is Kind.ODD else b"data: " + data + b"\n\n")
        if act.kind not in (Kind.NO_DONE, Kind.NO_FINISH):
            self._event(b"data: [DONE]\n\n")
        self._say(b"0\r\n\r\n" + (b"more" if act.kind is Kind.LONG else b""))
        return act.kind is not Kind.LONG

    def _event(self, data: bytes) -> None:
        if self._act.kind is not Kind.ODD:
            self._say(b"%x\r\n%s\r\n" % (len(data), data))
            return
        for at in range(0, len(data), 7):
            part = data[at : at + 7]
            self._say(b"%x\r\n%s\r\n" % (len(part), part))
            time.sleep(0)


def odd(chunk: dict[str, Any], number: int) -> bytes:
    """An event as the standard allows it and few write it."""
    end = (b"\r\n", b"\n", b"\r")[number % 3]
    lines = [b": a comment", b"event: message", b"id: 7"]
    lines += [b"data:" + line.encode() for line in json.dumps(chunk, indent=1).split("\n")]
    return end.join([*lines, b"retry: 10", b"", b""])


def head(status: int, kind: str, length: int, **more: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Told", f"content-type: {kind}", f"content-length: {length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
