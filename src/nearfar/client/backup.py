"""Second copies of one request: to another service when the first takes too long for the deadline or fell silent.

The first copy is awaited by the caller's own task, as most requests need no second one. The client's lookout looks
after it, and when it would be late or silent is reckoned only once it is overdue, as nearly none is. When a second copy
answers first, it interrupts that wait, as `asyncio.timeout` does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, NamedTuple, Protocol

import msgspec

from nearfar.client.lookout import Appointment, Lookout
from nearfar.errors import NearfarError
from nearfar.fleet.snapshot import Snapshot
from nearfar.placement.decide import Decision
from nearfar.placement.hedging import LEAST_WAIT, Budget, hedge_at, second_of
from nearfar.placement.silence import alarm, suspect_from, tolerance
from nearfar.types.ids import ServiceId
from nearfar.types.request import Answer, Request
from nearfar.types.units import Seconds

MOST_COPIES = 3
"""Of one request, under way at a time."""


class Counts(msgspec.Struct):
    """What one client did against the tail and against silence, since it started."""

    requests: int = 0
    hedges: int = 0
    """Second copies within the budget, as the first took longer than the 95th percentile of what was expected."""
    asked_again: int = 0
    """Second copies because the service asked first had fallen silent; not taken from the budget."""
    won: int = 0
    """Second copies that answered first."""


class Robust:
    """What all requests of one client share: the budget of hedges, the counts, and the timer."""

    def __init__(self, share: float) -> None:
        self.budget = Budget(share)
        self.counts = Counts()
        self.lookout = Lookout()
        self.tasks: set[asyncio.Task[Any]] = set()


class Sent:
    """One copy under way. `settle` is called once, with what came of it; later calls change nothing."""

    __slots__ = ("at", "due", "service", "settled")

    def __init__(self, service: ServiceId, at: Seconds, due: Seconds) -> None:
        self.service = service
        self.at = at
        self.due = due
        self.settled = False


class Choice(NamedTuple):
    """A request as it was decided, and by what."""

    request: Request
    decision: Decision
    snapshot: Snapshot


class Asking(Protocol):
    """One request, and who sends copies of it."""

    def snapshot(self) -> Snapshot:
        """The fleet at this moment."""
        ...

    def choose(self, excluded: tuple[ServiceId, ...]) -> Choice:
        """Decide anew, without these services."""
        ...

    def ask(self, choice: Choice, first: ServiceId, since: float) -> tuple[Sent, Coroutine[Any, Any, Answer]]:
        """Count a copy as sent, and what sends it and awaits its answer. It stands in for `first`, silent so long."""
        ...

    def drop(self, sent: Sent) -> None:
        """A copy is no longer needed: tell the snapshot, if nothing came of it yet."""
        ...


class Backup:
    """The copies of one request. Used by the task that asks; `end` is the deadline, or when patience ends."""

    __slots__ = ("_answer", "_appointment", "_asking", "_decision", "_end", "_first", "_hedge_at", "_hedged", "_open",
                 "_owner", "_robust", "failed")  # fmt: skip

    def __init__(self, robust: Robust, asking: Asking, end: float, hedged: bool) -> None:
        self._robust = robust
        self._asking = asking
        self._end = end
        self._hedged = hedged
        self._first: Sent | None = None
        self._decision: Decision | None = None
        """By which the first copy was sent, until it is overdue and looked at."""
        self._owner: asyncio.Task[Any] | None = None
        self._appointment: Appointment | None = None
        self._hedge_at: float | None = None
        self._open: dict[asyncio.Task[Answer], Sent] = {}
        self._answer: Answer | None = None
        self.failed: list[tuple[ServiceId, NearfarError]] = []
        """Second copies that failed, and why."""

    async def first(
        self, decision: Decision, snapshot: Snapshot, sent: Sent, attempt: Coroutine[Any, Any, Answer]
    ) -> Answer:
        """Await the first copy, or one sent after others failed; the answer of whichever comes first."""
        self._first, self._decision, self._hedge_at = sent, decision, None
        if decision.expected is not None:
            view = snapshot.services[sent.service]
            self._wake_at(suspect_from(snapshot, view, sent.at, sent.due, LEAST_WAIT))
        owner = self._owner = asyncio.current_task()
        before = owner.cancelling() if owner is not None else 0
        try:
            return await attempt
        except asyncio.CancelledError:
            if self._answer is not None and owner is not None and owner.uncancel() <= before:
                return self._answer
            raise
        finally:
            self._owner = self._first = None
            self._disarm()

    async def rest(self) -> Answer | None:
        """Await the second copies that are still under way when the first one failed; None when none answers."""
        while self._open and self._answer is None:
            await asyncio.wait(self._open, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)  # their callbacks come first
        return self._answer

    def close(self) -> None:
        """The request has come to its end: cancel what is still under way."""
        self._disarm()
        if self._open:
            for task, sent in self._open.items():
                self._asking.drop(sent)
                task.cancel()
            self._open.clear()

    # -- the timer ----------------------------------------------------------------------------------------------------

    def _wake_at(self, look: float) -> None:
        at = look if self._hedge_at is None else min(look, self._hedge_at)
        if at < self._end:
            self._appointment = self._robust.lookout.at(at, self._look)

    def _disarm(self) -> None:
        if self._appointment is not None:
            self._appointment.cancel()
            self._appointment = None

    def _reckon(self, decision: Decision, sent: Sent) -> float:
        """The first copy is overdue: when it is to be hedged, and when its service counts as silent."""
        snapshot, expected = self._asking.snapshot(), decision.expected
        view, observed = snapshot.services.get(sent.service), snapshot.observed.get(sent.service)
        if view is None or expected is None:
            return self._end
        if self._hedged and not self._open:
            self._hedge_at = hedge_at(expected, observed, second_of(decision), sent.at, Seconds(self._end))
        look = alarm(snapshot, view, sent.due)
        if look is None or look <= sent.at:  # silent already, and asked because nobody else is there
            look = Seconds(sent.due + tolerance(view, observed) / 1000)
        return look if self._hedge_at is None else min(look, self._hedge_at)

    def _look(self) -> None:
        """On the event loop: the time to hedge has come, or the service may have fallen silent."""
        sent, now = self._first, time.monotonic()
        if sent is None:
            return
        decision, self._decision = self._decision, None
        if decision is not None and (first := self._reckon(decision, sent)) > now:
            self._wake_at(first)
            return
        excluded = (sent.service, *(other.service for other in self._open.values()))
        choice = self._asking.choose(excluded)
        expected = choice.decision.expected  # None when nobody may
        could = expected is not None and now + expected.total / 1000 <= self._end
        counts = self._robust.counts
        if self._hedge_at is not None and now >= self._hedge_at:
            self._hedge_at = None
            if could and self._robust.budget.affords:
                self._robust.budget = self._robust.budget.spend()
                counts.hedges += 1
                self._second(choice, sent)
                could = False
        view = choice.snapshot.services.get(sent.service)
        look = alarm(choice.snapshot, view) if view is not None else None
        if look is None:
            return
        if look > now:
            self._wake_at(look)
        elif could and len(self._open) + 1 < MOST_COPIES:
            counts.asked_again += 1
            self._second(choice, sent)

    def _second(self, choice: Choice, first: Sent) -> None:
        sent, attempt = self._asking.ask(choice, first.service, first.at)
        task = asyncio.create_task(attempt, name=f"second copy to {sent.service}")
        self._open[task] = sent
        self._robust.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Answer]) -> None:
        self._robust.tasks.discard(task)
        sent = self._open.pop(task, None)
        if sent is not None:
            self._asking.drop(sent)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, NearfarError):
            if sent is not None:
                self.failed.append((sent.service, error))
        elif error is None and not task.cancelled() and sent is not None and self._answer is None:
            self._answer = msgspec.structs.replace(task.result(), aside=True)
            self._robust.counts.won += 1
            if self._owner is not None:
                self._owner.cancel()
