"""The state machine of a move: every frame has one owner, a switch is between two frames, copies are bounded."""

from __future__ import annotations

import itertools

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from nearfar.placement.migration import (
    DOUBTS,
    DUAL_FRAMES,
    LONGEST,
    LONGEST_PAUSE,
    MOST_PAUSES,
    SELDOM,
    STRAYS,
    Abort,
    Action,
    CopyEnded,
    Event,
    FrameDue,
    FrameEnded,
    Moving,
    Phase,
    Release,
    Shadow,
    Switch,
    Warm,
    pinned,
    step,
)
from nearfar.types.ids import ServiceId
from nearfar.types.units import Milliseconds, Seconds

A, B, C = (ServiceId(f"{node}/yard") for node in "abc")
OWNED = Moving(owner=A, last=4, moved_at=0)


def play(state: Moving, *events: Event, at: float = 0.0) -> tuple[Moving, list[Action]]:
    done: list[Action] = []
    for event in events:
        state, actions = step(state, event, Seconds(at))
        done += actions
    return state, done


def good(target: ServiceId = B, took: float = 5.0) -> CopyEnded:
    return CopyEnded(target, Milliseconds(took))


def begun(frame: int = 5, *, urgent: bool = False) -> Moving:
    """The stream of A is warming B."""
    state, actions = play(OWNED, FrameDue(frame, B, Milliseconds(10.0), "b is better", urgent=urgent))
    assert actions == [Warm(B)] and state.phase is Phase.WARMING and state.owner == A
    return state


def test_a_planned_move_warms_compares_and_switches_between_two_frames() -> None:
    state = begun()
    assert pinned(state, B) == A
    state, actions = play(state, FrameDue(6, B), good())
    assert actions == [] and state.phase is Phase.DUAL, "one copy warms it"
    for frame in range(7, 7 + DUAL_FRAMES):
        state, actions = play(state, FrameDue(frame, B), good())
        assert actions == [Shadow(B)] and state.owner == A and pinned(state, B) == A
    state, actions = play(state, FrameDue(10, B))
    assert actions == [Switch(A, B, 10, True, "b is better")]
    assert state.owner == B and state.phase is Phase.STEADY and pinned(state, B) is None
    assert state.old == A and state.open == frozenset(range(5, 11))


def test_the_old_service_is_released_when_its_last_frame_has_ended() -> None:
    state = msgspec.structs.replace(OWNED, owner=B, old=A, moved_at=10, open=frozenset({8, 9, 10}))
    state, actions = play(state, FrameEnded(10, B), FrameEnded(8, A))
    assert actions == [] and state.old == A and state.owner == B, "a late answer of the old one moves nothing"
    state, actions = play(state, FrameEnded(9, None))
    assert actions == [Release(A)] and state.old is None


def test_no_new_move_begins_before_the_old_service_is_released() -> None:
    state = msgspec.structs.replace(OWNED, owner=B, old=A, moved_at=10, open=frozenset({9}))
    assert play(state, FrameDue(11, A))[1] == []


def test_an_urgent_move_compares_one_frame() -> None:
    state, actions = play(begun(urgent=True), good(), FrameDue(6, B, urgent=True), good(), FrameDue(7, B, urgent=True))
    assert actions == [Shadow(B), Switch(A, B, 7, True, "b is better")] and state.owner == B


def test_a_service_that_is_refused_is_left_at_once() -> None:
    state, actions = play(OWNED, FrameDue(5, B, refused={A: "its process is gone"}))
    assert actions == [Switch(A, B, 5, False, "a/yard: its process is gone")] and state.owner == B
    state, actions = play(OWNED, FrameDue(5, None, refused={A: "its process is gone"}))
    assert actions == [] and state.owner == A, "nobody to go to"


def test_an_answer_of_another_after_a_failure_is_an_unplanned_move() -> None:
    state, actions = play(begun(), FrameEnded(5, C, (A,)))
    assert [type(action) for action in actions] == [Abort, Switch, Release], "the move under way is over too"
    assert state.owner == C and state.phase is Phase.STEADY
    switch = actions[1]
    assert isinstance(switch, Switch) and (switch.at_frame, switch.planned) == (5, False)
    assert play(state, FrameEnded(4, B, (A,)))[1] == [], "of a frame before"


def test_a_stray_answer_moves_nothing_and_a_row_of_them_does() -> None:
    """A hedged request is answered elsewhere now and then: that is no move."""
    events: list[Event] = []
    for frame in range(5, 5 + STRAYS - 1):
        events += [FrameDue(frame, A), FrameEnded(frame, B)]
    state, actions = play(OWNED, *events)
    assert actions == [] and state.owner == A
    calm, actions = play(state, FrameDue(20, A), FrameEnded(20, A), FrameDue(21, A), FrameEnded(21, B))
    assert actions == [] and calm.owner == A
    moved, actions = play(state, FrameDue(20, A), FrameEnded(20, B))
    assert moved.owner == B and isinstance(actions[0], Switch) and not actions[0].planned


