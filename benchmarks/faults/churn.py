"""A node that joins and leaves every second, half of the time without a word."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys

from benchmarks.faults.base import Stage, fault

ROUNDS = 6
_GUEST = """
import asyncio, sys
from nearfar.mesh.zenoh import ZenohMesh
from nearfar.mesh.zenoh_options import ZenohOptions
from nearfar.node.agent import Agent, Usage, unknown_device
from nearfar.types.ids import NodeId
from nearfar.types.units import Bytes, Ratio

async def main():
    mesh = ZenohMesh(ZenohOptions(sys.argv[1], (sys.argv[2],), tuple(sys.argv[3:]), False, 1000))
    usage = lambda: Usage(Ratio(0.0), Bytes(1 << 30), None, "a guest has no thermometer")
    agent = Agent(NodeId("guest"), mesh, unknown_device(), usage, None, lambda: ())
    await agent.start()
    print("joined", flush=True)
    running = asyncio.create_task(agent.run())
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    running.cancel()
    await agent.close()
    await mesh.close()

asyncio.run(main())
"""


@fault("joins-and-leaves", "a node joins and leaves every second, now with a word and now by kill -9")
def joins_and_leaves(stage: Stage) -> None:
    fleet = stage.fleet
    place = stage.node("three").place
    listen = place.endpoint.rpartition(":")[0] + ":0"
    joins = [node.place.endpoint for node in fleet.nodes]
    before = fleet.services()
    for number in range(ROUNDS):
        guest = subprocess.Popen(
            [*place.prefix, sys.executable, "-c", _GUEST, fleet.name, listen, *joins],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=fleet.environment,
            cwd=fleet.folder,
            start_new_session=True,
        )
        assert guest.stdout is not None and guest.stdin is not None
        try:
            guest.stdout.readline()
            stage.hold(0.5)
            if number % 2:
                guest.send_signal(signal.SIGKILL)
            with contextlib.suppress(BrokenPipeError):
                guest.stdin.close()
            guest.wait(20)
        finally:
            guest.kill()
            guest.wait()
            guest.stdout.close()
    stage.never_restarted(before)
    stage.fleet.wait(lambda: not _seen(stage), "the guest is seen to be gone")


def _seen(stage: Stage) -> bool:
    return any(
        row["node"] == "guest" and row["alive"]
        for name in ("one", "three")
        for row in stage.node(name).view().get("nodes", ())
    )


FAULTS = (joins_and_leaves,)
