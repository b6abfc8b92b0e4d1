"""The queue and the slots of a language service: every call is answered, refused or dropped, and none ends it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nearfar.errors import InferenceError, InputError, MeshError
from nearfar.node import talk
from nearfar.node.meter import Meter
from nearfar.node.talk import TextPool
from nearfar.node.talkmeter import TextMeter
from nearfar.node.worker import Description
from nearfar.runtimes.faketext import FakeTextRuntime, fake_text
from nearfar.runtimes.text import LoadedText, OnPiece, TextOptions
from nearfar.types.wire import CallHead, Operation, TextContext, decode_reply, encode
from tests.node.calls import FakeCall, spec
from tests.waiting import until_now

Run = Callable[[bytes, OnPiece], None]


class Scripted(LoadedText):
    """`script(body, on_piece)` is what becomes of a call."""

    def __init__(self, script: Run, slots: int = 2) -> None:
        self.slots, self.context = slots, 100
        self._script = script

    def run(
        self, operation: Operation, body: bytes, on_piece: OnPiece, context: TextContext, budget_ms: float = 0.0
    ) -> None:
        self._script(body, on_piece)

    def close(self) -> None:
        pass


class Gate:
    """A script that says one piece, waits until it is opened, and says the last one."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = threading.Semaphore(0)
        self.stopped = 0

    def __call__(self, body: bytes, on_piece: OnPiece) -> None:
        on_piece(b'{"first": 1}')
        self.inside.release()
        assert self.open.wait(30)
        if on_piece(b'{"last": 1}'):
            self.stopped += 1


def says_nothing(body: bytes, on_piece: OnPiece) -> None:
    on_piece(b"{}")


@contextmanager
def pool(loaded: LoadedText, limit: int = 4) -> Iterator[tuple[TextPool, Meter]]:
    meter = Meter(spec(queue_limit=limit), 1.0)
    meter.workers = loaded.slots
    meter.text = text = TextMeter(loaded.context)
    made = TextPool(loaded, meter, text, Description("", "v", "faketext", (), ()), limit, lambda: None)
    try:
        yield made, meter
    finally:
        made.close(patience=10)


def call(body: Any = None, *, streamed: bool = False, operation: Operation = Operation.CHAT, **more: Any) -> FakeCall:
    age = more.pop("age", 0.0)
    head = CallHead(operation, text=TextContext(streamed=streamed), **more)
    return FakeCall(encode(head), json.dumps(body or {}).encode(), age=age)


def fake(tmp_path: Path, slots: int = 2, **fields: Any) -> LoadedText:
    (tmp_path / "m.json").write_bytes(fake_text(**fields))
    return FakeTextRuntime().load_text(tmp_path / "m.json", TextOptions("m", slots=slots))


MESSAGES = [{"role": "user", "content": "Hi"}]


def test_a_whole_answer_is_one_message(tmp_path: Path) -> None:
    with pool(fake(tmp_path)) as (made, meter):
        asked = call({"messages": MESSAGES, "max_tokens": 5})
        made.accept(asked)
        assert asked.code == ""
        assert json.loads(asked.replies[0][1])["usage"]["completion_tokens"] == 5
        until_now(lambda: meter.idle, "the work is over")
        report = meter.report()
        assert report.answered == 1
        assert report.workers == 2
        assert report.text is not None
        assert report.text.tokens_out == 5
        assert report.text.tokens_in > 0


def test_pieces_leave_as_they_come_and_the_last_message_has_the_head(tmp_path: Path) -> None:
    with pool(fake(tmp_path, delay_ms=10.0)) as (made, meter):
        asked = call({"messages": MESSAGES, "max_tokens": 5, "stream": True}, streamed=True)
        made.accept(asked)
        until_now(lambda: asked.replies and asked.replies[-1][0], "the last word")
        assert len(asked.replies) > 2
        assert all(not head for head, _ in asked.replies[:-1])
        assert decode_reply(asked.replies[-1][0]).failure is None
        lines = b"\n".join(body for _, body in asked.replies if body).splitlines()
        assert all(json.loads(line)["choices"] for line in lines)
        assert meter.report().text.decode_per_s > 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("each_ms", "sizes"),
    [
        (20, [1] * 12),  # slower than anybody could want them together
        (5, [1, 2, 2, 2, 2, 2]),
        (4, [1, 2, 2, 2, 2, 2]),
        (2, [1, 8]),
        (1, [1, *[16] * 2]),
    ],
)
def test_pieces_travel_together_for_as_long_as_nobody_can_see_it(
    each_ms: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(talk, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))

    def writes(body: bytes, on_piece: OnPiece) -> None:
        for number in range(sum(sizes)):
            now[0] = 1000.0 + number * each_ms / 1000 + 1e-6 * number
            on_piece(b'{"n": %d}' % number)

    with pool(Scripted(writes)) as (made, _):
        asked = call(streamed=True)
        made.accept(asked)
        until_now(lambda: asked.replies and asked.replies[-1][0], "the last word")
        told = [body.splitlines() for head, body in asked.replies if not head]
        assert [len(lines) for lines in told] == sizes
        assert [json.loads(line)["n"] for lines in told for line in lines] == list(range(sum(sizes)))


