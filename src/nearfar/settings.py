"""Settings: one documented place for each, one precedence, and for every value where it came from.

Precedence, first wins: a flag; an environment variable (`NEARFAR_<SECTION>_<NAME>`, `NEARFAR_HOME`, `NEARFAR_CONFIG`);
`nearfar.toml` in the working directory (or the file that `--config` or NEARFAR_CONFIG names instead); `nearfar.toml` in
the home folder; the default. `docs/reference-settings.md` is made from this file: `python -m nearfar.settings`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from nearfar.errors import InputError, SettingsError
from nearfar.types.units import parse_bytes, parse_milliseconds

FILE = "nearfar.toml"
FLAGS: Mapping[str, str] = {
    "gateway.host": "--host", "gateway.port": "--port", "node.id": "--name", "node.threads": "--threads",
    "node.memory_limit": "--memory-limit", "mesh.discover": "--discover", "mesh.fleet": "--fleet",
    "mesh.insecure": "--insecure", "mesh.join": "--join", "mesh.listen": "--listen",
    "emulate.compute": "--emulate-slowdown", "emulate.delay_ms": "--emulate-delay",
}  # fmt: skip
"""What the command line calls the settings that it has flags for."""
_PREFIX = "NEARFAR_"
_BYTES, _MS, _PATH = {"kind": "bytes"}, {"kind": "milliseconds"}, {"kind": "path"}


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One machine's part."""

    id: Annotated[
        str,
        Meta(
            pattern=r"^([a-z0-9][a-z0-9._-]{0,63})?$",
            description="Name of this node, unique in the fleet. Empty: made from the host name once, and kept.",
        ),
    ] = ""
    threads: Annotated[
        int,
        Meta(
            ge=0,
            le=1024,
            description="Threads of each engine. 0: the cores this process may use, less one, at least 1. "
            "`load` puts the number in its place.",
        ),
    ] = 0
    memory_limit: Annotated[
        int, Meta(ge=0, description="Most bytes of memory for one service. 0: no limit.", extra=_BYTES)
    ] = 0
    models: Annotated[tuple[str, ...], Meta(description="Names of the models that the node serves from its start.")] = (
        "yard",
    )
    queue_limit: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Requests that may wait at one service; more are refused.")
    ] = 64
    cost: Annotated[
        float,
        Meta(ge=0, description="Price of one request at this node's services, in a currency the fleet agrees on."),
    ] = 0.0
    stuck_after_ms: Annotated[
        int,
        Meta(
            ge=0,
            description=(
                "An inference that takes longer hangs: its service is restarted, and so is one whose process says "
                "nothing for as long (5 s at least). In milliseconds, 0: never."
            ),
            extra=_MS,
        ),
    ] = 60_000
    self_test_every_ms: Annotated[
        int,
        Meta(
            ge=0,
            description="How often a service asks itself a question whose answer is known, and once before it is "
            "ready; a wrong answer restarts it. In milliseconds, 0: never.",
            extra=_MS,
        ),
    ] = 10_000


class MeshSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this node finds others and talks to them."""

    fleet: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
            description="Name of the fleet; nodes of different fleets do not see each other.",
        ),
    ] = "default"
    listen: Annotated[
        tuple[str, ...],
        Meta(description="Endpoints to listen at. Port 0 takes a free one; 0.0.0.0 opens it to the network."),
    ] = ("tcp/127.0.0.1:0",)
    join: Annotated[tuple[str, ...], Meta(description="Endpoints of other nodes to connect to.")] = ()
    discover: Annotated[bool, Meta(description="Find other nodes on the local network by multicast.")] = True
    lease_ms: Annotated[
        int,
        Meta(
            ge=100,
            le=3_600_000,
            description="Silence after which a connection counts as dead, in milliseconds.",
            extra=_MS,
        ),
    ] = 2000
    insecure: Annotated[
        bool, Meta(description="Allow endpoints beyond this machine without TLS, on a network you trust.")
    ] = False
    tls_ca: Annotated[
        str,
        Meta(description="PEM file of the fleet's authority. Empty: no TLS. With it `tcp/` means `tls/`.", extra=_PATH),
    ] = ""
    tls_cert: Annotated[str, Meta(description="PEM file of this node's certificate.", extra=_PATH)] = ""
    tls_key: Annotated[str, Meta(description="PEM file of the certificate's key.", extra=_PATH)] = ""


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP side."""

    host: Annotated[
        str, Meta(min_length=1, description="Address to listen at. 0.0.0.0 opens it to the network: set a key then.")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen at. 0 takes a free one.")] = 8080
    max_body: Annotated[
        int, Meta(ge=1, description="Largest body of a request, in bytes; larger ones get 413.", extra=_BYTES)
    ] = 64 * 1024 * 1024
    max_in_flight: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Requests worked on at once; more get 429 with Retry-After.")
    ] = 256
    default_deadline_ms: Annotated[
        int,
        Meta(ge=0, description="Deadline of a request that states none, in milliseconds. 0: none.", extra=_MS),
    ] = 0
    api_key_file: Annotated[
        str, Meta(description="File with one API key per line. Empty: no key is asked for.", extra=_PATH)
    ] = ""
    tls_cert: Annotated[str, Meta(description="PEM file of the certificate chain. Empty: no TLS.", extra=_PATH)] = ""
    tls_key: Annotated[str, Meta(description="PEM file of the certificate's key.", extra=_PATH)] = ""


class PlacementSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which service gets a request."""

    policy: Annotated[
        str, Meta(min_length=1, description="`predictive`, `weighted`, `nearest`, or `module:attr` of a policy.")
    ] = "predictive"
    alpha: Annotated[
        float,
        Meta(ge=0, description="Weight of free cores in the policy `weighted`; the three are scaled to sum to 1."),
    ] = 1.0
    beta: Annotated[float, Meta(ge=0, description="Weight of the speed of inference in the policy `weighted`.")] = 1.0
    gamma: Annotated[float, Meta(ge=0, description="Weight of closeness in the policy `weighted`.")] = 1.0
    hysteresis: Annotated[
        float,
        Meta(ge=0, lt=1, description="Share by which another service must be better before a stream moves to it."),
    ] = 0.2
    hedge_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Second copies against the tail: at most so many for each request of a client. 0 sends none.",
        ),
    ] = 0.05


class LanguageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this node serves language models."""

    context: Annotated[
        int,
        Meta(
            ge=256,
            le=1 << 24,
            description="Tokens of prompt and answer that one conversation may have; fewer where the model was trained "
            "for fewer. Memory grows with it.",
        ),
    ] = 4096
    slots: Annotated[
        int, Meta(ge=1, le=256, description="Conversations that one service answers at the same time.")
    ] = 4


class StreamsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of streams: `nearfar explain` reads it."""

    keep: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="Trails kept in the home folder, of at most 16 MiB each; the oldest ended one makes room.",
        ),
    ] = 50


class EmulateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Make this node worse than it is. For tests and the demo only."""

    compute: Annotated[float, Meta(ge=1, description="Factor by which inference takes longer; 1 is as it is.")] = 1.0
    delay_ms: Annotated[
        float, Meta(ge=0, description="Milliseconds added to each message that this node sends.", extra=_MS)
    ] = 0.0
    jitter_ms: Annotated[
        float, Meta(ge=0, description="Most milliseconds by which that delay varies, either way.", extra=_MS)
    ] = 0.0
    bandwidth: Annotated[
        int, Meta(ge=0, description="Bytes per second that this node may send. 0: no limit.", extra=_BYTES)
    ] = 0
    loss: Annotated[float, Meta(ge=0, le=1, description="Share of messages that are lost.")] = 0.0


SECTIONS: Mapping[str, type[msgspec.Struct]] = {
    "node": NodeSettings,
    "mesh": MeshSettings,
    "gateway": GatewaySettings,
    "placement": PlacementSettings,
    "streams": StreamsSettings,
    "language": LanguageSettings,
    "emulate": EmulateSettings,
}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, and in `sources` where each came from, by key (`gateway.port`)."""

    home: Path
    """Where state lives: the model store, profiles, the node's identity."""
    node: NodeSettings = NodeSettings()
    mesh: MeshSettings = MeshSettings()
    gateway: GatewaySettings = GatewaySettings()
    placement: PlacementSettings = PlacementSettings()
    streams: StreamsSettings = StreamsSettings()
    language: LanguageSettings = LanguageSettings()
    emulate: EmulateSettings = EmulateSettings()
    sources: Mapping[str, str] = {}

    def value(self, key: str) -> Any:
        """The value of a key such as `gateway.port` or `home`."""
        section, _, name = key.rpartition(".")
        return getattr(getattr(self, section) if section else self, name)


class Key(NamedTuple):
    """One setting: how it is named everywhere, what is allowed, and what it is for."""

    key: str
    variable: str
    allowed: str
    default: Any
    description: str
    type: Any
    kind: str
    """`bytes`, `milliseconds`, `path` or ''."""


