"""Language services as processes: what callers and operators see when one is stopped, dies, hangs or does not fit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nearfar.client.client import Client
from nearfar.client.connect import connect
from nearfar.client.talking import TextRequest
from nearfar.errors import InputError, NearfarError, StreamCut
from nearfar.types.ids import ModelName
from nearfar.types.telemetry import ServiceReport
from nearfar.types.wire import Operation, TextContext
from tests.fleetlab import Lab, LabModel, Node, talking, text_model
from tests.runtimes import tinygguf
from tests.waiting import until, until_now


@asynccontextmanager
async def client_of(node: Node, folder: Path) -> AsyncIterator[Client]:
    flags = {"mesh.fleet": node.fleet, "mesh.discover": False, "home": str(folder / "client")}
    async with connect(flags=flags, join=node.endpoints, wait=30) as client:
        await until(lambda: report(client) is not None, "the service is heard of")
        yield client


def report(client: Client) -> ServiceReport | None:
    return next((view.report for view in client.snapshot().services.values() if view.alive), None)


def request(model: str, *, streamed: bool = False, **body: Any) -> TextRequest:
    fields = {"messages": [{"role": "user", "content": "Hi"}], "stream": streamed, **body}
    return TextRequest(
        Operation.CHAT, ModelName(model), json.dumps(fields).encode(), context=TextContext(streamed=streamed)
    )


async def answer(client: Client, model: str, **body: Any) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(bytes((await client.text.ask(request(model, **body))).body))
    return told


async def answer_at_last(client: Client, model: str) -> dict[str, Any]:
    """The first answer after a failure: its service starts again."""
    for _ in range(600):
        try:
            return await answer(client, model, max_tokens=1)
        except NearfarError:
            await asyncio.sleep(0.1)
    raise AssertionError("it does not come back")


def on(folder: Path, model: LabModel, body: Callable[[Node, Client], Awaitable[None]], **env: str) -> None:
    async def main(node: Node) -> None:
        async with client_of(node, folder) as client, asyncio.timeout(100):
            await body(node, client)

    with Lab(folder) as lab:
        asyncio.run(main(lab.node("a", [model], env=env)))


def test_a_real_engine_answers_over_the_mesh_and_its_measures_arrive(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = text_model(tinygguf.llama(tmp_path / "tiny.gguf"), "tiny")

    async def body(node: Node, client: Client) -> None:
        told = await answer(client, "tiny", max_tokens=40, temperature=0)
        assert told["usage"]["completion_tokens"] == 40
        lines: list[bytes] = []
        async with aclosing(client.text.stream(request("tiny", streamed=True, max_tokens=40, temperature=0))) as stream:
            async for piece in stream:
                lines += piece.lines.splitlines()
        parts = [choice["delta"].get("content") or "" for line in lines for choice in json.loads(line)["choices"]]
        assert "".join(parts) == told["choices"][0]["message"]["content"]
        with pytest.raises(InputError, match=r"\d+ tokens.*512"):
            await answer(client, "tiny", messages=[{"role": "user", "content": "x" * 2000}])
        await until(lambda: (r := report(client)) and r.text and r.text.tokens_out >= 80, "its measures arrive")
        mine = report(client)
        assert mine is not None and mine.text is not None
        assert mine.workers == 4
        assert mine.text.context == 512
        assert mine.text.decode_per_s > 0
        row = node.service_json("tiny")
        assert row is not None
        assert row["text"]["decode_per_s"] > 0
        with node.http() as http:
            page = http.get("/metrics").text
        assert 'nearfar_text_tokens_out_total{model="tiny"' in page
        assert "nearfar_text_first_token_seconds" in page
        await until(lambda: (r := report(client)) and r.self_test.passed, "it tested itself")

    on(tmp_path, model, body, NEARFAR_NODE_SELF_TEST_EVERY_MS="300")


@pytest.mark.parametrize("streamed", [True, False])
def test_a_call_that_is_cancelled_frees_its_slot(tmp_path: Path, streamed: bool) -> None:
    model = talking(tmp_path, "slow", delay_ms=20.0)

    async def body(_: Node, client: Client) -> None:
        async def endless() -> None:
            if not streamed:
                await answer(client, "slow", max_tokens=100_000)
            async with aclosing(client.text.stream(request("slow", streamed=True))) as stream:
                async for _piece in stream:
                    pass

        calls = [asyncio.create_task(endless()) for _ in range(2)]
        await until(lambda: (r := report(client)) and r.in_flight == 2, "both are worked on")
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: (r := report(client)) and r.in_flight == 0, "both slots are free")
        mine = report(client)
        assert mine is not None
        assert mine.failed == 0, "whoever leaves is no fault of the service"
        assert (await answer(client, "slow", max_tokens=2))["usage"]["completion_tokens"] == 2

    on(tmp_path, model, body, NEARFAR_LANGUAGE_SLOTS="2", NEARFAR_LANGUAGE_CONTEXT="1000000")


def test_an_engine_that_crashes_cuts_its_streams_and_starts_again(tmp_path: Path) -> None:
    flag = tmp_path / "fault"
    model = talking(tmp_path, "frail", delay_ms=5.0, fault_file=str(flag))

    async def body(node: Node, client: Client) -> None:
        before = node.service_pid("frail")
        with pytest.raises(StreamCut):
            async with aclosing(client.text.stream(request("frail", streamed=True))) as stream:
                async for _ in stream:
                    flag.write_text("crash")
        flag.unlink()

        instance = (await answer_at_last(client, "frail"))["id"]
        assert instance
        assert node.service_pid("frail") != before

    on(tmp_path, model, body)


def test_a_generation_that_says_nothing_more_is_ended_and_a_long_one_is_not(tmp_path: Path) -> None:
    flag = tmp_path / "fault"
    model = talking(tmp_path, "m", delay_ms=100.0, fault_file=str(flag))

    async def body(node: Node, client: Client) -> None:
        before = node.service_pid("m")
        told = await answer(client, "m", max_tokens=25)  # two and a half seconds, of which none is silent
        assert told["usage"]["completion_tokens"] == 25
        assert node.service_pid("m") == before
        flag.write_text("hang 2")
        with pytest.raises(StreamCut):
            async with aclosing(client.text.stream(request("m", streamed=True))) as stream:
                async for _ in stream:
                    pass
        flag.unlink()

    on(tmp_path, model, body, NEARFAR_NODE_STUCK_AFTER_MS="1500")


def test_a_service_that_answers_its_own_question_wrongly_is_restarted(tmp_path: Path) -> None:
    flag = tmp_path / "fault"
    model = talking(tmp_path, "m", fault_file=str(flag))

    async def body(node: Node, client: Client) -> None:
        before = node.service_pid("m")
        flag.write_text("wrong")
        await until(lambda: (row := node.service_json("m")) and row["self_test"]["failed"] > 0, "it failed", 40)
        flag.unlink()
        await until(lambda: (row := node.service_json("m")) and row["healthy"], "it is well again", 60)
        assert node.service_pid("m") != before

    on(tmp_path, model, body, NEARFAR_NODE_SELF_TEST_EVERY_MS="200")


def test_a_model_that_does_not_fit_is_refused_with_the_sum(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    big = tinygguf.llama(tmp_path / "big.gguf", width=256, layers=4, heads=4, shared=4, context=8192)
    with Lab(tmp_path) as lab:
        node = lab.node(
            "a",
            [text_model(big, "big")],
            env={"NEARFAR_NODE_MEMORY_LIMIT": "120MiB", "NEARFAR_LANGUAGE_SLOTS": "16"},
            wait=False,
        )
        until_now(lambda: (node.home / "run" / "a.json").exists(), "it runs", 60)
        until_now(lambda: "does not fit" in node.stderr or "does not fit" in _output(node), "it is told", 60)
        told = node.stderr + _output(node)
        assert "of keys and values" in told
        assert "memory_limit" in told


def _output(node: Node) -> str:
    return (node._files / f"{node.name}-{node.starts}.out").read_text(errors="replace")
