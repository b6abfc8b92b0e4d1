"""A client that leaves while its request is worked on: the work is cancelled, on both sides of the mesh.

ASGI tells of it only to who asks: `receive` returns when the client is gone. Asking takes a task of its own, so a
request is first given `PATIENCE` to be answered; most are, and pay for one timer alone.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from nearfar.errors import Cancelled
from nearfar.gateway.body import Receive

PATIENCE = 0.02
"""Seconds after which it is worth asking whether anybody still waits."""


class UntilLeft:
    """`with UntilLeft(receive): await work()` raises `Cancelled` when the client leaves before the work is done.

    The body must have been read: `receive` then says nothing but that the client is gone.
    """

    __slots__ = ("_left", "_receive", "_task", "_timer", "_watcher")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._left = False
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._begin)

    def _begin(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch(), name="client leaves")

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._left and isinstance(error, asyncio.CancelledError):
            if self._task.uncancel() > 0:  # somebody else wants the task to end as well
                return
            raise Cancelled("The client left before its answer was there.") from None
