"""States on their way between services: given once, to who has the ticket, whole or not at all, never a private one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from nearfar.errors import InferenceError, InputError, Moved
from nearfar.mesh.base import Call
from nearfar.mesh.memory import Ether, MemoryMesh
from nearfar.node import handover as module
from nearfar.node import keys
from nearfar.node.handover import Handover
from nearfar.runtimes.states import Marked, Resumed, States
from nearfar.types.ids import ServiceId
from nearfar.types.request import Privacy, Stages
from nearfar.types.wire import (
    CallHead,
    Failure,
    Operation,
    ReplyHead,
    StateTicket,
    TextContext,
    decode_call,
    decode_reply,
    encode,
)
from tests.node.calls import FakeCall
from tests.waiting import until_now

OLD, NEW = ServiceId("old/m"), ServiceId("new/m")
STATE = b"tokens and numbers" * 1000
STREAMED = TextContext(streamed=True)


class Kept(States):
    """States of an engine that is not there."""

    def __init__(self, state: bytes = STATE, build: str = "b") -> None:
        self.state, self.build = state, build
        self.taken: list[tuple[bytes, int]] = []
        self.wrong = ""

    def learn(self, model: str) -> None:
        pass

    def marked(self, body: bytes) -> Marked | None:
        return Marked(body + b"!", 7)

    def save(self, mark: int, most: int) -> bytes:
        assert mark == 7
        if len(self.state) > most:
            raise InferenceError("It is too large.")
        return self.state

    def resume(self, operation: Operation, body: bytes, state: bytes, written: int) -> Resumed:
        if self.wrong:
            raise InputError(self.wrong)
        self.taken.append((state, written))
        return Resumed(operation, body, b"{}", 5, lambda piece: (piece,))


class Two:
    """A service that ends and one that goes on, on one mesh."""

    def __init__(self, most: int = 1 << 20) -> None:
        self.ether = Ether()
        self.old_mesh, self.new_mesh = MemoryMesh(self.ether), MemoryMesh(self.ether)
        self.had, self.gets = Kept(), Kept()
        self.old = Handover(OLD, self.had, self.old_mesh, most)
        self.new = Handover(NEW, self.gets, self.new_mesh, most)
        self.old.serve()
        until_now(lambda: self.new_mesh.alive(keys.state_key(OLD)), "the old service gives states")

    def ticket(self, **changes: Any) -> StateTicket:
        ticket = self.old.offer(7)
        assert ticket is not None
        return msgspec.structs.replace(ticket, **changes)

    def resumed(self, ticket: StateTicket | None, body: bytes = b"body", **context: Any) -> Resumed | None:
        told = TextContext(**{"streamed": True, "state": ticket, **context})
        return self.new.resumed(Operation.CHAT, body, told)

    def close(self) -> None:
        self.old.close()
        self.new.close()
        self.ether.close()


@pytest.fixture
def two() -> Iterator[Two]:
    made = Two()
    yield made
    made.close()


def test_a_state_goes_from_one_service_to_the_other_once(two: Two) -> None:
    ticket = two.ticket(written=12)
    resumed = two.resumed(ticket)
    assert resumed is not None and resumed.tokens == 5
    assert two.gets.taken == [(STATE, 12)]
    assert two.resumed(ticket) is None
    assert len(two.gets.taken) == 1


def test_the_ticket_travels_with_the_failure_and_says_nothing_of_the_state(two: Two) -> None:
    moved = Moved("The service is stopping.")
    moved.state = two.ticket()
    head = encode(ReplyHead("v", Stages(), (), Failure.of(moved)))
    assert STATE[:8] not in head and len(head) < 400
    failure = decode_reply(head).failure
    assert failure is not None
    error = failure.error()
    assert isinstance(error, Moved) and error.state == moved.state
    call = decode_call(encode(CallHead(Operation.CHAT, text=TextContext(state=moved.state))))
    assert call.text is not None and call.text.state == moved.state


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": "0" * 32},
        {"digest": "0" * 64},
        {"size": len(STATE) - 1},
        {"size": 1 << 40},
        {"build": "another"},
        {"build": ""},
        {"service": "nobody/m"},
    ],
    ids=str,
)
def test_what_does_not_arrive_as_promised_is_not_used(two: Two, changes: dict[str, Any]) -> None:
    assert two.resumed(two.ticket(**changes)) is None
    assert not two.gets.taken


def test_a_state_that_is_changed_on_its_way_is_not_used(two: Two) -> None:
    ticket = two.ticket()
    (secret,) = two.old._offers
    flipped = bytes([STATE[0] ^ 1]) + STATE[1:]
    two.old._offers[secret] = two.old._offers[secret]._replace(state=flipped)
    assert two.resumed(ticket) is None
    assert not two.gets.taken


@pytest.mark.parametrize("wrong", ["body", "size", "nothing told", "no head", "too large"])
def test_a_state_that_came_otherwise_than_it_was_sent_is_not_used(two: Two, wrong: str) -> None:
    """A turn's ticket, which cannot tell a digest before the state is saved."""
    liar = ServiceId("liar/m")
    state = STATE * 100 if wrong == "too large" else STATE
    told = StateTicket(liar, "", "b", module._digest(state), len(state) - (wrong == "size"))

    def answers(call: Call) -> None:
        head = encode(ReplyHead("", Stages(), state=None if wrong == "nothing told" else told))
        call.reply(b"\xc1" if wrong == "no head" else head, [state[:-1] + b"?" if wrong == "body" else state])

    handle = two.old_mesh.serve(keys.state_key(liar), answers)
    until_now(lambda: two.new_mesh.alive(keys.state_key(liar)), "it is there")
    assert two.resumed(StateTicket(liar, "s", "b", "", 0, -1), LONG) is None
    assert not two.gets.taken
    handle.close()


