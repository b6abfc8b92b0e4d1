"""A stream and its frames, as the engine follows them from birth to their one end."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from nearfar.types.ids import ServiceId

if TYPE_CHECKING:
    import random

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

    __slots__ = ("deadline", "gateway", "id", "incumbent", "large", "left", "left_at", "moved_at", "newest", "period",
                 "rng", "size")  # fmt: skip

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


class Frame:
    """One frame. Its luck (`z`, `up`, `down`, `factor`) is drawn once, so that every policy meets the same."""

    __slots__ = (
        "attempt",
        "born",
        "down",
        "end",
        "ended",
        "excluded",
        "factor",
        "given_up",
        "gone",
        "node",
        "number",
        "received",
        "sent",
        "service_ms",
        "stream",
        "up",
        "wait_ms",
        "waiting",
        "z",
    )  # fmt: skip

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
        self.attempt = 0
        self.waiting = False
        self.given_up = False
        self.gone = False
        self.ended = False
        self.node: Node | None = None
        self.sent = 0.0
        self.received = 0.0
        self.wait_ms = 0.0
        self.service_ms = 0.0
