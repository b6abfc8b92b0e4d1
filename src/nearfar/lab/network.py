"""How the hosts of a lab reach each other: each in a network of its own (`TapNetwork`), or all on loopback.

A `TapNetwork` needs root, `ip` (iproute2) and the TUN device; it delays, loses, cuts and reroutes real packets of real
sockets. On loopback the nodes and gateways delay their messages themselves (`mesh/impaired.py`) and nothing is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from nearfar.errors import InputError, MeshError
from nearfar.lab.fabric import hardware_address
from nearfar.lab.plan import Reroute
from nearfar.lab.switch import DEVICE, NAMESPACES, TUN, Figures, Order, SwitchSpec
from nearfar.mesh.impaired import Impairment
from nearfar.simulate.links import Link
from nearfar.simulate.scenario import LinkSpec

MESH_PORT = 7447
MTU = 65000
"""Large, so that a frame of a camera is one packet or two, and a share of packets lost is one of messages lost."""
READY_LIMIT = 30.0
Ways = Mapping[tuple[str, str], tuple[str, ...]]
"""Names of links between two hosts; each pair stands once and holds both ways."""


class Network(Protocol):
    """What a lab asks of its network. Hosts are named as nodes and gateways are."""

    kind: str

    def endpoint(self, host: str) -> str:
        """Where the host's mesh listens."""
        ...

    def inside(self, host: str) -> tuple[str, ...]:
        """Words before a command that is to run on the host."""
        ...

    def impairment(self, host: str) -> Impairment:
        """What the host itself must do to its messages."""
        ...

    async def start(self) -> None: ...

    async def begin(self, moment: float) -> None:
        """The scenario begins at this moment of the monotonic clock; all ways are as at first, nobody is cut off."""
        ...

    async def cut(self, host: str, cut: bool) -> None: ...

    async def reroute(self, change: Reroute) -> None: ...

    async def figures(self) -> Figures | None:
        """What the network did so far; None where nobody counts."""
        ...

    async def close(self) -> None: ...


def unavailable() -> str:
    """Why there can be no `TapNetwork` here; empty when there can."""
    if sys.platform != "linux":
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root"
    if shutil.which("ip") is None:
        return "it needs the command ip (package iproute2)"
    if not Path(TUN).exists():
        return f"it needs {TUN}"
    try:
        os.close(os.open(TUN, os.O_RDWR))
    except OSError as error:
        return f"{TUN} cannot be opened: {error.strerror}"
    return ""


def choose(wanted: str) -> tuple[str, str]:
    """(tap or mesh, why) for `auto`, `tap` or `mesh`. Raises `InputError` for a tap that cannot be."""
    if wanted == "mesh":
        return "mesh", "as asked"
    missing = unavailable()
    if not missing:
        return "tap", "each node and gateway has a network of its own"
    if wanted == "tap":
        raise InputError(f"There can be no emulated network: {missing}.", "Type --network mesh for delays without one.")
    return "mesh", f"no emulated network, as {missing}"


