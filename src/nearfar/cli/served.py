"""Whether the nodes that run in a home folder have taken up what was changed there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from nearfar.cli.common import console, escape, in_loop

if TYPE_CHECKING:
    from nearfar.fleet.snapshot import Snapshot
    from nearfar.node.identity import Running
    from nearfar.settings import Settings
    from nearfar.types.units import Seconds

PATIENCE = 20.0
"""Seconds: a service that is replaced answers what is under way (5 s), and its successor starts."""
SURE = 1.0
"""Seconds for which a service must be told as failed: one that fails once may be on its way up again."""
LOOK_EVERY = 0.05


class Taken(NamedTuple):
    """What one node makes of a change. `done`: it serves what was added, or no longer what was removed."""

    node: str
    done: bool
    reason: str = ""


_Check = Callable[["Snapshot", str, "Seconds"], "Taken | None"]
"""What a node has made of the change; None while that is not known."""


def added(chosen: Settings, name: str, revision: str = "", node: str = "") -> list[Taken]:
    """Wait until every node that runs in this home folder (or only `node`) serves the model `name`, from the file with
    this digest if one is given, or says why not. Empty when none runs."""
    from nearfar.fleet.health import health
    from nearfar.fleet.snapshot import FRESH
    from nearfar.types.ids import ModelName, NodeId, service_id
    from nearfar.types.telemetry import REVISION, ServiceState

    failing: dict[str, float] = {}

    def check(snapshot: Snapshot, node: str, now: Seconds) -> Taken | None:
        service = service_id(NodeId(node), ModelName(name))
        view = snapshot.services.get(service)
        if view is None or (revision and view.report.revision != revision[:REVISION]):
            return None
        if health(snapshot, service, now)[0].may_be_asked:
            return Taken(node, True)
        if view.report.state is not ServiceState.FAILED or now - view.heard > FRESH:
            failing.pop(node, None)
        elif now - failing.setdefault(node, now) >= SURE:
            return Taken(node, False, view.report.reason)
        return None

    return _ask_nodes(chosen, check, f"it has not taken it up within {PATIENCE:g} s; see `nearfar services`", node)


def removed(chosen: Settings, name: str, node: str = "") -> list[Taken]:
    """Wait until no node that runs in this home folder (or only `node`) serves the model any more."""
    from nearfar.types.ids import ModelName, NodeId, service_id
    from nearfar.types.telemetry import ServiceState

    def check(snapshot: Snapshot, node: str, now: Seconds) -> Taken | None:
        view = snapshot.services.get(service_id(NodeId(node), ModelName(name)))
        serves = view is not None and (view.alive or view.report.state is ServiceState.STARTING)
        return None if serves else Taken(node, True)

    return _ask_nodes(chosen, check, f"it still serves it after {PATIENCE:g} s; see `nearfar services`", node)


def as_json(taken: list[Taken]) -> list[dict[str, Any]]:
    return [{"node": one.node, "done": one.done, "reason": one.reason} for one in taken]


def tell(taken: list[Taken], done: str, undone: str) -> None:
    """A line for each node, such as "Node pi serves it now." """
    out = console()
    for one in taken:
        if one.done:
            out.print(f"Node [bold]{one.node}[/] {done}.")
        else:
            out.print(f"[yellow]Node {one.node} {undone}[/]: {escape(one.reason)}")


def _ask_nodes(chosen: Settings, check: _Check, late: str, node: str) -> list[Taken]:
    from nearfar.node.identity import running

    nodes = [entry for entry in running(chosen.home) if node in ("", entry.node)]
    if not nodes:
        return []
    return in_loop(_ask_fleets(chosen, nodes, check, late))


async def _ask_fleets(chosen: Settings, nodes: list[Running], check: _Check, late: str) -> list[Taken]:
    from nearfar.errors import NearfarError

    found: list[Taken] = []
    for fleet in dict.fromkeys(entry.fleet for entry in nodes):
        names = [entry.node for entry in nodes if entry.fleet == fleet]
        try:
            found += await _ask_fleet(chosen, fleet, names, check, late)
        except NearfarError as error:  # such as other keys of the mesh: what was changed stays changed
            found += [Taken(name, False, f"it cannot be asked: {error}") for name in names]
    return found


async def _ask_fleet(chosen: Settings, fleet: str, names: list[Any], check: _Check, late: str) -> list[Taken]:
    import msgspec

    from nearfar.client.connect import connect
    from nearfar.types.units import Seconds

    settings = msgspec.structs.replace(chosen, mesh=msgspec.structs.replace(chosen.mesh, fleet=fleet))
    known: dict[str, Taken] = {}
    async with connect(settings) as client:
        end = time.monotonic() + PATIENCE
        while len(known) < len(names) and (now := time.monotonic()) < end:
            snapshot = client.snapshot()
            for name in names:
                if name not in known and (taken := check(snapshot, name, Seconds(now))) is not None:
                    known[name] = taken
            await asyncio.sleep(LOOK_EVERY)
    return [known.get(name) or Taken(name, False, late) for name in names]
