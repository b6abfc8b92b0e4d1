"""One HTTP request to a far end: where it goes, how long it may take, and what foreign exceptions mean.

On httpcore, which knows no redirects, no cookies and no proxies of the environment. It takes a network backend of one's
own: here each read and each write is given what is left of the call's time, so that neither a slow drip of bytes nor
dripping headers outlast a deadline.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import httpcore

from nearfar import __version__
from nearfar.errors import DeadlineExceeded, InferenceError, ModelFileError, NearfarError, Overloaded, Unreachable
from nearfar.ledger import Outcome
from nearfar.runtimes.engine import one_line
from nearfar.runtimes.remote.description import FarEnd, Key
from nearfar.runtimes.remote.failures import Failed

CONNECT_S = 10.0
"""Longest time to connect; a far end that takes longer is as good as gone."""
IDLE_S = 5.0
"""An idle connection is closed after so long: sooner than any server that is known does, as a request that meets a
closing connection may have been billed."""


class Allowance:
    """The time of one attempt, and what was sent in it."""

    def __init__(self, silence: float, end: float) -> None:
        self.silence = silence
        """Longest time in seconds without a byte."""
        self.end = end
        """Moment of the monotonic clock after which nothing is waited for."""
        self.wrote = 0
        self.write_failed = False

    def left(self, most: float) -> float:
        """Seconds that the next step may take; not more than 0 when there are none."""
        return min(most, self.end - time.monotonic())

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.end

    @property
    def arrived(self) -> bool:
        """Whether the far end may have the whole request."""
        return self.wrote > 0 and not self.write_failed


_allowance: ContextVar[Allowance] = ContextVar("allowance")


class _Stream(httpcore.NetworkStream):
    """A connection whose every step is bounded by the present call's allowance."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        allowance = _allowance.get()
        wait = allowance.left(allowance.silence)
        if wait <= 0:
            raise httpcore.ReadTimeout
        return self._inner.read(max_bytes, wait)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        allowance = _allowance.get()
        wait = allowance.left(allowance.silence)
        try:
            if wait <= 0:
                raise httpcore.WriteTimeout
            self._inner.write(buffer, wait)
        except BaseException:
            allowance.write_failed = True
            raise
        allowance.wrote += len(buffer)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        wait = _allowance.get().left(CONNECT_S)
        if wait <= 0:
            raise httpcore.ConnectTimeout
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, wait))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        wait = _allowance.get().left(CONNECT_S)
        if wait <= 0:
            raise httpcore.ConnectTimeout
        return _Stream(self._inner.connect_tcp(host, port, wait, local_address, socket_options))


class Response:
    """An answer whose head is here; `chunks` reads its body once."""

    def __init__(self, status: int, headers: Mapping[str, str], chunks: Iterator[bytes]) -> None:
        self.status = status
        self.headers = headers
        """Names in lower case; of a name that comes twice the last."""
        self.chunks = chunks


