"""A client over a mesh inside this process, and services that do what a test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import numpy as np

from nearfar.client.client import Client
from nearfar.errors import NearfarError
from nearfar.mesh.base import Call, Handle
from nearfar.mesh.memory import Ether, MemoryMesh
from nearfar.node import keys
from nearfar.node.worker import Description, refuse
from nearfar.types.ids import ModelName, NodeId, ServiceId, node_of
from nearfar.types.request import Stages
from nearfar.types.telemetry import ServiceState
from nearfar.types.tensor import DType, Tensor, TensorSpec
from nearfar.types.wire import Operation, ReplyHead, body_of, decode_call, encode, heads_of
from tests.fleet.build import node_report, service_report
from tests.waiting import until

MODEL = ModelName("yard")
X = Tensor.of("x", np.arange(4, dtype=np.float32).reshape(1, 4))
SPEC = TensorSpec("x", DType.FLOAT32, (1, 4))
Script = Callable[["Service", Call], None]


def answers(service: Service, call: Call) -> None:
    """Answer as a service does: INFER with one tensor, DESCRIBE with what the model is."""
    if decode_call(call.head).operation is Operation.DESCRIBE:
        told = Description(f"of {service.instance}", "v", "fake", (SPEC,), (SPEC,))
        call.reply(encode(ReplyHead("v", Stages())), [msgspec.json.encode(told)])
        return
    head = ReplyHead("v", Stages(0.0, 0.0, 0.1, 1.0, 0.1), heads_of([X]))
    call.reply(encode(head), body_of([X]))


def fails(error: NearfarError) -> Script:
    """Answer every call with this failure."""
    return lambda service, call: refuse(call, error, "v", 0)


def says(head: bytes, body: bytes = b"") -> Script:
    """Answer every call with these bytes."""
    return lambda service, call: call.reply(head, [body])


def silent(service: Service, call: Call) -> None:
    """Take every call and never answer."""


class Service:
    """One service on a node of its own; it reports twenty times a second."""

    def __init__(self, ether: Ether, node: str, script: Script, service_ms: float) -> None:
        self.id = ServiceId(f"{node}/{MODEL}")
        self.script = script
        self.instance = "first"
        self.calls: list[Call] = []
        self.mesh = MemoryMesh(ether)
        self.service_ms = service_ms
        self.state = ServiceState.READY
        self.mute = False
        """It reports nothing any more."""
        self._handles: list[Handle] = []
        self._reporting = asyncio.create_task(self._report())
        self.appear()

    def appear(self) -> None:
        self._handles = [
            self.mesh.announce(keys.node_key(node_of(self.id), self.instance)),
            self.mesh.serve(keys.service_key(self.id), self._on_call),
        ]

    def vanish(self) -> None:
        """As a process that dies: every token is gone."""
        for handle in self._handles:
            handle.close()

    def _on_call(self, call: Call) -> None:
        self.calls.append(call)
        self.script(self, call)

    async def _report(self) -> None:
        encoder = msgspec.msgpack.Encoder()
        while True:
            await asyncio.sleep(0.05)
            if self.mute:
                continue
            node = node_of(self.id)
            self.mesh.publish(keys.node_report_key(NodeId(node)), encoder.encode(node_report(node, models=(MODEL,))))
            told = service_report(self.id, instance=self.instance, service_ms=self.service_ms, state=self.state)
            self.mesh.publish(keys.service_report_key(self.id), encoder.encode(told))

    async def close(self) -> None:
        self._reporting.cancel()
        await asyncio.gather(self._reporting, return_exceptions=True)
        await self.mesh.close()


class World:
    """A client and its services. The one that was added first looks fastest, so it is asked first."""

    def __init__(self) -> None:
        self.ether = Ether()
        self.client = Client(MemoryMesh(self.ether), "client")
        self.services: list[Service] = []

    async def add(self, *scripts: Script) -> list[Service]:
        """Services on nodes a, b, ..., each ten times as slow as the one before, as the client knows."""
        for script in scripts:
            at = len(self.services)
            self.services.append(Service(self.ether, "abcdef"[at], script, 2.0 * 10**at))
        await until(lambda: all(self.healthy(service) for service in self.services), "every service is healthy")
        return self.services

    def healthy(self, service: Service) -> bool:
        view = self.client.snapshot().services.get(service.id)
        return view is not None and view.alive and time.monotonic() - view.heard < 1


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    made = World()
    try:
        async with asyncio.timeout(60):
            yield made
    finally:
        await made.client.close()
        await made.client.mesh.close()
        for service in made.services:
            await service.close()
        made.ether.close()


def run(body: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with world() as made:
            await body(made)

    asyncio.run(main())
