"""A budget kept by moving the threshold: money per day, a share of far calls, or a floor of quality.

A prompt goes far when its score (the probability that near is good enough) is under the threshold. The threshold is a
quantile of the last `WINDOW` scores, so that it follows a drift of the prompts within a window, and what was missed in
the past is paid back (the integral part), so that errors do not add up:

- share: the quantile at the target share plus what past calls are behind or ahead, spread over a window;
- money: the share that the rest of the day's money pays for, given the prompts that are still to come (from the rate of
  now and of this hour on earlier days) and what a far call cost lately. Before a far call its largest possible price is
  reserved; what cannot be reserved is refused with the reason. So the day's money is not exceeded, whatever comes, as
  long as the reservations are true bounds (`max_tokens` times the price).
- quality: the least share of far calls with which the mean expected quality of the window is at the floor: near
  prompts count with their calibrated probability, far ones with `far_quality`; what feedback shows the probabilities
  to be off by is added, and what the answers given were under the floor is made good.

All pure: `after(state, event, now)`, `threshold(state, now)`, `refusal(state, bound, now)`. `now` is wall-clock time
(seconds since 1970, UTC), as money is per calendar day. The state is a frozen value that `export` makes bytes of.
"""

from __future__ import annotations

import math
from enum import StrEnum

import msgspec

from nearfar.errors import InputError, StoreError
from nearfar.types.units import Seconds

WINDOW = 200
"""Scores remembered. Smaller follows a drift sooner; at 200 a quantile is within 3 points (one standard deviation)."""
WARM = 20
"""Scores before the quantile is believed; until then the target itself is the threshold."""
DAY = 86_400
_SMOOTH = 0.05
"""Weight of the newest in running means: 1 / 20, about the last forty count."""
_FORGET = 0.3
"""Weight of the last day in what is usual for an hour."""
_PAID_BACK = WINDOW / 4
"""Prompts over which what is owed is paid back."""
_EDGE = 1e-9
"""Just above a score: whoever equals the quantile goes far too."""


class Goal(StrEnum):
    MONEY = "money"
    """`amount` in the fleet's currency for each day."""
    SHARE = "share"
    """`amount` from 0 to 1: of all prompts, those that go far."""
    QUALITY = "quality"
    """`amount` from 0 to 1: expected quality of what is answered, at least."""


_OWED = {Goal.SHARE: (-WINDOW / 2, WINDOW / 2), Goal.MONEY: (-10.0, 10.0), Goal.QUALITY: (-5.0, WINDOW / 2)}
"""Bounds of what is owed. Money that was not spent is in the affordable share already, and a floor of quality that was
exceeded for long is no reason to fall under it for long."""


class Target(msgspec.Struct, frozen=True):
    """What is to be kept. Raises `InputError` when it cannot be meant."""

    goal: Goal
    amount: float
    far_quality: float = 0.95
    """For a floor of quality: probability that a far answer is good enough. Measure it; 0.95 is an assumption."""
    day_begins: float = 0.0
    """Seconds after midnight UTC at which a new day's money begins."""

    def __post_init__(self) -> None:
        bad = not math.isfinite(self.amount) or self.amount < 0 or (self.goal is not Goal.MONEY and self.amount > 1)
        if bad or not 0 <= self.far_quality <= 1 or not 0 <= self.day_begins < DAY:
            raise InputError(
                f"A budget of {self.amount:g} for {self.goal.value} cannot be kept.",
                "Money is 0 or more a day; a share and a floor of quality are from 0 to 1.",
            )


class Routed(msgspec.Struct, frozen=True, tag="routed"):
    """A prompt was scored and sent. `reserved` is the largest price of its far call; 0 when it stayed near."""

    score: float
    far: bool
    reserved: float = 0.0
    forced: bool = False
    """Something else than the threshold decided (privacy, the caller): it counts as money, not for the share."""


class Reserved(msgspec.Struct, frozen=True, tag="reserved"):
    """A prompt that was sent near goes far after all: near failed, or its answer was judged poor."""

    amount: float


class Settled(msgspec.Struct, frozen=True, tag="settled"):
    """A far call ended; also when it failed (`cost` is then what was billed, often 0)."""

    reserved: float
    cost: float
    day: int
    """In which it was reserved: `day_of(state.target, when)`. Its money is that day's."""


