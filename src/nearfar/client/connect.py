"""A client for a program or a command: finds the fleet, and is ready when it can ask.

>>> import nearfar
>>> async def count(path):  # with a node running: nearfar up
...     async with nearfar.connect() as client:
...         answer = await client.see("yard", nearfar.Image.encoded(path.read_bytes()))
...         return len(answer.detections())
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from nearfar.client.client import Client
from nearfar.client.policy import placement_policy
from nearfar.node.assemble import tls_files
from nearfar.node.identity import Running, running
from nearfar.settings import Settings, load

SETTLE = 3.0
"""Seconds in which a fleet without any node in this home folder must be found."""


_LOOPBACK = ("tcp/127.0.0.1:0",)


def _listen(settings: Settings, local: Sequence[Running]) -> tuple[str, ...]:
    """Where the node of this home folder listens, at a free port; what was allowed to it is allowed to its clients."""
    mesh = settings.mesh
    allowed = bool(local) or mesh.insecure or tls_files(settings) is not None
    endpoints = local[0].endpoints if local else mesh.listen if allowed else ()
    return tuple(f"{one.rpartition(':')[0]}:0" for one in endpoints if not one.startswith("unixsock")) or _LOOPBACK


@asynccontextmanager
async def connect(
    settings: Settings | None = None,
    *,
    join: Sequence[str] = (),
    wait: float = SETTLE,
    flags: Mapping[str, Any] | None = None,
    reachable: bool = False,
) -> AsyncIterator[Client]:
    """A client of the fleet that the settings name; `flags` are settings, such as `{"mesh.fleet": "garage"}`.

    It speaks for the node of this home folder when one runs, else for itself. Returns as soon as any node was heard,
    after `wait` seconds at the latest (the fleet may be empty: then asking says so). `reachable`: by clients on other
    machines too, as the node is that it speaks for; else only what it asks is answered.
    """
    from nearfar.mesh.zenoh import ZenohMesh
    from nearfar.mesh.zenoh_options import ZenohOptions

    settings = settings or load(flags)
    local = [entry for entry in running(settings.home) if entry.fleet == settings.mesh.fleet]
    endpoints = tuple(e.replace("/0.0.0.0:", "/127.0.0.1:") for entry in local for e in entry.endpoints)
    options = ZenohOptions(
        settings.mesh.fleet,
        _listen(settings, local) if reachable else _LOOPBACK,
        (*endpoints, *settings.mesh.join, *join),
        settings.mesh.discover and not endpoints,
        settings.mesh.lease_ms,
        tls_files(settings),
    )
    me = local[0].node if local else f"client-{uuid.uuid4().hex[:8]}"
    mesh = await asyncio.get_running_loop().run_in_executor(None, ZenohMesh, options)
    client = Client(mesh, me, placement_policy(settings), settings.placement.hedge_share)
    try:
        if not local:
            client.probe_links()
        await _settle(client, wait)
        yield client
    finally:
        await client.close()
        await mesh.close()


async def _settle(client: Client, wait: float) -> None:
    """Until every service on the mesh has reported, or nothing new came for a while."""
    end = time.monotonic() + wait
    while time.monotonic() < end:
        snapshot = client.snapshot()
        nodes: Mapping[Any, Any] = {n: v for n, v in snapshot.nodes.items() if v.alive}
        services = [v for v in snapshot.services.values() if v.alive]
        if nodes and all(v.report is not None for v in nodes.values()) and all(v.heard > 0 for v in services):
            return
        await asyncio.sleep(0.01)
