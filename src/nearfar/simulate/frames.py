"""A stream and its frames, as the engine follows them from birth to their one end."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from nearfar.types.ids import ServiceId

if TYPE_CHECKING:
    import random

    from nearfar.simulate.stream import Guard
    from nearfar.simulate.view import Gateway
    from nearfar.simulate.world import Node


class Outcome(StrEnum):
    """How a frame ended. All but `in_time` are violations."""

    IN_TIME = "in_time"
    LATE = "late"
    """Its answer was made, but came after the deadline, when nobody waited for it any more."""
    LOST = "lost"
    """No answer: refused by everybody, dropped in a queue after its deadline, or gone with a node."""


class Stream:
    """One sequence of frames through one gateway."""

    __slots__ = ("deadline", "gateway", "guard", "id", "incumbent", "large", "left", "left_at", "moved_at",
                 "newest", "period", "rng", "size")  # fmt: skip

    def __init__(self, number: int, gateway: Gateway, period: float, deadline: float, size: int, large: bool,
                 rng: random.Random) -> None:  # fmt: skip
        self.id = number
        self.gateway = gateway
        self.period = period
        self.deadline = deadline
        self.size = size
        self.large = large
        self.rng = rng
        self.incumbent: ServiceId | None = None
        self.left: ServiceId | None = None
        """Who served before the incumbent, left at `left_at`."""
        self.left_at = 0.0
        self.moved_at = 0.0
        self.newest = -1
        self.guard: Guard | None = None
        """Its monitor and its moves; None where the policy picks anew for every frame."""


class Frame:
    """One frame. The luck of its first copy is drawn once, so that every policy meets the same."""

    __slots__ = ("born", "code", "copies", "copy_to", "down", "end", "ended", "ended_at", "excluded", "factor",
                 "failed", "given_up", "number", "open", "owner", "pin", "rescued", "stream", "up", "z")  # fmt: skip

    def __init__(self, stream: Stream, number: int, born: float, end: float, z: float, up: float, down: float,
                 factor: float) -> None:  # fmt: skip
        self.stream = stream
        self.number = number
        self.born = born
        self.end = end
        self.z = z
        self.up = up
        self.down = down
        self.factor = factor
        self.excluded: tuple[ServiceId, ...] = ()
        self.copies = 0
        """How often it was sent, in all."""
        self.open: list[Copy] = []
        """Copies that neither answered nor failed yet, as far as the gateway knows."""
        self.given_up = False
        self.ended = False
        self.ended_at = 0.0
        self.code = ""
        """Why the last copy failed."""
        self.owner: ServiceId | None = None
        """The incumbent that its decisions know of."""
        self.pin: ServiceId | None = None
        """The only service that may be asked; None once that one failed."""
        self.rescued = False
        """Sent to the target of the move under way, since the owner would have been late."""
        self.copy_to: ServiceId | None = None
        """Set for the copy of a frame that a move sends to its target: its end is no frame's end."""
        self.failed: tuple[ServiceId, ...] = ()
        """To whom it was pinned in vain."""


class Copy:
    """One sending of a frame to one node."""

    __slots__ = ("aside", "budget_ms", "down", "due", "frame", "node", "received", "sent", "service_ms", "swallowed",
                 "up", "wait_ms", "z")  # fmt: skip

    def __init__(self, frame: Frame, node: Node, sent: float, due: float, aside: bool) -> None:
        self.frame = frame
        self.node = node
        self.sent = sent
        self.due = due
        self.aside = aside
        """Sent after the first one, for this frame's sake: what answers it does not move the stream."""
        self.budget_ms = 0.0
        self.swallowed = False
        """By a node that is cut off."""
        self.received = 0.0
        self.wait_ms = 0.0
        self.service_ms = 0.0
        self.z, self.up, self.down = frame.z, frame.up, frame.down
