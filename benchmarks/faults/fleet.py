"""The fleet of a soak: nodes as `nearfar up` processes, those who ask it, and the hands that break it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil

from benchmarks.faults import parts, truth
from benchmarks.faults.asker import Account, Order, Post
from benchmarks.faults.ground import Ground, Place
from nearfar.models.manifest import manifest_of
from nearfar.models.store import Store

MARK = "SOAK_MARK"
"""Environment variable by which the processes of a soak, and theirs, are found again."""
ROOT = Path(__file__).parents[2]
NODES = ("one", "two", "three")
GATEWAYS = ("one", "three")
MODELS = ("mirror", "yard")
START_LIMIT = 180.0
"""Seconds; about eight on two idle cores. Like every limit here it only bounds a wait on a busy machine."""
STOP_LIMIT = 40.0
WAIT_LIMIT = 120.0
LEASE_MS = 1000
STUCK_MS = 3000
MEMORY_LIMIT = "600MiB"


class Broken(Exception):
    """What must never happen, and did."""


class Node:
    """One `nearfar up`. It keeps its home and its mesh endpoint over restarts."""

    def __init__(self, fleet: Fleet, name: str, place: Place, home: Path, models: Sequence[str] = MODELS) -> None:
        self.name = name
        self.place = place
        self.home = home
        self.models = tuple(models)
        self.env: dict[str, str] = {}
        """Settings on top, from the next start on."""
        self.clock = fleet.folder / f"clock-{name}"
        self._fleet = fleet
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    def launch(self) -> None:
        """Start it; `Fleet.troubles` says when it is well. A guest, not of the fleet's own nodes, listens anywhere."""
        fleet = self._fleet
        joins = [other.place.endpoint for other in fleet.nodes if other is not self]
        listen = self.place.flags
        if self not in fleet.nodes:
            listen = ("--listen", self.place.endpoint.rpartition(":")[0] + ":0", *listen[2:])
        command = [
            *self.place.prefix,
            *(sys.executable, "-m", "nearfar.cli.main", "up", "--port", "0", "--no-discover", "--threads", "1"),
            *("--name", self.name, "--fleet", fleet.name, "--home", str(self.home), "--memory-limit", MEMORY_LIMIT),
            *listen,
            *(word for endpoint in joins for word in ("--join", endpoint)),
            *(word for model in self.models for word in ("--model", model)),
        ]
        self._starts += 1
        settings = {"NEARFAR_MESH_LEASE_MS": str(LEASE_MS), "NEARFAR_NODE_STUCK_AFTER_MS": str(STUCK_MS)}
        environment = fleet.environment | settings | {parts.CLOCK: str(self.clock)} | self.env
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=fleet.folder,
                start_new_session=True,
            )

    @property
    def log(self) -> Path:
        return self._fleet.folder / f"{self.home.name}-{self._starts}.log"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def service_pid(self, model: str) -> int:
        """0 when it does not run."""
        name = f"{self.name}/{model}"
        for child in self.children():
            with contextlib.suppress(psutil.Error, IndexError):
                if child.cmdline()[-1] == name and child.status() != psutil.STATUS_ZOMBIE:
                    return int(child.pid)
        return 0

    def children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.pid).children(recursive=True))
        return []

    def pids(self) -> list[int]:
        return [self.pid, *(int(child.pid) for child in self.children())]

    def stop(self) -> int:
        """Ask it to end, as a service manager does; its exit code. Raises `Broken` when it does not end."""
        assert self._process is not None
        if self.runs:
            self._process.terminate()
        return self.ended()

    def ended(self) -> int:
        assert self._process is not None
        try:
            return self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise Broken(f"{self.name} did not end within {STOP_LIMIT:.0f} s of SIGTERM") from None

    def kill_agent(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def kill(self) -> None:
        """As a power cut: agent and services at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGSTOP)  # so that it starts nothing anew meanwhile
        for child in self.children():
            with contextlib.suppress(psutil.Error):
                child.kill()
        self.kill_agent()

    def kill_service(self, model: str) -> int:
        pid = self.service_pid(model)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pid

    def signal(self, number: int) -> None:
        """To all of its processes."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def tail(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])

    def url(self) -> str:
        """Of its gateway. Raises `OSError`, `ValueError` or `KeyError` when it has none."""
        return str(json.loads((self.home / "run" / f"{self.name}.json").read_bytes())["gateway"])

    def view(self) -> dict[str, Any]:
        """`GET /v1/fleet` of its gateway; empty when it does not answer."""

        def get() -> dict[str, Any]:
            with contextlib.suppress(httpx.HTTPError, OSError, ValueError, KeyError):
                found: dict[str, Any] = httpx.get(f"{self.url()}/v1/fleet", timeout=5.0, trust_env=False).json()
                return found
            return {}

        return self.place.inside(get)


class Asker:
    """A process of `asker.py` beside a gateway."""

    def __init__(self, fleet: Fleet, node: Node, seed: int) -> None:
        self.node = node
        post = Post(
            node.name,
            str(node.home),
            fleet.name,
            tuple(other.place.endpoint for other in fleet.nodes),
            str(fleet.frames),
            str(fleet.truth),
            seed,
        )
        command = (
            *node.place.prefix,
            sys.executable,
            "-m",
            "benchmarks.faults.asker",
            msgspec.json.encode(post).decode(),
        )
        with (fleet.folder / f"asker-{node.name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=fleet.environment,
                cwd=fleet.folder,
                start_new_session=True,
            )

    def order(self, order: Order) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(msgspec.json.encode(order) + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Broken(f"the asker at {self.node.name} ended with {self.process.poll()}; see its log") from None

    def tell(self, do: str = "tell") -> Account:
        self.order(Order(do))
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Broken(f"the asker at {self.node.name} ended with {self.process.wait()}; see its log")
        return msgspec.json.decode(line, type=Account)


class Watcher:
    """A `nearfar watch` with tracking and a line, over the known pictures, until it is asked to end."""

    def __init__(self, fleet: Fleet, node: Node) -> None:
        joins = (word for other in fleet.nodes for word in ("--join", other.place.endpoint))
        command = (
            *node.place.prefix,
            *(sys.executable, "-m", "nearfar.cli.main", "watch", str(fleet.frames), "--loop", "--realtime", "--json"),
            *("--track", "bytetrack", "--line", "0.5,0,0.5,1:middle", "--deadline", "1s"),
            *("--home", str(fleet.folder / "watcher"), "--fleet", fleet.name, *joins),
        )
        with (fleet.folder / "watch.log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=fleet.environment | {"NEARFAR_MESH_DISCOVER": "false", "NEARFAR_MESH_LEASE_MS": str(LEASE_MS)},
                cwd=fleet.folder,
                start_new_session=True,
            )

    def close(self) -> tuple[dict[str, Any], list[str]]:
        """Its summary, and what is wrong with it."""
        self.process.terminate()
        try:
            out, _ = self.process.communicate(timeout=STOP_LIMIT)
            summary: dict[str, Any] = json.loads(out)
        except (subprocess.TimeoutExpired, ValueError) as error:
            self.process.kill()
            self.process.wait()
            return {}, [f"nearfar watch gave no summary: {type(error).__name__}, exit {self.process.returncode}"]
        frames = summary["frames"]
        wrong = []
        if frames["read"] != sum(count for outcome, count in frames.items() if outcome != "read"):
            wrong.append(f"nearfar watch: not every frame is accounted: {frames}")
        if summary["error"] is not None:
            wrong.append(f"nearfar watch broke off: {summary['error']}")
        if not frames["answered"]:
            wrong.append("nearfar watch had no answer at all")
        return summary, wrong


class Fleet:
    """Everything of one soak, in one folder."""

    def __init__(self, folder: Path, ground: Ground, seed: int) -> None:
        self.folder = folder
        self.ground = ground
        self.name = f"soak-{uuid.uuid4().hex[:12]}"
        self.mark = uuid.uuid4().hex
        self.nodes: list[Node] = []
        self.askers: list[Asker] = []
        self.watcher: Watcher | None = None
        self.accounts: list[tuple[str, Account]] = []
        """What the askers told since somebody took it, with the gateway where they stand."""
        self.frames = folder / "frames"
        self.truth = folder / "truth.npz"
        self.orders = folder / "orders"
        self.temporary = folder / "tmp"
        self._seed = seed
        self._mounts: list[Path] = []
        plugin = folder / "plugin"
        parts.install(plugin)
        self.orders.mkdir()
        self.temporary.mkdir()
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("NEARFAR_", "SOAK_"))}
        paths = (str(plugin), str(ROOT), str(ROOT / "src"))
        self.environment = clean | {
            "NO_COLOR": "1",
            "COLUMNS": "200",
            "PYTHONPATH": os.pathsep.join(paths),
            "TMPDIR": str(self.temporary),
            parts.ORDERS: str(self.orders),
            MARK: self.mark,
        }

    # -- its life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        for name in NODES:
            home = self.folder / f"home-{name}"
            home.mkdir()
            self.nodes.append(Node(self, name, self.ground.place(name), home))
        self._small_disk(self.nodes[1].home)
        truth.render(self.frames, self._seed)
        for node in self.nodes:
            self.fill(node.home)
            node.launch()
        truth.compute(self.frames, Store(self.nodes[0].home / "models"), self.truth)
        self.wait(lambda: not self.troubles(), "the fleet has started", START_LIMIT)
        self.askers = [Asker(self, self.node(name), self._seed + at * 10) for at, name in enumerate(GATEWAYS)]
        self.watcher = Watcher(self, self.node("two"))
        log = self.folder / "watch.log"
        self.wait(lambda: "served by" in log.read_text(errors="replace"), "nearfar watch has answers", START_LIMIT)

    def fill(self, home: Path) -> None:
        """Put the mirror into a node's store; `yard` comes with nearfar."""
        file = self.folder / "mirror.x"
        file.write_bytes(b"a mirror has no weights")
        data = file.read_bytes()
        variant = {
            "id": "glass",
            "format": parts.FORMAT,
            "precision": "fp32",
            "file": file.name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        }
        manifest = manifest_of({"schema": 1, "name": "mirror", "task": "tensors", "variants": [variant]})
        Store(home / "models").add(file, manifest)

    def _small_disk(self, home: Path) -> None:
        """One node's home on a file system of its own, where that can be had: to be filled."""
        command = ("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(home))
        if os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            self._mounts.append(home)

    def is_small(self, node: Node) -> bool:
        return node.home in self._mounts

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def processes(self) -> list[psutil.Process]:
        """Every living process that belongs to this soak."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def close(self) -> list[str]:
        """End everything; what did not end as it should."""
        wrong: list[str] = []
        with contextlib.suppress(NotImplementedError, RuntimeError):
            self.ground.heal()
        for node in self.nodes:
            if node.runs:
                node.signal(signal.SIGCONT)
                os.kill(node.pid, signal.SIGTERM)
        for node in self.nodes:
            try:
                if node._process is not None and (code := node.ended()) != 0:
                    wrong.append(f"{node.name} ended with {code}: {node.tail()}")
            except Broken as error:
                wrong.append(str(error))
        for process in (*(asker.process for asker in self.askers), *((self.watcher.process,) if self.watcher else ())):
            if process.poll() is None:
                process.kill()
                process.wait()
        end = time.monotonic() + 15
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        for process in left:
            with contextlib.suppress(psutil.Error):
                wrong.append(f"process {process.pid} was left: {' '.join(process.cmdline())}")
                process.kill()
        for home in self._mounts:
            subprocess.run(("umount", "-l", str(home)), check=False)
        self.ground.close()
        return wrong

    # -- what is known of it ------------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], object], what: str, limit: float = WAIT_LIMIT) -> float:
        """Seconds until the condition held. Raises `Broken` after `limit`."""
        start = time.monotonic()
        while not condition():
            if time.monotonic() - start > limit:
                raise Broken(f"still not so after {limit:.0f} s: {what}; {'; '.join(self.troubles()[:4])}")
            time.sleep(0.1)
        return time.monotonic() - start

    def troubles(self, names: Sequence[str] = NODES, seen_by: Sequence[str] = GATEWAYS) -> list[str]:
        """What keeps the fleet, as these gateways see it, from being whole. Empty: it is."""
        wrong = [f"{name} ended: {self.node(name).tail()}" for name in names if not self.node(name).runs]
        if wrong:
            return wrong
        for gateway in seen_by:
            view = self.node(gateway).view()
            if not view:
                wrong.append(f"{gateway}'s gateway does not answer")
                continue
            health: Mapping[str, tuple[bool, str]] = {
                row["service"]: (row["healthy"], row["reason"]) for row in view["services"]
            }
            for name in names:
                for model in self.node(name).models:
                    healthy, reason = health.get(f"{name}/{model}", (False, "unknown"))
                    if not healthy:
                        wrong.append(f"{gateway} sees {name}/{model}: {reason}")
        return wrong

    def services(self) -> dict[str, int]:
        """Pid of every service."""
        return {f"{node.name}/{model}": node.service_pid(model) for node in self.nodes for model in node.models}

    # -- who asks -----------------------------------------------------------------------------------------------------

    def tell_askers(self, *, excused: Sequence[str] = (), exposed: bool = False) -> None:
        """`excused`: nodes whose gateway is being broken. `exposed`: a service lies with the right shape."""
        for asker in self.askers:
            asker.order(Order("set", asker.node.name in excused, exposed))

    def look(self, asker: Asker) -> Account:
        """What an asker tells; kept, so that nothing of it is lost to the final account."""
        account = asker.tell()
        self.accounts.append((asker.node.name, account))
        return account

    def misbehave(self, service: str, orders: parts.Orders | None) -> None:
        """Give a mirror's service orders, or take them away."""
        file = self.orders / f"{service.replace('/', '~')}.json"
        if orders is None:
            file.unlink(missing_ok=True)
        else:
            draft = file.with_suffix(".draft")
            draft.write_bytes(msgspec.json.encode(orders))
            draft.rename(file)
