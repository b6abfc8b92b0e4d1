"""The far end as a runtime: what is sent, what comes back, and what each fault of the other side becomes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nearfar.errors import (
    DeadlineExceeded,
    InferenceError,
    InputError,
    NearfarError,
    Overloaded,
    PrivateRefused,
    Unreachable,
)
from nearfar.ledger import Counted, Outcome, Row
from nearfar.types.request import Privacy
from nearfar.types.wire import Operation
from tests.far.calls import ANY, KEY, Far
from tests.far.misbehaving import Act, FarServer, Kind
from tests.waiting import until_now

ALL = "one two three four"
SHAPES = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


@pytest.fixture
def server() -> Iterator[FarServer]:
    with FarServer() as server:
        yield server


@pytest.fixture
def far(server: FarServer, tmp_path: Path) -> Iterator[Far]:
    with Far(server.url, tmp_path) as far:
        yield far


def rows(far: Far) -> list[Row]:
    """The ledger; each test of a call looks at it, as a call without its row is the worst that can happen."""
    return far.ledger.rows()


def outcomes(far: Far) -> list[str]:
    return [row.outcome.value for row in rows(far)]


# -- what goes and comes -----------------------------------------------------------------------------------------------


@SHAPES
def test_a_call_is_answered_and_billed(server: FarServer, far: Far, stream: bool) -> None:
    asked = far.ask(stream)
    assert asked.text == ALL
    assert {piece["model"] for piece in asked.pieces} == {"large"}
    [row] = rows(far)
    assert (row.outcome, row.tokens_in, row.tokens_out, row.counted) == (Outcome.OK, 9, 4, Counted.REPORTED)
    assert row.cost == pytest.approx((9 * 2.0 + 4 * 10.0) / 1e6)
    assert (row.far_end, row.model, row.privacy, row.status) == ("large", "large-1", "any", 200)
    assert (row.why, row.conversation, row.attempt) == ("the router said so", "talk-1", 1)
    bill = asked.bill
    assert (bill["cost"], bill["currency"], bill["request"]) == (row.cost, "USD", row.request)
    assert (bill["model"], bill["far"], bill["attempts"]) == ("large-1-2026", "large", 1)
    assert sum("nearfar" in piece for piece in asked.pieces) == 1
    [seen] = server.requests
    assert seen.header("authorization") == f"Bearer {KEY}" and seen.header("idempotency-key") == row.request


def test_the_body_goes_as_it_is_but_for_the_model_and_what_is_ours(server: FarServer, far: Far) -> None:
    extra: dict[str, Any] = {"temperature": 0.25, "seed": 10**30, "tools": [{"type": "function"}], "x": None}
    far.ask(False, **extra, nearfar={"route": "auto"}, nearfar_route=1, private=False)
    sent = server.requests[0].json
    assert sent["model"] == "large-1"
    assert {key: sent[key] for key in extra} == extra
    assert not [key for key in sent if key.startswith("nearfar") or key == "private"]
    assert "stream_options" not in sent


def test_usage_is_asked_for_and_taken_out_again(server: FarServer, far: Far) -> None:
    asked = far.ask(True, stream_options={"include_obfuscation": False})
    assert server.requests[0].json["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert all("usage" not in piece and piece["choices"] for piece in asked.pieces)


def test_who_asks_for_usage_gets_it_in_a_chunk_of_its_own(far: Far) -> None:
    asked = far.ask(True, stream_options={"include_usage": True})
    assert asked.pieces[-1]["choices"] == [] and asked.pieces[-1]["usage"]["completion_tokens"] == 4
    assert asked.pieces[-2]["choices"][0]["finish_reason"] == "stop"
    assert asked.bill["counted"] == "reported"


def test_usage_is_not_asked_for_where_it_is_not_understood(server: FarServer, tmp_path: Path) -> None:
    with Far(server.url, tmp_path, stream_usage=False) as far:
        far.ask(True)
        assert "stream_options" not in server.requests[0].json
        assert rows(far)[0].counted is Counted.ESTIMATED


@pytest.mark.parametrize(("operation", "path"), [(Operation.COMPLETE, "/v1/completions"), (Operation.CHAT, None)])
@SHAPES
def test_a_completion_has_its_own_address(
    server: FarServer, far: Far, operation: Operation, path: str | None, stream: bool
) -> None:
    assert far.ask(stream, operation=operation).text == ALL
    assert server.requests[0].path == (path or "/v1/chat/completions")


def test_embeddings_cost_their_prompt(server: FarServer, far: Far) -> None:
    asked = far.ask(False, operation=Operation.EMBED, input=["a", "b"])
    assert asked.pieces[0]["data"][0]["embedding"] == [0.5, -1.0]
    assert server.requests[0].path == "/v1/embeddings"
    assert rows(far)[0].cost == pytest.approx(9 * 2.0 / 1e6)


def test_the_key_goes_where_the_description_says(server: FarServer, tmp_path: Path) -> None:
    url = f"{server.url}/deployments/x?api-version=2"
    with Far(url, tmp_path, key_header="api-key", headers={"x-more": "1"}) as far:
        far.ask(False)
    [seen] = server.requests
    assert seen.header("api-key") == KEY and not seen.header("authorization") and seen.header("x-more") == "1"
    assert seen.path == "/v1/deployments/x/chat/completions?api-version=2"


def test_a_connection_is_used_again(server: FarServer, far: Far) -> None:
    for stream in (True, False, True):
        far.ask(stream)
    assert (server.connections, len(server.requests)) == (1, 3)


def test_calls_at_once_have_a_row_each(server: FarServer, far: Far) -> None:
    server.add(*[Act(delay=0.05)] * 8)
    threads = [threading.Thread(target=far.ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes(far) == ["ok"] * 8 == ["ok"] * len(server.requests)
    assert len({row.request for row in rows(far)}) == 8


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b'{"messages": \xff}', b"[" * 100_000, b"{} {}"])
def test_what_is_no_request_is_not_sent(server: FarServer, far: Far, body: bytes) -> None:
    with pytest.raises(InputError):
        far.text.run(Operation.CHAT, body, lambda _: False, ANY)
    assert not server.received and not rows(far)


# -- privacy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("privacy", [Privacy.LOCAL, Privacy.FLEET])
def test_a_private_call_leaves_no_trace(server: FarServer, far: Far, privacy: Privacy) -> None:
    with pytest.raises(PrivateRefused):
        far.ask(context=msgspec.structs.replace(ANY, privacy=privacy))
    assert server.connections == 0 and not far.ledger.path.exists()


@pytest.mark.parametrize(
    "field",
    [
        {"private": True},
        {"private": "yes"},
        {"privacy": "fleet"},
        {"nearfar": {"private": True}},
        {"nearfar": {"privacy": "local"}},
        {"nearfar_privacy": "local"},
        {"nearfar_private": 1},
    ],
    ids=str,
)
def test_a_body_that_says_that_it_is_private_is_believed(server: FarServer, far: Far, field: dict[str, Any]) -> None:
    with pytest.raises(PrivateRefused):
        far.ask(**field)
    assert server.connections == 0 and not far.ledger.path.exists()


def test_who_says_nothing_of_privacy_has_not_allowed_it(far: Far) -> None:
    with pytest.raises(PrivateRefused):
        far.ask(context=type(ANY)())


# -- faults before the first piece -------------------------------------------------------------------------------------

RETRIED = [
    (Act(Kind.STATUS, status=500), "maybe-billed"),
    (Act(Kind.STATUS, status=502), "maybe-billed"),
    (Act(Kind.STATUS, status=503, retry_after="0"), "maybe-billed"),
    (Act(Kind.STATUS, status=429, retry_after="0"), "not-billed"),
    (Act(Kind.STATUS, status=408), "maybe-billed"),
    (Act(Kind.CLOSE), "maybe-billed"),
    (Act(Kind.RESET), "maybe-billed"),
    (Act(Kind.HALF_HEAD), "maybe-billed"),
    (Act(Kind.HEAD_ONLY), "maybe-billed"),
    (Act(Kind.HTML), "maybe-billed"),
    (Act(Kind.EMPTY), "maybe-billed"),
    (Act(Kind.NO_CHOICES), "maybe-billed"),
    (Act(Kind.MALFORMED, at=0), "maybe-billed"),
    (Act(Kind.ERROR_EVENT, at=0), "maybe-billed"),
    (Act(Kind.CUT, at=0), "maybe-billed"),
    (Act(Kind.SHORT, at=0), "maybe-billed"),
]


@pytest.mark.parametrize(("act", "outcome"), RETRIED, ids=lambda value: getattr(value, "kind", None))
@SHAPES
def test_what_failed_before_the_first_piece_is_tried_again(
    server: FarServer, far: Far, act: Act, outcome: str, stream: bool
) -> None:
    server.add(act)
    asked = far.ask(stream)
    assert asked.text == ALL and asked.bill["attempts"] == 2
    assert outcomes(far) == [outcome, "ok"] and len(server.requests) == 2
    first, second = rows(far)
    assert (first.request, first.attempt, second.attempt) == (second.request, 1, 2)
    assert first.failure and first.status == (act.status if act.kind is Kind.STATUS else first.status)
    assert (first.cost > 0) == (outcome == "maybe-billed"), "what may be owed is on record"
    keys = {seen.header("idempotency-key") for seen in server.requests}
    assert len(keys) == 1, "a provider that knows the header bills one"


@pytest.mark.parametrize(("act", "outcome"), RETRIED, ids=lambda value: getattr(value, "kind", None))
def test_retries_end(server: FarServer, far: Far, act: Act, outcome: str) -> None:
    server.add(act, act, act, act)
    with pytest.raises(NearfarError) as told:
        far.ask()
    assert outcomes(far) == [outcome] * 3 and len(server.requests) == 3
    assert "2 retries were made" in told.value.message and told.value.hint
    assert isinstance(told.value, Overloaded | InferenceError | Unreachable), "then another service is asked"


REFUSED = [
    (Act(Kind.STATUS, status=401, message=f"Incorrect key: {KEY}"), InferenceError, "Check what is in"),
    (Act(Kind.STATUS, status=403), InferenceError, "does not allow large-1"),
    (Act(Kind.STATUS, status=404), InferenceError, "does not know the model large-1"),
    (Act(Kind.STATUS, status=400, message=f"bad {KEY}\n"), InputError, "bad ***"),
    (Act(Kind.STATUS, status=422), InputError, "HTTP 422"),
    (Act(Kind.STATUS, status=429, code="insufficient_quota"), InferenceError, "used up"),
    (Act(Kind.REDIRECT), InferenceError, "elsewhere.invalid"),
]


@pytest.mark.parametrize(("act", "error", "words"), REFUSED, ids=lambda value: getattr(value, "status", None))
@SHAPES
def test_what_the_far_end_refuses_is_not_asked_again(
    server: FarServer, far: Far, act: Act, error: type[NearfarError], words: str, stream: bool
) -> None:
    server.add(act)
    with pytest.raises(error) as told:
        far.ask(stream)
    assert words in str(told.value) and KEY not in str(told.value)
    assert outcomes(far) == ["not-billed"] and rows(far)[0].cost == 0 and len(server.requests) == 1


def test_a_wrong_key_names_the_variable_and_not_the_key(server: FarServer, tmp_path: Path) -> None:
    server.add(Act(Kind.STATUS, status=401))
    with Far(server.url, tmp_path, key_env="FAR_TEST_KEY") as far, pytest.raises(InferenceError, match="FAR_TEST_KEY"):
        far.ask()


def test_retry_after_is_honoured_where_there_is_time(server: FarServer, far: Far) -> None:
    server.add(Act(Kind.STATUS, status=429, retry_after="1"))
    far.ask(budget_ms=60_000)
    first, second = rows(far)
    assert first.began < second.began and outcomes(far) == ["not-billed", "ok"]


@pytest.mark.parametrize("after", ["90", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_a_wait_that_is_too_long_is_left_to_the_caller(server: FarServer, far: Far, after: str) -> None:
    server.add(Act(Kind.STATUS, status=429, retry_after=after))
    with pytest.raises(Overloaded) as told:
        far.ask()
    assert told.value.retry_after >= 90 and outcomes(far) == ["not-billed"]


def test_a_wait_behind_the_deadline_is_not_begun(server: FarServer, far: Far) -> None:
    server.add(Act(Kind.STATUS, status=503, retry_after="20"))
    with pytest.raises(Overloaded, match="after the deadline"):
        far.ask(budget_ms=5000)
    assert len(server.requests) == 1


def test_who_is_not_there_is_not_billed(tmp_path: Path) -> None:
    with FarServer() as server:
        url = server.url
    with Far(url, tmp_path) as far, pytest.raises(Unreachable, match="cannot be reached"):
        far.ask()
    assert outcomes(far) == ["not-billed"] * 3


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.SILENT, Kind.DRIP])
@SHAPES
def test_a_deadline_ends_silence_and_dripping(server: FarServer, far: Far, kind: Kind, stream: bool) -> None:
    server.add(Act(kind, delay=0.02))
    with pytest.raises(DeadlineExceeded):
        far.ask(stream, budget_ms=300)
    assert outcomes(far) == ["maybe-billed"] and "deadline" in rows(far)[0].failure


@SHAPES
def test_without_a_deadline_silence_has_an_end(server: FarServer, tmp_path: Path, stream: bool) -> None:
    server.add(Act(Kind.SILENT), Act(Kind.STALL, at=0))
    with Far(server.url, tmp_path, timeout_s=0.2) as far:
        assert far.ask(stream).text == ALL
        assert outcomes(far) == ["maybe-billed", "maybe-billed", "ok"]


def test_the_deadline_of_a_stream_is_that_of_its_first_piece(server: FarServer, far: Far) -> None:
    server.add(Act(Kind.SLOW, delay=0.25))
    asked = far.ask(budget_ms=1000)  # all seven pieces take half as much again
    assert asked.text == ALL and outcomes(far) == ["ok"]


def test_no_time_left_is_no_call(server: FarServer, far: Far) -> None:
    with pytest.raises(DeadlineExceeded):
        far.ask(budget_ms=1e-6)
    assert not server.requests and not rows(far)


def test_closing_ends_the_wait_for_a_retry(server: FarServer, far: Far) -> None:
    server.add(Act(Kind.STATUS, status=429, retry_after="25"))
    failed: list[Exception] = []

    def ask() -> None:
        try:
            far.ask()
        except NearfarError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until_now(lambda: outcomes(far) == ["not-billed"], "the first attempt has failed")
    far.text.close()
    thread.join(10)
    assert not thread.is_alive() and "closing" in str(failed[0])


# -- faults after the first piece --------------------------------------------------------------------------------------

CUTS = [Act(kind, at=2) for kind in (Kind.CUT, Kind.MALFORMED, Kind.BAD_UTF8, Kind.ERROR_EVENT)] + [Act(Kind.NO_FINISH)]


@pytest.mark.parametrize("act", CUTS, ids=lambda act: act.kind)
def test_a_stream_that_broke_is_an_error_and_never_begun_again(server: FarServer, far: Far, act: Act) -> None:
    server.add(act)
    with pytest.raises((Unreachable, InferenceError)):
        far.ask()
    [row] = rows(far)
    assert (row.outcome, row.counted) == (Outcome.CUT, Counted.ESTIMATED) and row.tokens_out >= 1 and row.cost > 0
    assert len(server.requests) == 1


def test_a_stream_that_stalls_is_cut(server: FarServer, tmp_path: Path) -> None:
    server.add(Act(Kind.STALL, at=2))
    with Far(server.url, tmp_path, timeout_s=0.2) as far, pytest.raises(Unreachable, match="broke off after 2 pieces"):
        far.ask()
    assert outcomes(far) == ["cut"]


def test_who_leaves_pays_for_what_came(server: FarServer, far: Far) -> None:
    server.add(Act(words=("word ",) * 500))
    asked = far.ask(leave_after=3)
    assert len(asked.pieces) == 3
    [row] = rows(far)
    assert (row.outcome, row.counted) == (Outcome.CANCELLED, Counted.ESTIMATED) and row.tokens_out >= 2


def test_a_caller_that_fails_leaves_a_complete_row(far: Far) -> None:
    def fail(_: bytes) -> bool:
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="own"):
        far.text.run(Operation.CHAT, b'{"messages": [], "stream": true}', fail, ANY)
    assert outcomes(far) == ["cancelled"]


# -- odd, but good -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.ODD, Kind.NO_DONE, Kind.LONG])
def test_a_stream_that_is_odd_but_whole_is_an_answer(server: FarServer, far: Far, kind: Kind) -> None:
    server.add(Act(kind))
    assert far.ask().text == ALL and far.ask().text == ALL
    assert outcomes(far) == ["ok", "ok"]


USAGES = [
    None,
    "four",
    {},
    {"prompt_tokens": -1, "completion_tokens": 4},
    {"prompt_tokens": 9.5, "completion_tokens": 4},
    {"prompt_tokens": True, "completion_tokens": 4},
    {"prompt_tokens": 0, "completion_tokens": 4},
    {"prompt_tokens": 9, "completion_tokens": 0},
    {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 5},
    {"prompt_tokens": 10**9, "completion_tokens": 4},
    {"prompt_tokens": 9, "completion_tokens": 10**30},
]


@pytest.mark.parametrize("usage", USAGES, ids=str)
@SHAPES
def test_a_usage_that_cannot_be_is_recounted_and_marked(server: FarServer, far: Far, usage: Any, stream: bool) -> None:
    server.add(Act(Kind.USAGE, usage=usage))
    more: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    asked = far.ask(stream, **more)
    assert asked.text == ALL
    [row] = rows(far)
    assert (row.outcome, row.counted) == (Outcome.OK, Counted.ESTIMATED) and "report" in row.failure
    assert (row.tokens_in, row.tokens_out) == (9, 5)  # four bytes a token, and what each message takes beside its text
    told = asked.pieces[-1]["usage"]
    assert told["estimated"] is True and told["prompt_tokens"] == row.tokens_in
    assert asked.bill["counted"] == "estimated" and asked.bill["reason"]


@pytest.mark.parametrize("act", [Act(Kind.HUGE, size=4 << 20), Act(Kind.LONG, words=("x" * (1 << 19),) * 4)])
@SHAPES
def test_an_answer_that_is_too_large_is_not_taken(server: FarServer, tmp_path: Path, act: Act, stream: bool) -> None:
    server.add(act)
    with (
        Far(server.url, tmp_path, max_answer=1 << 20, max_retries=0) as far,
        pytest.raises(InferenceError, match="more"),
    ):
        far.ask(stream)
    assert outcomes(far) == ["cut" if stream else "maybe-billed"]


@SHAPES
def test_a_whole_answer_is_no_stream(server: FarServer, far: Far, stream: bool) -> None:
    server.add(Act(Kind.PLAIN))
    assert far.ask(stream).text == ALL
    assert outcomes(far) == (["maybe-billed", "ok"] if stream else ["ok"])


def test_nothing_of_what_was_said_is_written_down(server: FarServer, far: Far) -> None:
    told = {"message": "Count, please. one two", "code": "Count"}
    server.add(Act(Kind.STATUS, status=400, **told), Act(Kind.ERROR_EVENT, at=2, **told), Act(Kind.CUT, at=3))  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(NearfarError):
            far.ask()
    far.ask()
    far.ledger.close()
    data = b"".join(path.read_bytes() for path in far.ledger.path.parent.glob("ledger.sqlite3*"))
    assert b"the router said so" in data
    for word in (b"please", b"Count", b"three", KEY.encode()):
        assert word not in data


def test_answers_are_json_of_one_line(server: FarServer, far: Far) -> None:
    server.add(Act(Kind.ODD))
    pieces: list[bytes] = []

    def take(piece: bytes) -> bool:
        pieces.append(piece)
        return False

    far.text.run(Operation.CHAT, b'{"messages": [], "stream": true}', take, ANY)
    assert all(b"\n" not in piece and json.loads(piece) for piece in pieces)
