"""Head and body of a response in one write, as the kernel and the client would rather have them.

uvicorn writes a response's head and each part of its body on their own: a system call and, for the client, a wake-up
each. Here a head waits for its body, until the end of the round of the event loop at most.
"""

from __future__ import annotations

import asyncio
from typing import Any

_LARGE = 65536


class CorkedTransport:
    """Collects writes until the end of the round; everything else is the transport's own."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._out: list[bytes] = []

    def write(self, data: bytes) -> None:
        if self._out:  # the body after its head: that is a whole response, or all but its tensors
            self._out.append(data)
            self._flush()
        else:
            self._out.append(data)
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if not out or self._transport.is_closing():
            return
        if len(out) == 1:
            self._transport.write(out[0])
        elif sum(map(len, out)) < _LARGE:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
