"""`/v1/responses` with the real `openai` client: whole and streamed, near and far, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pydantic
import pytest

from nearfar.language import far
from nearfar.models.store import Store
from nearfar.runtimes.remote.description import FarEnd
from tests.far.misbehaving import Act, FarServer, Kind
from tests.fleetlab import Lab, Node, poll, talking
from tests.gateway.openai.conftest import KEY, client_of, openai

SAYS = [
    {"when": "eggs", "text": "You have 6 eggs."},
    {"when": "lamp", "text": '{"on": true}', "tool": "lamp"},
]
LAMP = {"type": "function", "name": "lamp", "description": "A lamp.", "parameters": {"type": "object"}, "strict": True}
EGGS = {"model": "auto", "input": "how many eggs?", "extra_headers": {"Nearfar-Route": "near"}}
FAR = {"Nearfar-Route": "far"}
TEXT_EVENTS = [
    *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
    *["response.output_text.delta"] * 4,
    *("response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"),
]


class House(NamedTuple):
    """A node with a near model of the fake engine, the model of facts, and a far end."""

    node: Node
    server: FarServer
    fault: Path
    client: Any

    def events(self, **body: Any) -> list[dict[str, Any]]:
        """What a stream says on the wire, each event as the client's own types have it."""
        headers = body.pop("extra_headers", {})
        with self.node.http() as http:
            answer = http.post("/v1/responses", json={**body, "stream": True}, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        types = pydantic.TypeAdapter(openai.types.responses.ResponseStreamEvent)
        found = []
        for part in answer.text.strip().split("\n\n"):
            name, data = part.split("\n")
            event: dict[str, Any] = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            types.validate_python(event)
            found.append(event)
        assert [event["sequence_number"] for event in found] == list(range(len(found)))
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    with Lab(folder) as lab, FarServer() as server:
        described = FarEnd(base_url=server.url, model="m", price_in=1, price_out=2, timeout_s=5, max_retries=0)
        far.add(Store(folder / "home-house" / "models"), "large", described)
        slow = talking(folder, "slow", delay_ms=15.0, fault_file=str(folder / "fault"))
        node = lab.node(
            "house",
            [talking(folder, "small", says=SAYS), slow, "facts"],
            env={"NEARFAR_ROUTING_NEAR": "small"},
            api_key=KEY,
        )
        poll(lambda: (node.service_json("large") or {}).get("healthy"), "the far end is served")
        with client_of(node) as client:
            yield House(node, server, folder / "fault", client)


@pytest.fixture
def client(house: House) -> Any:
    return house.client


# -- whole ------------------------------------------------------------------------------------------------------------


def test_a_response_says_what_chat_says(client: Any) -> None:
    answer = client.responses.create(**EGGS, instructions="Be short.", metadata={"for": "breakfast"}, store=True)
    assert (answer.output_text, answer.status, answer.model) == ("You have 6 eggs.", "completed", "small")
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": EGGS["input"]}]
    chat = client.chat.completions.create(model="small", messages=messages)
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert (answer.usage.output_tokens, answer.usage.total_tokens) == (4, chat.usage.prompt_tokens + 4)
    assert answer.usage.input_tokens_details.cached_tokens == answer.usage.output_tokens_details.reasoning_tokens == 0
    about = answer.nearfar
    assert (about["served_by"], about["where"], about["tokens_out"]) == ("house/small", "near", 4)
    assert about["request"] == answer._request_id and about["why"]
    assert answer.id == "resp_" + about["request"].removeprefix("req-")
    assert (answer.instructions, answer.metadata, answer.store) == ("Be short.", {"for": "breakfast"}, False)
    openai.types.responses.Response.model_validate(answer.model_dump(by_alias=True, warnings=False))


def test_headers_say_the_same(house: House) -> None:
    with house.node.http() as http:
        answer = http.post("/v1/responses", json={"input": "eggs"}, headers={"Nearfar-Route": "near"})
    about = answer.json()["nearfar"]
    assert answer.headers["nearfar-served-by"] == about["served_by"] == "house/small"
    assert answer.headers["nearfar-request-id"] == about["request"] and answer.headers["nearfar-where"] == "near"
    assert list(answer.json())[-1] == "nearfar"


def test_too_few_tokens_make_it_incomplete(client: Any) -> None:
    answer = client.responses.create(**EGGS, max_output_tokens=2)
    assert (answer.output_text, answer.status, answer.incomplete_details.reason) == (
        "You have",
        "incomplete",
        "max_output_tokens",
    )
    assert answer.output[0].status == "incomplete" and answer.max_output_tokens == 2


def test_a_whole_conversation_goes_back_as_it_came(house: House, client: Any) -> None:
    """What the client got is sent again with what came of it, as its guide tells people to."""
    asked: list[Any] = [{"role": "user", "content": "turn the lamp on"}]
    answer = client.responses.create(model="small", input=asked, tools=[LAMP])
    (call,) = answer.output
    assert (call.type, call.name, json.loads(call.arguments), answer.status) == (
        "function_call",
        "lamp",
        {"on": True},
        "completed",
    )
    asked += answer.output
    asked.append({"type": "function_call_output", "call_id": call.call_id, "output": "it is on"})
    house.server.add(Act(words=("It ", "is ", "on.")))
    then = client.responses.create(model="large", input=asked, tools=[LAMP], tool_choice="auto")
    assert (then.output_text, then.nearfar["where"], then.nearfar["currency"]) == ("It is on.", "far", "USD")
    sent = house.server.requests[-1].json
    function = {"name": "lamp", "arguments": '{"on": true}'}
    assert sent["messages"] == [
        {"role": "user", "content": "turn the lamp on"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": call.call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call.call_id, "content": "it is on"},
    ]
    inner = {name: value for name, value in LAMP.items() if name != "type"}
    assert sent["tools"] == [{"type": "function", "function": inner}] and sent["tool_choice"] == "auto"


def test_a_far_end_gets_a_chat_completion_and_nothing_that_is_kept_here(house: House, client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    client.responses.create(
        model="auto",
        instructions="Be short.",
        input=[
            {"role": "developer", "content": "In English."},
            {"role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
        ],
        text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}, "verbosity": "low"},
        max_output_tokens=9,
        temperature=0.25,
        top_p=0.5,
        tools=[LAMP],
        tool_choice={"type": "function", "name": "lamp"},
        parallel_tool_calls=False,
        reasoning={"effort": "low"},
        metadata={"secret": "kept here"},
        store=True,
        truncation="auto",
        extra_body={"frobnicate": {"deep": [1]}, "nearfar": {"cache": False}},
        extra_headers=FAR,
    )
    sent = house.server.requests[-1]
    assert sent.path == "/v1/chat/completions" and "kept here" not in sent.body.decode()
    body = sent.json
    inner = {name: value for name, value in LAMP.items() if name != "type"}
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "system", "content": "In English."},
            {"role": "user", "content": parts},
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
        "verbosity": "low",
        "max_tokens": 9,
        "temperature": 0.25,
        "top_p": 0.5,
        "tools": [{"type": "function", "function": inner}],
        "tool_choice": {"type": "function", "function": {"name": "lamp"}},
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "frobnicate": {"deep": [1]},
    }


