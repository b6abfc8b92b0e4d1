"""`nearfar up`: run a node: its agent, its services and its gateway."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.common import Config, Fleet, Home, Join, console, fleet_flags, in_loop, settings, stop_once

if TYPE_CHECKING:
    from nearfar.models.store import Store
    from nearfar.node.identity import Claim
    from nearfar.settings import Settings
    from nearfar.types.ids import NodeId


def up(
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Model to serve: a name in the store, or a file.")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", "-p", help="Port of the gateway; 0 takes a free one.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address of the gateway.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of this node in the fleet.")] = None,
    join: Join = None,
    listen: Annotated[list[str] | None, typer.Option("--listen", help="Mesh endpoint to listen at.")] = None,
    lan: Annotated[
        bool, typer.Option("--lan", help="Open the mesh to the local network, where nodes then find each other.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a mesh endpoint beyond this machine without TLS.")
    ] = False,
    discover: Annotated[
        bool | None, typer.Option("--discover/--no-discover", help="Find other nodes by multicast.")
    ] = None,
    fleet: Fleet = None,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads of each engine.")] = None,
    memory_limit: Annotated[
        str | None, typer.Option("--memory-limit", help="Most memory of one service, such as 500MiB.")
    ] = None,
    slowdown: Annotated[
        float | None, typer.Option("--emulate-slowdown", help="Make inference so many times slower (for tests).")
    ] = None,
    delay: Annotated[
        str | None, typer.Option("--emulate-delay", help="Delay each message of this node, such as 20ms (for tests).")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print how the node is reached as JSON on one line, once it is.")
    ] = False,
    home: Home = None,
    config: Config = None,
) -> None:
    """Run a node: its agent, its services, and the gateway at http://127.0.0.1:8080."""
    flags: dict[str, Any] = fleet_flags(home, fleet, join, config) | {
        "node.id": name,
        "node.threads": threads,
        "node.memory_limit": memory_limit,
        "mesh.listen": tuple(listen) if listen else None,
        "mesh.discover": discover,
        "mesh.insecure": True if insecure else None,
        "gateway.port": port,
        "gateway.host": host,
        "emulate.compute": slowdown,
        "emulate.delay_ms": delay,
    }
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("nearfar").setLevel(logging.INFO)
    if lan and not listen:
        flags |= lan_flags(settings(flags))
    with contextlib.suppress(KeyboardInterrupt):  # the usual way to stop a node is not a failure
        in_loop(run_node(settings(flags), model or [], as_json=json))


LAN_PORT = 7447


def lan_flags(chosen: Settings) -> dict[str, Any]:
    """Listen on every interface: with TLS when the settings have certificates, else openly, as --lan asks for."""
    import socket

    scheme = "tls" if chosen.mesh.tls_cert else "tcp"
    port = LAN_PORT
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 - what --lan asks for
        except OSError:
            port = 0  # the usual port is taken, perhaps by another node of this machine
    return {"mesh.listen": (f"{scheme}/0.0.0.0:{port}",), "mesh.insecure": True}


def model_names(store: Store, wanted: list[str]) -> list[str]:
    """Names in the store for what was asked: a name, or a file that is added first.

    Raises `UnknownModel` with the nearest name, or what adding the file raises.
    """
    names = []
    for text in wanted:
        path = Path(text)
        if path.suffix in (".onnx", ".tflite", ".xml", ".toml", ".gguf") or "/" in text:
            from nearfar.cli.models import add_model

            names.append(add_model(store, path).name)
        else:
            names.append(store.get(text).manifest.name)
    return names


async def run_node(settings: Settings, wanted: list[str], *, as_json: bool = False) -> None:
    """Until cancelled. Its name is taken at once: a command that is typed next sees by it that a node is starting."""
    import asyncio
    import signal

    from nearfar.node.identity import Claim, node_id

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop_once(task))
    node = node_id(settings.home, settings.node.id)
    claim = Claim(settings.home, node)
    try:
        await _run_as(node, claim, settings, wanted, as_json=as_json)
    except asyncio.CancelledError:
        console(error=True).print("[dim]stopped[/]")
    finally:
        claim.close()


