"""A load generator for HTTP/1.1 on loopback, in a process of its own: raw asyncio sockets, one connection a client.

Light on purpose: on a machine with few cores the client must not be what is measured. Prints one JSON object.

    python -m benchmarks.load PORT CLIENTS SECONDS REQUEST_FILE

REQUEST_FILE holds the whole request, header and body. Every answer must be a 200 with a Content-Length.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any


class Client(asyncio.Protocol):
    """Sends the request, waits for the whole answer, notes the time, sends again."""

    def __init__(self, port: int, request: bytes, times: list[float], stop: asyncio.Event) -> None:
        self.port = port
        self.request = request
        self.times = times
        self.stop = stop
        self.closed = asyncio.get_running_loop().create_future()
        self.answered = 0
        """On this connection: some servers (llama.cpp's) end one after about a hundred."""
        self._have = 0
        self._want = -1
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.answered = 0
        self._send()

    def _send(self) -> None:
        self._have, self._want, self._head = 0, -1, b""
        self.start = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self._want < 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._head[:end].lower()
            if b" 200 " not in head[:16]:
                self.closed.set_exception(RuntimeError(self._head[:500].decode(errors="replace")))
                self.transport.close()
                return
            at = head.index(b"content-length:") + 15
            self._want = int(head[at:].split(b"\r\n", 1)[0])
            self._have = len(self._head) - end - 4
        else:
            self._have += len(data)
        if self._have >= self._want:
            self.times.append(time.perf_counter() - self.start)
            self.answered += 1
            if self.stop.is_set():
                self.transport.close()
            else:
                self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            if self.stop.is_set():
                self.closed.set_result(None)
            elif self.answered and not self._have:  # it ended between two answers: the request goes out once more
                loop = asyncio.get_running_loop()
                self.again = loop.create_task(loop.create_connection(lambda: self, "127.0.0.1", self.port))
            else:
                self.closed.set_exception(exc or RuntimeError("the server closed the connection"))


async def run(port: int, clients: int, seconds: float, request: bytes) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    times: list[float] = []
    stop = asyncio.Event()
    made = [
        (await loop.create_connection(lambda: Client(port, request, times, stop), "127.0.0.1", port))[1]
        for _ in range(clients)
    ]
    await asyncio.sleep(min(1.0, seconds / 4))  # warm-up, not counted
    times.clear()
    start = time.perf_counter()
    done = asyncio.gather(*(client.closed for client in made))
    await asyncio.wait([done], timeout=seconds)
    spent = time.perf_counter() - start
    count = len(times)
    stop.set()
    await asyncio.wait_for(done, 30)
    ordered = sorted(times[:count])
    return {
        "requests_per_second": count / spent,
        "p50_ms": ordered[count // 2] * 1000,
        "p99_ms": ordered[int(count * 0.99)] * 1000,
        "requests": count,
    }


if __name__ == "__main__":
    import uvloop

    port, clients, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    print(json.dumps(uvloop.run(run(port, clients, seconds, Path(sys.argv[4]).read_bytes()))))
