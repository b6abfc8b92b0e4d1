"""Whether the testbed tells the truth: the same scenarios in virtual time and on real processes of this machine.

What is measured: `live-unequal` and `live-failures` of `examples/scenarios` under random, round robin, least loaded
and predictive: share of frames without an answer in time, simulated and live, p50 of the answers, moves. Both play the
same frames at the same moments; service times are log-normal in both, drawn apart. One seed; the first three seconds
bring telemetry only. Live runs go over an emulated network (root), else over loopback, where `live-failures` is left
out as nothing can be cut there.
Limits in the same run: what chance allows (the binomial law, a quarter of the rate, or ten frames), how
late gateways were woken and how far off its time a killed node was back: on a busy machine live figures mean little.
Run: python -m benchmarks.live [--network auto|tap|mesh] [--only NAME]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
from pathlib import Path
from typing import Any

from nearfar.lab.agreement import disorder, verdicts
from nearfar.lab.check import check
from nearfar.lab.network import choose
from nearfar.lab.play import Lab
from nearfar.simulate.compare import policy_of
from nearfar.simulate.measures import Summary
from nearfar.simulate.run import Engine
from nearfar.simulate.scenario import Scenario, load

FOLDER = Path(__file__).parents[1] / "examples" / "scenarios"
POLICIES = ("random", "round-robin", "least-loaded", "predictive")


async def live(scenario: Scenario, network: str) -> list[Summary]:
    async with Lab(scenario, network) as lab:
        check(lab.plan, network, POLICIES)
        return [await lab.play(policy) for policy in POLICIES]


def one(name: str, network: str) -> dict[str, Any]:
    scenario = load(FOLDER / f"{name}.toml")
    simulated = [Engine(scenario, policy_of(policy)).play() for policy in POLICIES]
    played = asyncio.run(live(scenario, network))
    judged = verdicts(simulated, played)
    for sim, real, verdict in zip(simulated, played, judged, strict=True):
        print(
            f"| {name} | {real.policy} | {real.frames} | {sim.violation_rate:.1%} | {real.violation_rate:.1%} "
            f"| {verdict.allowed:.1%} | {'yes' if verdict.agrees else 'no'} "
            f"| {sim.latency_ms['p50']} | {real.latency_ms['p50']} | {sim.moves} | {real.moves} "
            f"| {real.options['woken_late_ms']} | {real.options.get('back_late_s', '')} |",
            flush=True,
        )
    return {
        "simulated": {s.policy: round(s.violation_rate, 4) for s in simulated},
        "live": {s.policy: round(s.violation_rate, 4) for s in played},
        "allowed": {v.policy: round(v.allowed, 4) for v in judged},
        "agree": all(v.agrees for v in judged),
        "disorder": disorder(simulated, played),
        "noise": {s.policy: s.options for s in played},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", choices=("auto", "tap", "mesh"), default="auto")
    parser.add_argument("--only", default="", help="only scenarios whose names begin so")
    chosen = parser.parse_args()
    network, why = choose(chosen.network)
    print(f"network {network}: {why}\n")
    print(
        "| scenario | policy | frames | simulated | live | may differ by | agree | p50 ms simulated | p50 ms live "
        "| moves simulated | moves live | woken late ms | back late s |\n|" + "---|" * 13
    )
    names = [name for name in ("live-unequal", "live-failures") if name.startswith(chosen.only)]
    results = {name: one(name, network) for name in names if network == "tap" or name != "live-failures"}
    print(
        json.dumps(
            {
                "benchmark": "live",
                "network": network,
                "results": results,
                "python": platform.python_version(),
                "machine": platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
