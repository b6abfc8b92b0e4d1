"""Conversations on real nodes: their service is killed, stopped, held, or asked to end, and another one goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

import nearfar
from nearfar.client.client import Client
from nearfar.errors import StreamCut
from nearfar.language.call import About, TextCall, read_call
from nearfar.language.talker import Talker
from nearfar.runtimes.text import TextOptions
from nearfar.settings import load
from nearfar.types.ids import ModelName, ServiceId
from nearfar.types.request import Qos
from nearfar.types.wire import Operation, TextContext
from tests.fleetlab import Lab, LabModel, Node, talking, text_model
from tests.fleetlab import lab as lab
from tests.runtimes import tinygguf
from tests.waiting import until

MODEL = ModelName("tiny")
TOKENS = 60


def slow(folder: Path) -> LabModel:
    """So slow that there is time to break something in the middle of an answer."""
    return talking(folder, MODEL, delay_ms=20.0)


def call(
    content: str = "Tell me more", earlier: tuple[dict[str, str], ...] = (), node: str | None = None, **more: Any
) -> TextCall:
    messages = [*earlier, {"role": "user", "content": content}]
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": TOKENS, "stream": True, **more}
    body.setdefault("stream_options", {"include_usage": True})
    return read_call(Operation.CHAT, json.dumps(body).encode(), Qos(node=node))


Break = Callable[[str], Awaitable[None] | None]


async def told(talker: Talker, asked: TextCall, interfere: Break | None = None) -> tuple[str, About, dict[str, Any]]:
    """(text, about, usage); `interfere` is called with the service's node once some of the answer is there."""
    chunks: list[dict[str, Any]] = []
    said, about = "", None
    async with aclosing(talker.stream(asked)) as events:
        async for event in events:
            for line in event.lines.splitlines():
                chunks.append(json.loads(line))
                for choice in chunks[-1]["choices"]:
                    said += choice["delta"].get("content") or ""
            about = event.about or about
            if interfere is not None and (len(said.split()) > 5 or len(said) > 200):
                node = max(talker.client.snapshot().pending.items(), key=lambda item: item[1])[0].partition("/")[0]
                done = interfere(node)
                if done is not None:
                    await done
                interfere = None
    assert about is not None
    return said, about, chunks[-1].get("usage") or {}


def with_talker(
    lab: Lab, nodes: list[Node], body: Callable[[Talker, Client], Awaitable[None]], lease_ms: int = 1000
) -> None:
    async def go() -> None:
        home = str(lab.folder / "me")
        flags = {"mesh.fleet": lab.fleet, "mesh.discover": False, "mesh.lease_ms": lease_ms, "home": home}
        join = [endpoint for node in nodes for endpoint in node.endpoints]
        async with nearfar.connect(load(flags), join=join) as client:
            for node in nodes:
                if node.models:
                    await client.wait_for(MODEL, 20.0, node.name)
            await body(Talker(client), client)

    asyncio.run(go())


def pair(lab: Lab, model: LabModel) -> dict[str, Node]:
    one = lab.node("one", [model])
    two = lab.node("two", [model], join=[one])
    return {"one": one, "two": two}


async def back(client: Client, node: str, before: str) -> None:
    """Return once another process than that instance serves on the node, and may be asked."""
    await until(lambda: instance(client, node) not in ("", before), f"{node} serves again")
    await client.wait_for(MODEL, 20.0, node)


def instance(client: Client, node: str) -> str:
    view = client.snapshot().services.get(ServiceId(f"{node}/{MODEL}"))
    return view.report.instance if view is not None and view.alive else ""