def test_a_target_that_fails_ends_the_move_with_a_reason_and_a_growing_pause() -> None:
    state, at, pauses = OWNED, 0.0, []
    for n in range(12):
        state, actions = play(state, FrameDue(5 + 2 * n, B), at=at)
        assert actions == [Warm(B)]
        state, actions = play(state, CopyEnded(B, trouble="unreachable: gone"), at=at)
        assert actions == [Abort(B, "unreachable: gone")] and state.phase is Phase.STEADY and state.owner == A
        until = state.pauses[B].until
        state, actions = play(state, FrameDue(6 + 2 * n, B), at=until - 0.01)
        assert actions == [] and pinned(state, B) == A, "whoever asks must not go there by itself"
        pauses.append(until - at)
        at = until
    assert pauses[:4] == [2, 4, 8, 16] and pauses[-1] == LONGEST_PAUSE


def test_a_target_that_is_slower_than_promised_is_given_up() -> None:
    state, _ = play(begun(), good(took=900.0), FrameDue(6, B))
    assert state.phase is Phase.DUAL, "the first answer of a cold service says nothing"
    state, actions = play(state, good(took=900.0), FrameDue(7, B))
    assert actions == [Shadow(B)], "one may be slow"
    state, actions = play(state, good(took=900.0))
    assert isinstance(actions[0], Abort) and "900 ms, 10 ms promised" in actions[0].reason and state.pauses[B].failures
    late, _ = play(begun(), good(), FrameDue(6, B), CopyEnded(B, Milliseconds(60.0), deadline=Milliseconds(50.0)))
    assert (late.slow, late.wanted) == (1, DUAL_FRAMES)
    fine, _ = play(begun(), good(), FrameDue(6, B), CopyEnded(B, Milliseconds(45.0), deadline=Milliseconds(50.0)))
    assert (fine.slow, fine.wanted) == (0, DUAL_FRAMES - 1)


def test_a_decision_that_turns_back_ends_the_move_and_one_that_wavers_is_damped() -> None:
    doubted = [FrameDue(6 + n, A) for n in range(DOUBTS)]
    state, actions = play(begun(), *doubted[:-1])
    assert actions == [] and state.phase is not Phase.STEADY, "estimates that cross once turn no move round"
    assert play(state, FrameDue(50, B), *(FrameDue(51 + n, A) for n in range(DOUBTS - 1)))[0].phase is not Phase.STEADY
    late = [FrameDue(6 + n, A, late=True) for n in range(DOUBTS + 1)]
    assert play(begun(), *late)[0].phase is not Phase.STEADY, "where everybody is late, it is no reason to stay"
    state, actions = play(begun(), *doubted)
    assert isinstance(actions[0], Abort) and "best one again" in actions[0].reason and state.pauses[B].failures == 0
    assert play(state, FrameDue(17, B), at=0.5)[1] == []
    assert play(state, FrameDue(17, B), at=1.5)[1] == [Warm(B)]
    assert play(state, FrameDue(17, B, urgent=True), at=0.5)[1] == [Warm(B)], "not when the promise is threatened"


def test_a_target_that_may_not_be_asked_or_takes_too_long_is_given_up() -> None:
    _, actions = play(begun(), FrameDue(6, C, refused={B: "quarantined"}))
    assert isinstance(actions[0], Abort) and "quarantined" in actions[0].reason
    _, actions = play(begun(), FrameDue(6, B), at=LONGEST + 1)
    assert isinstance(actions[0], Abort) and "not ready" in actions[0].reason


def test_a_copy_that_was_not_sent_is_sent_of_another_frame() -> None:
    state, actions = play(begun(), CopyEnded(B, sent=False), FrameDue(6, B))
    assert actions == [Warm(B)]
    state, actions = play(state, good(), FrameDue(7, B), CopyEnded(B, sent=False), FrameDue(8, B))
    assert actions == [Shadow(B), Shadow(B)] and state.wanted == DUAL_FRAMES


def test_without_decisions_the_stream_is_where_it_was_answered() -> None:
    state, actions = play(Moving(), FrameDue(0, None), FrameEnded(0, A, deciding=False))
    assert state.owner == A and actions == []
    state, actions = play(state, FrameDue(1, None), FrameEnded(1, B, deciding=False))
    assert actions == [Switch(A, B, 1, False, "answered there"), Release(A)]