class Transport:
    """Connections to one far end, for several threads. Raises `ModelFileError` for a `ca_file` that will not do."""

    def __init__(self, far: FarEnd, key: Key | None) -> None:
        self._far = far
        base, _, query = far.base_url.partition("?")
        self._base, self._query = base.rstrip("/"), f"?{query}" if query else ""
        headers: dict[bytes | str, bytes | str] = {"user-agent": f"nearfar/{__version__}"}
        headers |= {"content-type": "application/json", "accept-encoding": "identity"}
        headers |= {name.lower(): value for name, value in far.headers.items()}
        if key is not None:
            name = far.key_header.lower()
            headers[name] = f"Bearer {key.value}" if name == "authorization" else key.value
        self._headers = headers
        options: dict[str, Any] = {
            "ssl_context": _trust(far) if far.base_url.startswith("https") else None,
            "max_connections": far.slots,
            "max_keepalive_connections": far.slots,
            "keepalive_expiry": IDLE_S,
            "network_backend": _Backend(),
        }
        proxied = bool(far.proxy)
        self._pool = httpcore.HTTPProxy(far.proxy, **options) if proxied else httpcore.ConnectionPool(**options)

    @contextlib.contextmanager
    def post(
        self, path: str, body: bytes, allowance: Allowance, request: str, streamed: bool = False
    ) -> Iterator[Response]:
        """Send, and hand over the answer's head; the connection is closed, or kept when the body was read to its end.

        Raises `Failed` for all that goes wrong on the way, also inside the block while the body is read.
        """
        headers: dict[bytes | str, bytes | str] = {
            **self._headers,
            "accept": "text/event-stream" if streamed else "application/json",
            # The same for each attempt: a provider that knows it bills one of them.
            "idempotency-key": request,
        }
        token = _allowance.set(allowance)
        try:
            with self._pool.stream(
                "POST", self._base + path + self._query, headers=headers, content=body,
                extensions={"timeout": {"pool": max(0.001, allowance.left(CONNECT_S))}},
            ) as answer:  # fmt: skip
                told = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
                yield Response(answer.status, told, self._chunks(answer, allowance))
        except Exception as error:
            if (failed := self._translated(error, allowance)) is None:
                raise
            raise failed from error
        finally:
            _allowance.reset(token)

    def _chunks(self, answer: httpcore.Response, allowance: Allowance) -> Iterator[bytes]:
        try:
            yield from answer.iter_stream()
        except Exception as error:
            if (failed := self._translated(error, allowance)) is None:
                raise
            raise failed from error

    def close(self) -> None:
        self._pool.close()

    def _translated(self, error: Exception, allowance: Allowance) -> Failed | None:
        """None for what did not come from the network."""
        host, words = self._far.host, type(error).__name__
        outcome = Outcome.MAYBE_BILLED if allowance.arrived else Outcome.NOT_BILLED
        found: NearfarError
        match error:
            case httpcore.PoolTimeout():
                found = Overloaded(f"Every connection to {host} is busy.", "Try again later.", 1.0)
                return Failed(found, Outcome.NOT_BILLED, words)
            case httpcore.TimeoutException() if allowance.over:
                found = DeadlineExceeded(f"{host} did not answer before the deadline.", "Allow more time.")
                return Failed(found, outcome, f"{words} at the deadline")
            case httpcore.ConnectTimeout():
                found = Unreachable(f"{host} cannot be reached: no connection in {CONNECT_S:g} s.", _NETWORK)
                return Failed(found, Outcome.NOT_BILLED, words, again=True)
            case httpcore.ConnectError() | httpcore.ProxyError():
                trust = isinstance(error.__cause__ or error.__context__, ssl.SSLError)
                hint = "Check its certificate, or give the authority with --ca-file." if trust else _NETWORK
                found = Unreachable(f"{host} cannot be reached: {one_line(error)}.", hint)
                return Failed(found, Outcome.NOT_BILLED, words, again=not trust)
            case httpcore.TimeoutException():
                found = Unreachable(f"{host} said nothing for {allowance.silence:g} s.", "Try again later.")
                return Failed(found, outcome, words, again=True)
            case httpcore.NetworkError() | httpcore.RemoteProtocolError():
                found = Unreachable(f"{host} broke off: {one_line(error)}.", "Try again later.")
                return Failed(found, outcome, words, again=True)
            case httpcore.ProtocolError() | httpcore.UnsupportedProtocol() | httpcore.ConnectionNotAvailable():
                found = InferenceError(f"The call to {host} cannot be made: {one_line(error)}.", "Report this.")
                return Failed(found, Outcome.NOT_BILLED, words)
            case ssl.SSLError():  # a record that is broken in the middle of an answer
                found = Unreachable(f"{host} broke off: {one_line(error)}.", "Try again later.")
                return Failed(found, outcome, words, again=True)
            case _:
                return None


_NETWORK = "Check the network and --base-url: `nearfar far list` shows it."


def _trust(far: FarEnd) -> ssl.SSLContext:
    """The usual authorities, the system's, and one's own. Raises `ModelFileError`."""
    context = httpcore.default_ssl_context()
    if far.ca_file:
        try:
            context.load_verify_locations(far.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ModelFileError(f"ca_file {far.ca_file} cannot be used: {error}.", "Give a PEM file.") from None
    return context