class Fed(msgspec.Struct, frozen=True, tag="fed"):
    """Somebody said whether a near answer with this probability was good."""

    score: float
    good: bool


Event = Routed | Reserved | Settled | Fed


class State(msgspec.Struct, frozen=True):
    """All that the controller remembers; a few kilobytes."""

    target: Target
    scores: tuple[float, ...] = ()
    """The last `WINDOW`, oldest first."""
    routed: int = 0
    """Prompts that the threshold decided."""
    far: int = 0
    owed: float = 0.0
    """Far calls that are missing (positive) or were too many, against the target of their time; for a floor of
    quality, the good answers that are missing."""
    day: int = -1
    spent: float = 0.0
    reserved: float = 0.0
    """Of calls that are under way."""
    call_cost: float = 0.0
    """Running mean of a far call's price; 0 when none is known."""
    gap: float = 0.0
    """Running mean of the seconds between prompts; 0 when not known."""
    last: float = 0.0
    """When the last prompt came."""
    hours: tuple[int, ...] = (0,) * 24
    """Prompts of this day by its hours, counted from the day's begin."""
    usual: tuple[float, ...] = (0.0,) * 24
    """The same of earlier days, smoothed; all 0 before the first day ended."""
    bias: float = 0.0
    """What near answers turned out better (positive) or worse than judged, in the mean."""


