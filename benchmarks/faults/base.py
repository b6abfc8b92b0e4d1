"""What a fault is, and the stage on which it plays."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import msgspec

from benchmarks.faults.asker import Order
from benchmarks.faults.fleet import GATEWAYS, NODES, WAIT_LIMIT, Broken, Fleet, Node
from benchmarks.faults.parts import Orders

LONG = 600.0
PROGRESS = 3
"""Good answers in a row, of everyone who asks at a gateway, that count as going on."""


class Stage:
    """The fleet, with what a fault needs while it runs."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self.fleet = fleet
        self.rng = rng
        self.notes: list[str] = []
        self.exposed = False

    def node(self, name: str = "") -> Node:
        """A node by name, or one by chance."""
        return self.fleet.node(name or self.rng.choice(NODES))

    def service(self) -> tuple[Node, str]:
        node = self.node()
        return node, self.rng.choice(node.models)

    def excuse(self, *nodes: Node) -> None:
        """The gateways of these nodes are being broken: connections to them may break until the fleet is whole."""
        self.fleet.tell_askers(excused=[node.name for node in nodes])

    def expose(self) -> None:
        """A service gives wrong answers of the right shape from now on."""
        self.exposed = True
        self.fleet.tell_askers(exposed=True)

    def note(self, words: str) -> None:
        self.notes.append(words)

    def hold(self, seconds: float) -> None:
        """The middle of a fault: let everybody go on asking."""
        time.sleep(seconds)

    def order(self, node: Node, orders: Orders | None) -> None:
        self.fleet.misbehave(f"{node.name}/mirror", orders)

    def poke(self, node: Node) -> dict[str, Any]:
        """Ask this node's mirror and no other, through another one's gateway: what was answered, or the problem.

        Placement leaves out who misbehaves, so that nobody else may ask it any more.
        """
        gateway = self.fleet.node(next(name for name in GATEWAYS if name != node.name))
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 7.0]}]}

        def post() -> dict[str, Any]:
            headers = {"Nearfar-Node": node.name, "Nearfar-Deadline": "2s"}
            url = f"{gateway.url()}/v2/models/mirror/infer"
            told: dict[str, Any] = httpx.post(url, json=body, headers=headers, timeout=30.0, trust_env=False).json()
            return told

        return gateway.place.inside(post)

    def goes_on(
        self, gateways: Sequence[str] = GATEWAYS, kinds: Sequence[str] = (), limit: float = WAIT_LIMIT
    ) -> float:
        """Seconds until everybody who asks at these gateways (of these kinds) had good answers in a row again."""
        askers = [asker for asker in self.fleet.askers if asker.node.name in gateways]
        for asker in askers:
            asker.order(Order("mark"))
        start = time.monotonic()
        while True:
            behind = []
            for asker in askers:
                rows = self.fleet.look(asker).running
                behind += [
                    f"{kind} at {asker.node.name}"
                    for kind, count in rows.items()
                    if count < PROGRESS and (not kinds or kind in kinds)
                ]
            if not behind:
                return time.monotonic() - start
            if time.monotonic() - start > limit:
                raise Broken(f"no good answers within {limit:.0f} s: {', '.join(behind)}")
            time.sleep(0.1)

    def never_restarted(self, before: dict[str, int]) -> None:
        """Raise when a service has another process than before: disconnected is not dead."""
        after = self.fleet.services()
        changed = [service for service, pid in before.items() if after.get(service) != pid]
        if changed:
            raise Broken(f"started again though it never ended: {', '.join(changed)}")


class Fault(msgspec.Struct, frozen=True):
    """`play` breaks something, holds it broken for a while and undoes it; that the fleet heals is awaited after it."""

    name: str
    summary: str
    play: Callable[[Stage], None]
    needs: Callable[[Fleet], str]
    """Why it cannot be played here; empty when it can."""
    long: bool = False
    """It takes more than a minute: for soaks of `LONG` seconds and more, or when it is named."""


def _nothing(_: Fleet) -> str:
    return ""


def fault(
    name: str, summary: str, needs: Callable[[Fleet], str] = _nothing, *, long: bool = False
) -> Callable[[Callable[[Stage], None]], Fault]:
    """Makes a `Fault` of a function."""

    def made(play: Callable[[Stage], None]) -> Fault:
        return Fault(name, summary, play, needs, long)

    return made


def needs_cut(fleet: Fleet) -> str:
    return fleet.ground.why_not
