"""What it costs a conversation that its service goes, and what following it costs while nothing goes.

What is measured, on two nodes of this machine (processes of their own, over the mesh), with a language model of random
weights written by the test code (llama, 4 layers of 256, 355 tokens; its words mean nothing, its speed does):
- `gap_ms`: the longest time between two texts that the caller sees, when the service was killed (-9) after so many
  chunks, or its node was asked to end; beside it the usual time between two pieces. A service that goes on without the
  state of the answer writes those chunks again, so that the gap grows with them. At an end on request text goes on
  coming for 500 ms, in which a service lets answers end by themselves.
- `end`: the same with `[language] state_limit` as it is (the state of the answer moves along) and with 0 (it is written
  again), each with nodes of its own; `state_moved` tokens came along in the median.
- `second_turn_ms`: reading the prompt of a second turn as the engine tells it, and the first token as the caller sees
  it, where the first turn was answered, on the other node with the state of the first turn, and there without.
- `follow_us`: what `carry.stream` adds to a piece that is not cut, against iterating over the same pieces without it.
`same` of `n` texts were that of an uncut answer; random weights are the hard case, as their tokens are about as likely
and what is cached of a prompt changes the rounding.
More than three kills a place (`--repeat`) make the agents wait half a minute before each new start, as they should.
Warm-up: one uncut answer a node. Run: python benchmarks/conversation.py [--repeat N] [--model FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1]))

from nearfar.client.client import Client
from nearfar.client.connect import connect
from nearfar.client.talking import Piece, Talking, TextRequest
from nearfar.fleet.snapshot import Snapshot
from nearfar.language import carry
from nearfar.language.call import TextCall, read_call
from nearfar.language.talker import Talker
from nearfar.settings import load
from nearfar.types.ids import ModelName, ServiceId
from nearfar.types.request import Qos, Stages
from nearfar.types.wire import Operation, ReplyHead
from tests.fleetlab import Lab, Node, text_model
from tests.runtimes import tinygguf

MODEL = ModelName("tiny")
DELIVERED = (20, 100, 250)
"""Chunks after which the service goes."""
PIECES = 20000


def call(content: str, node: str | None = None, **more: Any) -> TextCall:
    messages = [{"role": "user", "content": content}]
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 400, "stream": True, **more}
    return read_call(Operation.CHAT, json.dumps(body).encode(), Qos(node=node))


class Told:
    """One streamed answer as its caller saw it."""

    def __init__(self) -> None:
        self.text = ""
        self.chunks = 0
        self.times: list[float] = []
        self.broken = 0.0
        self.ended = ""
        """The node that was asked to end."""
        self.moved = 0
        self.state_moved = 0
        self.first_ms = 0.0
        self.last: dict[str, Any] = {}


async def tell(talker: Talker, asked: TextCall, lab: dict[str, Node], after: int, how: str) -> Told:
    told = Told()
    async for event in talker.stream(asked):
        for line in event.lines.splitlines():
            chunk = json.loads(line)
            told.last = chunk
            for choice in chunk["choices"]:
                if text := choice["delta"].get("content"):
                    told.text += text
                    told.chunks += 1
        told.times.append(time.perf_counter())
        if how and not told.broken and told.chunks >= after:
            pending = talker.client.snapshot().pending
            node = lab[next(iter(pending)).partition("/")[0]]
            told.broken = time.perf_counter()
            if how == "kill":
                os.kill(node.service_pid(MODEL), 9)
            else:
                assert node._process is not None
                told.ended = node.name
                node._process.terminate()
        if event.about is not None:
            told.moved = event.about.moved
            told.state_moved = event.about.state_moved
            told.first_ms = event.about.first_token_ms or 0.0
    return told


def _row(how: str, after: int, all_told: list[Told], whole: str | None) -> dict[str, Any]:
    steps = [[b - a for a, b in zip(told.times, told.times[1:], strict=False)] for told in all_told]
    row = {
        "how": how,
        "delivered": after,
        "gap_ms": round(statistics.median(max(each) for each in steps) * 1000, 1),
        "usual_ms": round(statistics.median(statistics.median(each) for each in steps) * 1000, 2),
        "same": sum(told.text == whole for told in all_told) if whole is not None else None,
        "moved": sum(told.moved for told in all_told),
        "state_moved": statistics.median(told.state_moved for told in all_told),
        "n": len(all_told),
    }
    print(row, flush=True)
    return row


async def kills(talker: Talker, client: Client, lab: dict[str, Node], repeat: int) -> list[dict[str, Any]]:
    whole = (await tell(talker, call("Tell me"), lab, 0, "")).text
    rows = []
    for after in DELIVERED:
        found = []
        for _ in range(repeat):
            found.append(await tell(talker, call("Tell me"), lab, after, "kill"))
            await asyncio.sleep(1.5)  # the agent's pause before it starts a service anew
            for name in lab:
                await client.wait_for(MODEL, 60.0, name)
        rows.append(_row("kill", after, found, whole))
    return rows


async def ends(talker: Talker, client: Client, lab: dict[str, Node], repeat: int) -> dict[str, Any]:
    found = []
    for number in range(repeat):
        asked = call(f"{number} " + "a long beginning that is told once " * 36, max_tokens=2000)
        found.append(await tell(talker, asked, lab, DELIVERED[0], "end"))
        for node in lab.values():
            if found[-1].ended == node.name:
                await asyncio.to_thread(node.wait_ended)
                await asyncio.to_thread(node.launch)
                await asyncio.to_thread(node.wait_ready)
        await asyncio.sleep(1.0)
        for name in lab:
            await client.wait_for(MODEL, 60.0, name)
    return _row("end", DELIVERED[0], found, None)


async def turns(talker: Talker, lab: dict[str, Node], *, here: bool) -> dict[str, dict[str, float]]:
    """Milliseconds of a second turn of about 1,400 tokens, where the first was answered and elsewhere: (reading the
    prompt, first token)."""
    spent: dict[str, list[tuple[float, float]]] = {"here": [], "elsewhere": []}
    names = list(lab)
    for number in range(6):
        first = f"{number} " + "a long beginning that is told once " * 36
        there, other = names[number % 2], names[(number + 1) % 2]
        said = (await tell(talker, call(first, there, max_tokens=8), lab, 0, "")).text
        history = [
            {"role": "user", "content": first},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "And then?"},
        ]
        for where, node in (("elsewhere", other), ("here", there)):  # the turn takes the slot whose state is fetched
            told = await tell(talker, call("", node, messages=history, max_tokens=8), lab, 0, "")
            spent[where].append((told.last["timings"]["prompt_ms"], told.first_ms))
    wanted = ("here", "elsewhere") if here else ("elsewhere",)
    rows = {where: [statistics.median(each) for each in zip(*spent[where], strict=True)] for where in wanted}
    return {where: {"read": round(row[0], 2), "first_token": round(row[1], 2)} for where, row in rows.items()}


class _Still:
    """Pieces without a fleet."""

    def __init__(self) -> None:
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
        choice = {"index": 0, "finish_reason": None, "delta": {"content": " word"}}
        self.piece = Piece(json.dumps({**chunk, "choices": [choice]}).encode(), ServiceId("a/tiny"))

    def snapshot(self) -> Snapshot:
        return Snapshot("me")

    async def stream(self, request: TextRequest) -> AsyncIterator[Piece]:
        for _ in range(PIECES):
            yield self.piece
        yield self.piece._replace(last=ReplyHead("v", Stages()))


async def follow() -> float:
    """Microseconds a piece, of the best of paired runs."""
    still = _Still()
    asked = call("x")
    request = TextRequest(Operation.CHAT, MODEL, asked.body)
    costs = []
    for _ in range(15):
        start = time.perf_counter()
        async for _piece in still.stream(request):
            pass
        middle = time.perf_counter()
        async for _piece, _moved in carry.stream(cast(Talking, still), request, asked.view):
            pass
        costs.append(((time.perf_counter() - middle) - (middle - start)) / PIECES * 1e6)
    return round(statistics.median(costs), 2)


async def measure(lab: Lab, repeat: int, given: Path | None, state: bool) -> dict[str, Any]:
    """With `state` all of it; without, what is compared with that."""
    shape: dict[str, Any] = {"width": 256, "layers": 4, "heads": 4, "wide": 768, "context": 4096, "words": 96}
    file = given or tinygguf.llama(lab.folder / "tiny.gguf", **shape)
    model = text_model(file, MODEL)
    env = {} if state else {"NEARFAR_LANGUAGE_STATE_LIMIT": "0"}
    hub = lab.node("hub", [])  # stays, so that a node that was ended finds the other one again
    nodes = {name: lab.node(name, [model], join=[hub], env=env) for name in ("one", "two")}
    flags = {"mesh.fleet": lab.fleet, "mesh.discover": False, "home": str(lab.folder / "me")}
    result: dict[str, Any] = {}
    async with connect(load(flags), join=list(hub.endpoints)) as client:
        for name in nodes:
            await client.wait_for(MODEL, 40.0, name)
        talker = Talker(client)
        if given is None:  # the other models have too short a context
            result["second_turn_ms"] = await turns(talker, nodes, here=state)
            print("second turn", result["second_turn_ms"], flush=True)
            result["end"] = await ends(talker, client, nodes, repeat)
        if state:
            result["kill"] = await kills(talker, client, nodes, repeat)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--model", type=Path, help="another GGUF file, with a context of 512 tokens at least")
    options = parser.parse_args()
    cost = asyncio.run(follow())
    found = {}
    for name, state in (("with_state", True), ("without_state", False)):
        if state or options.model is None:
            with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
                print(name, flush=True)
                found[name] = asyncio.run(measure(lab, options.repeat, options.model, state))
    print(json.dumps({"benchmark": "conversation", **found, "follow_us": cost}))


if __name__ == "__main__":
    main()