def test_what_the_engine_does_not_take_is_done_without(two: Two) -> None:
    two.gets.wrong = "It is of another call."
    assert two.resumed(two.ticket()) is None


def test_what_may_not_leave_its_machine_is_neither_offered_nor_fetched(two: Two) -> None:
    assert two.old.marked(b"body", msgspec.structs.replace(STREAMED, privacy=Privacy.LOCAL)) is None
    assert two.resumed(two.ticket(), privacy=Privacy.LOCAL) is None
    assert not two.gets.taken
    assert two.old.marked(b"body", STREAMED) == Marked(b"body!", 7)
    assert two.old.marked(b"body", TextContext()) is None, "a whole answer is asked for again, not carried on"


def test_too_large_or_forbidden_nothing_is_offered() -> None:
    two = Two(most=100)
    assert two.old.offer(7) is None
    assert not two.old._offers
    two.close()
    none = Two(most=0)
    assert none.old.marked(b"body", STREAMED) is None
    none.close()


def test_a_larger_state_than_is_allowed_here_is_not_fetched(two: Two) -> None:
    small = Handover(NEW, two.gets, two.new_mesh, 100)
    assert small.resumed(Operation.CHAT, b"", TextContext(streamed=True, state=two.ticket())) is None
    assert len(two.old._offers) == 1, "it was not even asked for"
    small.close()


def test_a_service_that_does_not_answer_holds_nobody_up(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FETCH", 0.05)
    mute = two.old_mesh.serve(keys.state_key(ServiceId("mute/m")), lambda call: None)
    until_now(lambda: two.new_mesh.alive(keys.state_key(ServiceId("mute/m"))), "it is there, and mute")
    assert two.resumed(two.ticket(service="mute/m")) is None
    mute.close()


def test_the_end_waits_for_what_was_offered_and_not_for_ever(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    two.old.finish(time.monotonic() + 60)  # nothing was offered
    ticket = two.ticket()
    waits = threading.Thread(target=two.old.finish, args=(time.monotonic() + 60,))
    waits.start()
    assert two.resumed(ticket) is not None
    waits.join(30)
    assert not waits.is_alive()
    monkeypatch.setattr(module, "OFFERED", 0.05)
    late = two.ticket()
    two.old.finish(time.monotonic() + 60)
    assert not two.old._offers, "too old"
    assert two.resumed(late) is None
    monkeypatch.setattr(module, "OFFERED", 1000.0)
    two.ticket()
    two.old.finish(time.monotonic() + 0.05)
    two.old.close()
    assert not two.old._offers


LONG = b"a body that is long enough to be worth it" * 20


def test_the_next_turn_gets_the_state_of_the_one_before(two: Two) -> None:
    ticket = two.old.finished(7)
    assert (ticket.size, ticket.written) == (0, -1), "nothing is saved until somebody asks"
    assert two.resumed(ticket) is None, "a short prompt is read as fast"
    assert two.resumed(ticket, LONG) is not None
    assert two.gets.taken == [(STATE, -1)]
    assert two.resumed(ticket, LONG) is None, "it is given once"


def test_where_the_turn_before_was_answered_nothing_is_fetched(two: Two) -> None:
    ticket = two.old.finished(7)
    assert two.old.resumed(Operation.CHAT, LONG, TextContext(streamed=True, state=ticket)) is None
    assert two.resumed(ticket, LONG) is not None, "it was not asked for until now"


def test_a_slot_that_was_given_away_is_done_without(two: Two) -> None:
    ticket = two.old.finished(7)
    two.had.state = STATE * 1000
    assert two.resumed(ticket, LONG) is None
    assert not two.gets.taken


def test_tickets_are_bounded_in_number(two: Two) -> None:
    first = two.old.finished(7)
    for _ in range(module.TURNS):
        two.old.finished(7)
    assert two.resumed(first, LONG) is None


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xff",
        encode(CallHead(Operation.STATE)),
        encode(CallHead(Operation.STATE, text=TextContext())),
        encode(CallHead(Operation.CHAT, text=TextContext(state=StateTicket("old/m", "", "b", "", 0)))),
    ],
    ids=["nothing", "no call", "no context", "no ticket", "another operation"],
)
def test_whoever_asks_without_a_ticket_gets_an_error(two: Two, head: bytes) -> None:
    two.ticket()
    call = FakeCall(head)
    two.old._asked(call)
    assert call.code in ("mesh", "invalid-input")
    assert two.old._offers
