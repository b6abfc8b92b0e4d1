"""The parts of the language paths, without a node: what is added to an answer, and how a stream is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import DeadlineExceeded, InferenceError, NearfarError, Overloaded, StreamCut
from nearfar.gateway.openai import sse
from nearfar.gateway.openai.errors import error_of
from nearfar.gateway.openai.told import about_headers, with_about
from nearfar.gateway.problems import TooManyRequests, Unauthorized
from nearfar.language.call import About, Route, TextAnswer, TextCall, TextEvent
from nearfar.types.units import Milliseconds
from tests.gateway.stub import gateway

ABOUT = About("req-1", "near", "m", "n/m", cost=0.25, currency="EUR")
FINISH = b'{"id":"c","object":"o","created":7,"model":"m","choices":[{"delta":{},"finish_reason":"stop"}]}'
PART = b'{"id":"c","object":"o","created":7,"model":"m","choices":[{"delta":{"content":"x"},"finish_reason":null}]}'
USAGE = b'{"id":"c","choices":[],"usage":{"completion_tokens":1}}'


@given(
    st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.none(), st.lists(st.text())), max_size=4),
    st.sampled_from(["", " ", "\n", "\r\n\t "]),
    st.sampled_from([None, 2]),
)
def test_the_field_is_added_and_nothing_else_changes(answer: dict[str, Any], blank: str, indent: int | None) -> None:
    answer.pop("nearfar", None)
    body = (blank + json.dumps(answer, indent=indent) + blank).encode()
    told = json.loads(with_about(body, ABOUT))
    assert told.pop("nearfar")["served_by"] == "n/m"
    assert told == answer


def test_numbers_stay_as_they_were_written() -> None:
    assert with_about(b'{"logprob": -1.2467302083969116000, "n": 1E3}', ABOUT).startswith(
        b'{"logprob": -1.2467302083969116000, "n": 1E3,"nearfar":{'
    )


@pytest.mark.parametrize("body", [b"", b"   ", b"}", b"null", b"[1]", b'"x"', b'{"choices": [', b'[{"a":1}'])
def test_what_is_no_object_is_a_failure(body: bytes) -> None:
    with pytest.raises(InferenceError):
        with_about(body, ABOUT)


def test_headers_are_short_and_plain() -> None:
    headers = dict(about_headers(ABOUT))
    assert headers[b"nearfar-cost"] == b"0.25 EUR" and headers[b"nearfar-where"] == b"near"
    assert headers[b"server-timing"].startswith(b"link;dur=0.000, queue;dur=")


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (Unauthorized("No."), 401, "authentication_error", "invalid_api_key"),
        (TooManyRequests("No.", "", 0.2), 429, "rate_limit_error", "rate_limit_exceeded"),
        (Overloaded("No.", "", 7.5), 503, "overloaded_error", "overloaded"),
        (DeadlineExceeded("No."), 503, "overloaded_error", "deadline_exceeded"),
        (InferenceError("No."), 500, "server_error", "inference"),
    ],
)
def test_errors_have_the_status_and_the_names_that_programs_know(
    error: NearfarError, status: int, kind: str, code: str
) -> None:
    found, headers, told = error_of(error)
    assert (found, told["error"]["type"], told["error"]["code"]) == (status, kind, code)
    assert (b"retry-after" in dict(headers)) == (status in (429, 503))


# -- a stream, told ---------------------------------------------------------------------------------------------------


class Sent:
    """What went out, as an ASGI server would see it."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def __call__(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def data(self) -> list[str]:
        return [part[6:] for part in self.body.decode().split("\n\n") if part.startswith("data: ")]


def told(work: Callable[[sse.Events], Awaitable[None]]) -> Sent:
    sent = Sent()

    async def main() -> None:
        events = sse.Events(sent, [])
        try:
            await work(events)
        finally:
            events.close()

    asyncio.run(main())
    return sent


@pytest.mark.parametrize(
    "parts",
    [
        [PART, PART + b"\n" + FINISH],
        [PART, PART, FINISH, b""],
        [PART, PART + b"\n" + FINISH, USAGE],
        [PART, PART, FINISH + b"\n" + USAGE],
        [PART, PART, FINISH, USAGE, b""],
        [PART, PART, FINISH + b"\n" + USAGE, b""],
        [PART + b"\n" + PART, FINISH, FINISH],
    ],
)
def test_the_last_chunk_says_where_it_came_from_however_they_travelled(parts: list[bytes]) -> None:
    async def work(events: sse.Events) -> None:
        for lines in parts[:-1]:
            await events.give(lines)
        await events.end(parts[-1], ABOUT)

    *chunks, last, done = told(work).data
    assert done == "[DONE]"
    expected = [json.loads(line) for line in b"\n".join(filter(None, parts)).splitlines()]
    found = [*map(json.loads, chunks), json.loads(last)]
    assert found[-1].pop("nearfar")["request"] == "req-1"
    assert found == expected


