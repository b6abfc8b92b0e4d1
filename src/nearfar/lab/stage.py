"""One run of one policy: its gateways, what they say, and what happens meanwhile at its moment."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from nearfar.errors import MeshError, NearfarError
from nearfar.lab.gateway import LAST_WORDS, REPORTED, Ended, GatewaySpec, Go, Said, StreamSpec, sleep_until
from nearfar.lab.plan import Down, Happening, Up
from nearfar.lab.process import Process
from nearfar.simulate.world import MODEL

if TYPE_CHECKING:
    from nearfar.lab.play import Lab

READY_LIMIT = 90.0
"""Seconds in which all nodes must serve, or be seen again."""
HEAD_START = 0.3
"""Seconds between the word and the beginning, so that every gateway has heard it."""
OVERTIME = 20.0
AFTER_DOWN = 0.1
EARLY = 60.0
"""Seconds for which a node that is started anew is held at most: its agent gives up on a service after two minutes."""
Progress = Callable[[float, float], None]
"""(seconds played, seconds in all)."""


class Stage:
    """One run of one policy: its gateways, and what they say."""

    def __init__(self, lab: Lab, policy: str, options: dict[str, float]) -> None:
        self._lab = lab
        self._policy = policy
        self._options = options
        self._gateways: dict[str, Process] = {}
        self._seen: dict[str, set[str]] = {}
        self._done: set[str] = set()
        self._failed: NearfarError | None = None
        self._changed = asyncio.Event()
        self._back: list[tuple[str, float]] = []
        self.begun = 0.0
        """Moment of the monotonic clock; 0 before."""
        self.ended: list[Ended] = []
        self.figures: dict[str, float] = {}

    async def play(self, progress: Progress | None) -> None:
        plan, lab = self._lab.plan, self._lab
        for gateway in plan.gateways:
            streams = tuple(
                StreamSpec(stream.id, stream.size, stream.deadline * 1000)
                for stream in plan.streams
                if stream.gateway is gateway
            )
            spec = GatewaySpec(
                gateway.name, MODEL, lab.mesh_of(gateway.name), self._policy, self._options, streams,
                tuple(plan.births(gateway.name)),
            )  # fmt: skip
            self._seen[gateway.name] = set()
            self._gateways[gateway.name] = await lab.join(spec, partial(self._hear, gateway.name))
        wanted = {str(node.name) for node in plan.nodes} - set(plan.away_at_first())
        await self._until(lambda: all(wanted <= seen for seen in self._seen.values()), READY_LIMIT, "seen every node")
        self.begun = time.monotonic() + HEAD_START
        await lab.network.begin(self.begun)
        for process in self._gateways.values():
            await process.tell(msgspec.json.encode(Go(self.begun)))
        conducting = asyncio.create_task(self._conduct())
        showing = asyncio.create_task(self._show(progress))
        patience = plan.scenario.seconds + max(s.deadline for s in plan.streams) + LAST_WORDS + REPORTED + OVERTIME
        try:
            await self._until(lambda: len(self._done) == len(self._gateways), patience, "come to the end", conducting)
        finally:
            for task in (conducting, showing):
                task.cancel()
            await asyncio.gather(conducting, showing, return_exceptions=True)
        for node, due in self._back:
            since = lab.seen_since(node)
            late = round((since or time.monotonic()) - due, 2)
            if due < self.begun + plan.scenario.seconds:
                self.figures["back_late_s"] = max(late, self.figures.get("back_late_s", 0.0), key=abs)

    def _hear(self, gateway: str, said: Said) -> None:
        if said.node:
            (self._seen[gateway].add if said.alive else self._seen[gateway].discard)(said.node)
        if said.error:
            self._failed = MeshError(f"Gateway {gateway} of the lab failed: {said.error}")
        self.ended += said.ended
        for work in said.work:
            known = self._lab.work.get((work.service, work.instance))
            if known is None or work.answered >= known.answered:
                self._lab.work[work.service, work.instance] = work
        if said.done:
            self._done.add(gateway)
            for name in ("woken_late_ms", "sent_late_ms"):
                self.figures[name] = max(getattr(said, name), self.figures.get(name, 0.0))
        self._changed.set()

    async def _until(
        self, condition: Callable[[], bool], limit: float, what: str, beside: asyncio.Task[None] | None = None
    ) -> None:
        """Until the condition holds. Raises what failed meanwhile, here or `beside`."""
        end = time.monotonic() + limit
        while not condition():
            if self._failed is not None:
                raise self._failed
            if beside is not None and beside.done():
                beside.result()
            for process in self._gateways.values():
                process.must_run()
            self._lab.must_hear()
            if time.monotonic() > end:
                raise MeshError(f"The gateways of the lab have not {what} after {limit:.0f} s.", "Is the machine busy?")
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.25):
                    await self._changed.wait()

    async def _conduct(self) -> None:
        """Each happening at its moment. One that takes long holds up no other."""
        lab = self._lab
        async with asyncio.TaskGroup() as group:
            for at, change in schedule(lab.plan.happenings, lab.scenario.seconds):
                await sleep_until(self.begun + at)
                if isinstance(change, Up):
                    self._back.append((change.node, self.begun + change.at))
                if isinstance(change, Up) and change.how != "cut":
                    group.create_task(lab.bring_back(change.node, self.begun + change.at))
                else:
                    group.create_task(lab.happen(change))

    async def _show(self, progress: Progress | None) -> None:
        while progress is not None:
            seconds = self._lab.scenario.seconds
            progress(min(max(0.0, time.monotonic() - self.begun), seconds), seconds)
            await asyncio.sleep(0.25)

    async def close(self) -> None:
        await asyncio.gather(*(process.close() for process in self._gateways.values()))


def schedule(happenings: Sequence[Happening], seconds: float) -> list[tuple[float, Happening]]:
    """(when to begin with it, what) in order, of what happens within so many seconds.

    A node that comes back is started early, but after it has gone.
    """
    gone: dict[str, float] = {}
    due: list[tuple[float, Happening]] = []
    for change in happenings:
        if isinstance(change, Down):
            gone[change.node] = change.at
            if change.at <= 0:
                continue  # it is not there from the start
        begin = change.at
        if isinstance(change, Up) and change.how != "cut":
            begin = max(gone[change.node] + AFTER_DOWN, change.at - EARLY)
        if begin <= seconds:
            due.append((begin, change))
    return sorted(due, key=lambda entry: entry[0])
