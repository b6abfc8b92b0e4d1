"""Wait for what is only just starting, as whoever types the next command at once would: one line says so.

Only commands wait. Who asks over HTTP gets the error with its Retry-After.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from nearfar.cli.common import console, escape

if TYPE_CHECKING:
    from pathlib import Path

    from nearfar.client.client import Client
    from nearfar.settings import Settings
    from nearfar.types.request import Qos

LIMIT = 30.0
"""Seconds that a command waits at most; then it goes on, and says what is wrong."""
LOOK_EVERY = 0.1
REPORTED = 1.2
"""Seconds in which a node reports twice what starts on it."""
BETWEEN = 2.0
"""Seconds between the word of a service's start and that of its being there, at most."""
_TENSORS = frozenset({"onnx", "litert", "openvino", "fake"})
"""Engines that never talk."""


class Patience:
    """Says once what is awaited, and knows what was seen to start."""

    def __init__(self, limit: float = LIMIT) -> None:
        self._end = time.monotonic() + limit
        self._told = False
        self._seen: dict[str, float] = {}

    def awaited(self, states: Iterable[tuple[str, str]]) -> list[str]:
        """Of (service, state) those that are starting, and those that just were: a service says that it is ready a
        moment before, or after, the mesh says that it is there, and counts as gone or stale between."""
        now, found = time.monotonic(), []
        for service, state in states:
            if state == "starting":
                self._seen[service] = now
            between = state in ("gone", "stale") and service in self._seen and now - self._seen[service] < BETWEEN
            if state == "starting" or between:
                found.append(service)
        return found

    def more(self, awaited: str) -> bool:
        """Whether to wait on; `awaited` is told the first time, such as "yard is starting on pi"; "" tells nothing."""
        if time.monotonic() >= self._end:
            return False
        if not awaited:
            return True
        if not self._told:
            console(error=True).print(f"[dim]{escape(awaited)}; waiting[/]", soft_wrap=True)
        self._told = True
        return True


def node_is_coming(home: Path, patience: Patience) -> bool:
    """Whether a node is just starting in this home folder, none runs there already, and it is worth to wait for it."""
    from nearfar.node.identity import coming, running

    names = coming(home)
    return bool(names) and not running(home) and patience.more(f"node {', '.join(names)} is starting")


@asynccontextmanager
async def connected(chosen: Settings, *, reachable: bool = False) -> AsyncIterator[Client]:
    """As `nearfar.connect`, but a node of this home folder that is just starting, or that began to while others were
    looked for in vain, is waited for."""
    from nearfar.client.connect import connect
    from nearfar.node.identity import coming, running

    patience, home = Patience(), chosen.home
    for last in (False, True):
        while node_is_coming(home, patience):  # noqa: ASYNC110 - another process tells by a file
            await asyncio.sleep(LOOK_EVERY)
        async with connect(chosen, reachable=reachable) as client:
            found = any(node.alive for node in client.snapshot().nodes.values())
            if found or last or not (coming(home) or running(home)):
                yield client
                return


async def until_service(client: Client, model: str, qos: Qos) -> None:
    """Return once a service may take the request, or none of those that could is starting any more."""
    from nearfar.types.ids import ModelName, ServiceId, node_of
    from nearfar.types.request import Privacy, Request

    only = qos.node or (client.me if qos.privacy is Privacy.LOCAL else None)
    patience = Patience()
    told_by = time.monotonic() + REPORTED
    while True:
        decision = client.decide(Request(ModelName(model), client.me, qos=qos))
        if decision.chosen is not None:
            return
        services = patience.awaited((refusal.subject, refusal.code) for refusal in decision.refusals)
        # A node that was heard of just now may not have told yet, or not to us, what starts on it.
        silent = [
            node
            for node, view in client.snapshot().nodes.items()
            if view.alive and (view.report is None or (model in view.report.models and time.monotonic() < told_by))
        ]
        starting = [node for node in map(node_of, map(ServiceId, services)) if only in (None, node)]
        if not starting and not any(only in (None, node) for node in silent):
            return
        if not patience.more(f"{model} is starting on {', '.join(starting)}" if starting else ""):
            return
        await asyncio.sleep(LOOK_EVERY)


def talkers(services: Sequence[dict[str, Any]], model: str, route: str) -> list[dict[str, Any]]:
    """Of the services of a fleet (`GET /v1/fleet`) those that may answer a prompt for this model, or for "auto" by this
    route (auto, near, far). The engine of one that is only starting is not known at once: "" may be any.

    >>> rows = [{"service": "pi/a", "model": "a", "runtime": "remote"}]
    >>> [len(talkers(rows, model, route)) for model, route in (("auto", "far"), ("auto", "near"), ("a", "auto"))]
    [1, 0, 1]
    """
    from nearfar.placement.filters import FAR_RUNTIMES

    def may_answer(row: dict[str, Any]) -> bool:
        if model != "auto":
            return bool(row["model"] == model)
        engine = row["runtime"]
        far = engine in FAR_RUNTIMES
        return not engine or (engine not in _TENSORS and (route == "auto" or far == (route == "far")))

    return [row for row in services if may_answer(row)]


def until_talker(look: Callable[[], list[dict[str, Any]]], patience: Patience) -> bool:
    """Wait until one of the services that are starting has started, or ended; false when none is, or patience ended."""

    def starting() -> set[str]:
        return set(patience.awaited((row["service"], row["health"]) for row in look()))

    names = starting()
    told = ", ".join(f"{name.partition('/')[2]} is starting on {name.partition('/')[0]}" for name in sorted(names))
    if not names or not patience.more(told):
        return False
    while names <= starting():
        if not patience.more(told):
            return False
        time.sleep(2 * LOOK_EVERY)
    return True
