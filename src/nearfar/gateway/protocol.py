"""uvicorn's HTTP/1.1 with two bounds that it leaves open: on the size of what comes before a body, and on how long a
client may be silent in the middle of its request. Without them strangers take memory and places as they like.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nearfar.gateway.corked import CorkedTransport

MOST_HEAD = 64 * 1024
"""Bytes of request line and headers; more are answered with 431."""
SILENCE = 30.0
"""Seconds without a byte after which an unfinished request is answered with 408."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections whose requests are too large in their head; `expire` closes those that are silent."""

    _head = 0
    """Bytes received of the head that is being read."""
    _in_body = False
    _heard = 0.0

    def connection_made(self, transport: Any) -> None:
        self._heard = self.loop.time()
        super().connection_made(CorkedTransport(transport, self.loop))  # type: ignore[arg-type]  # one by its methods

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        if not self._in_body:
            self._head += len(data)
        super().data_received(data)
        if self._head > MOST_HEAD and not self._in_body:
            self._end(b"431 Request Header Fields Too Large", b"The request line and headers are larger than 64 KiB.")

    def on_headers_complete(self) -> None:
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        self._head = 0
        super().on_message_complete()

    def expire(self, now: float) -> None:
        """Close the connection when its client owes us the rest of a request, or its first one, for too long."""
        owed = self._in_body or self._head > 0 or self.cycle is None
        if owed and now - self._heard > SILENCE and not self.flow.read_paused:
            self._end(b"408 Request Timeout", b"The rest of the request did not come.")

    def _end(self, status: bytes, told: bytes) -> None:
        if self.transport.is_closing():
            return
        kind = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
        self.transport.write(b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, kind, len(told), told))
        self.transport.close()