class TapNetwork:
    """A namespace for each host, and a switch process between them."""

    kind = "tap"

    def __init__(self, mark: str, hosts: Sequence[str], links: Mapping[str, LinkSpec], ways: Ways, seed: int) -> None:
        self._hosts = list(hosts)
        self._namespaces = [f"{mark}-{port}" for port in range(len(hosts))]
        self._links = dict(links)
        self._ways = tuple((self._port(one), self._port(other), links) for (one, other), links in ways.items())
        self._seed = seed
        self._switch: asyncio.subprocess.Process | None = None

    def _port(self, host: str) -> int:
        return self._hosts.index(host)

    def _address(self, port: int) -> str:
        return f"10.78.0.{port + 1}"

    def endpoint(self, host: str) -> str:
        return f"tcp/{self._address(self._port(host))}:{MESH_PORT}"

    def inside(self, host: str) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self._namespaces[self._port(host)])

    def impairment(self, host: str) -> Impairment:
        return Impairment()

    async def start(self) -> None:
        """Raises `MeshError` when the kernel refuses something."""
        for namespace in self._namespaces:
            await _ip("netns", "add", namespace)
        self._switch = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nearfar.lab.switch"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        await self._tell(SwitchSpec(tuple(self._namespaces), self._links, self._ways, self._seed))
        await self._hear()
        for port, namespace in enumerate(self._namespaces):
            words = [
                "link set lo up",
                f"link set {DEVICE} address {hardware_address(port)} mtu {MTU} up",
                f"addr add {self._address(port)}/24 dev {DEVICE}",
                # Known for good: hosts that are far apart do not notice a cut by asking for addresses.
                *(
                    f"neigh replace {self._address(other)} lladdr {hardware_address(other)} dev {DEVICE} nud permanent"
                    for other in range(len(self._hosts))
                    if other != port
                ),
                f"route add 224.0.0.0/4 dev {DEVICE}",
            ]
            await _ip("-n", namespace, "-batch", "-", lines=words)

    async def begin(self, moment: float) -> None:
        await self._tell(Order(begun=moment, ways=self._ways))
        for port in range(len(self._hosts)):
            await self._tell(Order(heal=port))

    async def cut(self, host: str, cut: bool) -> None:
        port = self._port(host)
        await self._tell(Order(cut=port) if cut else Order(heal=port))

    async def reroute(self, change: Reroute) -> None:
        await self._tell(Order(ways=((self._port(change.gateway), self._port(change.node), change.links),)))

    async def figures(self) -> Figures | None:
        await self._tell(Order(tell=True))
        return await self._hear()

    async def _tell(self, order: SwitchSpec | Order) -> None:
        assert self._switch is not None and self._switch.stdin is not None
        try:
            self._switch.stdin.write(msgspec.json.encode(order) + b"\n")
            await self._switch.stdin.drain()
        except (BrokenPipeError, ConnectionResetError, RuntimeError):  # the last one is uvloop's
            raise _switch_ended() from None

    async def _hear(self) -> Figures:
        assert self._switch is not None and self._switch.stdout is not None
        async with asyncio.timeout(READY_LIMIT):
            line = await self._switch.stdout.readline()
        if not line:
            raise _switch_ended()
        return msgspec.json.decode(line, type=Figures)

    async def close(self) -> None:
        if self._switch is not None:
            assert self._switch.stdin is not None
            self._switch.stdin.close()
            try:
                async with asyncio.timeout(5):
                    await self._switch.wait()
            except TimeoutError:
                self._switch.kill()
                await self._switch.wait()
        for namespace in self._namespaces:
            if (Path(NAMESPACES) / namespace).exists():
                with contextlib.suppress(MeshError):  # the keeper tries again
                    await _ip("netns", "delete", namespace)


def _switch_ended() -> MeshError:
    return MeshError("The switch of the lab ended.", "Type --network mesh to do without one.")


async def _ip(*words: str, lines: Sequence[str] = ()) -> None:
    """Run `ip`. Raises `MeshError` with what it said."""
    run = partial(subprocess.run, input="\n".join(lines), text=True, capture_output=True, check=False)
    done = await asyncio.to_thread(run, ("ip", *words), start_new_session=True)
    if done.returncode:
        raise MeshError(
            f"ip {' '.join(words)} failed: {done.stderr.strip()}", "Type --network mesh to do without namespaces."
        )


class LoopbackNetwork:
    """All hosts on this machine's loopback; what a link does is done by who sends, as a normal law of its figures."""

    kind = "mesh"

    def __init__(self, hosts: Sequence[str], links: Mapping[str, Link], ways: Ways) -> None:
        self._ports = dict(zip(hosts, _free_ports(len(hosts)), strict=True))
        self._impairments = {node: _like(links[way[0]]) for (_, node), way in ways.items()}

    def endpoint(self, host: str) -> str:
        return f"tcp/127.0.0.1:{self._ports[host]}"

    def inside(self, host: str) -> tuple[str, ...]:
        return ()

    def impairment(self, host: str) -> Impairment:
        return self._impairments.get(host, Impairment())

    async def start(self) -> None:
        """Nothing is to be done."""

    async def begin(self, moment: float) -> None:
        """Nothing has changed since the start."""

    async def cut(self, host: str, cut: bool) -> None:
        raise MeshError("Nothing can be cut off on loopback.", "Type --network tap.")

    async def reroute(self, change: Reroute) -> None:
        raise MeshError("Nothing can be led another way on loopback.", "Type --network tap.")

    async def figures(self) -> Figures | None:
        return None

    async def close(self) -> None:
        """Nothing is held."""


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has at this moment; held together, so that they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _like(link: Link) -> Impairment:
    """One way of a link as a normal law: mean and standard deviation of half its round trip, without its losses."""
    steps = 400
    clean = [link.rtt(0.0, link.loss + (1 - link.loss) * (i + 0.5) / steps) / 2 for i in range(steps)]
    return Impairment(statistics.fmean(clean), statistics.pstdev(clean), link.bandwidth(0.0), link.loss)