@pytest.mark.slow
def test_killed_held_or_asked_to_end_the_text_is_the_same(lab: Lab, tmp_path: Path) -> None:
    nodes = pair(lab, slow(tmp_path))

    async def body(talker: Talker, client: Client) -> None:
        whole, about, usage = await told(talker, call())
        assert len(whole.split()) == TOKENS and about.moved == 0

        async def same(interfere: Break) -> About:
            said, about, again = await told(talker, call(), interfere)
            assert said == whole
            assert again["completion_tokens"] == usage["completion_tokens"]
            assert about.moved == 1
            return about

        left: list[str] = []
        was: list[str] = []

        def kill(node: str) -> None:
            left.append(node)
            was.append(instance(client, node))
            nodes[node].kill9_service(MODEL)

        about = await same(kill)
        assert about.served_by != f"{left[0]}/{MODEL}"
        await back(client, left[0], was[0])

        held: list[int] = []

        def hold(node: str) -> None:
            held.append(nodes[node].service_pid(MODEL))
            os.kill(held[0], signal.SIGSTOP)

        try:
            await same(hold)
        finally:
            os.kill(held[0], signal.SIGCONT)
        for name in nodes:
            await client.wait_for(MODEL, 20.0, name)

        def ask_to_end(node: str) -> None:
            left.append(node)
            process = nodes[node]._process
            assert process is not None
            process.terminate()

        about = await same(ask_to_end)
        assert about.served_by != f"{left[-1]}/{MODEL}"
        code = await asyncio.get_running_loop().run_in_executor(None, nodes[left[-1]].wait_ended)
        assert code == 0

        # One is left: what is cut there ends with an error that says so, and nothing is spliced.
        (last,) = set(nodes) - {left[-1]}
        await client.wait_for(MODEL, 20.0, last)
        with pytest.raises(StreamCut, match="cannot be carried on: no other service takes it"):
            await told(talker, call(), kill)
        await back(client, last, was[-1])
        with pytest.raises(StreamCut, match="cannot be carried on: it follows a grammar"):
            await told(talker, call(grammar='root ::= "a"'), kill)

    with_talker(lab, list(nodes.values()), body)


@pytest.mark.slow
def test_the_next_turn_goes_where_the_beginning_is_known(lab: Lab, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = text_model(tinygguf.llama(tmp_path / "tiny.gguf"), MODEL)
    nodes = pair(lab, model)

    async def body(talker: Talker, client: Client) -> None:
        stayed = 0
        for number in range(30):  # placement may prefer another one that looks clearly better
            question = f"A beginning that is long enough to be worth keeping, number {number}"
            said, about, _ = await told(talker, call(question, max_tokens=8))
            earlier = ({"role": "user", "content": question}, {"role": "assistant", "content": said})
            turn = call("And then?", earlier, max_tokens=8)
            assert talker.director.conversations.incumbent(turn) == about.served_by
            _, then, usage = await told(talker, turn)
            if then.served_by == about.served_by:
                stayed += 1
                assert usage["prompt_tokens_details"]["cached_tokens"] > len(question) // 2
            if stayed == 3:
                break
        assert stayed == 3
        nodes[then.served_by.partition("/")[0]].kill9_node()
        gone = then.served_by
        _, then, _ = await told(talker, call("And then?", earlier, max_tokens=8))
        assert then.served_by != gone

    with_talker(lab, list(nodes.values()), body)


def big(folder: Path) -> LabModel:
    """A model of the real engine that writes for some seconds."""
    pytest.importorskip("xllamacpp")
    shape: dict[str, Any] = {"width": 256, "layers": 6, "heads": 4, "wide": 768, "context": 4096, "words": 96}
    return text_model(tinygguf.llama(folder / "big.gguf", **shape), MODEL)


async def asked_to_end(nodes: dict[str, Node], node: str) -> None:
    process = nodes[node]._process
    assert process is not None
    process.terminate()


LONG = "A beginning that nobody wants to read twice, " * 10


def alone(file: Path, asked: TextCall) -> tuple[str, dict[str, Any]]:
    """(text, usage) of an engine of its own, which has never seen the prompt: what is cached changes the rounding."""
    from nearfar.runtimes.llamacpp import LlamaCppRuntime

    pieces: list[dict[str, Any]] = []

    def take(piece: bytes) -> bool:
        if piece:
            pieces.append(json.loads(piece))
        return False

    engine = LlamaCppRuntime().load_text(file, TextOptions(MODEL))
    engine.run(asked.operation, asked.body, take, TextContext(streamed=True))
    engine.close()
    said = "".join(choice["delta"].get("content") or "" for piece in pieces for choice in piece["choices"])
    return said, pieces[-1]["usage"]


@pytest.mark.slow
def test_a_planned_move_takes_the_state_along(lab: Lab, tmp_path: Path) -> None:
    model = big(tmp_path)
    hub = lab.node("hub", [])  # stays, so that a node that was ended finds the other one again
    nodes = {name: lab.node(name, [model], join=[hub]) for name in ("one", "two")}

    async def body(talker: Talker, client: Client) -> None:
        for name in nodes:
            await client.wait_for(MODEL, 20.0, name)
        builds = {v.report.text.build for v in client.snapshot().services.values() if v.report.text}
        assert len(builds) == 1 and "" not in builds
        for attempt in range(4):  # on a machine with no time to spare it may be too late, and is done without
            asked = call(f"{attempt} {LONG}", max_tokens=2500)
            left: list[str] = []

            async def end(node: str, left: list[str] = left) -> None:
                left.append(node)
                await asked_to_end(nodes, node)

            said, about, again = await told(talker, asked, end)
            assert about.moved == 1
            assert about.served_by != f"{left[0]}/{MODEL}"
            gone = nodes[left[0]]
            assert await asyncio.to_thread(gone.wait_ended) == 0
            if about.state_moved:
                break
            await asyncio.to_thread(gone.launch)
            await asyncio.to_thread(gone.wait_ready)
            await client.wait_for(MODEL, 30.0, gone.name)
        whole, usage = await asyncio.to_thread(alone, model.file, asked)
        assert said == whole
        assert again["completion_tokens"] == usage["completion_tokens"]
        assert again["prompt_tokens"] == usage["prompt_tokens"]
        assert about.state_moved > usage["prompt_tokens"], "prompt and some of the answer came along"
        cached = again["prompt_tokens_details"]["cached_tokens"]
        assert cached == about.state_moved - 1, "but for the last token, which is decoded again, nothing was read"

    with_talker(lab, [hub], body, lease_ms=10_000)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["NEARFAR_LANGUAGE_CONTEXT", "NEARFAR_LANGUAGE_STATE_LIMIT"])
