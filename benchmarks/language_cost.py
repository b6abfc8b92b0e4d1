"""Processor time that a language model's calls cost, process by process, beside llama.cpp without nearfar.

`benchmarks/language.py` says how fast it is, which on a machine that others use as well is mostly noise; this says
what it costs, which is steadier: microseconds of processor time that each process takes for one request, or one
token. On few cores the throughput follows from their sum, as load generator, gateway and service share them.
  one-token  chat completions of one token, 16 clients: gateway, service and the load generator; then llama.cpp's own
             HTTP server under the same load
  stream     one streamed chat completion after the other; then the same called directly through xllamacpp
  streams    16 of them at once
Beside the microseconds stands how often a process went to sleep for one request or token (voluntary context switches).
Linux only: the figures are those of /proc. Medians of `--rounds` rounds, the two sides in turn.

    python -m benchmarks.language_cost [--model FILE.gguf] [--seconds 3] [--rounds 5] [--tokens 256]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gateway import load, post
from benchmarks.language import ONE, STREAMS, Direct, chat, default_model, direct, node, through

Cost = dict[str, float]


def used(pid: int) -> tuple[float, int]:
    """Microseconds of processor time of all threads of a process until now, and its voluntary context switches."""
    spent, slept = 0, 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that ended meanwhile
            spent += int((task / "schedstat").read_text().split()[0])
            lines = (task / "status").read_text().splitlines()
            slept += next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return spent / 1000, slept


@contextlib.contextmanager
def measured(pids: dict[str, int], count: Callable[[], float]) -> Iterator[Cost]:
    """The cost of what happens inside, for each of `count` requests or tokens."""
    found: Cost = {}
    before = {name: used(pid) for name, pid in pids.items()}
    yield found
    after = {name: used(pid) for name, pid in pids.items()}
    things = count()
    for name in pids:
        found[f"{name}_us"] = (after[name][0] - before[name][0]) / things
        found[f"{name}_sleeps"] = (after[name][1] - before[name][1]) / things


def processes() -> dict[str, int]:
    """The gateway's process, which is the node itself, that of its service, and llama.cpp's."""
    found = {}
    for child in psutil.Process().children():
        if "benchmarks.llama_direct" in child.cmdline():
            found["direct"] = child.pid
        else:
            found["gateway"] = child.pid
            for grandchild in child.children():
                found["service"] = grandchild.pid
    return found


def one_token(folder: Path, port: int, pids: dict[str, int], seconds: float) -> Cost:
    file = folder / ONE
    file.write_bytes(post("/v1/chat/completions", chat(1, stream=False), "Content-Type: application/json"))
    requests = [1.0]
    mine = os.times()
    with measured(pids, lambda: requests[0]) as found:
        done = load(port, STREAMS, seconds, file)
        requests[0] = done["requests"] * (1 + min(1.0, seconds / 4) / seconds)  # the warm-up costs as well
    then = os.times()
    taken = then.children_user + then.children_system - mine.children_user - mine.children_system
    return found | {"load_us": taken * 1e6 / requests[0], "per_s": done["requests_per_second"]}


def streams(port: int, limit: Direct, pids: dict[str, int], count: int, tokens: int) -> tuple[Cost, Cost]:
    body = chat(tokens, stream=True)
    request = post("/v1/chat/completions", body, "Content-Type: application/json")
    pieces = [1.0]
    mine = {name: pid for name, pid in pids.items() if name != "direct"}
    with measured(mine, lambda: pieces[0]) as nearfar:
        ran = asyncio.run(through(port, count, request))
        pieces[0] = ran["pieces"]
    nearfar["per_s"] = ran["pieces"] / (ran["first_s"] + ran["rest_s"])
    ran = limit.generate(count, body)
    each = ran["pieces"]
    theirs = {"direct_us": ran["spent_s"] * 1e6 / each, "direct_sleeps": ran["sleeps"] / each}
    return nearfar, theirs | {"per_s": each / (ran["first_s"] + ran["rest_s"])}


def medians(runs: list[Cost]) -> Cost:
    return {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--only", choices=("one-token", "stream", "streams"))
    given = parser.parse_args()
    model = given.model or default_model()
    runs: dict[str, list[Cost]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(node(folder, model, given.threads))
        limit = stack.enter_context(direct(model, given.threads))
        pids = processes()
        own = {name: pid for name, pid in pids.items() if name != "direct"}
        for number in range(given.rounds + 1):
            made: dict[str, Cost] = {}
            if given.only in (None, "one-token"):
                made["one-token nearfar"] = one_token(folder, port, own, given.seconds)
                made["one-token llama.cpp"] = one_token(folder, limit.port, {"direct": pids["direct"]}, given.seconds)
            for name, count in (("stream", 1), ("streams", STREAMS)):
                if given.only in (None, name):
                    mine, theirs = streams(port, limit, pids, count, given.tokens)
                    made[f"{name} nearfar"], made[f"{name} direct"] = mine, theirs
            for name, cost in made.items():
                if number:  # the first round warms up
                    runs.setdefault(name, []).append(cost)
    result: dict[str, Any] = {name: medians(costs) for name, costs in runs.items()}
    for name, figures in result.items():
        print(f"{name:20} " + "  ".join(f"{key} {value:g}" for key, value in figures.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
