"""One agent on a mesh in memory, a participant that hears it, and processes that are none, for tests of the agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from nearfar.mesh.memory import Ether, MemoryMesh
from nearfar.node import agent as agent_module
from nearfar.node import keys
from nearfar.node.agent import Agent, Usage, unknown_device
from nearfar.node.plan import Phase
from nearfar.node.spec import Milestone, ServiceSpec, Word
from nearfar.types.ids import ModelName, NodeId
from nearfar.types.telemetry import NodeReport, ServiceReport
from nearfar.types.units import Bytes, Ratio
from tests.node.calls import spec

ME = NodeId("pi")
YARD = ModelName("yard")


class FakeChild:
    """A process that a test holds: `ready`, `end`; it obeys when it is told to stop."""

    made: list[FakeChild] = []  # noqa: RUF012 - emptied by the fixture
    hold_start: asyncio.Event | None = None

    def __init__(self, given: ServiceSpec) -> None:
        self.spec = given
        self.word: Word | None = None
        self.ended: str | None = None
        self.stopped = False
        self.killed: list[str] = []
        self.resident = Bytes(0)
        self.silent = 0.0
        self._over = asyncio.Event()
        self.made.append(self)

    @classmethod
    async def start(cls, given: ServiceSpec) -> FakeChild:
        child = cls(given)
        if cls.hold_start is not None:
            await cls.hold_start.wait()
        return child

    async def listen(self) -> None:
        await self._over.wait()

    def ready(self) -> None:
        self.word = Word(Milestone.READY)

    def end(self, reason: str) -> None:
        self.ended = self.ended or reason
        self._over.set()

    def stop(self) -> None:
        self.stopped = True
        self.end("ended as asked")

    def kill(self, reason: str) -> None:
        if self.ended is None:
            self.killed.append(reason)
            self.end(f"stopped because {reason}")

    def memory(self) -> Bytes:
        return self.resident


@pytest.fixture(autouse=True)
def children(monkeypatch: pytest.MonkeyPatch) -> list[FakeChild]:
    monkeypatch.setattr(agent_module, "Child", FakeChild)
    monkeypatch.setattr(FakeChild, "made", [])
    return FakeChild.made


class World:
    """One agent, and a participant that hears it."""

    def __init__(self, ether: Ether, **options: Any) -> None:
        self.ether = ether
        self.mesh, self.other = MemoryMesh(ether), MemoryMesh(ether)
        self.models: Sequence[ModelName] | Exception = (YARD,)
        self.failure: Exception | None = None
        self.agent = Agent(ME, self.mesh, unknown_device(), usage, self._prepare, self._stored, **options)
        self.nodes: list[NodeReport] = []
        self.services: list[ServiceReport] = []
        nodes, services = msgspec.msgpack.Decoder(NodeReport), msgspec.msgpack.Decoder(ServiceReport)
        self.other.subscribe(keys.NODE_REPORTS, lambda _, data: self.nodes.append(nodes.decode(data)))
        self.other.subscribe(keys.SERVICE_REPORTS, lambda _, data: self.services.append(services.decode(data)))
        self.running: asyncio.Task[None] | None = None

    def _prepare(self, model: ModelName) -> ServiceSpec:
        if self.failure is not None:
            raise self.failure
        return spec(node=ME, model=model)

    def _stored(self) -> Sequence[ModelName]:
        if isinstance(self.models, Exception):
            raise self.models
        return self.models

    async def start(self, *desired: ModelName) -> None:
        await self.agent.start()
        self.agent.desire(desired)
        self.running = asyncio.create_task(self.agent.run())

    def phase(self, model: ModelName = YARD) -> Phase | None:
        status = self.agent.status.get(model)
        return status.phase if status else None

    async def close(self) -> None:
        if self.running is not None:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)
        await self.agent.close()
        await self.mesh.close()
        await self.other.close()


def usage() -> Usage:
    return Usage(Ratio(0.1), Bytes(1 << 30), None, "no sensor")


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    ether = Ether()
    made = World(ether, **options)
    try:
        async with asyncio.timeout(60):
            yield made
            await made.close()
    finally:
        ether.close()
