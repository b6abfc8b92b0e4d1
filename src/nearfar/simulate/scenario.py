"""A scenario file: what is played. TOML, read strictly; every message names the field. `docs/reference-scenario.md`.

Units stand in the names: `_s` seconds, `_ms` milliseconds, `_kb` 1000 bytes, `_mbit` 10^6 bits per second.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from nearfar.errors import InputError
from nearfar.simulate.devices import CATALOGUE, Device

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,40}$")]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class LinkSpec(_Table, frozen=True):
    """How long a message takes. `kind` says which of the other fields count."""

    kind: Literal["constant", "table", "stable", "trace"] = "constant"
    rtt_ms: NotNegative = 2.0
    jitter_ms: NotNegative = 0.0
    quantiles: tuple[tuple[Share, NotNegative], ...] = ()
    path: str = ""
    loss: Annotated[float, msgspec.Meta(ge=0, le=0.9)] = 0.0
    bandwidth_mbit: Positive = 100.0


class Interference(_Table, frozen=True):
    """Other work on a node: off and on spells with exponential lengths; `factor` slows inference while on."""

    off_s: Positive = 60.0
    on_s: Positive = 10.0
    factor: Positive = 2.0


class Churn(_Table, frozen=True):
    """Nodes come and go: exponential times up and down; a share ends by a crash, a share by a cut, the rest leaves."""

    up_s: Positive = 2400.0
    down_s: Positive = 300.0
    crash: Share = 0.4
    cut: Share = 0.1


class NodeGroup(_Table, frozen=True):
    """`count` equal nodes: `name-0`, `name-1`, ..."""

    name: Name
    device: str
    link: str
    count: Count = 1
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    queue_limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 64
    slowdown: Positive = 1.0
    ambient_c: Annotated[float, msgspec.Meta(ge=-40, le=80)] = 25.0
    interference: Interference | None = None
    churn: Churn | None = None


class ClientGroup(_Table, frozen=True):
    """Streams that enter through `gateways` gateways, evenly; each gateway has a snapshot of its own."""

    name: Name
    streams: Count
    fps: Positive
    deadline_ms: NotNegative = 100.0
    gateways: Count = 1
    size_kb: NotNegative = 60.0
    large: bool = False
    access: str = ""
    mobile: bool = False
    dwell_s: Positive = 20.0


class Change(_Table, frozen=True):
    """Something that happens: to `nodes` or `clients` (patterns), one after the other with `stagger_s` between."""

    at_s: NotNegative
    kind: Literal["crash", "cut", "leave", "slow", "rate", "link"]
    nodes: str = ""
    clients: str = ""
    for_s: NotNegative = 0.0
    factor: Positive = 1.0
    link: str = ""
    stagger_s: NotNegative = 0.0


class Sites(_Table, frozen=True):
    """Nodes stand at `count` sites in turn; to another site a mobile gateway's messages also pass `backhaul`."""

    count: Count = 1
    backhaul: str = ""


class Telemetry(_Table, frozen=True):
    """Seconds between reports of services, of nodes, and between pings of each gateway to each node."""

    services_s: Annotated[float, msgspec.Meta(ge=0.05, le=1.9)] = 0.5
    nodes_s: Positive = 0.5
    links_s: Positive = 1.0


class Scenario(_Table, frozen=True):
    """Everything that is played."""

    name: Name
    seconds: Annotated[float, msgspec.Meta(ge=4, le=1e7)]
    nodes: Annotated[tuple[NodeGroup, ...], msgspec.Meta(min_length=1)]
    clients: Annotated[tuple[ClientGroup, ...], msgspec.Meta(min_length=1)]
    links: dict[str, LinkSpec]
    about: str = ""
    seed: int = 0
    lease_s: Positive = 2.0
    flap_s: Positive = 10.0
    devices: tuple[Device, ...] = ()
    changes: tuple[Change, ...] = ()
    sites: Sites = Sites()
    telemetry: Telemetry = Telemetry()

    def device(self, name: str) -> Device:
        return next(d for d in (*self.devices, *CATALOGUE.values()) if d.name == name)


TABLES: dict[str, type[msgspec.Struct]] = {
    "": Scenario,
    "nodes": NodeGroup,
    "nodes.interference": Interference,
    "nodes.churn": Churn,
    "clients": ClientGroup,
    "links": LinkSpec,
    "devices": Device,
    "changes": Change,
    "sites": Sites,
    "telemetry": Telemetry,
}
"""Every table of the file and what it holds; the reference page is checked against it."""


