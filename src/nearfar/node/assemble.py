"""A node from its settings: mesh, store, inventory and agent put together."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

import msgspec

from nearfar.devices.usage import UsageSampler
from nearfar.errors import RuntimeUnavailable, SettingsError
from nearfar.mesh.base import Mesh
from nearfar.mesh.impaired import ImpairedMesh, Impairment
from nearfar.mesh.zenoh_options import TlsFiles, ZenohOptions, loopback
from nearfar.models.choose import Choice, choose
from nearfar.models.manifest import LANGUAGE
from nearfar.models.manifest_toml import to_toml
from nearfar.models.store import Store
from nearfar.node.agent import GHOST, Agent, Usage
from nearfar.node.inventory import Inventory
from nearfar.node.spec import ServiceSpec
from nearfar.node.textspec import text_spec
from nearfar.settings import Settings
from nearfar.types.ids import ModelName, NodeId, VariantId
from nearfar.types.telemetry import REVISION
from nearfar.types.units import Bytes, Seconds


def mesh_options(settings: Settings) -> ZenohOptions:
    """Raises `SettingsError` for an endpoint beyond this machine that is neither encrypted nor allowed to be open."""
    mesh = settings.mesh
    for endpoint in mesh.listen:
        if not loopback(endpoint) and not endpoint.startswith("tls/") and not mesh.insecure:
            raise SettingsError(
                f"The mesh would listen on {endpoint}, open to the network, without keys.",
                "Use tls/ with [mesh] tls_ca, tls_cert and tls_key, or --insecure on a network you trust.",
            )
    return ZenohOptions(mesh.fleet, mesh.listen, mesh.join, mesh.discover, mesh.lease_ms, tls_files(settings))


def tls_files(settings: Settings) -> TlsFiles | None:
    mesh = settings.mesh
    files = (mesh.tls_ca, mesh.tls_cert, mesh.tls_key)
    if not any(files):
        return None
    if not all(files):
        raise SettingsError("Only some of [mesh] tls_ca, tls_cert and tls_key are set.", "Set all three.")
    return TlsFiles(*files)


def impairment(settings: Settings) -> Impairment:
    e = settings.emulate
    return Impairment(e.delay_ms, e.jitter_ms, float(e.bandwidth), e.loss)


LEAST_SILENCE = 5.0
"""Seconds; a service says a word every second, also on a busy machine."""


def silence_limit(stuck_after: float) -> Seconds:
    """Seconds without a word after which a service hangs: as long as an inference may take, at least five; 0: never.

    >>> silence_limit(0), silence_limit(0.7), silence_limit(60)
    (0.0, 5.0, 60)
    """
    return Seconds(max(stuck_after, LEAST_SILENCE) if stuck_after else 0.0)


class NodeParts(msgspec.Struct):
    """What `up` holds. `mesh` is what the agent and the gateway of this node use."""

    node: NodeId
    mesh: Mesh
    endpoints: tuple[str, ...]
    agent: Agent
    store: Store
    inventory: Inventory


class Assembler:
    """Chooses and specifies the services of one node."""

    def __init__(self, settings: Settings, node: NodeId, inventory: Inventory, endpoints: Sequence[str]) -> None:
        self._settings = settings
        self._node = node
        self._inventory = inventory
        self.store = Store(settings.home / "models")
        reachable = tuple(endpoint.replace("/0.0.0.0:", "/127.0.0.1:") for endpoint in endpoints)
        listen = tuple(_any_port(endpoint) for endpoint in settings.mesh.listen)
        self._mesh = msgspec.structs.replace(
            mesh_options(settings), listen=listen, join=(*reachable, *settings.mesh.join), discover=False
        )

    def prepare(self, model: ModelName) -> ServiceSpec:
        """Raises `UnknownModel`, `ModelFileError`, or `RuntimeUnavailable` with the reason of every variant."""
        stored = self.store.get(model)
        choice = choose(stored.manifest, self._inventory.offers)
        if not isinstance(choice, Choice):
            told = "; ".join(f"{refused.variant}: {refused.reason}" for refused in choice)
            raise RuntimeUnavailable(
                f"No variant of {model} runs here: {told}.", "Install a runtime, or add another variant."
            )
        node = self._settings.node
        return ServiceSpec(
            node=self._node,
            model=model,
            variant=VariantId(choice.variant.id),
            instance=uuid.uuid4().hex[:12],
            file=str(stored.open(choice.variant.id)),
            manifest=to_toml(stored.manifest),
            runtime=choice.runtime,
            unit=choice.unit.name,
            reason=choice.reason,
            mesh=self._mesh,
            threads=node.threads,
            queue_limit=node.queue_limit,
            slowdown=self._settings.emulate.compute,
            stuck_after=node.stuck_after_ms / 1000,
            impairment=impairment(self._settings),
            cost=node.cost,
            self_test_every=node.self_test_every_ms / 1000,
            known_answer=stored.answer(choice.variant.id),
            text=text_spec(self._settings, model) if stored.manifest.task in LANGUAGE else None,
            revision=choice.variant.sha256[:REVISION],
        )

    def stored(self) -> list[ModelName]:
        return [ModelName(manifest.name) for manifest in self.store.list()]


def _any_port(endpoint: str) -> str:
    """The same address with a free port: an agent's port is taken by the agent, and so is its socket."""
    if endpoint.startswith("unixsock"):
        return "tcp/127.0.0.1:0"
    return f"{endpoint.rpartition(':')[0]}:0" if ":" in endpoint else endpoint


async def assemble(settings: Settings, node: NodeId, inventory: Inventory, gateway: str | None = None) -> NodeParts:
    """Open the mesh and make the agent; nothing is announced yet. Raises `MeshError`, `PortBusy`, `SettingsError`."""
    from nearfar.mesh.zenoh import ZenohMesh

    options = mesh_options(settings)
    zenoh = await asyncio.get_running_loop().run_in_executor(None, ZenohMesh, options)
    link = impairment(settings)
    mesh: Mesh = ImpairedMesh(zenoh, link) if link else zenoh
    assembler = Assembler(settings, node, inventory, zenoh.endpoints)
    sampler = UsageSampler()

    def usage() -> Usage:
        sample = sampler.sample()
        told = (sample.temperature, sample.temperature_reason, sample.throttled, sample.throttled_reason)
        return Usage(sample.cpu, sample.memory_free, *told)

    host = inventory.device.readings.get("host")
    agent = Agent(
        node,
        mesh,
        inventory.device,
        usage,
        assembler.prepare,
        assembler.stored,
        host=str(host) if host is not None and host.value is not None else "",
        gateway=gateway,
        memory_limit=Bytes(settings.node.memory_limit),
        ghost=Seconds(max(GHOST, 2 * settings.mesh.lease_ms / 1000)),
        silence_limit=silence_limit(settings.node.stuck_after_ms / 1000),
    )
    return NodeParts(node, mesh, zenoh.endpoints, agent, assembler.store, inventory)