def test_where_the_state_cannot_go_the_answer_is_written_again(lab: Lab, tmp_path: Path, other: str) -> None:
    model = big(tmp_path)
    one = lab.node("one", [model])
    two = lab.node("two", [model], join=[one], env={other: "3072" if "CONTEXT" in other else "0"})
    nodes = {"one": one, "two": two}

    async def body(talker: Talker, client: Client) -> None:
        limits: dict[str, Any] = {"max_tokens": 1800}
        whole, _, usage = await told(talker, call(LONG, **limits))
        left: list[str] = []

        async def end(node: str) -> None:
            left.append(node)
            await asked_to_end(nodes, node)

        said, about, again = await told(talker, call(LONG, **limits), end)
        assert about.moved == 1
        assert about.state_moved == 0
        assert again["completion_tokens"] == usage["completion_tokens"]
        assert said[:200] == whole[:200]

    with_talker(lab, list(nodes.values()), body, lease_ms=10_000)


@pytest.mark.slow
def test_a_turn_that_goes_elsewhere_fetches_what_is_known_of_it(lab: Lab, tmp_path: Path) -> None:
    nodes = pair(lab, big(tmp_path))

    async def body(talker: Talker, client: Client) -> None:
        question = LONG * 6
        said, about, _ = await told(talker, call(question, node="one", max_tokens=8))
        assert about.served_by == f"one/{MODEL}" and about.state_moved == 0
        earlier = ({"role": "user", "content": question}, {"role": "assistant", "content": said})
        turn = call("And then?", earlier, node="two", max_tokens=8)
        _, about, usage = await told(talker, turn)
        assert about.served_by == f"two/{MODEL}" and about.moved == 0
        assert about.state_moved > len(question) * 0.9
        assert usage["prompt_tokens_details"]["cached_tokens"] >= about.state_moved - 1
        _, about, _ = await told(talker, turn)
        assert about.state_moved == 0, "it knows it by itself now"

    with_talker(lab, list(nodes.values()), body, lease_ms=10_000)