def load(path: Path) -> Scenario:
    """Read a scenario; paths of traces count from its folder. Raises `InputError` that names file and field."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The scenario {path} cannot be read: {error.strerror}.", "Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The scenario {path} is not TOML: {error}.", "See docs/reference-scenario.md.") from None
    return parse(raw, str(path), path.parent)


def parse(raw: dict[str, Any], origin: str = "scenario", folder: Path | None = None) -> Scenario:
    """A scenario from plain values. Raises `InputError` that names the field."""
    try:
        scenario = msgspec.convert(raw, Scenario)
    except msgspec.ValidationError as error:
        raise InputError(f"{origin}: {_told(str(error))}", "See docs/reference-scenario.md.") from None
    for field, message, known in _contradictions(scenario):
        guess = ""
        if known is not None:
            close = difflib.get_close_matches(message, known, n=1)
            guess = f" (did you mean {close[0]!r}?)" if close else ""
            message = f"there is no {message!r}{guess}; there are {', '.join(sorted(known)) or 'none'}"
        raise InputError(f"{origin}: {field}: {message}.", "See docs/reference-scenario.md.")
    if folder is None:
        return scenario
    links = {
        name: msgspec.structs.replace(link, path=str(folder / link.path)) if link.path else link
        for name, link in scenario.links.items()
    }
    return msgspec.structs.replace(scenario, links=links)


def _told(message: str) -> str:
    """msgspec's `what - at `$.nodes[0].count`` as `nodes[0].count: what`, with the known fields for an unknown one."""
    what, _, where = message.partition(" - at `$")
    where = where.rstrip("`").lstrip(".")
    unknown = re.search(r"unknown field `(\w+)`", what)
    if unknown:
        table = TABLES.get(re.sub(r"\[[^]]*\]", "", where).replace("...", ""), Scenario)
        known = list(table.__struct_fields__)
        close = difflib.get_close_matches(unknown[1], known, n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        what = f"there is no field {unknown[1]!r}{guess}; there are {', '.join(known)}"
    return f"{where}: {what}." if where else f"{what}."


def _contradictions(scenario: Scenario) -> Iterator[tuple[str, str, list[str] | None]]:
    """(field, message, None), or (field, unknown name, known names)."""
    links = list(scenario.links)
    devices = [*CATALOGUE, *(d.name for d in scenario.devices)]
    for i, node in enumerate(scenario.nodes):
        if node.link not in links:
            yield f"nodes[{i}].link", node.link, links
        if node.device not in devices:
            yield f"nodes[{i}].device", node.device, devices
        if node.churn is not None and node.churn.crash + node.churn.cut > 1:
            yield f"nodes[{i}].churn", "crash and cut are shares and sum to more than 1", None
    for i, client in enumerate(scenario.clients):
        if client.access and client.access not in links:
            yield f"clients[{i}].access", client.access, links
        if client.gateways > client.streams:
            yield f"clients[{i}].gateways", f"{client.gateways} gateways for {client.streams} streams", None
        if client.mobile and scenario.sites.count < 2:
            yield f"clients[{i}].mobile", "a mobile gateway needs sites.count of at least 2", None
    if scenario.sites.count > 1 and scenario.sites.backhaul not in links:
        yield "sites.backhaul", scenario.sites.backhaul, links
    for group, names in (("nodes", [n.name for n in scenario.nodes]), ("clients", [c.name for c in scenario.clients])):
        if len(set(names)) < len(names):
            yield group, "two have the same name", None
    node_names = [f"{n.name}-{i}" for n in scenario.nodes for i in range(n.count)]
    for i, change in enumerate(scenario.changes):
        field = f"changes[{i}]"
        if change.kind in ("rate", "link") and not _any(change.clients, [c.name for c in scenario.clients]):
            yield f"{field}.clients", f"{change.clients!r} matches no group of clients", None
        if change.kind != "rate" and not _any(change.nodes, node_names):
            yield f"{field}.nodes", f"{change.nodes!r} matches no node", None
        if change.kind == "link" and change.link not in links:
            yield f"{field}.link", change.link, links
    for name, link in scenario.links.items():
        if link.kind == "table" and (len(link.quantiles) < 2 or list(link.quantiles) != sorted(link.quantiles)):
            yield f"links.{name}.quantiles", "a table needs two or more [share, ms] pairs in rising order", None
        if link.kind == "trace" and not link.path:
            yield f"links.{name}.path", "a trace needs the path of its file", None


def _any(pattern: str, names: list[str]) -> bool:
    return bool(pattern) and any(fnmatch.fnmatchcase(name, pattern) for name in names)
