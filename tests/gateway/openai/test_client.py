"""The real `openai` client against a real node: what it sends is taken, what it gets it understands."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.fleetlab import Node
from tests.gateway.openai.conftest import KEY, client_of, openai
from tests.tinygguf import WRITTEN

HELLO = [{"role": "user", "content": "Hello"}]
GREEDY = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 24}


def test_a_chat_completion(client: Any) -> None:
    answer = client.chat.completions.create(**GREEDY)
    choice = answer.choices[0]
    assert len(choice.message.content) == 24 and set(choice.message.content) <= set(WRITTEN)
    assert (choice.finish_reason, answer.usage.completion_tokens, answer.model) == ("length", 24, "tiny")
    about = answer.nearfar
    assert (about["served_by"], about["where"], about["cost"]) == ("talker/tiny", "near", 0.0)
    assert (about["tokens_in"], about["tokens_out"]) == (answer.usage.prompt_tokens, 24)
    assert about["request"] == answer._request_id


def test_headers_say_the_same(talker: Node) -> None:
    with talker.http() as http:
        answer = http.post("/v1/chat/completions", json=GREEDY)
    about = answer.json()["nearfar"]
    assert answer.headers["nearfar-served-by"] == about["served_by"] == "talker/tiny"
    assert answer.headers["nearfar-where"] == "near" and answer.headers["nearfar-cost"] == "0"
    assert answer.headers["nearfar-request-id"] == answer.headers["x-request-id"] == about["request"]
    assert next(part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")) == "link"


def test_the_model_may_be_left_to_nearfar(talker: Node, client: Any) -> None:
    assert client.chat.completions.create(**GREEDY | {"model": "auto"}).nearfar["served_by"].startswith("talker/")
    with talker.http() as http:
        answer = http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 1})
    assert answer.status_code == 200


def test_a_streamed_chat_is_the_same_text(client: Any) -> None:
    whole = client.chat.completions.create(**GREEDY)
    chunks = list(client.chat.completions.create(**GREEDY, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [bool(getattr(chunk, "nearfar", None)) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    last = chunks[-1]
    assert last.choices[0].finish_reason == "length" and last.usage is None
    assert last.nearfar["served_by"] == "talker/tiny" and last.nearfar["first_token_ms"] > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_of_a_stream_when_it_is_asked_for(client: Any) -> None:
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage.completion_tokens == 24 == chunks[-1].nearfar["tokens_out"]
    assert chunks[-2].choices[0].finish_reason == "length"


def test_a_completion_and_its_stream(client: Any) -> None:
    asked = {"model": "tiny", "prompt": "Once upon", "temperature": 0, "max_tokens": 16}
    whole = client.completions.create(**asked)
    assert len(whole.choices[0].text) == 16 and whole.usage.completion_tokens == 16
    parts = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(parts) == whole.choices[0].text and len(parts) > 1


def test_embeddings(client: Any) -> None:
    answer = client.embeddings.create(model="vectors", input=["one", "another"])
    one, another = (item.embedding for item in answer.data)
    assert len(one) == len(another) == 32 and one != another
    assert sum(value * value for value in one) == pytest.approx(1, abs=1e-3)
    again = client.embeddings.create(model="vectors", input="one", encoding_format="float")
    assert again.data[0].embedding == pytest.approx(one, abs=1e-4)
    assert again.nearfar["served_by"] == "talker/vectors"


def test_models_are_listed_with_auto_first_and_without_the_others(client: Any) -> None:
    listed = list(client.models.list())
    assert [model.id for model in listed] == ["auto", "tiny", "vectors"]
    tiny = client.models.retrieve("tiny")
    assert tiny.nearfar["where"] == "near" and tiny.nearfar["nodes"] == ["talker"] and tiny.nearfar["context"] == 512
    assert tiny.owned_by and isinstance(tiny.created, int)


def test_fields_that_nearfar_does_not_know_reach_the_engine(client: Any) -> None:
    """A grammar, log-probabilities and several answers are the engine's business."""
    held = client.chat.completions.create(**GREEDY, extra_body={"grammar": 'root ::= "yes" | "no"'})
    assert held.choices[0].message.content in ("yes", "no") and held.choices[0].finish_reason == "stop"
    several = client.chat.completions.create(**GREEDY, n=2, logprobs=True, top_logprobs=3)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert (
        len(several.choices[0].logprobs.content) == 24 and len(several.choices[0].logprobs.content[0].top_logprobs) == 3
    )
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    text = client.chat.completions.create(**GREEDY, response_format=form).choices[0].message.content
    assert text.lstrip().startswith("{")


def test_tools_are_passed_through(client: Any) -> None:
    """Random weights call no tool, but the tools stand in the prompt that the engine made, and the choice is read."""
    function = {"name": "lamp", "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}}}
    tools = [{"type": "function", "function": function}]
    plain = client.chat.completions.create(**GREEDY).usage.prompt_tokens
    armed = client.chat.completions.create(**GREEDY, tools=tools, tool_choice="auto").usage.prompt_tokens
    assert armed >= plain + len(json.dumps(function))
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**GREEDY, tools=tools, tool_choice="sometimes")


# -- errors -----------------------------------------------------------------------------------------------------------