async def _run_as(node: NodeId, claim: Claim, settings: Settings, wanted: list[str], *, as_json: bool) -> None:
    """The gateway's port is taken first: a port that is busy must not start anything else."""
    import gc

    import msgspec

    from nearfar.client.client import Client
    from nearfar.client.policy import placement_policy
    from nearfar.gateway.named import NamedStreams
    from nearfar.gateway.server import Address, Gateway
    from nearfar.gateway.state import Limits, State
    from nearfar.language.director import Director
    from nearfar.language.farwatch import FarWatch
    from nearfar.language.keeping import Keeping
    from nearfar.language.privacy.policy import Keyring
    from nearfar.language.talker import Talker
    from nearfar.models.store import Store
    from nearfar.node.assemble import assemble
    from nearfar.node.identity import Running, asked_later
    from nearfar.node.inventory import take_isolated
    from nearfar.node.plan import Wanted

    policy = placement_policy(settings)
    store = Store(settings.home / "models")
    names = model_names(store, wanted or list(settings.node.models))
    later = asked_later(settings.home, node)
    later.unlink(missing_ok=True)  # what the run before was asked for
    watch = FarWatch(store, node, names, later)
    gate = settings.gateway
    keys = read_keys(gate.api_key_file)
    address = Address(gate.host, gate.port, gate.tls_cert, gate.tls_key)
    keyring = Keyring(settings, keys)
    address.check(keyed=bool(keyring))
    inventory = await take_isolated()
    limits = Limits(gate.max_body, gate.max_in_flight, gate.default_deadline_ms)
    parts = await assemble(settings, node, inventory)
    client = Client(parts.mesh, node, policy, settings.placement.hedge_share)
    streams = NamedStreams(client, settings.home, settings.streams.keep)
    keeping = Keeping(settings.routing, settings.home)
    talker = Talker(client, Director(client, settings.routing, settings.cache, keeping=keeping))
    state = State(client, limits, keys, streams, talker, keyring)
    gateway = Gateway(state, address, keyed=bool(keyring))
    try:
        await gateway.start()
        parts.agent.gateway = gateway.url
        await parts.agent.start()
        reached = Running(node, os_pid(), settings.mesh.fleet, parts.endpoints, gateway.url)
        claim.tell(reached)
        chosen = watch.look() or Wanted()
        parts.agent.desire(chosen)
        parts.agent.look_again = watch.look
        if as_json:
            print(msgspec.json.encode(reached).decode(), flush=True)
        _greet(settings, node, gateway.url, parts.endpoints, list(chosen.models))
        gc.collect()
        gc.freeze()  # what stands now stays: no collection during a request need look at it again
        await parts.agent.run()
    finally:
        await gateway.close()
        keeping.close()
        await parts.agent.close()
        await client.close()
        await parts.mesh.close()


def os_pid() -> int:
    import os

    return os.getpid()


def read_keys(path: str) -> tuple[str, ...]:
    """The API keys in a file, one a line; none when no file is set. Raises `SettingsError` when it holds none."""
    from nearfar.errors import SettingsError

    if not path:
        return ()
    try:
        keys = tuple(filter(None, map(str.strip, Path(path).read_text().splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The key file {path} cannot be read: {error}.", "Set [gateway] api_key_file.") from None
    if not keys or not all(key.isascii() for key in keys):
        raise SettingsError(f"The API key file {path} holds no key.", "Write a line of ASCII text for each into it.")
    return keys


def _greet(settings: Settings, node: str, url: str, endpoints: tuple[str, ...], names: list[str]) -> None:
    from nearfar.mesh.zenoh_options import loopback

    out = console(error=True)
    told = ", ".join(names)
    if names == list(settings.node.models) and settings.sources.get("node.models") == "default":
        told += ", which ships with nearfar (others: --model NAME)"
    out.print(f"[bold]{node}[/] is at [bold cyan]{url}[/] and starts {told}  (Ctrl-C stops it)")
    out.print(f"[dim]  mesh {', '.join(endpoints)}, fleet {settings.mesh.fleet!r}, state in {settings.home}[/]")
    if settings.mesh.insecure and not settings.mesh.tls_cert and not all(map(loopback, endpoints)):
        out.print("[yellow]  the mesh is open without TLS: whoever is on this network can use this node[/]")
    if all(map(loopback, endpoints)):
        out.print("[dim]  reachable from this machine only; docs/how-to-connect-machines.md says how to open it[/]")
