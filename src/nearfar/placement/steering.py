"""What a stream's decision, monitor and moves tell each other. Pure; the same for real and simulated streams."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nearfar.placement.decide import Decision
from nearfar.placement.migration import Action, FrameDue, Moving, Shadow, Warm, pinned
from nearfar.placement.qos import Assessment, Level
from nearfar.types.ids import ServiceId
from nearfar.types.units import Milliseconds

_LONGEST_FORECAST = 1e6


class Assignment(NamedTuple):
    """Who has a frame: fixed when it is due."""

    pin: ServiceId | None
    """The only service to ask at first; None: whoever asks may choose, with the owner as the incumbent."""
    copy: ServiceId | None
    """Who gets a copy of it besides."""
    rescued: bool = False
    """It goes to `pin` because its owner would be late: its answer moves no stream, but stands for that of a copy."""


def forecast_of(found: Assessment | None, spent_ms: float = 0.0) -> Milliseconds | None:
    """What is to be expected of the incumbent from `spent_ms` after a frame on; None while the promise is kept."""
    if found is None or found.level is Level.KEPT:
        return None
    # A broken promise without a forecast was broken by answers: what they took is what is to be expected.
    ahead = found.quantile if found.forecast is None else found.forecast
    return Milliseconds(max(0.0, min(ahead, _LONGEST_FORECAST) - spent_ms))


def wait_of(decision: Decision | None, incumbent: ServiceId | None) -> Milliseconds | None:
    """How long the next frame would wait at the incumbent by that decision; None when it does not say."""
    for entry in decision.ranking if decision is not None else ():
        if entry.service == incumbent and entry.expected is not None:
            return entry.expected.wait
    return None


def complaint(found: Assessment) -> str:
    """What the fleet is told of a service that broke a promise."""
    return f"{found.late} of {found.ends} answers late, most by {found.blame or 'loss'}"


def due_of(frame: int, decision: Decision, state: Moving, urgent: bool) -> FrameDue:
    """The event of a frame for which this was decided, with the owner as the incumbent."""
    best = decision.ranking[0] if decision.ranking else None
    concerned = (state.owner, state.target)
    refused = {ServiceId(r.subject): r.reason for r in decision.refusals if r.subject in concerned}
    promised = best.expected.total if best is not None and best.expected is not None else Milliseconds(0.0)
    why = _why(decision, state.owner)
    return FrameDue(frame, decision.chosen, promised, why, refused, urgent, decision.late, decision.aside)


def _why(decision: Decision, owner: ServiceId | None) -> str:
    """The decision's reason, and the figures of the service that the stream would leave for it."""
    left = next((ranked for ranked in decision.ranking[1:] if ranked.service == owner), None)
    return decision.reason if left is None or not left.why else f"{decision.reason} {owner}: {left.why}."


def assign(state: Moving, decision: Decision, actions: Iterable[Action]) -> Assignment:
    """Whom to ask for the frame that was just due, after the step that gave these actions.

    While a move is under way its frames stay with the owner, but those that the owner is expected to miss and the
    target is not: they go to the target, and need no copy besides.
    """
    copy = next((action.target for action in actions if isinstance(action, Warm | Shadow)), None)
    pin = None if decision.aside else pinned(state, decision.chosen)
    if pin is not None and pin == state.owner and state.target == decision.chosen and not decision.late:
        owner = next((entry for entry in decision.ranking if entry.service == pin), None)
        if owner is not None and owner.late:
            return Assignment(state.target, copy if copy != state.target else None, True)
    return Assignment(pin, copy)
