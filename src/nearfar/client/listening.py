"""Who hears what a client decides and what fails: the live panel, a trail, a program's own record."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nearfar.errors import NearfarError
from nearfar.fleet.snapshot import Snapshot
from nearfar.placement.decide import Decision
from nearfar.types.ids import ServiceId
from nearfar.types.request import Request
from nearfar.types.units import Milliseconds, Seconds

log = logging.getLogger(__name__)


class Listener:
    """Override what you want to hear. Called on the client's event loop in the middle of a request: return at once."""

    def decided(self, request: Request, decision: Decision, snapshot: Snapshot, now: Seconds) -> None:
        """A decision was made from this snapshot, and is acted on next. All four are frozen and may be kept."""

    def failed(self, request: Request, service: ServiceId, error: NearfarError, waited: Milliseconds) -> None:
        """An attempt brought no answer. Another one may follow."""

    def hedged(self, request: Request, service: ServiceId, first: ServiceId, waited: Milliseconds) -> None:
        """`service` is asked too, since `first` has been silent for so long."""


class Listeners:
    """Tells all of them. What one raises is logged, once each, and breaks no request; false while there is none."""

    def __init__(self) -> None:
        self._each: tuple[Listener, ...] = ()
        self._broken: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._each)

    def add(self, listener: Listener) -> Callable[[], None]:
        """Listen from now on; call what comes back to stop."""
        self._each = (*self._each, listener)

        def remove() -> None:
            self._each = tuple(each for each in self._each if each is not listener)

        return remove

    def decided(self, request: Request, decision: Decision, snapshot: Snapshot, now: Seconds) -> None:
        for each in self._each:
            try:
                each.decided(request, decision, snapshot, now)
            except Exception:
                self._complain(each)

    def failed(self, request: Request, service: ServiceId, error: NearfarError, waited: Milliseconds) -> None:
        for each in self._each:
            try:
                each.failed(request, service, error, waited)
            except Exception:
                self._complain(each)

    def hedged(self, request: Request, service: ServiceId, first: ServiceId, waited: Milliseconds) -> None:
        for each in self._each:
            try:
                each.hedged(request, service, first, waited)
            except Exception:
                self._complain(each)

    def _complain(self, listener: Listener) -> None:
        if id(listener) not in self._broken:
            self._broken.add(id(listener))
            log.exception("a listener failed: %r; it is not told of again", listener)


class Choices(Listener):
    """Calls a function with every (request, decision); for a panel that shows who serves."""

    def __init__(self, tell: Callable[[Request, Decision], None]) -> None:
        self._tell = tell

    def decided(self, request: Request, decision: Decision, snapshot: Snapshot, now: Seconds) -> None:
        self._tell(request, decision)
