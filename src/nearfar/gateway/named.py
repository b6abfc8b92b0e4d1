"""Streams of HTTP clients: requests that carry the same `Nearfar-Stream` stay where they are, and leave one trail.

A request without that header costs nothing here: no listener is there until the first stream is named.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from nearfar.client.client import Client
from nearfar.client.trail import Trail
from nearfar.client.trailfile import Writer
from nearfar.client.trails import Trails
from nearfar.errors import Cancelled, NearfarError
from nearfar.types.ids import ModelName, ServiceId, StreamId
from nearfar.types.request import FRAME, Answer

MOST = 32
"""Named streams at a time; one more ends the one that asked longest ago."""
IDLE = 600.0
"""Seconds without a request after which a stream is over."""
KEPT = 200
"""Entries of each that are kept in memory."""

log = logging.getLogger(__name__)


class Ask(Protocol):
    """A request that waits for its stream to be told."""

    async def __call__(self, *, stream: StreamId, incumbent: ServiceId | None) -> Answer: ...


class _Named:
    def __init__(self, trail: Trail) -> None:
        self.trail = trail
        self.incumbent: ServiceId | None = None
        self.asked = 0
        self.newest = -1
        """The highest number whose answer came and counted."""
        self.used = 0.0
        self.quiet: Callable[[], None] = lambda: None
        """Takes the trail from the client's listeners."""


class NamedStreams:
    """Those of one gateway, and the way to every trail there is. Used on the gateway's event loop."""

    def __init__(self, client: Client, home: Path | None = None, keep: int = 50) -> None:
        self._client, self._home, self._keep = client, home, keep
        self._streams: OrderedDict[StreamId, asyncio.Task[_Named]] = OrderedDict()
        self._writer = Writer()
        self._trails: Trails | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def trails(self) -> Trails:
        """Trails of the whole fleet, and of this home folder."""
        if self._trails is None:
            self._trails = Trails(self._client.mesh, self._home)
        return self._trails

    async def asked(self, name: str, model: ModelName, ask: Ask) -> Answer:
        """Ask as a part of the stream, which is numbered and counted there. `name` is one (`is_name`). Raises what
        `ask` raises."""
        stream = StreamId(name)
        self._end_idle()
        making = self._streams.get(stream)
        if making is None:
            making = self._streams[stream] = asyncio.create_task(self._make(stream, model), name=f"stream {stream}")
            while len(self._streams) > MOST:
                self._end(next(iter(self._streams)), "made room for another stream of this gateway")
        self._streams.move_to_end(stream)
        try:
            named = await asyncio.shield(making)  # a client that leaves must not end it for those who came after
        except Exception:
            self._streams.pop(stream, None)  # the next request tries again
            raise
        named.used = time.monotonic()
        number, named.asked = named.asked, named.asked + 1
        token = FRAME.set(number)
        try:
            answer = await ask(stream=stream, incumbent=named.incumbent)
        except (NearfarError, asyncio.CancelledError) as error:
            gone = isinstance(error, Cancelled | asyncio.CancelledError)
            named.trail.outcome("cancelled" if gone else "failed", frame=number)
            raise
        finally:
            FRAME.reset(token)
        # Of this request alone, or asked before one that is answered already: the stream has not moved, nor moved back.
        by_the_way = (answer.aside and named.incumbent is not None) or number < named.newest
        if not by_the_way:
            named.incumbent, named.newest = answer.served_by, number
        named.trail.outcome("answered", None if by_the_way else answer.served_by, number)
        return answer

    async def _make(self, stream: StreamId, model: ModelName) -> _Named:
        client = self._client
        trail = Trail(
            stream,
            model,
            source="HTTP",
            by=client.me,
            home=self._home,
            mesh=client.mesh,
            keep=self._keep,
            kept=KEPT,
            writer=self._writer,
            warn=log.warning,
        )
        await trail.start()
        named = _Named(trail)
        named.quiet = client.listeners.add(trail)
        named.used = time.monotonic()
        return named

    def _end_idle(self) -> None:
        """End the streams that nobody asks for any more; the oldest is the first."""
        while self._streams:
            stream, making = next(iter(self._streams.items()))
            if not making.done() or time.monotonic() - making.result().used < IDLE:
                return
            self._end(stream, f"no request for {IDLE / 60:.0f} minutes")

    def _end(self, stream: StreamId, reason: str) -> None:
        making = self._streams.pop(stream)

        async def end() -> None:
            named = await making
            named.quiet()
            named.trail.ended(reason)
            await named.trail.close()

        task = asyncio.create_task(end(), name=f"end of stream {stream}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End every stream, and write what is left."""
        for stream in tuple(self._streams):
            self._end(stream, "the gateway was stopped")
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self._trails is not None:
            self._trails.close()
        await asyncio.get_running_loop().run_in_executor(None, self._writer.close)
