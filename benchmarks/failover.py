"""How long a stream gets no results, and which frames it loses, when who serves it dies or falls silent.

What is measured: three nodes as processes of their own on this machine, each serving a fake detector of 10 ms; a client
in this process asks for 30 frames per second, each with a deadline (`--deadline`, 500 ms). After an undisturbed phase
(`--seconds`) the service that answers is hit: `service`, its process gets SIGKILL; `node`, agent and services get
SIGKILL; `silent`, all processes of the node get SIGSTOP: no connection closes and nothing comes back, as when a cable
is pulled. Then a phase of the same length. Stated per run: the longest gap between two
consecutive results in order (a frame that is lost holds back nobody), before and after the hit; lost frames by
number; second copies sent. Runs: `--runs` (3) of each kind, each on fresh nodes with a lease of 1 s.
Paired with: the undisturbed phase of the same run, on the same nodes; the least gap is one frame, 33.3 ms.
Aims: kill -9 at most 250 ms; silent at most 1.2 s, and 300 ms where missing answers tell.
Run: python -m benchmarks.failover [--runs N] [--seconds S] [--only KIND]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nearfar.client.client import Client
from nearfar.client.connect import connect
from nearfar.errors import NearfarError
from nearfar.settings import load
from nearfar.types.ids import ModelName, ServiceId, node_of
from nearfar.types.request import Qos
from nearfar.types.tensor import Tensor
from nearfar.types.units import Milliseconds
from tests.fleetlab import Lab, Node, fake

FPS = 30.0
MODEL = ModelName("echo")
KINDS = ("service", "node", "silent")
LEASE = {"NEARFAR_MESH_LEASE_MS": "1000"}
X = Tensor.of("x", np.arange(4, dtype=np.float32).reshape(1, 4))


class Frame(NamedTuple):
    number: int
    sent: float
    done: float
    """When its answer came or it was given up."""
    by: str
    """Who answered; empty for a lost frame."""
    error: str = ""


class Stream:
    """Frames at a steady rate, each in a task of its own."""

    def __init__(self, client: Client, deadline: float) -> None:
        self._client = client
        self._qos = Qos(deadline=Milliseconds(deadline))
        self.incumbent: ServiceId | None = None
        self._newest = -1
        self.frames: list[Frame] = []

    async def run(self, count: int, first: int = 0) -> None:
        start = time.monotonic()
        tasks = []
        for number in range(first, first + count):
            await asyncio.sleep(max(0.0, start + (number - first) / FPS - time.monotonic()))
            tasks.append(asyncio.create_task(self._ask(number)))
        await asyncio.gather(*tasks)

    async def _ask(self, number: int) -> None:
        sent = time.monotonic()
        try:
            answer = await self._client.infer(MODEL, [X], self._qos)
        except NearfarError as error:
            self.frames.append(Frame(number, sent, time.monotonic(), "", f"{error.code}: {error.message}"))
            return
        self.frames.append(Frame(number, sent, time.monotonic(), answer.served_by))
        if number > self._newest and not (answer.aside and self.incumbent is not None):
            self._newest, self.incumbent = number, answer.served_by


def longest_gap(frames: Sequence[Frame]) -> float:
    """Milliseconds between two consecutive results, delivered in order."""
    delivered = 0.0
    gaps = []
    for frame in sorted(frames):
        if frame.by:
            before, delivered = delivered, max(delivered, frame.done)
            if before:
                gaps.append((delivered - before) * 1000)
    return max(gaps, default=0.0)


def hit(kind: str, node: Node) -> list[int]:
    """Do it; the pids that must be woken again."""
    if kind == "service":
        node.kill9_service(MODEL)
    elif kind == "node":
        node.kill9_node()
    elif kind == "silent":
        pids = [node.agent_pid, *(child.pid for child in node._children())]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        return pids
    return []


async def one(kind: str, seconds: float, deadline: float) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name, Lab(Path(name)) as lab:
        folder = Path(name)
        nodes: list[Node] = []
        for number in range(3):
            model = fake(folder, MODEL, delay_ms=10.0)
            nodes.append(await asyncio.to_thread(lab.node, f"n{number}", [model], join=nodes[:1], env=LEASE))
        flags = {"home": str(folder / "client"), "mesh.fleet": lab.fleet, "mesh.discover": False}
        settings = load(flags | {"mesh.lease_ms": 1000, "mesh.listen": ("tcp/127.0.0.1:0",)}, env={}, cwd=folder)
        join = [endpoint for node in nodes for endpoint in node.endpoints]
        stopped: list[int] = []
        async with connect(settings, join=join, wait=10.0) as client:
            await client.wait_for(MODEL, 20.0)
            count = int(seconds * FPS)
            stream = Stream(client, deadline)
            await stream.run(15)  # warm-up
            stream.frames.clear()
            await stream.run(count, 15)
            calm = list(stream.frames)
            stream.frames.clear()
            served = node_of(ServiceId(max(calm).by))
            asking = asyncio.create_task(stream.run(count, 15 + count))
            await asyncio.sleep(0.5)
            victim = next(node for node in nodes if node.name == served)
            stopped = await asyncio.to_thread(hit, kind, victim)
            await asking
            counts = client.robust.counts
            result = {
                "gap_before_ms": round(longest_gap(calm), 1),
                "gap_after_ms": round(longest_gap(stream.frames), 1),
                "frames": count,
                "lost_before": [frame.number for frame in sorted(calm) if not frame.by],
                "lost_after": [frame.number for frame in sorted(stream.frames) if not frame.by],
                "hedges": counts.hedges,
                "asked_again": counts.asked_again,
            }
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--deadline", type=float, default=500.0, help="of each frame, in milliseconds")
    parser.add_argument("--only", default="", choices=["", *KINDS])
    chosen = parser.parse_args()
    print("| hit | gap undisturbed, ms | gap, ms | lost frames | hedges | asked again |\n|---|---|---|---|---|---|")
    results: dict[str, list[dict[str, object]]] = {}
    for kind in KINDS:
        if chosen.only in ("", kind):
            for _ in range(chosen.runs):
                run = asyncio.run(one(kind, chosen.seconds, chosen.deadline))
                results.setdefault(kind, []).append(run)
                print(
                    f"| {kind} | {run['gap_before_ms']} | {run['gap_after_ms']} | {run['lost_after'] or 'none'} "
                    f"| {run['hedges']} | {run['asked_again']} |",
                    flush=True,
                )
    worst = {
        kind: {
            "gap_before_ms": statistics.median(float(str(run["gap_before_ms"])) for run in runs),
            "gap_after_ms_median": statistics.median(float(str(run["gap_after_ms"])) for run in runs),
            "gap_after_ms_worst": max(float(str(run["gap_after_ms"])) for run in runs),
            "lost": sum(len(run["lost_after"]) for run in runs if isinstance(run["lost_after"], list)),
        }
        for kind, runs in results.items()
    }
    print(
        json.dumps(
            {
                "benchmark": "failover",
                "results": worst,
                "runs": results,
                "python": platform.python_version(),
                "machine": platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
