"""What a trail costs the stream that it belongs to, on the event loop, per decision.

What is measured: `Trail.decided` alone, called with ready decisions, in microseconds per call, beside `decide` itself
on the same snapshot (the limit: a trail should cost less than the decision that it writes down):
  same       30 times a second the same decision: what nearly every frame is
  new        every decision differs from the one before (its link is slow or fast in turn): the worst case, with a file
  refused    the same decision with 60 refused services
  deaf       a decision of another stream: what everybody else pays for it
3 candidates with links. Warm-up: a tenth, not counted. 5 rounds in turn; each figure is the median of its rounds. The
file is in a temporary folder; its bytes per decision are counted too.

    python -m benchmarks.trail [--calls 20000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from nearfar.client.trail import Trail
from nearfar.fleet.snapshot import Snapshot
from nearfar.placement.decide import Decision, decide
from nearfar.placement.policies.predictive import Predictive
from nearfar.types.ids import ModelName, ServiceId, StreamId
from nearfar.types.request import Request
from tests.fleet.build import NOW, fleet, link, service_view

CAM = StreamId("cam")
YARD = Request(ModelName("yard"), "here", stream=CAM, incumbent=ServiceId("a/yard"))


def world(rtt: float, refused: int = 0) -> Snapshot:
    gone = [service_view(f"r{i}/yard", alive=False) for i in range(refused)]
    links = {n: link(rtt + i, jitter=0.2) for i, n in enumerate("abc")}
    return fleet(*(service_view(f"{n}/yard") for n in "abc"), *gone, links=links)


def decided(snapshot: Snapshot) -> Decision:
    return decide(snapshot, YARD, NOW, random.Random(1), Predictive())


async def main(calls: int) -> dict[str, float]:
    plain, slow, crowded = world(1.0), world(60.0), world(1.0, 60)
    requests = [msgspec.structs.replace(YARD, frame=at) for at in range(calls)]
    deaf = msgspec.structs.replace(YARD, stream=StreamId("other"), frame=0)
    of = {id(w): decided(w) for w in (plain, slow, crowded)}
    now = NOW
    rng, policy = random.Random(1), Predictive()

    def run(trail: Trail, which: Callable[[int], Snapshot]) -> Callable[[int], None]:
        def one(at: int) -> None:
            snapshot = which(at)
            trail.decided(requests[at], of[id(snapshot)], snapshot, now)

        return one

    figures: dict[str, list[float]] = {}
    size = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(5):
            for name, which in {
                "same": lambda at: plain,
                "refused": lambda at: crowded,
                "new": lambda at: slow if at % 2 else plain,
            }.items():
                trail = Trail(CAM, ModelName("yard"), home=Path(folder) / name)
                await trail.start()
                figures.setdefault(name, []).append(_time(run(trail, which), calls))
                await trail.close()
                if name == "new":
                    files = list((Path(folder) / name).rglob("trail.jsonl*"))
                    size = sum(f.stat().st_size for f in files) / calls
                for file in (Path(folder) / name).rglob("trail.jsonl*"):
                    file.unlink()
            other = Trail(CAM, ModelName("yard"))
            figures.setdefault("deaf", []).append(_time(partial(_hear, other, deaf, of[id(plain)], plain), calls))
            figures.setdefault("decide", []).append(_time(lambda at: decide(plain, YARD, now, rng, policy), calls))
    medians = {f"{name}_us": round(statistics.median(found), 2) for name, found in figures.items()}
    return medians | {"new_bytes_at_most": round(size)}


def _hear(trail: Trail, request: Request, decision: Decision, snapshot: Snapshot, _: int) -> None:
    trail.decided(request, decision, snapshot, NOW)


def _time(one: Callable[[int], object], calls: int) -> float:
    warm = calls // 10
    for at in range(warm):
        one(at)
    start = time.perf_counter()
    for at in range(warm, calls):
        one(at)
    return (time.perf_counter() - start) / (calls - warm) * 1e6


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000)
    print(json.dumps(asyncio.run(main(parser.parse_args().calls))))
