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
from nearfar.settings import load
from nearfar.types.ids import ModelName, ServiceId
from nearfar.types.request import Qos
from nearfar.types.wire import Operation
from tests.fleetlab import Lab, LabModel, Node, talking, text_model
from tests.fleetlab import lab as lab
from tests.runtimes import tinygguf
from tests.waiting import until

MODEL = ModelName("tiny")
TOKENS = 60


def slow(folder: Path) -> LabModel:
    """So slow that there is time to break something in the middle of an answer."""
    return talking(folder, MODEL, delay_ms=20.0)


def call(content: str = "Tell me more", earlier: tuple[dict[str, str], ...] = (), **more: Any) -> TextCall:
    messages = [*earlier, {"role": "user", "content": content}]
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": TOKENS, "stream": True, **more}
    body.setdefault("stream_options", {"include_usage": True})
    return read_call(Operation.CHAT, json.dumps(body).encode(), Qos())


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
            if interfere is not None and len(said.split()) > 5:
                node = max(talker.client.snapshot().pending.items(), key=lambda item: item[1])[0].partition("/")[0]
                done = interfere(node)
                if done is not None:
                    await done
                interfere = None
    assert about is not None
    return said, about, chunks[-1].get("usage") or {}


def with_talker(lab: Lab, nodes: list[Node], body: Callable[[Talker, Client], Awaitable[None]]) -> None:
    async def go() -> None:
        flags = {"mesh.fleet": lab.fleet, "mesh.discover": False, "mesh.lease_ms": 1000, "home": str(lab.folder / "me")}
        join = [endpoint for node in nodes for endpoint in node.endpoints]
        async with nearfar.connect(load(flags), join=join) as client:
            for node in nodes:
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
