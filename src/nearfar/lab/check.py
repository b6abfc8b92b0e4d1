"""What cannot be played live, by name, before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from nearfar.errors import InputError
from nearfar.lab.plan import Down, Plan, Reroute
from nearfar.simulate.baselines import Clairvoyant
from nearfar.simulate.devices import AMBIENT_TAU_S
from nearfar.simulate.scenario import Telemetry

MOST_NODES = 12
"""Each is two processes of about 80 MB."""
MOST_GATEWAYS = 4
MOST_FRAMES = 120.0
"""Frames per second of all cameras together; the Python switch, gateways and services share this machine's cores."""
MOST_TRAFFIC = 12e6
"""Bytes per second of all cameras together."""
LEAST_LEASE = 0.1


def check(plan: Plan, network: str, policies: Sequence[str]) -> None:
    """Raises `InputError` that names everything of the scenario, and every policy, that cannot be played live.

    `network` is `tap` or `mesh`: on the latter nothing can be cut off or led another way.
    """
    wrong = [*_policies(policies), *_size(plan), *_kinds(plan), *(_on_loopback(plan) if network == "mesh" else ())]
    if wrong:
        raise InputError(
            f"{plan.scenario.name} cannot be played live: {'; '.join(wrong)}.",
            "Leave --live away to simulate it, or change the scenario; docs/how-to-simulate.md lists what can.",
        )


def _policies(policies: Sequence[str]) -> Iterator[str]:
    if Clairvoyant.name in policies:
        yield "clairvoyant knows the future, which is a bound and not a policy"


def _size(plan: Plan) -> Iterator[str]:
    if len(plan.nodes) > MOST_NODES:
        yield f"it has {len(plan.nodes)} nodes, and one machine takes {MOST_NODES}"
        return  # how many frames it has would only take long to count
    if len(plan.gateways) > MOST_GATEWAYS:
        yield f"it has {len(plan.gateways)} gateways, and one machine takes {MOST_GATEWAYS}"
    frames = plan.most_frames()
    if frames > MOST_FRAMES:
        yield f"its cameras send up to {frames:.0f} frames/s, and one machine takes {MOST_FRAMES:.0f}"
    usual = sum(1 / stream.period for stream in plan.streams)
    traffic = sum(stream.size / stream.period for stream in plan.streams) * max(1.0, frames / usual)
    if traffic > MOST_TRAFFIC:
        yield f"its cameras send up to {traffic / 1e6:.1f} MB/s, and one machine takes {MOST_TRAFFIC / 1e6:.0f}"


def _kinds(plan: Plan) -> Iterator[str]:
    scenario = plan.scenario
    for group in scenario.clients:
        if group.large:
            yield f"clients {group.name}: large frames, as a fake model takes the same time for each"
        if group.mobile:
            yield f"clients {group.name}: mobile gateways"
    for nodes in scenario.nodes:
        if nodes.workers > 1:
            yield f"nodes {nodes.name}: workers, as a service of a node has one"
        device = scenario.device(nodes.device)
        hottest = nodes.ambient_c - device.rise_c * math.expm1(-scenario.seconds / AMBIENT_TAU_S)
        if device.rise_c and hottest >= device.throttle_c:
            yield f"nodes {nodes.name}: {device.name} may become so hot that it throttles, and heat is not played"
    if scenario.telemetry != Telemetry():
        yield "telemetry: the product's own pace is what a live node has"
    if scenario.lease_s < LEAST_LEASE:
        yield f"lease_s: at least {LEAST_LEASE:g}"


def _on_loopback(plan: Plan) -> Iterator[str]:
    why = "needs --network tap (root, ip of iproute2, the TUN device)"
    if any(isinstance(happening, Down) and happening.how == "cut" for happening in plan.happenings):
        yield f"cut: {why}"
    if any(isinstance(happening, Reroute) for happening in plan.happenings):
        yield f"link: {why}"
    for name, link in plan.scenario.links.items():
        if link.kind == "trace":
            yield f"links.{name}: a trace {why}"
    if any(len(way) > 1 for way in plan.ways().values()):
        yield f"access and backhaul: a way over several links {why}"


def live_assumptions() -> list[str]:
    """What even a live run has that a fleet has not; stands under its table."""
    return [
        "inference is waited for, not computed: log-normal around the device's mean",
        "every node reports the load and cores of this one machine: policies see no difference in them",
        "late: answers that services made for nobody; p50 and p99 are those of answers in time",
    ]
