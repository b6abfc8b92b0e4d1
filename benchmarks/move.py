"""What a planned move costs a stream: frames lost, frames twice, and the longest gap between two results.

What is measured: a clip of 20 s at 30 frames/s, played in real time, is looked at by the embedded detector `yard` on
two nodes of this machine (processes of their own). A policy of the benchmark wants the other node every 30 frames, so
the stream is warmed, compared and switched again and again. The gap of a move is the time between the results of the
last frame of the old service and the first one of the new one; paired with it, in the same run, are those between all
other results. Aim: 0 lost, 0 twice, no gap longer than one frame period + 5 ms (38.3 ms at 30 frames/s).
Warm-up: 30 frames, not counted. Run: python benchmarks/move.py [--seconds S] [--every N]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from nearfar.client.connect import connect
from nearfar.fleet.snapshot import ServiceView, Snapshot
from nearfar.placement.decide import Decision
from nearfar.placement.policies.base import Ranked
from nearfar.settings import load
from nearfar.types.ids import ModelName, ServiceId, StreamId
from nearfar.types.request import Request
from nearfar.types.units import Seconds
from nearfar.vision.results import FrameResult, Kind, Summary
from nearfar.vision.sources import open_source
from nearfar.vision.stream import Watch
from recipes.yard.scene import render_clip
from tests.fleetlab import Lab
from tests.waiting import until

RATE, WARM_UP = 30, 30
YARD = ModelName("yard")
A, B = ServiceId("a/yard"), ServiceId("b/yard")


class Wander:
    """`want` first, whatever it costs."""

    name = "wander"
    sample: int | None = None
    want = A

    def rank(
        self, snapshot: Snapshot, request: Request, candidates: Sequence[ServiceView], now: Seconds, rng: random.Random
    ) -> Sequence[Ranked]:
        services = sorted((view.report.service for view in candidates), key=lambda one: one != self.want)
        return [Ranked(service, float(place)) for place, service in enumerate(services)]


async def measure(flags: dict[str, Any], clip: Path, every: int) -> tuple[Summary, list[tuple[int, float]]]:
    """The summary, and (frame, moment) of each result."""
    results: list[tuple[int, float]] = []
    policy = Wander()

    def on_result(result: FrameResult, image: object) -> None:
        results.append((result.index, time.perf_counter()))

    async with connect(load(flags)) as client:
        await until(lambda: sum(v.alive and v.heard > 0 for v in client.snapshot().services.values()) == 2, "two", 60)
        client.policy = policy
        decide = client.decide
        engine = Watch(open_source(str(clip), realtime=True), client, YARD, on_result=on_result, stream=StreamId("s"))
        decisions = 0

        def wander(request: Request) -> Decision:
            nonlocal decisions
            decisions += 1
            last = max([WARM_UP, *(move.frame for move in engine.summary.moves)])
            if decisions - last > every and engine.incumbent == policy.want:
                policy.want = B if policy.want == A else A
            return decide(request)

        client.decide = wander  # type: ignore[method-assign]
        return await engine.run(), results


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--every", type=int, default=30)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        clip = Path(folder) / "clip.mp4"
        render_clip(clip, 7, wanted.seconds, RATE)
        first = lab.node("a", ["yard"])
        lab.node("b", ["yard"], join=[first])
        flags = {
            "home": f"{folder}/client",
            "mesh.fleet": lab.fleet,
            "mesh.discover": False,
            "mesh.join": first.endpoints,
        }
        summary, results = asyncio.run(measure(flags, clip, wanted.every))
    at = {move.frame for move in summary.moves}
    gaps = {
        frame: (moment - before) * 1e3
        for (_, before), (frame, moment) in itertools.pairwise(results)
        if frame > WARM_UP
    }
    moves = [gap for frame, gap in gaps.items() if frame in at]
    others = [gap for frame, gap in gaps.items() if frame not in at]
    limit = 1e3 / RATE + 5.0
    told: dict[str, Any] = {
        "frames": summary.read,
        "moves": summary.moved,
        "planned": sum(move.kind is Kind.PLANNED for move in summary.moves),
        "given_up": len(summary.given_up),
        "shadows": summary.shadows,
        "lost": summary.lost.count,
        "dropped": sum(summary.drops.values()),
        "twice": len(results) - len({frame for frame, _ in results}),
        "in_order": results == sorted(results),
        "limit_ms": round(limit, 1),
        "gap_at_moves_ms": {"p50": round(quantile(moves, 0.5), 1), "longest": round(max(moves, default=0.0), 1)},
        "other_gaps_ms": {"p50": round(quantile(others, 0.5), 1), "longest": round(max(others, default=0.0), 1)},
        "moves_over_limit": sum(gap > limit for gap in moves),
        "others_over_limit": sum(gap > limit for gap in others),
    }
    print(f"{told['moves']} moves, longest gap {told['gap_at_moves_ms']['longest']} ms, limit {limit:.1f} ms")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
