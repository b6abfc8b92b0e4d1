"""The answer of `/v1/responses` without a node: whatever chunks a model writes, the events agree with each other."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import httpx
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import DeadlineExceeded, InferenceError, Overloaded, StreamCut
from nearfar.gateway.openai import sse
from nearfar.gateway.openai.errors import error_of
from nearfar.gateway.openai.responseanswer import Responding, Response
from nearfar.language.call import About, TextCall, TextEvent, View
from nearfar.types.wire import Operation
from tests.gateway.openai.conftest import openai
from tests.gateway.openai.test_parts import Scripted, Sent
from tests.gateway.stub import gateway

ABOUT = About("req-1", "near", "m", "n/m", tokens_in=7, tokens_out=3)
EVENT = pydantic.TypeAdapter(openai.types.responses.ResponseStreamEvent)
CALL = TextCall(Operation.CHAT, b"", View("auto"), id="req-1")
TYPES = {"reasoning_content": "reasoning_text", "content": "output_text", "refusal": "refusal"}


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    return msgspec.json.encode({"model": "m", "choices": [{"delta": delta, "finish_reason": finish}], **more})


def tool(index: int, arguments: str, name: str | None = None, id_: str | None = None) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "id": id_, "function": {"name": name, "arguments": arguments}}]}


def events_of(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(part.partition("data: ")[2]) for part in data.decode().split("\n\n") if "data: " in part]


def fresh() -> Response:
    return Response(CALL, Responding(b'{"input": "hi"}')._echo)


def replayed(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(type of its part, or the function; text) of each item, checked as a careful client would."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    done: list[dict[str, Any]] = []
    text: list[str] = []
    item: dict[str, Any] | None = None
    found = []
    for event in events[2:-1]:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert item is None and event["output_index"] == len(done)
            item, text = event["item"], []
            continue
        assert item is not None and event["output_index"] == len(done)
        if kind == "response.output_item.done":
            assert event["item"]["id"] == item["id"] and event["item"]["status"] in ("completed", "incomplete")
            (part,) = event["item"].get("content") or [event["item"]]
            whole = part.get("text", part.get("refusal", part.get("arguments")))
            assert whole == "".join(text)
            found.append((part.get("name") or part["type"], whole))
            done.append(event["item"])
            item = None
            continue
        assert event["item_id"] == item["id"]
        if kind.endswith(".delta"):
            text.append(event["delta"])
    assert item is None and events[-1]["response"]["output"] == done
    return found


_NAMES = st.sampled_from(list(TYPES))
_DELTAS = st.lists(st.one_of(st.tuples(_NAMES, st.text()), st.tuples(st.just("tool"), st.text())), max_size=8)


@given(_DELTAS, st.sampled_from(["stop", "length", "tool_calls", "content_filter", None]), st.data())
def test_whatever_comes_the_events_agree_and_nothing_is_lost(
    deltas: list[tuple[str, str]], finish: str | None, data: st.DataObject
) -> None:
    lines, expected = [], list[tuple[str, str]]()
    for number, (name, text) in enumerate(deltas):
        if name == "tool":
            lines += [chunk(tool(number, "", f"f{number}", f"c{number}")), chunk(tool(number, text))]
            expected.append((f"f{number}", text))
            continue
        lines.append(chunk({name: text}))
        if text and expected and expected[-1][0] == TYPES[name]:
            expected[-1] = (TYPES[name], expected[-1][1] + text)
        elif text:
            expected.append((TYPES[name], text))
    lines.append(chunk({}, finish))
    made = fresh()
    sent = b""
    while lines:
        count = data.draw(st.integers(1, len(lines)))
        sent += made.feed(b"\n".join(lines[:count]))
        del lines[:count]
    events = events_of(sent + made.end(ABOUT))
    assert replayed(events) == (expected or [("output_text", "")])
    bad = finish in ("length", "content_filter")
    assert events[-1]["type"] == f"response.{'incomplete' if bad else 'completed'}"
    assert (events[-1]["response"]["incomplete_details"] is not None) == bad
    for event in events:
        EVENT.validate_python(event)


def test_a_whole_answer_has_the_same_output_as_its_stream() -> None:
    calls = [{"id": f"c{i}", "type": "function", "function": {"name": f"f{i}", "arguments": "{}"}} for i in range(2)]
    message = {"role": "assistant", "reasoning_content": "Hm.", "content": [{"type": "text", "text": "Yes."}]}
    usage = {"prompt_tokens": 5, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
    body = {"model": "m", "choices": [{"message": {**message, "tool_calls": calls}, "finish_reason": "tool_calls"}]}
    raw = json.dumps(body | {"usage": usage}, indent=1).encode()
    whole = json.loads(Responding(b'{"input": "hi"}').whole(CALL, raw, ABOUT))
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert [item["call_id"] for item in whole["output"][2:]] == ["c0", "c1"]
    assert len({item["id"] for item in whole["output"]}) == 4
    assert (whole["usage"]["input_tokens"], whole["usage"]["total_tokens"]) == (5, 14)
    assert whole["usage"]["input_tokens_details"]["cached_tokens"] == 4
    openai.types.responses.Response.model_validate(whole)
    made = fresh()
    made.feed(
        b"\n".join([chunk({"reasoning_content": "Hm."}), chunk({"content": "Yes."}), chunk({"tool_calls": calls})])
    )
    made.end(ABOUT)
    assert made.object["output"] == whole["output"]
    assert made.object["usage"]["input_tokens"] == 7, "without a usage of the engine's it is what nearfar counted"


@pytest.mark.parametrize(
    "answer", [b"", b"<html>", b"{}", b'{"choices": []}', b'{"choices": [7]}', b'{"choices":[{"x":']
)
def test_what_is_no_answer_is_a_failure(answer: bytes) -> None:
    with pytest.raises(InferenceError):
        Responding(b'{"input": "hi"}').whole(CALL, answer, ABOUT)


def test_calls_that_are_mixed_up_are_a_failure() -> None:
    made = fresh()
    made.feed(chunk(tool(0, "{", "f", "a")) + b"\n" + chunk(tool(1, "{", "g", "b")))
    with pytest.raises(InferenceError):
        made.feed(chunk(tool(0, "}")))
    failed = events_of(made.fail(error_of(InferenceError("Mixed up."))[2]["error"]))
    assert [event["type"] for event in failed] == ["response.failed", "error"]
    with pytest.raises(InferenceError):
        fresh().feed(chunk(tool(0, "{")))  # a call of nothing


# -- a gateway whose talker is scripted -------------------------------------------------------------------------------


def asked(script: list[TextEvent | Exception], **body: Any) -> tuple[httpx.Response, Scripted]:
    scripted = Scripted(script)

    async def main() -> httpx.Response:
        async with gateway() as (made, state):
            state.talker = cast(Any, scripted)
            async with httpx.AsyncClient(base_url=made.url, trust_env=False) as http:
                return await http.post("/v1/responses", json={"model": "m", "input": "hi", "stream": True, **body})

    return asyncio.run(main()), scripted


def test_a_failure_before_the_first_chunk_has_its_own_status() -> None:
    answer, _ = asked([Overloaded("Full.", "Later.", 3.0)])
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    assert answer.json()["error"]["code"] == "overloaded"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ([TextEvent(chunk({"content": "x"})), StreamCut("Cut.")], "stream-cut"),
        ([TextEvent(chunk({"content": "x"})), ValueError("a bug")], "internal"),
        ([TextEvent(chunk({"content": "x"}))], "stream-cut"),
        ([TextEvent(chunk({"content": "x"})), TextEvent(b"<html>")], "inference"),
        ([TextEvent(chunk({"content": "x"})), TextEvent(b"<html>", ABOUT)], "inference"),
    ],
)
def test_a_failure_after_it_is_told_and_is_never_a_success(script: list[Any], code: str) -> None:
    answer, _ = asked(script)
    events = events_of(answer.content)
    assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]
    assert events[-1]["error"]["nearfar"]["code"] == code
    assert events[-2]["response"]["output"][0]["content"][0]["text"] == "x"
    assert "response.completed" not in answer.text and "[DONE]" not in answer.text


def test_an_answer_without_a_choice_is_no_empty_success() -> None:
    answer, _ = asked([TextEvent(b'{"choices": []}', ABOUT)])
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "inference"


def test_a_failure_of_a_client_that_was_told_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its status is 200 already, so it gets a response that failed though none had begun."""
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.02)
    sent = Sent()

    async def main() -> None:
        heard = asyncio.Event()

        async def send(message: Any) -> None:
            await sent(message)
            if b": still" in message.get("body", b""):
                heard.set()

        events = Responding(b'{"input": "hi"}').events(CALL, send)
        try:
            await asyncio.wait_for(heard.wait(), 20)
            await events.fail(error_of(DeadlineExceeded("Too late."), "req-1")[2])
        finally:
            events.close()

    asyncio.run(main())
    told = events_of(sent.body.partition(b"event: ")[2])
    assert [event["type"] for event in told] == [
        *("response.created", "response.in_progress", "response.failed", "error"),
    ]
    assert told[-1]["error"]["nearfar"]["request"] == "req-1" and told[0]["response"]["model"] == "auto"


def test_what_is_asked_is_a_chat_completion() -> None:
    _, scripted = asked([], nearfar={"privacy": "fleet"}, instructions="Be short.", seed=7)
    call = scripted.calls[0]
    assert (call.operation, call.qos.privacy) == (Operation.CHAT, "fleet")
    assert msgspec.json.decode(call.body) == {
        "model": "m", "stream": True, "stream_options": {"include_usage": True}, "seed": 7,
        "nearfar": {"privacy": "fleet"},
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}],
    }  # fmt: skip


def test_a_whole_answer_that_is_none_is_an_error() -> None:
    answer, _ = asked([], stream=False)  # the scripted talker answers {"id": "x"}
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