def test_private_stays_near(house: House, client: Any) -> None:
    """Also when what is personal stands in the instructions, or in what a tool said."""
    before = len(house.server.requests)
    said = [
        {"role": "user", "content": "eggs?"},
        {"type": "function_call", "call_id": "c", "name": "mail", "arguments": '{"to": "ann@example.org"}'},
        {"type": "function_call_output", "call_id": "c", "output": "sent"},
    ]
    for body in (
        {"input": "eggs?", "instructions": "Write to ann@example.org."},
        {"input": said},
        {"input": "eggs?", "extra_body": {"nearfar": {"privacy": "fleet"}}},
        {"input": "eggs?", "extra_body": {"private": True}},
        {"input": "eggs?", "extra_headers": {"Nearfar-Privacy": "local"}},
    ):
        answer = client.responses.create(model="auto", **body)
        assert answer.nearfar["where"] == "near" and answer.nearfar["privacy"] != "any", body
        with pytest.raises(openai.APIStatusError):
            client.responses.create(**{**body, "model": "large"})
    assert len(house.server.requests) == before


# -- streamed ---------------------------------------------------------------------------------------------------------


def test_a_stream_is_told_in_typed_events(house: House, client: Any) -> None:
    events = house.events(**EGGS)
    assert [event["type"] for event in events] == TEXT_EVENTS
    assert [event["delta"] for event in events if "delta" in event] == ["You", " have", " 6", " eggs."]
    last, item = events[-1]["response"], events[-2]["item"]
    assert last["output"] == [item] and item["content"] == [events[-3]["part"]]
    assert events[-4]["text"] == item["content"][0]["text"] == "You have 6 eggs."
    assert (events[0]["response"]["status"], events[0]["response"]["output"]) == ("in_progress", [])
    assert {event["item_id"] for event in events if "item_id" in event} == {item["id"]}
    assert last["usage"]["output_tokens"] == 4 == last["nearfar"]["tokens_out"]
    assert last["nearfar"]["first_token_ms"] > 0 and last["nearfar"]["where"] == "near"
    streamed = list(client.responses.create(**EGGS, stream=True))
    assert [event.type for event in streamed] == TEXT_EVENTS
    assert streamed[-1].response.output_text == "You have 6 eggs." and streamed[-1].response.nearfar["served_by"]