SERVICES = st.sampled_from([A, B, C])
REFUSED = st.dictionaries(SERVICES, st.just("gone"), max_size=2)
TROUBLE = st.sampled_from(["", "", "", "unreachable: gone"])


@given(st.data())
def test_whatever_happens_each_frame_has_one_owner_and_moves_are_in_order(data: st.DataObject) -> None:
    state, frame, now = Moving(), -1, 0.0
    owners: dict[int, ServiceId | None] = {}
    copies: list[tuple[ServiceId, int]] = []
    switches: list[Switch] = []
    out: list[int] = []
    for _ in range(data.draw(st.integers(0, 100))):
        now += data.draw(st.sampled_from([0.0, 0.03, 0.5, 3.0, 20.0]))
        kind = data.draw(st.sampled_from(["due", "due", "due", "end", "end", "copy", "copy", "copy"]))
        event: Event
        if kind == "due":
            frame += 1
            refused = data.draw(REFUSED)
            best = data.draw(st.none() | SERVICES)
            best = None if best in refused else best
            event = FrameDue(frame, best, Milliseconds(10.0), "r", refused, urgent=data.draw(st.booleans()))
            out.append(frame)
        elif kind == "end" and out:
            ended = out.pop(data.draw(st.integers(0, len(out) - 1)))
            failed = tuple(data.draw(st.lists(SERVICES, max_size=1)))
            event = FrameEnded(ended, data.draw(st.none() | SERVICES), failed)
        else:
            took = Milliseconds(data.draw(st.sampled_from([5.0, 5.0, 900.0])))
            sent = data.draw(st.sampled_from([True] * 6 + [False]))
            event = CopyEnded(data.draw(SERVICES), took, data.draw(TROUBLE), sent=sent)
        before = state
        state, actions = step(state, event, Seconds(now))
        if kind == "due":
            owners[frame] = state.owner
            assert before.owner is None or state.owner is not None, "a stream that had an owner has one"
        for action in actions:
            match action:
                case Switch():
                    assert action.source == before.owner and action.target == state.owner != action.source
                    assert not switches or action.at_frame > switches[-1].at_frame, "never two for one frame"
                    if action.planned:
                        if before.phase is Phase.STEADY:
                            assert before.due_at is not None and now - before.due_at > SELDOM and not before.open
                        else:
                            assert before.phase is Phase.DUAL and before.target == action.target
                            assert sum(target == action.target for target, _ in copies) >= 2
                        assert action.at_frame == frame
                    switches.append(action)
                    assert state.phase is Phase.STEADY
                case Abort():
                    assert state.phase is Phase.STEADY and state.target is None
                    assert action.target == before.target and action.reason
                case Warm() | Shadow():
                    assert kind == "due" and action.target not in (state.owner, None)
                    assert before.out == 0 and state.out == 1, "one copy at a time"
                    assert action.target not in refused, "nobody who may not be asked gets a copy"
                    copies.append((action.target, frame))
                case Release():
                    assert action.service == (before.old or before.owner)
        assert (state.phase is Phase.STEADY) == (state.target is None)
        assert state.target is None or state.target != state.owner
        assert len(state.pauses) <= MOST_PAUSES
        assert state.open == frozenset(out)
    assert len({at for _, at in copies}) == len(copies) <= frame + 1, "at most one copy of a frame"
    for one, other in itertools.pairwise(switches):
        assert one.target == other.source


def test_a_stream_of_a_frame_every_few_minutes_goes_over_with_its_next_frame() -> None:
    """Four copies would outlast the move; between its frames there is nothing to lose."""
    due = FrameDue(6, B, Milliseconds(10.0), "b is better")
    state, _ = play(OWNED, FrameDue(5, A), FrameEnded(5, A))
    gone, actions = play(state, due, at=240.0)
    assert actions == [Switch(A, B, 6, True, "b is better")] and gone.owner == B
    _, actions = play(state, due, at=0.2)
    assert actions == [Warm(B)]
    waiting, _ = play(OWNED, FrameDue(5, A))
    assert play(waiting, due, at=240.0)[1] == [Warm(B)], "not while a frame is under way"


def test_copies_are_bounded_when_a_target_fails_for_ever() -> None:
    """A minute at 25 frames/s: moves are begun at 0, 2, 6, 14 and 30 s."""
    state, copies = OWNED, 0
    for n in range(60 * 25):
        state, actions = step(state, FrameDue(5 + n, B), Seconds(n / 25))
        if actions:
            copies += 1
            state, _ = step(state, CopyEnded(B, trouble="unreachable: gone"), Seconds(n / 25))
    assert copies == 5
