"""What a live panel says of a stream's decisions: one line whenever another service is chosen for it."""

from __future__ import annotations

from collections.abc import Callable

from nearfar.client.listening import Listener
from nearfar.fleet.snapshot import Snapshot
from nearfar.placement.decide import Decision
from nearfar.types.ids import ServiceId, StreamId
from nearfar.types.request import Request
from nearfar.types.units import Seconds


class Notes(Listener):
    """Calls `note(request, decision)` when the stream's choice is another one than before.

    Left out, as they choose nothing for the stream: copies of frames during a move, frames that are held where the
    stream is meanwhile, second copies and second tries, and frames that go elsewhere alone (`Decision.aside`).
    """

    def __init__(self, stream: StreamId | None, node: str | None, note: Callable[[Request, Decision], None]) -> None:
        """`node`: the only one that the user allows, if any."""
        self._stream, self._node, self._note = stream, node, note
        self._chosen: ServiceId | None = None

    def decided(self, request: Request, decision: Decision, snapshot: Snapshot, now: Seconds) -> None:
        if request.stream != self._stream or request.frame is None or request.qos.node != self._node:
            return
        if request.excluded or decision.aside or decision.chosen in (None, self._chosen):
            return
        self._chosen = decision.chosen
        if decision.chosen != request.incumbent:  # that it stays where it just moved to is no news
            self._note(request, decision)