def test_the_clients_own_helper_reads_it(client: Any) -> None:
    with client.responses.stream(**EGGS) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == "You have 6 eggs."


def test_a_streamed_call_of_a_function(house: House) -> None:
    events = house.events(model="small", input="the lamp", tools=[LAMP])
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.delta", "function_call_arguments.done", "output_item.done", "completed"),
    ]
    assert events[-3]["arguments"] == '{"on": true}' == events[-2]["item"]["arguments"]
    assert events[2]["item"]["arguments"] == "" and events[2]["item"]["status"] == "in_progress"


def test_a_stream_that_ends_too_early_is_incomplete(house: House) -> None:
    last = house.events(**EGGS, max_output_tokens=2)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_stream_from_far(house: House) -> None:
    events = house.events(model="auto", input="anything", extra_headers=FAR)
    last = events[-1]["response"]
    assert (last["status"], last["model"], last["nearfar"]["where"]) == ("completed", "large", "far")
    assert last["output"][0]["content"][0]["text"] == "one two three four" and last["nearfar"]["cost"] > 0
    assert last["usage"]["input_tokens"] == 9


@pytest.mark.parametrize("model", ["slow", "large"])
def test_what_breaks_off_in_the_middle_is_a_failure(house: House, client: Any, model: str) -> None:
    asked = {"model": model, "input": "tell me a story"}
    house.server.add(*[Act(Kind.CUT, at=3)] * (2 if model == "large" else 0))
    house.fault.write_text("fail 6")
    try:
        events = house.events(**asked)
        got = []
        with pytest.raises(openai.APIError) as cut:
            for event in client.responses.create(**asked, stream=True):
                got.append(event.type)
    finally:
        house.fault.unlink()
    assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]
    broken = events[-2]["response"]
    assert (broken["status"], broken["error"]["code"]) == ("failed", "server_error")
    assert broken["error"]["nearfar"]["request"].startswith("req-") and "nearfar" not in broken
    assert events[-1]["message"] == broken["error"]["message"]
    said = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert [(item["status"], item["content"][0]["text"]) for item in broken["output"]] == (
        [("incomplete", said)] if said else []
    )
    assert said or model == "large", "slow enough that something was said before"
    assert got[-1] == "response.failed" and "response.completed" not in got
    assert cut.value.body["nearfar"]["code"] == "stream-cut"


# -- a model of weights -----------------------------------------------------------------------------------------------


def test_the_model_that_ships_answers_from_its_table(house: House, client: Any) -> None:
    asked = {"model": "facts", "instructions": "[fridge] eggs: 6; milk: 2 bottles", "temperature": 0}
    answer = client.responses.create(**asked, input="how many eggs do I have?")
    assert answer.output_text == "You have 6 eggs."
    assert answer.usage.output_tokens == answer.nearfar["tokens_out"] > 0
    streamed = list(client.responses.create(**asked, input="how many eggs do I have?", stream=True))
    assert "".join(event.delta for event in streamed if event.type.endswith("text.delta")) == answer.output_text
    assert streamed[-1].type == "response.completed" and streamed[-1].response.usage.output_tokens > 0
    then = [{"role": "user", "content": "how many eggs do I have?"}, *answer.output]
    again = client.responses.create(**asked, input=[*then, {"role": "user", "content": "and milk?"}])
    assert "2 bottles" in again.output_text


def test_a_schema_holds_a_model_of_weights(client: Any) -> None:
    class Eggs(pydantic.BaseModel):
        eggs: bool

    asked = {"model": "facts", "instructions": "[fridge] eggs: 6", "input": "eggs?", "temperature": 0}
    assert isinstance(client.responses.parse(**asked, text_format=Eggs).output_parsed, Eggs)


# -- errors -----------------------------------------------------------------------------------------------------------

