"""Where policies stand on the example scenarios, and how long the testbed takes.

What is measured: every scenario in `examples/scenarios` under every policy, `weighted` with the best of 15 fixed
weights (found on the first 20 s of the same scenario; for the large fleet on one of 100 nodes): share of frames past
their deadline, moves, flaps, wall time. Then the boards of fleet-1000 at 10, 100, 1,000 and 10,000 nodes, streams in
proportion. Then all twelve hours of churn-12h under `predictive` (`--hours 12`), after its first 20 virtual minutes
under the policies that do not scan. Virtual time: equal seeds give equal counts on any machine, only wall times
depend on it. Every scenario is played with the seeds 0, 1 and 2 (`--seeds`), the large fleets and churn with 0 only;
constants of the policy were tuned on these scenarios with seed 0. No warm-up needed.
Limits in the same run: the best baseline, and two greedy bounds: omniscient knows queues and times of each frame,
clairvoyant deaths to come as well. Every policy has the client's hedges, silence and retries, and services that refuse
doomed work. At its end it prints the tables of docs/benchmarks.md.
Aims: predictive at most 1/3 of the violations of the best baseline, at most 1.15 of the clairvoyant bound, no more
moves than true changes ask for, and twelve hours of churn in 300 s on two cores.
Run: python -m benchmarks.simulate [--jobs N] [--hours H] [--only NAME] [--seeds 0,1,2]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec

from nearfar.simulate.baselines import ORDER
from nearfar.simulate.compare import best_weights, policy_of
from nearfar.simulate.measures import Summary
from nearfar.simulate.report import ratios
from nearfar.simulate.run import Engine
from nearfar.simulate.scenario import Scenario, load

FOLDER = Path(__file__).parents[1] / "examples" / "scenarios"
NAMES = ("steady", "burst", "overload", "rolling-failures", "mobility", "fleet-1000")
SCALES = (10, 100, 1_000, 10_000)
FEW = ("random", "predictive", "omniscient", "clairvoyant")
"""Policies that look at few, and the bound."""
CHURN_MINUTES = 20
GRID_SECONDS = 20.0
Task = tuple[Scenario, str, Scenario | None, int]
"""What to play, under which policy, the scenario on which weights are searched, and the seed."""


def scaled(nodes: int) -> Scenario:
    """The boards of fleet-1000 in the same shares."""
    scenario = load(FOLDER / "fleet-1000.toml")
    share = nodes / 1000
    return msgspec.structs.replace(
        scenario,
        name=f"fleet-{nodes}",
        seconds=10.0 if nodes < 10_000 else 5.0,
        nodes=tuple(msgspec.structs.replace(g, count=max(1, round(g.count * share))) for g in scenario.nodes),
        clients=tuple(
            msgspec.structs.replace(c, streams=max(4, round(c.streams * share)), gateways=4) for c in scenario.clients
        ),
    )


def one(scenario: Scenario, policy: str, searched: Scenario | None, seed: int) -> Summary:
    options = best_weights(searched, seed, GRID_SECONDS) if policy == "weighted" and searched is not None else {}
    return msgspec.structs.replace(Engine(scenario, policy_of(policy, **options), seed).play(), options=options)


def tasks(hours: float, seeds: list[int]) -> Iterator[tuple[str, Task]]:
    """(heading, what to play)."""
    first = seeds[0]
    for name in NAMES:
        large = name == "fleet-1000"  # minutes for each policy that looks at everybody
        for seed in seeds[:1] if large else seeds:
            for policy in ORDER:
                scenario = load(FOLDER / f"{name}.toml")
                yield f"{name} {seed}", (scenario, policy, scaled(100) if large else scenario, seed)
    for nodes in SCALES:
        for policy in FEW:
            yield f"scale {nodes}", (scaled(nodes), policy, None, first)
    churn = load(FOLDER / "churn-12h.toml")
    for policy in FEW:
        short = msgspec.structs.replace(churn, seconds=CHURN_MINUTES * 60.0)
        yield "churn-20min", (short, policy, None, first)
    if hours:
        yield f"churn-{hours:g}h", (msgspec.structs.replace(churn, seconds=hours * 3600), "predictive", None, first)


def tables(found: dict[str, list[Summary]]) -> Iterator[str]:
    """For docs/benchmarks.md."""
    heads = ("scenario, seed", *ORDER, "of best baseline", "of omniscient", "of clairvoyant", "moves / flaps / changes")
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * (len(ORDER) + 5)
    for name, many in found.items():
        if name.split()[0] not in NAMES:
            continue
        summaries = {s.policy: s for s in many}
        ours = summaries.get("predictive")
        if ours is None:
            continue
        told = ratios(list(summaries.values()))
        shares = [f"{summaries[p].violation_rate:.3%}" if p in summaries else "-" for p in ORDER]
        of = (
            f"{told['of_best_baseline']} ({told['best_baseline']}) | {told['of_omniscient']} | {told['of_clairvoyant']}"
        )
        moves = f"{ours.moves} / {ours.flaps} / {ours.true_changes}"
        yield f"| {name} | {' | '.join(shares)} | {of} | {moves} |"
    yield (
        "\n| scenario, seed | frames | planned / unplanned moves | aborted | copies | asides | rescued "
        "| threatened, broken | hedges | asked again | suspected: wrongly |"
        "\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for name, many in found.items():
        for s in many:
            if s.policy == "predictive":
                levels = f"{s.levels.get('threatened', 0)}, {s.levels.get('broken', 0)}"
                yield (
                    f"| {name} | {s.frames} | {s.planned} / {s.unplanned} | {s.aborted} | {s.shadows} | {s.asides} "
                    f"| {s.rescued} | {levels} | {s.hedges} | {s.asked_again} | {s.suspected}: {s.suspected_wrongly} |"
                )
    yield "\n| run | policy | frames | violations | moves / unprovoked / changes | wall s |\n|---|---|---|---|---|---|"
    for name, many in found.items():
        if name.split()[0] not in NAMES:
            for s in many:
                moves = f"{s.moves} / {s.unprovoked_moves} / {s.true_changes}"
                yield f"| {name} | {s.policy} | {s.frames} | {s.violation_rate:.3%} | {moves} | {s.wall_s:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; above 1 wall times disturb each other")
    parser.add_argument("--hours", type=float, default=12.0, help="virtual hours of churn; 0 leaves it out")
    parser.add_argument("--only", default="", help="only headings that begin so")
    parser.add_argument("--seeds", default="0,1,2", help="of the scenarios, with commas between")
    chosen = parser.parse_args()
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    planned = [task for task in tasks(chosen.hours, seeds) if task[0].startswith(chosen.only)]
    began = time.perf_counter()
    found: dict[str, list[Summary]] = {}
    print(
        "| scenario | policy | frames | violations | moves | flaps | p99 ms | wall s |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    with ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn")) as pool:
        futures = [(name, pool.submit(one, *rest)) for name, rest in planned]
        for name, future in futures:
            s = future.result()
            found.setdefault(name, []).append(s)
            label = s.policy + (f" {tuple(s.options.values())}" if s.options else "")
            print(
                f"| {name} | {label} | {s.frames} | {s.violation_rate:.3%} | {s.moves} | {s.flaps} "
                f"| {s.latency_ms['p99']} | {s.wall_s:.1f} |",
                flush=True,
            )
    print()
    for line in tables(found):
        print(line)
    results = {
        name: ratios(summaries)
        | {
            "frames": summaries[0].frames,
            "moves": {s.policy: s.moves for s in summaries},
            "flaps": {s.policy: s.flaps for s in summaries},
            "unprovoked_moves": {s.policy: s.unprovoked_moves for s in summaries},
            "true_changes": summaries[-1].true_changes,
            "wall_s": {s.policy: round(s.wall_s, 2) for s in summaries},
        }
        for name, summaries in found.items()
    }
    print(
        json.dumps(
            {
                "benchmark": "simulate",
                "results": results,
                "wall_s": round(time.perf_counter() - began, 1),
                "python": platform.python_version(),
                "machine": platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