class _Stated(NamedTuple):
    value: Any
    source: str
    folder: Path
    """What a relative path is relative to."""
    text: bool
    """Whether the value is text to be read as the key's type (environment) or already typed (TOML)."""


_HOME_TEXT = "Folder of this node's state. The default is the platform's folder for a user's data."


def catalogue() -> Iterator[Key]:
    """Every setting, in the order of the documentation."""
    yield Key("home", "NEARFAR_HOME", "a folder", None, _HOME_TEXT, str, "path")
    for section, cls in SECTIONS.items():
        hints = get_type_hints(cls, include_extras=True)
        for field in msgspec.structs.fields(cls):
            hint = hints[field.name]
            base, meta = get_args(hint)[:2]
            kind = (meta.extra or {}).get("kind", "")
            variable = f"{_PREFIX}{section}_{field.name}".upper()
            allowed = _allowed(base, meta, kind)
            yield Key(f"{section}.{field.name}", variable, allowed, field.default, meta.description, hint, kind)


def _flag(name: str) -> str:
    return FLAGS.get(name, f"--{name.replace('.', '-').replace('_', '-')}")


def load(
    flags: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Settings:
    """Read settings from everywhere.

    `flags` maps keys (`gateway.port`, `home`, `config`) to values; None counts as unset. `env` is the process's own
    environment and `cwd` its working directory when not given. Nothing is created or written.
    Raises `SettingsError` for an unknown key (with the nearest one), a wrong type or value (with the place and what is
    allowed), and for a file that cannot be read.
    """
    env = os.environ if env is None else env
    cwd = Path.cwd() if cwd is None else cwd
    table = {key.key: key for key in catalogue()}
    given = {name: value for name, value in (flags or {}).items() if value is not None}

    stated: dict[str, _Stated] = {}  # strongest first: a key is put in once
    for name, value in given.items():
        if name != "config":
            _known(name, table, "A flag")
            stated[name] = _Stated(value, f"from flag {_flag(name)}", cwd, True)
    for name, found in _from_environment(env, cwd, table).items():
        stated.setdefault(name, found)
    for name, found in _from_file(_working_file(given, env, cwd), table).items():
        stated.setdefault(name, found)
    if "home" in stated:
        home, home_source = Path(_converted(table["home"], stated["home"])), stated["home"].source
    else:
        home, home_source = _default_home(), "default: the platform's folder for a user's data"
    for name, found in _from_file(home / FILE if (home / FILE).is_file() else None, table).items():
        if name == "home":
            raise SettingsError(f"{home / FILE} sets home, but it lies in it.", "Remove the line.")
        stated.setdefault(name, found)

    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    sources: dict[str, str] = {"home": home_source}
    for key in table.values():
        section, _, name = key.key.partition(".")
        if section in values:
            found_here = stated.get(key.key)
            values[section][name] = _converted(key, found_here) if found_here else key.default
            sources[key.key] = found_here.source if found_here else "default"
    _fill_threads(values["node"], sources)
    made = {section: cls(**values[section]) for section, cls in SECTIONS.items()}
    return Settings(home=home, sources=sources, **made)  # type: ignore[arg-type]  # each section by its own class


def _fill_threads(node: dict[str, Any], sources: dict[str, str]) -> None:
    if node["threads"] == 0:
        from nearfar.limits import usable_cores

        cores = usable_cores()
        node["threads"] = max(1, int(cores.value) - 1)
        sources["node.threads"] += f": {cores.value:g} usable cores ({cores.reason}) less one, at least 1"


def _default_home() -> Path:
    from platformdirs import user_data_path

    return user_data_path("nearfar")


def _working_file(given: Mapping[str, Any], env: Mapping[str, str], cwd: Path) -> Path | None:
    """The file that is named, which must exist; else ./nearfar.toml if it does."""
    for named, source in ((given.get("config"), "--config"), (env.get(f"{_PREFIX}CONFIG"), f"{_PREFIX}CONFIG")):
        if named:
            path = cwd / Path(named).expanduser()
            if not path.is_file():
                raise SettingsError(f"There is no file {path} ({source}).", "Give the path of a nearfar.toml.")
            return path
    return cwd / FILE if (cwd / FILE).is_file() else None


def _from_environment(env: Mapping[str, str], cwd: Path, table: Mapping[str, Key]) -> dict[str, _Stated]:
    variables = {key.variable: key.key for key in table.values()}
    found: dict[str, _Stated] = {}
    for name, text in env.items():
        if name in variables:
            found[variables[name]] = _Stated(text, f"from {name}", cwd, True)
        elif name.startswith(_PREFIX) and name != f"{_PREFIX}CONFIG":
            # Other NEARFAR_ variables belong to somebody else, unless they look like a setting that is misspelt.
            near = _nearest(name, variables, 0.85)
            if near or name.startswith(tuple(f"{_PREFIX}{section.upper()}_" for section in SECTIONS)):
                hint = f"Did you mean {near}?" if near else "Known variables are in docs/reference-settings.md."
                raise SettingsError(f"{name} in the environment is no setting.", hint)
    return found


def _from_file(path: Path | None, table: Mapping[str, Key]) -> dict[str, _Stated]:
    if path is None:
        return {}
    import tomllib

    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}.", "Correct the file.") from error
    found: dict[str, _Stated] = {}
    for section, value in data.items():
        if section == "home":
            found["home"] = _Stated(value, f"from {path} home", path.parent, False)
            continue
        if section not in SECTIONS:
            near = _nearest(section, (*SECTIONS, "home"), 0.6)
            hint = f"Did you mean [{near}]?" if near else f"Known are: {', '.join(SECTIONS)}."
            raise SettingsError(f"{path} has an unknown section [{section}].", hint)
        if not isinstance(value, dict):
            raise SettingsError(f"{section} in {path} is not a section.", f"Write [{section}] and keys below it.")
        for name, entry in value.items():
            _known(f"{section}.{name}", table, str(path))
            found[f"{section}.{name}"] = _Stated(entry, f"from {path} [{section}] {name}", path.parent, False)
    return found


