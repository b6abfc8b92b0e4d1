"""A stream of frames while who serves it dies or falls silent: frames on their way are answered elsewhere, or told."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest

from nearfar.client.client import Client
from nearfar.client.connect import connect
from nearfar.errors import NearfarError
from nearfar.settings import Settings, load
from nearfar.types.ids import ModelName, node_of
from nearfar.types.request import Answer, Qos
from nearfar.types.tensor import Tensor
from nearfar.types.units import Milliseconds
from tests.fleetlab import Lab, Node, fake
from tests.fleetlab import lab as lab
from tests.waiting import until

MODEL = ModelName("echo")
X = Tensor.of("x", np.arange(4, dtype=np.float32).reshape(1, 4))
DEADLINE = Qos(deadline=Milliseconds(20_000.0))
LEASE_MS = 15_000
"""Long, so that only missing answers can tell of silence: a busy machine must not end the lease before."""
ENV = {"NEARFAR_MESH_LEASE_MS": str(LEASE_MS)}
AT_ONCE = 4


def nodes_of(lab: Lab, folder: Path) -> list[Node]:
    first = lab.node("n0", [fake(folder, MODEL, delay_ms=100.0)], env=ENV)
    return [first, *(lab.node(f"n{i}", [fake(folder, MODEL, delay_ms=100.0)], join=[first], env=ENV) for i in (1, 2))]


def settings_of(lab: Lab, folder: Path) -> Settings:
    flags = {"home": str(folder / "client"), "mesh.fleet": lab.fleet, "mesh.discover": False}
    return load(flags | {"mesh.lease_ms": LEASE_MS}, env={}, cwd=folder)


async def all_seen(client: Client) -> None:
    def healthy() -> bool:
        views = client.snapshot().services.values()
        return len(views) == 3 and all(view.alive and view.report.state == "ready" for view in views)

    await until(healthy, "all three are seen", 60)


async def ask(client: Client, told: dict[int, Answer | NearfarError], number: int) -> None:
    """One frame; what became of it stands under its number."""
    try:
        told[number] = await client.infer(MODEL, [X], DEADLINE)
    except NearfarError as error:
        told[number] = error


def stop(node: Node) -> list[int]:
    """Every process of a node stands still: nothing closes, and nothing comes back."""
    pids = [node.agent_pid, *(child.pid for child in psutil.Process(node.agent_pid).children(recursive=True))]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["service", "node", "silent"])
def test_frames_on_their_way_are_answered_elsewhere_and_none_is_lost_unsaid(
    lab: Lab, tmp_path: Path, kind: str
) -> None:
    nodes = nodes_of(lab, tmp_path)
    stopped: list[int] = []

    async def body() -> None:
        async with connect(settings_of(lab, tmp_path), join=[e for n in nodes for e in n.endpoints], wait=30) as client:
            await all_seen(client)
            first = await client.infer(MODEL, [X], DEADLINE)
            told: dict[int, Answer | NearfarError] = {}
            on_their_way = [asyncio.create_task(ask(client, told, number)) for number in range(AT_ONCE)]
            await until(lambda: sum(client.snapshot().pending.values()) == AT_ONCE, "frames are on their way")
            victim = max(client.snapshot().pending, key=lambda s: client.snapshot().pending[s])
            node = next(n for n in nodes if n.name == node_of(victim))
            if kind == "silent":
                stopped.extend(stop(node))
            else:
                await asyncio.to_thread(node.kill9_node if kind == "node" else lambda: node.kill9_service(MODEL))
            await asyncio.gather(*on_their_way)
            for number in range(AT_ONCE, 3 * AT_ONCE):
                await ask(client, told, number)
            assert sorted(told) == list(range(3 * AT_ONCE)), "every frame has its end, by number"
            lost = {number: str(answer) for number, answer in told.items() if isinstance(answer, NearfarError)}
            assert not lost, "every deadline allowed another"
            assert first.served_by and not client.snapshot().owed.keys() - client.snapshot().services.keys()
            if kind == "silent":
                assert client.robust.counts.asked_again + client.robust.counts.hedges > 0
                later = [told[number] for number in range(AT_ONCE, 3 * AT_ONCE)]
                assert victim not in {a.served_by for a in later if isinstance(a, Answer)}, "it is avoided"
                assert psutil.Process(node.agent_pid).status() == psutil.STATUS_STOPPED, (
                    "and nobody told that it is gone"
                )

    try:
        asyncio.run(body())
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
