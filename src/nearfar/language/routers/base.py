"""The seam of a router: a prompt in, a calibrated probability that the near answer is good enough out.

Threshold, budget and privacy live outside: a router sees no price, keeps nothing and sends nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec


class Prompt(msgspec.Struct, frozen=True):
    """What a router may look at."""

    text: str
    """The last thing that the user said."""
    before: str = ""
    """Earlier turns, in their order, one after the other."""
    system: str = ""
    tools: bool = False
    """The request offers tools."""
    schema: bool = False
    """The answer must fit a schema or be JSON."""


class Score(msgspec.Struct, frozen=True):
    """What a router says of a prompt."""

    probability: float
    """From 0 to 1: that the near answer is good enough, which is that the far one would not be better."""
    reasons: tuple[str, ...] = ()
    """What weighed most, in words, the heaviest first. Never a part of the prompt itself: reasons may be kept."""
    near: float | None = None
    """Expected quality of the near answer, 0 to 1, where the router estimates it."""
    far: float | None = None
    """Expected quality of the far answer, 0 to 1, where the router estimates it."""


class Router(ABC):
    """Used from one thread at a time; equal prompts get equal scores, unless `name` says that chance decides."""

    name: str

    @abstractmethod
    def score(self, prompt: Prompt) -> Score:
        """Takes any text, the empty one too; never raises for what a prompt holds."""
