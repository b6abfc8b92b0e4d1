"""The money of one call: reserved before each of its far calls, settled when it ends, whatever became of them.

What was planned to go far is reserved at once. What goes far unplanned (near failed, or its answer was judged poor, or
a split did not work) is reserved before it is asked, and not asked when that cannot be done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nearfar.errors import Cancelled, NearfarError, NoCandidate, Overloaded, UnknownModel
from nearfar.language.keeping import Keeping

_UNASKED = (NoCandidate, UnknownModel, Overloaded)
"""After which nothing can be owed: nobody took the call."""


class Purse:
    """Used on one event loop. Without `keeping`, or a budget of money, everything may be spent."""

    def __init__(self, keeping: Keeping | None, bound: float = 0.0, *, reserved: bool = False, day: int = 0) -> None:
        """`bound`: the most that one far call may cost; `reserved`: for the first one that was done, on that day."""
        self._keeping = keeping
        self._bound = bound
        self._total = bound if reserved else 0.0
        self._ready = reserved
        self._day = day
        self._open = False
        """A far call is under way; at the end: the caller left in the middle of it, and nobody knows its price."""
        self._doubt = False
        """A far call failed after it was sent; it may have been billed."""

    @contextmanager
    def far(self) -> Iterator[None]:
        """Around each far call. Raises `NoCandidate` when it cannot be paid for."""
        if not self._ready and self._keeping is not None:
            if reason := self._keeping.refusal(self._bound):
                raise NoCandidate(
                    f"It may not go far: {reason}.", "Ask again tomorrow, or set more money_per_day in [routing]."
                )
            self._day = self._keeping.reserve(self._bound)
            self._total += self._bound
        self._ready = False
        self._open = True
        try:
            yield
        except Cancelled:
            raise
        except NearfarError as error:
            self._open = False
            self._doubt |= not isinstance(error, _UNASKED)
            raise
        self._open = False

    def billed(self) -> None:
        """The price of the call under way has come; what happens to its answer now costs nothing more."""
        self._open = False

    def settle(self, cost: float) -> None:
        """The call ended; `cost` is what its answer says."""
        if self._keeping is None or not (self._total or cost):
            return
        left = self._bound if self._open else 0.0
        self._keeping.settled(self._total, cost + left, self._day, doubt=self._bound if self._doubt else 0.0)
