"""What a stream gives up, in its user's order, when nobody keeps its promise, and how it gets it back.

Pure: moments are passed in. A ladder of steps; trouble leads one step down it, room for a good while one up.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nearfar.types.ids import ModelName
from nearfar.types.request import Degrade
from nearfar.types.units import Milliseconds, Seconds

RATES = (2, 4, 8)
"""One of so many frames is sent, step by step."""
SCALES = (0.75, 0.5)
"""Width and height of what is sent, as shares of the frame's."""
DOWN_AFTER = Seconds(1.0)
"""Trouble lasts so long before something is given up."""
SETTLE = Seconds(3.0)
"""After a step down its effect is waited for: the monitor needs as long to see that it did not help."""
UP_AFTER = Seconds(10.0)
"""Room lasts so long before something is taken back; doubled by each relapse."""
RELAPSE = Seconds(30.0)
"""A step down so soon after one up is a relapse: taking it back was a mistake."""
MOST_RELAPSES = 4
"""The longest wait before something is taken back is UP_AFTER * 2 ** MOST_RELAPSES: 160 s."""


class Smaller(msgspec.Struct, frozen=True):
    """A quicker model of the same task and labels."""

    model: ModelName
    saves: Milliseconds
    """By how much its profile is below that of the stream's own model."""


class Step(msgspec.Struct, frozen=True):
    """One thing that is given up; `words` say it to people."""

    kind: Degrade
    words: str
    every: int = 1
    """1 of so many frames is sent."""
    scale: float = 1.0
    model: ModelName | None = None
    saves: Milliseconds = Milliseconds(0.0)
    """What taking it back would cost at least, where that is known."""


class Effect(msgspec.Struct, frozen=True):
    """All steps that were taken, together."""

    every: int = 1
    scale: float = 1.0
    model: ModelName | None = None
    """None for the stream's own."""
    degrade: tuple[Degrade, ...] = ()
    """What the requests themselves may give up now: `far` or `refuse` first when they were reached."""


class Change(msgspec.Struct, frozen=True):
    """One step was given up (`down`), or taken back."""

    step: Step
    down: bool
    because: str
    at: Seconds


def steps_of(degrade: Sequence[Degrade], smaller: Sequence[Smaller] = ()) -> tuple[Step, ...]:
    """Every step, in the user's order.

    >>> [step.words for step in steps_of([Degrade.INPUT, Degrade.REFUSE])]
    ['input 3/4', 'input 1/2', 'refuse']
    """
    steps: list[Step] = []
    for kind in degrade:
        match kind:
            case Degrade.RATE:
                steps += [Step(kind, f"rate 1/{every}", every=every) for every in RATES]
            case Degrade.INPUT:
                named = zip(SCALES, ("3/4", "1/2"), strict=True)
                steps += [Step(kind, f"input {name}", scale=scale) for scale, name in named]
            case Degrade.MODEL:
                steps += [Step(kind, f"model {s.model}", model=s.model, saves=s.saves) for s in smaller]
            case Degrade.FAR | Degrade.REFUSE:
                steps.append(Step(kind, kind.value))
    return tuple(steps)


class Ladder:
    """Where one stream stands on its steps: the first `position` of them are given up."""

    def __init__(self, steps: Sequence[Step], now: Seconds, rest: Sequence[Degrade] = ()) -> None:
        """`rest`: what can be given up after the steps, and whose own steps are not known yet."""
        self.steps = tuple(steps)
        self.rest = tuple(rest)
        self.position = 0
        self.relapses = 0
        self._changed = Seconds(now - SETTLE)
        self._raised = Seconds(now - RELAPSE)
        self._trouble: Seconds | None = None
        self._room: Seconds | None = None

    @property
    def top(self) -> Step | None:
        """The last step that was given up, and so the next to be taken back."""
        return self.steps[self.position - 1] if self.position else None

    @property
    def taken(self) -> tuple[Step, ...]:
        """What is given up now: of each kind the last step."""
        return tuple({step.kind: step for step in self.steps[: self.position]}.values())

    def extend(self, steps: Sequence[Step]) -> None:
        """All steps, now that they are known; a list that disagrees with those that were taken is left aside."""
        if tuple(steps[: self.position]) == self.steps[: self.position]:
            self.steps, self.rest = tuple(steps), ()

    def update(self, trouble: bool, room: bool, now: Seconds, because: str) -> Change | None:
        """The step that is due at this moment, if any. Trouble and room must have lasted; both at once is trouble."""
        self._trouble = (now if self._trouble is None else self._trouble) if trouble else None
        self._room = (now if self._room is None else self._room) if room and not trouble else None
        if self._trouble is not None:
            due = now - self._trouble >= DOWN_AFTER and now - self._changed >= SETTLE
            return self._down(now, because) if due and self.position < len(self.steps) else None
        if self._room is not None and self.position:
            wait = UP_AFTER * 2.0**self.relapses
            if now - max(self._room, self._changed) >= wait:
                return self._up(now, because)
        elif now - max(self._raised, self._changed) > UP_AFTER * 2.0 ** (self.relapses + 1):
            self.relapses = 0
        return None

    def _down(self, now: Seconds, because: str) -> Change:
        if now - self._raised < RELAPSE:
            self.relapses = min(self.relapses + 1, MOST_RELAPSES)
        self.position += 1
        self._changed, self._trouble, self._room = now, None, None
        return Change(self.steps[self.position - 1], True, because, now)

    def _up(self, now: Seconds, because: str) -> Change:
        self.position -= 1
        self._changed, self._raised, self._trouble, self._room = now, now, None, None
        return Change(self.steps[self.position], False, because, now)

    def effect(self) -> Effect:
        """What the steps that were taken mean for the next frame.

        >>> ladder = Ladder(steps_of([Degrade.RATE, Degrade.REFUSE]), Seconds(0.0)); ladder.position = 4
        >>> ladder.effect()
        Effect(every=8, scale=1.0, model=None, degrade=(<Degrade.REFUSE: 'refuse'>,))
        """
        every, scale = 1, 1.0
        model: ModelName | None = None
        reached: list[Degrade] = []
        for step in self.steps[: self.position]:
            every, scale, model = max(every, step.every), min(scale, step.scale), step.model or model
            if step.kind in (Degrade.FAR, Degrade.REFUSE):
                reached.append(step.kind)
        left = [step.kind for step in self.steps[self.position :]]
        return Effect(every, scale, model, tuple(dict.fromkeys((*reached, *left, *self.rest))))
