"""What it costs a conversation that its service goes, and what following it costs while nothing goes.

What is measured, on two nodes of this machine (processes of their own, over the mesh), with a language model of random
weights written by the test code (llama, 4 layers of 256, 355 tokens; its words mean nothing, its speed does):
- `gap_ms`: from the moment at which the service is killed (-9), or its node is asked to end, to the next text that the
  caller sees, when so many chunks were delivered; beside it the usual time between two pieces. The service that goes on
  writes those chunks again, so the gap grows with them. At an end on request it holds the 500 ms in which a service
  lets answers end by themselves; text goes on coming in these.
- `prefill_ms`: reading the prompt of a second turn where the first one was answered, and on the other node.
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
from tests.waiting import until

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
        self.moved = 0
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
                node._process.terminate()
        if event.about is not None:
            told.moved = event.about.moved
    return told


async def gaps(talker: Talker, client: Client, lab: dict[str, Node], repeat: int) -> list[dict[str, Any]]:
    whole = (await tell(talker, call("Tell me"), lab, 0, "")).text
    rows = []
    for how, limit in (("kill", 400), ("end", 3000)):
        for after in DELIVERED if how == "kill" else (DELIVERED[0],):
            found, usual, same, moved = [], [], 0, 0
            for _ in range(repeat if how == "kill" else 1):
                told = await tell(talker, call("Tell me", max_tokens=limit), lab, after, how)
                same += told.text == whole
                moved += told.moved
                steps = [b - a for a, b in zip(told.times, told.times[1:], strict=False)]
                found.append(max(steps) * 1000)
                usual.append(statistics.median(steps) * 1000)
                if how == "end":  # the last one: the node stays away
                    break
                await asyncio.sleep(1.5)  # the agent's pause before it starts a service anew
                for name in lab:
                    await client.wait_for(MODEL, 60.0, name)
            as_uncut = same if how == "kill" else None
            row = {"how": how, "delivered": after, "gap_ms": round(statistics.median(found), 1)}
            rows.append(
                {
                    **row,
                    "usual_ms": round(statistics.median(usual), 2),
                    "same": as_uncut,
                    "moved": moved,
                    "n": len(found),
                }
            )
            print(rows[-1], flush=True)
    return rows


async def turns(talker: Talker, lab: dict[str, Node]) -> dict[str, float]:
    """Milliseconds of reading a second turn of about 1,400 tokens, where the first was answered and elsewhere."""
    spent: dict[str, list[float]] = {"here": [], "elsewhere": []}
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
        for where, node in (("here", there), ("elsewhere", other)):
            told = await tell(talker, call("", node, messages=history, max_tokens=8), lab, 0, "")
            spent[where].append(told.last["timings"]["prompt_ms"])
    return {where: round(statistics.median(values), 2) for where, values in spent.items()}


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


async def measure(lab: Lab, repeat: int, given: Path | None) -> dict[str, Any]:
    shape: dict[str, Any] = {"width": 256, "layers": 4, "heads": 4, "wide": 768, "context": 4096, "words": 96}
    file = given or tinygguf.llama(lab.folder / "tiny.gguf", **shape)
    model = text_model(file, MODEL)
    one = lab.node("one", [model])
    nodes = {"one": one, "two": lab.node("two", [model], join=[one])}
    flags = {"mesh.fleet": lab.fleet, "mesh.discover": False, "home": str(lab.folder / "me")}
    async with connect(load(flags), join=[e for node in nodes.values() for e in node.endpoints]) as client:
        for name in nodes:
            await client.wait_for(MODEL, 40.0, name)
        talker = Talker(client)
        await until(lambda: len(client.snapshot().services) == 2, "both are seen")
        prefill = await turns(talker, nodes) if given is None else {}
        print("prefill", prefill, flush=True)
        rows = await gaps(talker, client, nodes, repeat)
    return {"gaps": rows, "prefill_ms": prefill}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--model", type=Path, help="another GGUF file, with a context of 512 tokens at least")
    options = parser.parse_args()
    cost = asyncio.run(follow())
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        result = asyncio.run(measure(lab, options.repeat, options.model))
    print(json.dumps({"benchmark": "conversation", **result, "follow_us": cost}))


if __name__ == "__main__":
    main()
