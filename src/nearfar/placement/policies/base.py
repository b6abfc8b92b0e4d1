"""The seam: a policy ranks services that may all take the request. It never sees one that a filter refused."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import msgspec

from nearfar.fleet.snapshot import ServiceView, Snapshot
from nearfar.placement.expectation import Expectation
from nearfar.types.ids import ServiceId
from nearfar.types.request import Request
from nearfar.types.units import Seconds

SHOWN = 8
"""A decision shows so many ranked candidates; a policy may leave `note` empty beyond them."""


class Ranked(msgspec.Struct, frozen=True, gc=False):
    """One candidate. `cost` orders those of one policy, lower is better; its unit is the policy's own."""

    service: ServiceId
    cost: float
    late: bool = False
    """Expected to miss the deadline."""
    expected: Expectation | None = None
    note: str = ""
    degraded: bool = False
    """Weak (`fleet/health.py`): comes after those that are not and keep the deadline."""
    aside: bool = False
    """Chosen for this request alone: the stream stays with its incumbent, whose queue is too long just now."""

    @property
    def why(self) -> str:
        """The numbers behind the cost, worded only when somebody looks."""
        if self.note or self.expected is None:
            return self.note
        return f"expected in {self.expected}"


class Policy(Protocol):
    """A pure function with a name. Equal arguments, among them the state of `rng`, give an equal ranking."""

    @property
    def name(self) -> str: ...

    @property
    def sample(self) -> int | None:
        """How many candidates to draw when a model has very many services; None looks at every one."""
        ...

    def rank(
        self,
        snapshot: Snapshot,
        request: Request,
        candidates: Sequence[ServiceView],
        now: Seconds,
        rng: random.Random,
    ) -> Sequence[Ranked]:
        """Every candidate once, best first; the first one is chosen. `candidates` is never empty."""
        ...