PICTURE = [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}]}]
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({}, "input", "missing or empty"),
        ({"input": []}, "input", "missing or empty"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "nothing to answer"),
        ({"input": 7}, "input", "Expected"),
        ({"input": [7]}, "input[0]", "Expected `object`"),
        ({"input": [{"content": "x"}]}, "input[0].role", "The role is ''"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "developer"),
        ({"input": [{"role": "user"}]}, "input[0].content", "nothing in it"),
        ({"input": [{"role": "user", "content": []}]}, "input[0].content", "nothing in it"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0]", "no text"),
        ({"input": PICTURE}, "input[0].content[0]", "Pictures are not taken"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, None, "'input_file'"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type", "nothing is kept"),
        ({"input": [CALL | {"name": ""}]}, "input[0]", "no name or no call_id"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0]", "no call_id"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole of it in input"),
        ({"conversation": "conv_1"}, "conversation", "send the whole of it in input"),
        ({"background": True}, "background", "in the background"),
        ({"prompt": {"id": "p"}}, "prompt", "send the text itself"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages", "Send input"),
        ({"max_tokens": 3}, "max_tokens", "Send max_output_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format", "Send text.format"),
        ({"n": 2}, "n", "/v1/chat/completions"),
        ({"include": ["message.output_text.logprobs"]}, "include", "Log-probabilities"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "no tools are run here"),
        ({"tools": [{"type": "function"}]}, "tools[0]", "has no name"),
        ({"tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice", "'mcp'"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type", "'yaml'"),
        ({"max_output_tokens": "many"}, "max_output_tokens", "Expected `int | null`"),
        ({"metadata": {"a": 1}}, "metadata[...]", "Expected `str`"),
        ({"stream": "yes"}, "stream", "Expected `bool | null`"),
        ({"seed": "x"}, "seed", "Expected `int | null`"),
        ({"nearfar": {"privacy": "very"}}, "nearfar.privacy", "very"),
        ({"nearfar": {"privat": True}}, None, "privat"),
        ({"instructions": ["x"]}, "instructions", "Expected `str | null`"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(house: House, body: dict[str, Any], param: str | None, told: str) -> None:
    full = body if body == {} else {"input": "eggs?", **body}
    with house.node.http() as http:
        answer = http.post("/v1/responses", json={"model": "auto", **full})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error"), answer.text
    assert told in error["message"]
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{", b"null", b'{"input":"\xff"}', b'{"input":"\\ud800"}', b"[" * 100_000),
        *(b'{"input":"x","metadata":' + b"[" * 99_999, b'{"input":"x","tools":' + b"[" * 500 + b"]" * 500 + b"}"),
        b'{"input":"x","tools":[{"type":"function","name":"f","parameters":' + b'{"a":' * 300 + b"1" + b"}" * 303,
    ],
)
def test_a_body_that_is_none_is_told_so(house: House, body: bytes) -> None:
    with house.node.http() as http:
        answer = http.post("/v1/responses", content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_what_nobody_reads_is_not_repeated(house: House) -> None:
    """However deep: it must not make the answer fail."""
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    body = {"input": "eggs?", "model": "small", "reasoning": {"x": deep}, "text": {"x": deep}, "include": ["x"]}
    with house.node.http() as http:
        answer = http.post("/v1/responses", json=body).json()
    assert answer["text"] == {"format": {"type": "text"}} and answer["reasoning"] == {"effort": None, "summary": None}


def test_nothing_is_kept_to_get_or_to_delete(house: House, client: Any) -> None:
    made = client.responses.create(**EGGS)
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError) as missing:
            ask(made.id)
        assert missing.value.code == "not_found" and "keeps no responses" in missing.value.message
    with client_of(house.node, "another key") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.responses.retrieve(made.id)
    with house.node.http() as http:
        assert http.get("/v1/responses").status_code == 405


def test_each_failure_is_the_exception_that_programs_catch(house: House, client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(**EGGS | {"model": "smal"})
    assert unknown.value.code == "model_not_found" and "small" in str(unknown.value)
    with client_of(house.node, "another key") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.responses.create(**EGGS)
    with pytest.raises(openai.InternalServerError) as nobody:
        client.responses.create(model="auto", input="eggs?", extra_headers={"Nearfar-Node": "elsewhere"})
    assert nobody.value.status_code == 503 and nobody.value.body["nearfar"]["refusals"]
    with pytest.raises(openai.BadRequestError) as long:
        client.responses.create(model="facts", input="eggs " * 2000, stream=True)
    assert "context" in str(long.value)


def test_it_is_counted_as_every_language_call(house: House, client: Any) -> None:
    def answered(http: httpx.Client) -> float:
        name = 'nearfar_language_requests_total{model="small",outcome="ok",where="near"} '
        lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name)]
        return float(lines[0].removeprefix(name)) if lines else 0.0

    with house.node.http() as http:
        before = answered(http)
        client.responses.create(**EGGS)
        list(client.responses.create(**EGGS, stream=True))
        assert answered(http) == before + 2
