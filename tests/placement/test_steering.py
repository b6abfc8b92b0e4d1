"""What a decision and the state of the moves say of one frame."""

from __future__ import annotations

from nearfar.placement.decide import Decision
from nearfar.placement.expectation import Expectation
from nearfar.placement.migration import Moving, Phase, Shadow, step
from nearfar.placement.policies.base import Ranked
from nearfar.placement.steering import Assignment, assign, due_of, wait_of
from nearfar.types.ids import ServiceId
from nearfar.types.units import Milliseconds, Seconds

A, B = ServiceId("a/yard"), ServiceId("b/yard")
ZERO = Milliseconds(0.0)
WAITS = Expectation(ZERO, ZERO, Milliseconds(30.0), ZERO, ZERO, Milliseconds(30.0), "measured link")
MOVING = Moving(owner=A, phase=Phase.DUAL, target=B, last=4, moved_at=0)


def decided(*, owner_late: bool, late: bool = False, aside: bool = False) -> Decision:
    ranking = (Ranked(B, 20.0, late), Ranked(A, 120.0, owner_late, WAITS))
    return Decision(B, None, late, ranking, (), "b is better", 2, 2, 0, "predictive", aside)


def test_frames_of_a_stream_on_the_move_are_the_owners() -> None:
    assert assign(MOVING, decided(owner_late=False), [Shadow(B)]) == Assignment(A, B)


def test_a_frame_that_its_owner_would_miss_goes_to_the_target_instead_of_a_copy() -> None:
    assert assign(MOVING, decided(owner_late=True), [Shadow(B)]) == Assignment(B, None, True)
    assert assign(MOVING, decided(owner_late=True, late=True), [Shadow(B)]) == Assignment(A, B), "both are late"


def test_an_aside_is_nobodys_but_whom_the_decision_finds() -> None:
    assert assign(MOVING, decided(owner_late=True, aside=True), []) == Assignment(None, None)


def test_a_decision_becomes_the_event_of_its_frame() -> None:
    state = Moving(owner=A, last=4, moved_at=0)
    event = due_of(5, decided(owner_late=True), state, False)
    assert (event.best, event.frame, event.urgent) == (B, 5, False)
    state, actions = step(state, event, Seconds(0.0))
    assert assign(state, decided(owner_late=True), actions).rescued


def test_how_long_the_incumbent_lets_wait_is_read_from_the_decision() -> None:
    assert wait_of(decided(owner_late=False), A) == 30.0
    assert wait_of(decided(owner_late=False), B) is None and wait_of(None, A) is None
