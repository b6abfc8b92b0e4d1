"""How long one placement decision takes, and one fold of a request's events, against the size of the fleet.

What is measured: `placement.decide.decide` on a snapshot in memory with 3, 10, 1,000 and 100,000 services of one model
on as many nodes: all healthy, a measured link to each, up to 256 with requests of this client under way and up to
1,024 observed before. The request has a deadline and an incumbent. `predictive` at every size; the baselines `nearest`
and `weighted` look at every candidate by definition and stand beside it. Then what goes wrong at 100,000: 95 % ghosts,
ghosts only, a deadline nobody keeps; and a pinned node. Last, `RequestSent` and `RequestAnswered` folded one by one.
Warm-up: 200 calls. Repetitions: `--repetitions` (5000) single calls, fewer for the slow baselines, timed one by one
with `perf_counter_ns`; p50 and p99 are stated. The garbage collector stays on, as it is in a gateway; the snapshot is
frozen out of it (`gc.freeze`).
Paired limits in the same run: `min()` over a ready list of as many floats (the least that any full scan costs),
`random.choice` (a blind choice), and an empty timed call.
Aim: under 100 us (p50) for `predictive` at 100,000 services. Run: python benchmarks/decide.py [--repetitions N]
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import time
from collections.abc import Callable

from nearfar.fleet.events import RequestAnswered, RequestSent
from nearfar.fleet.reduce import fold
from nearfar.fleet.snapshot import LinkView, NodeView, Observed, ServiceView, Snapshot
from nearfar.placement.decide import decide
from nearfar.placement.policies.registry import load
from nearfar.types.ids import ModelName, NodeId, ServiceId, VariantId, service_id
from nearfar.types.request import Qos, Request, Stages
from nearfar.types.telemetry import DeviceInfo, NodeReport, ServiceReport, ServiceState
from nearfar.types.units import Bytes, BytesPerSecond, Milliseconds, Ratio, Seconds

NOW = Seconds(1000.0)
MODEL = ModelName("yard")
DEVICE = DeviceInfo({}, (), 4.0, Bytes(4 << 30))
SIZES = (3, 10, 1_000, 100_000)


def fleet(count: int, rng: random.Random, ghosts: float = 0.0) -> Snapshot:
    """A fleet of `count` nodes with one service each; a share of them are ghosts: gone, but not yet forgotten."""
    nodes: dict[NodeId, NodeView] = {}
    services: dict[ServiceId, ServiceView] = {}
    links: dict[tuple[NodeId, NodeId], LinkView] = {}
    pending: dict[ServiceId, int] = {}
    observed: dict[ServiceId, Observed] = {}
    for number in range(count):
        node = NodeId(f"node-{number}")
        service = service_id(node, MODEL)
        alive = rng.random() >= ghosts
        heard = Seconds(NOW - rng.random() * (0.5 if alive else 30) - (0 if alive else 3))
        report = NodeReport(
            node,
            "i",
            "1",
            DEVICE,
            (MODEL,),
            Ratio(rng.random()),
            Bytes(2 << 30),
            None,
            "no sensor",
            host=f"host-{number}",
        )
        nodes[node] = NodeView(report, alive, heard, Seconds(0.0), ("i",))
        state = ServiceReport(
            service, node, MODEL, VariantId("int8"), "onnx", "cpu", ServiceState.READY, "fastest here", "i",
            queued=rng.randrange(4), in_flight=1, queue_limit=64, service_ms=5 + 40 * rng.random(), profile_ms=20.0,
        )  # fmt: skip
        services[service] = ServiceView(state, alive, heard, Seconds(0.0), ("i",))
        links[NodeId("node-0"), node] = LinkView(
            Milliseconds(0.2 + 8 * rng.random()), Milliseconds(0.1), Ratio(0.0), BytesPerSecond(1e8), heard
        )
        if number < 256:
            pending[service] = 1 + rng.randrange(3)
        if number < 1024:
            observed[service] = Observed(1.1, Milliseconds(2.0), Milliseconds(0.2), Bytes(50_000), answered_at=heard)
    return Snapshot("node-0", nodes, services, {MODEL: tuple(sorted(services))}, links, pending, observed)


def timed(call: Callable[[], object], repetitions: int, warm_up: int = 200) -> dict[str, float]:
    """p50 and p99 of one call in microseconds."""
    for _ in range(min(warm_up, repetitions)):
        call()
    samples: list[int] = []
    clock = time.perf_counter_ns
    for _ in range(repetitions):
        start = clock()
        call()
        samples.append(clock() - start)
    samples.sort()
    return {"p50_us": samples[len(samples) // 2] / 1e3, "p99_us": samples[int(len(samples) * 0.99)] / 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5000)
    repetitions: int = parser.parse_args().repetitions
    rng = random.Random(7)
    results: dict[str, dict[str, float]] = {"timer": timed(lambda: None, repetitions)}

    def note(name: str, figures: dict[str, float]) -> None:
        results[name] = figures
        print(f"{name:42} p50 {figures['p50_us']:12.1f} us   p99 {figures['p99_us']:12.1f} us", flush=True)

    for size in SIZES:
        snapshot = fleet(size, rng)
        gc.collect()
        gc.freeze()
        ids = snapshot.by_model[MODEL]
        request = Request(
            MODEL, "node-0", Bytes(60_000), qos=Qos(deadline=Milliseconds(100.0)), incumbent=ids[size // 2]
        )
        costs = [rng.random() for _ in ids]
        note(f"limit: min() of {size} floats", timed(lambda costs=costs: min(costs), min(repetitions, 2000)))  # type: ignore[misc]
        note(f"limit: random.choice of {size}", timed(lambda ids=ids: rng.choice(ids), repetitions))  # type: ignore[misc]
        for name in ("predictive", "nearest", "weighted"):
            policy = load(name)
            count = repetitions if size <= 10 or name == "predictive" else max(3, min(100, 300_000 // size))

            def one(snapshot: Snapshot = snapshot, request: Request = request, policy=policy) -> object:  # type: ignore[no-untyped-def]
                return decide(snapshot, request, NOW, rng, policy)

            note(f"{name}, {size} services", timed(one, count))

        service = ids[0]
        stages = Stages(2.0, 0.1, 1.0, 20.0, 1.0)
        sent, answered = RequestSent(service, NOW), RequestAnswered(service, stages, NOW, 1, Bytes(60_000))

        def pair(snapshot: Snapshot = snapshot, sent=sent, answered=answered) -> object:  # type: ignore[no-untyped-def]
            return fold(fold(snapshot, (sent,)), (answered,))

        note(f"fold sent + answered, {size} services", timed(pair, repetitions if size <= 1000 else 500))

    predictive = load("predictive")
    pinned = Request(MODEL, "node-0", qos=Qos(node="node-77"))
    note("predictive, 100000, pinned", timed(lambda: decide(snapshot, pinned, NOW, rng, predictive), repetitions))
    hurried = Request(MODEL, "node-0", qos=Qos(deadline=Milliseconds(1.0)))
    note("predictive, 100000, all late", timed(lambda: decide(snapshot, hurried, NOW, rng, predictive), repetitions))
    haunted = fleet(100_000, rng, ghosts=0.95)
    plain = Request(MODEL, "elsewhere", Bytes(60_000))
    note("predictive, 100000, 95 % ghosts", timed(lambda: decide(haunted, plain, NOW, rng, predictive), repetitions))
    dead = fleet(100_000, rng, ghosts=1.1)
    note("predictive, 100000, all ghosts", timed(lambda: decide(dead, plain, NOW, rng, predictive), 3, 1))

    reached = results["predictive, 100000 services"]["p50_us"]
    print(
        json.dumps(
            {
                "benchmark": "decide",
                "python": platform.python_version(),
                "machine": platform.machine(),
                "repetitions": repetitions,
                "aim_us": 100.0,
                "aim_kept": reached < 100.0,
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