def test_without_a_last_chunk_one_of_its_own_says_it() -> None:
    async def work(events: sse.Events) -> None:
        await events.give(PART)
        await events.end(b"", ABOUT)

    chunks = [json.loads(chunk) for chunk in told(work).data[:-1]]
    assert chunks[-1]["choices"] == [] and chunks[-1]["nearfar"]["request"] == "req-1"
    assert (chunks[-1]["id"], chunks[-1]["created"]) == ("c", 7)


def test_an_error_comes_after_all_that_was_given_and_nothing_is_done() -> None:
    async def work(events: sse.Events) -> None:
        await events.give(PART)
        await events.give(FINISH)
        await events.fail(error_of(StreamCut("Cut."))[2])

    sent = told(work)
    assert [json.loads(chunk).get("error") is not None for chunk in sent.data] == [False, False, True]
    assert b"[DONE]" not in sent.body and sent.messages[-1]["more_body"] is False


def test_a_client_that_waits_hears_that_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.02)
    heard = asyncio.Event()

    async def work(events: sse.Events) -> None:
        async def send(message: Any) -> None:
            await original(message)
            if b": still" in message.get("body", b""):
                heard.set()

        original, events._send = events._send, send
        await asyncio.wait_for(heard.wait(), 20)
        await events.give(PART)
        await events.end(FINISH, ABOUT)

    sent = told(work)
    assert sent.messages[0]["status"] == 200 and sent.body.startswith(b": still at work\n\n")
    assert sent.data[-1] == "[DONE]" and len(sent.data) == 3


# -- a gateway whose talker is scripted -------------------------------------------------------------------------------


class Scripted:
    """Answers as told, and keeps what it was asked."""

    def __init__(self, events: list[TextEvent | Exception]) -> None:
        self.events = events
        self.calls: list[TextCall] = []

    async def answer(self, call: TextCall) -> TextAnswer:
        self.calls.append(call)
        return TextAnswer(b'{"id":"x"}', ABOUT)

    async def stream(self, call: TextCall) -> AsyncIterator[TextEvent]:
        self.calls.append(call)
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event


def asked(events: list[TextEvent | Exception], headers: dict[str, str], **body: Any) -> tuple[httpx.Response, Scripted]:
    scripted = Scripted(events)

    async def main() -> httpx.Response:
        async with gateway() as (made, state):
            state.talker = cast(Any, scripted)
            async with httpx.AsyncClient(base_url=made.url, trust_env=False) as http:
                sent = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **body}
                return await http.post("/v1/chat/completions", json=sent, headers=headers)

    return asyncio.run(main()), scripted


def test_the_strictest_privacy_holds() -> None:
    for header, field, holds in (("fleet", "any", "fleet"), ("any", "local", "local"), ("local", "fleet", "local")):
        _, scripted = asked([], {"Nearfar-Privacy": header}, nearfar={"privacy": field})
        assert scripted.calls[0].qos.privacy == holds


def test_what_headers_ask_for_reaches_the_talker() -> None:
    headers = {
        "Nearfar-Route": "far",
        "Nearfar-Deadline": "250ms",
        "Nearfar-Stream": "talk-1",
        "Nearfar-Max-Cost": "0.5",
    }
    _, scripted = asked([], headers)
    call = scripted.calls[0]
    assert (call.route, call.qos.deadline, call.conversation, call.qos.max_cost) == (
        Route.FAR,
        Milliseconds(250),
        "talk-1",
        0.5,
    )


def test_a_failure_before_the_first_chunk_has_its_own_status() -> None:
    answer, _ = asked([Overloaded("Full.", "Later.", 3.0)], {}, stream=True)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    assert answer.json()["error"]["code"] == "overloaded" and answer.headers["x-request-id"].startswith("req-")


def test_a_failure_after_it_is_an_event(caplog: pytest.LogCaptureFixture) -> None:
    for error, code in ((StreamCut("Cut."), "stream-cut"), (ValueError("a bug"), "internal")):
        answer, _ = asked([TextEvent(PART), error], {}, stream=True)
        assert answer.status_code == 200 and "[DONE]" not in answer.text
        last = json.loads(answer.text.strip().rpartition("data: ")[2])
        assert last["error"]["nearfar"]["code"] == code


def test_a_stream_without_its_last_word_is_no_answer() -> None:
    answer, _ = asked([TextEvent(PART)], {}, stream=True)
    assert "[DONE]" not in answer.text and "stream_cut" in answer.text


def test_every_field_of_the_body_travels() -> None:
    _, scripted = asked([], {}, tools=[{"type": "function"}], frobnicate={"deep": [1, 2.50]}, temperature=0.0)
    assert msgspec.json.decode(scripted.calls[0].body)["frobnicate"] == {"deep": [1, 2.5]}