def day_of(target: Target, now: float) -> int:
    return int((now - target.day_begins) // DAY)


def after(state: State, event: Event, now: Seconds) -> State:
    """The state after an event. Raises `InputError` for a score that is no probability or a price under zero."""
    state = _today(state, now)
    match event:
        case Routed():
            return _routed(state, event, now)
        case Reserved(amount):
            if not (math.isfinite(amount) and amount >= 0):
                raise InputError(f"{amount:g} cannot be reserved.", "Prices are 0 or more.")
            return msgspec.structs.replace(state, reserved=state.reserved + amount)
        case Settled(reserved, cost, day):
            if not (math.isfinite(cost) and cost >= 0):
                raise InputError(f"A call cannot cost {cost:g}.", "Settle it with what was billed, 0 or more.")
            known = state.call_cost + _SMOOTH * (cost - state.call_cost) if state.call_cost else cost
            changed = {"call_cost": known}  # failed calls that cost nothing are part of what a call costs
            if day == state.day:
                changed |= {"reserved": max(0.0, state.reserved - reserved), "spent": state.spent + cost}
            return msgspec.structs.replace(state, **changed)
        case Fed(score, good):
            return msgspec.structs.replace(state, bias=state.bias + _SMOOTH * (good - score - state.bias))


def _today(state: State, now: float) -> State:
    """Begin a new day when it is one. A clock that went back changes nothing: no day is paid for twice."""
    day = day_of(state.target, now)
    if day <= state.day:
        return state
    usual = state.usual
    if state.day >= 0:
        known = any(usual)
        usual = tuple(
            before + _FORGET * (count - before) if known else float(count)
            for before, count in zip(usual, state.hours, strict=True)
        )
    return msgspec.structs.replace(state, day=day, spent=0.0, reserved=0.0, hours=(0,) * 24, usual=usual)


def _routed(state: State, event: Routed, now: float) -> State:
    if not 0 <= event.score <= 1 or not (math.isfinite(event.reserved) and event.reserved >= 0):
        raise InputError(
            f"A score of {event.score:g} with {event.reserved:g} reserved is none.",
            "Scores are probabilities from 0 to 1, prices are 0 or more.",
        )
    hour = int((now - state.target.day_begins) % DAY // 3600)
    hours = tuple(count + (i == hour) for i, count in enumerate(state.hours))
    gap = state.gap
    if state.last and now > state.last:
        gap = gap + _SMOOTH * (now - state.last - gap) if gap else now - state.last
    changed = {"hours": hours, "gap": gap, "last": max(now, state.last), "reserved": state.reserved + event.reserved}
    if not event.forced:
        wanted = _share(state, now)
        if state.target.goal is Goal.QUALITY:
            near = max(0.0, min(1.0, event.score + state.bias))
            missed = state.target.amount - (state.target.far_quality if event.far else near)
        else:
            missed = wanted - event.far
        least, most = _OWED[state.target.goal]
        owed = max(least, min(most, state.owed + missed))
        changed |= {
            "scores": (*state.scores, event.score)[-WINDOW:],
            "routed": state.routed + 1,
            "far": state.far + event.far,
            "owed": owed,
        }
    return msgspec.structs.replace(state, **changed)


def threshold(state: State, now: Seconds) -> float:
    """Go far with a score under this. From 0 (never) to a little above 1 (always)."""
    state = _today(state, now)
    share = _share(state, now)
    if state.target.goal is Goal.MONEY and share <= 0:
        return 0.0
    if share >= 1:
        return 1 + _EDGE
    if len(state.scores) < WARM:
        return share if state.target.goal is not Goal.QUALITY else state.target.amount
    aimed = share + state.owed / _PAID_BACK
    if aimed <= 0:
        return 0.0
    if aimed >= 1:
        return 1 + _EDGE  # also where each score is higher than all before: no quantile would ever reach it
    ordered = sorted(state.scores)
    found = ordered[int(aimed * len(ordered))]
    # Where many scores are equal, a threshold either takes all of them or none: what is owed says which, by turns.
    return found + _EDGE if state.owed > 0 and ordered.count(found) > 1 else found


def _share(state: State, now: float) -> float:
    """The share of prompts that should go far just now."""
    target = state.target
    match target.goal:
        case Goal.SHARE:
            return target.amount
        case Goal.MONEY:
            return _affordable(state, now)
        case Goal.QUALITY:
            return _needed(state)


def _affordable(state: State, now: float) -> float:
    left = state.target.amount - state.spent - state.reserved
    if left <= 0:
        return 0.0
    if not state.call_cost:
        return 0.5  # nothing is known yet; the reservation is what keeps the money
    return min(1.0, left / max(1.0, _expected(state, now)) / state.call_cost)


def _expected(state: State, now: float) -> float:
    """Prompts still to come today: what earlier days say of the hours that are left, scaled by how today compares with
    them until now; without earlier days, the rate of now."""
    since = (now - state.target.day_begins) % DAY
    rest = (DAY - since) / state.gap if state.gap else 0.0
    if not any(state.usual):
        return rest
    hour, part = int(since // 3600), since % 3600 / 3600
    gone = sum(state.usual[:hour]) + state.usual[hour] * part
    to_come = sum(state.usual[hour + 1 :]) + state.usual[hour] * (1 - part)
    # Ten prompts of the usual kind hold the scale where the day has shown little yet.
    scale = (sum(state.hours) + 10) / (gone + 10)
    return to_come * max(0.1, min(10.0, scale))


def _needed(state: State) -> float:
    target = state.target
    if not state.scores:
        return 0.0
    ordered = sorted(max(0.0, min(1.0, score + state.bias)) for score in state.scores)
    total = sum(ordered)
    count = len(ordered)
    for far in range(count + 1):
        if total >= target.amount * count - 1e-9:
            return far / count
        if far < count:
            total += max(0.0, target.far_quality - ordered[far])
    return 1.0  # the floor is above what even the far model gives


def refusal(state: State, bound: float, now: Seconds) -> str:
    """Why a far call of at most this price may not be made; empty when it may. Holds for every far call, also one that
    a caller asked for by name."""
    state = _today(state, now)
    if state.target.goal is not Goal.MONEY:
        return ""
    if not (math.isfinite(bound) and bound >= 0):
        return "the largest price of the call is not known; state max_tokens and the model's prices"
    left = state.target.amount - state.spent - state.reserved
    if bound <= left + 1e-12:
        return ""
    return (
        f"the day's money is spent: {state.spent:.4g} of {state.target.amount:.4g}, {state.reserved:.4g} more reserved "
        f"for calls under way, and this call may cost {bound:.4g}; it is answered near, or wait until the next day"
    )


def export(state: State) -> bytes:
    return msgspec.json.encode(state)


def restore(data: bytes) -> State:
    """The state that `export` wrote. Raises `StoreError` when it is none."""
    try:
        return msgspec.json.decode(data, type=State)
    except (msgspec.DecodeError, InputError) as error:
        raise StoreError(
            f"The budget's state cannot be read: {error}.",
            "Remove it: the budget then starts again with today's spent 0.",
        ) from error