def _known(key: str, table: Mapping[str, Key], place: str) -> None:
    if key not in table:
        section, _, name = key.rpartition(".")
        beside = [other.rpartition(".")[2] for other in table if other.rpartition(".")[0] == section]
        near = _nearest(name, beside, 0.6)
        hint = f"Did you mean {section}.{near}?" if near else "Known settings are in docs/reference-settings.md."
        if not beside:
            hint = f"Did you mean {_nearest(key, table, 0.0)}?"
        raise SettingsError(f"{place} sets {key}, which is no setting.", hint)


def _converted(key: Key, stated: _Stated) -> Any:
    """The value in the key's type. Raises `SettingsError` with the place and what is allowed."""
    value = stated.value
    try:
        if isinstance(value, Path):
            value = str(value)
        if stated.text and isinstance(value, str):
            value = _from_text(key, value)
        elif isinstance(value, str) and key.kind in ("bytes", "milliseconds"):
            value = _number(key, value)
        if key.kind == "path" and isinstance(value, str) and value:
            value = str(stated.folder / Path(value).expanduser())
        if key.key == "home" and not value:
            raise ValueError("empty")
        converted = msgspec.convert(value, key.type, strict=True)
        if converted in (float("inf"), float("-inf")) or converted != converted:
            raise ValueError("not finite")
        return converted
    except (msgspec.ValidationError, InputError, ValueError, OverflowError, RuntimeError) as error:
        raise SettingsError(
            f"{key.key} = {stated.value!r} ({stated.source}) will not do.", f"Use {key.allowed}."
        ) from error


def _from_text(key: Key, text: str) -> Any:
    """What a shell can give is text only: lists by comma, truth as true/false, yes/no, on/off, 1/0."""
    base = get_args(key.type)[0] if get_origin(key.type) is Annotated else key.type
    if base is bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
        raise ValueError(text)
    if get_origin(base) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if base in (int, float):
        return _number(key, text)
    return text


def _number(key: Key, text: str) -> int | float:
    base = get_args(key.type)[0]
    plain = text.strip()
    try:
        return int(plain) if base is int else float(plain)
    except ValueError:
        if key.kind == "bytes":
            return parse_bytes(plain)
        if key.kind == "milliseconds":
            milliseconds = parse_milliseconds(plain)
            return round(milliseconds) if base is int else milliseconds
        raise


def _allowed(base: Any, meta: Meta, kind: str) -> str:
    if kind == "path":
        return "a path, or an empty string"
    if base is bool:
        return "true or false"
    if base is str:
        return "a string" if not meta.pattern else "lower-case letters, digits, '.', '_' and '-'"
    if get_origin(base) is tuple:
        return "a list of strings"
    words = "a whole number" if base is int else "a number"
    if meta.ge is not None:
        words += f" from {meta.ge}"
    if meta.le is not None:
        words += f" to {meta.le}"
    if meta.lt is not None:
        words += f", below {meta.lt}"
    return words + {"bytes": ", or a size such as 64MiB", "milliseconds": ", or a duration such as 2s"}.get(kind, "")


def _nearest(name: str, names: Any, cutoff: float) -> str:
    import difflib

    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)), "")