def test_as_many_are_worked_on_as_there_are_slots_and_the_rest_wait_or_are_refused() -> None:
    gate = Gate()
    with pool(Scripted(gate, slots=3), limit=2) as (made, meter):
        calls = [call() for _ in range(3)]
        for asked in calls:
            made.accept(asked)
            assert gate.inside.acquire(timeout=20)
        assert meter.in_flight == 3
        waiting = [call() for _ in range(2)]
        for asked in waiting:
            made.accept(asked)
        late = call()
        made.accept(late)
        assert late.code == "overloaded"
        assert late.answer.failure.retry_after >= 0.05  # type: ignore[union-attr]
        gate.open.set()
        for asked in (*calls, *waiting):
            assert asked.code == ""


def test_a_caller_that_leaves_stops_the_engine_and_frees_its_slot() -> None:
    gate = Gate()
    with pool(Scripted(gate, slots=1)) as (made, meter):
        asked = call(streamed=True)
        made.accept(asked)
        assert gate.inside.acquire(timeout=20)
        asked.cancelled = True
        gate.open.set()
        until_now(lambda: meter.in_flight == 0, "the slot is free")
        assert gate.stopped == 1


def test_one_who_left_while_waiting_is_not_worked_on() -> None:
    gate = Gate()
    with pool(Scripted(gate, slots=1)) as (made, _):
        first, second, third = call(), call(), call()
        for asked in (first, second, third):
            made.accept(asked)
        second.cancelled = True
        gate.open.set()
        assert third.code == ""
        assert not second.replies


def test_a_deadline_that_passed_in_the_queue_is_told() -> None:
    with pool(Scripted(lambda body, on_piece: None)) as (made, _):
        asked = call(budget_ms=10.0, age=1.0)
        made.accept(asked)
        assert asked.code == "deadline-exceeded"


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("no", "x"), "invalid-input"), (InferenceError("no", "x"), "inference"), (KeyError("x"), "inference")],
)
def test_what_an_engine_raises_comes_back_and_the_next_call_is_answered(error: Exception, code: str) -> None:
    failing = True

    def script(body: bytes, on_piece: OnPiece) -> None:
        if failing:
            raise error
        on_piece(b"{}")

    with pool(Scripted(script, slots=1)) as (made, meter):
        asked = call()
        made.accept(asked)
        assert asked.code == code
        failing = False
        again = call()
        made.accept(again)
        assert again.code == ""
        assert meter.failed == 1


def test_what_is_no_call_of_language_says_so() -> None:
    with pool(Scripted(lambda body, on_piece: None)) as (made, _):
        asked = call(operation=Operation.SEE)
        made.accept(asked)
        assert asked.code == "invalid-input"
        broken = FakeCall(b"\xc1")
        made.accept(broken)
        assert broken.code == "invalid-input"


def test_an_answer_that_cannot_be_sent_does_not_end_its_thread() -> None:
    def fails(number: int) -> None:
        raise MeshError("gone", "x")

    with pool(Scripted(says_nothing, slots=1)) as (made, _):
        asked = call()
        asked.on_reply = fails
        made.accept(asked)
        again = call()
        made.accept(again)
        assert again.code == ""


def test_what_counts_as_stuck_is_silence_and_not_length() -> None:
    gate = Gate()
    with pool(Scripted(gate, slots=1)) as (made, _):
        assert made.longest(time.monotonic()) == 0
        made.accept(call())
        assert gate.inside.acquire(timeout=20)
        assert made.longest(time.monotonic() + 100) > 99
        gate.open.set()
        until_now(lambda: made.longest(time.monotonic()) == 0, "it has ended")


def test_the_sign_that_an_engine_is_at_work_is_no_piece() -> None:
    def script(body: bytes, on_piece: OnPiece) -> None:
        assert on_piece(b"") is False
        on_piece(b'{"a": 1}')

    with pool(Scripted(script)) as (made, _):
        asked = call(streamed=True)
        made.accept(asked)
        until_now(lambda: asked.replies and asked.replies[-1][0], "the last word")
        assert b"".join(body for _, body in asked.replies) == b'{"a": 1}'


def test_closing_answers_what_waits_and_refuses_what_comes() -> None:
    gate = Gate()
    made_pool = pool(Scripted(gate, slots=1))
    with made_pool as (made, _):
        first, second = call(), call()
        made.accept(first)
        made.accept(second)
        gate.open.set()
    assert first.code == second.code == ""
    late = call()
    made.accept(late)
    assert late.code == "overloaded"
