"""One timer for all requests of a client: nearly all are answered before anybody must look after them.

A timer of the event loop for each would cost more than all else that is done against silence and the tail.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from itertools import count

Look = Callable[[], None]
_FEW = 1024
"""Appointments that are kept before those that were cancelled are looked for."""


class Appointment:
    """Something to be done at a moment, unless it is cancelled before."""

    __slots__ = ("look",)

    def __init__(self, look: Look) -> None:
        self.look: Look | None = look

    def cancel(self) -> None:
        """Let go of what was to be called: the entry itself waits in the heap until its time has come."""
        self.look = None


class Lookout:
    """Calls what is due. Used from one event loop; a call may be a millisecond late, and is never early."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Appointment]] = []
        self._numbers = count()
        self._most = _FEW
        self._timer: asyncio.TimerHandle | None = None
        self._wakes = 0.0

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, moment: float, look: Look) -> Appointment:
        """Call `look` at a moment of the monotonic clock, in seconds; at once, but not from here, when it is past."""
        appointment = Appointment(look)
        heapq.heappush(self._heap, (moment, next(self._numbers), appointment))
        if len(self._heap) > self._most:
            self._sweep()
        if self._timer is None or moment < self._wakes:
            self._arm(moment)
        return appointment

    def close(self) -> None:
        """Forget all appointments."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2].look is not None]
        heapq.heapify(self._heap)
        self._most = 2 * len(self._heap) + _FEW

    def _arm(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wakes = moment
        # Loops count in milliseconds and round: one more, so that it is not woken before the moment, again and again.
        wait = max(0.0, moment - time.monotonic()) + 0.001
        self._timer = asyncio.get_running_loop().call_later(wait, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = time.monotonic()
        heap = self._heap
        due: list[Look] = []
        while heap and (heap[0][0] <= now or heap[0][2].look is None):
            appointment = heapq.heappop(heap)[2]
            if appointment.look is not None:
                due.append(appointment.look)
        if heap:
            self._arm(heap[0][0])
        for look in due:
            try:
                look()
            except Exception as error:  # as the loop treats a timer's callback: the others are called all the same
                asyncio.get_running_loop().call_exception_handler({"message": f"{look!r} failed", "exception": error})