def test_each_failure_is_the_exception_that_programs_catch(talker: Node, client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**GREEDY | {"model": "tony"})
    assert missing.value.code == "model_not_found" and missing.value.param == "model" and "tiny" in str(missing.value)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**GREEDY | {"model": "Some/Model-Nobody-Has"})
    with pytest.raises(openai.NotFoundError) as unlisted:
        client.models.retrieve("vector")
    assert "vectors" in unlisted.value.message
    with pytest.raises(openai.BadRequestError) as empty:
        client.chat.completions.create(model="tiny", messages=[])
    assert (empty.value.param, empty.value.type) == ("messages", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(**GREEDY | {"max_tokens": "many"})
    assert wrong.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as by_engine:
        client.chat.completions.create(**GREEDY, top_p="high")
    assert "top_p" in str(by_engine.value)
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="tiny", prompt="x" * 2000, stream=True)
    assert "context" in str(too_long.value)
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="tiny", input="a chat model has no vectors")
    with client_of(talker, "another key") as stranger, pytest.raises(openai.AuthenticationError) as refused:
        stranger.chat.completions.create(**GREEDY)
    assert refused.value.code == "invalid_api_key" and KEY not in str(refused.value)


def test_a_model_for_pictures_does_not_chat(client: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**GREEDY | {"model": "yard"})


def test_what_cannot_be_kept_is_refused_with_every_candidate(client: Any) -> None:
    with pytest.raises(openai.InternalServerError) as nobody:  # its name for every 5xx
        client.chat.completions.create(**GREEDY, extra_headers={"Nearfar-Node": "elsewhere"})
    assert nobody.value.status_code == 503 and nobody.value.response.headers["retry-after"]
    assert nobody.value.body["nearfar"]["refusals"] and nobody.value.body["nearfar"]["code"] == "no-candidate"


def test_wishes_that_cannot_be_read_name_their_place(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as header:
        client.chat.completions.create(**GREEDY, extra_headers={"Nearfar-Route": "sideways"})
    for route in ("", "sideways", None):
        with pytest.raises(openai.BadRequestError, match="route"):
            client.chat.completions.create(**GREEDY, extra_body={"nearfar": {"route": route}})
    assert "sideways" in str(header.value)
    with pytest.raises(openai.BadRequestError) as field:
        client.chat.completions.create(**GREEDY, extra_body={"nearfar": {"privacy": "very"}})
    assert field.value.param == "nearfar.privacy"
    kept = client.chat.completions.create(**GREEDY, extra_body={"nearfar": {"privacy": "local", "route": "near"}})
    assert kept.nearfar["served_by"] == "talker/tiny"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"messages":"x"}', b"[" * 100_000, b'{"messages":[' + b"[" * 99_999]
)
def test_a_body_that_is_none_is_told_so(talker: Node, body: bytes) -> None:
    with talker.http() as http:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            answer = http.post(path, content=body)
            assert answer.status_code == 400, (path, body[:20])
            error = answer.json()["error"]
            assert error["type"] == "invalid_request_error" and error["message"]


def test_other_methods_are_refused_in_the_same_form(talker: Node) -> None:
    with talker.http() as http:
        for method, path, allow in (("GET", "/v1/chat/completions", "POST"), ("DELETE", "/v1/models/tiny", "GET")):
            answer = http.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allow)
            assert answer.json()["error"]["code"] == "method_not_allowed"


# -- many at once -----------------------------------------------------------------------------------------------------


def test_sixteen_streams_at_once_keep_apart(talker: Node) -> None:
    """Each greedy answer is the one that the same prompt gets alone."""
    prompts = [f"Story number {number}" for number in range(16)]

    async def main() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=talker.url + "/v1", api_key=KEY, max_retries=0) as client:

            async def one(prompt: str) -> str:
                text = []
                stream = await client.completions.create(
                    model="tiny", prompt=prompt, max_tokens=40, temperature=0, stream=True
                )
                async for chunk in stream:
                    text.append(chunk.choices[0].text)
                return "".join(text)

            together = await asyncio.gather(*map(one, prompts))
            return list(together), [await one(prompt) for prompt in prompts]

    together, alone = asyncio.run(main())
    assert all(len(text) == 40 for text in together)
    # Batched sums differ in their last bits, and a tie may fall the other way: the beginnings are the same.
    assert [text[:8] for text in together] == [text[:8] for text in alone]
    assert len(set(together)) > 8


def test_the_counts_move(talker: Node, client: Any) -> None:
    def counted(http: httpx.Client) -> dict[str, float]:
        lines = http.get("/metrics").text.splitlines()
        found = [line.rpartition(" ") for line in lines if line.startswith("nearfar_language_")]
        return {name: float(value) for name, _, value in found}

    with talker.http() as http:
        before = counted(http)
        client.chat.completions.create(**GREEDY)
        list(client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**GREEDY, top_p="high")
        after = counted(http)
    moved = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    near = 'model="tiny",where="near"'
    assert moved['nearfar_language_requests_total{model="tiny",outcome="ok",where="near"}'] == 2
    assert moved['nearfar_language_requests_total{model="tiny",outcome="invalid-input",where=""}'] == 1
    assert moved[f'nearfar_language_tokens_total{{direction="out",{near}}}'] == 48
    assert moved[f"nearfar_language_first_token_seconds_count{{{near}}}"] == 1
