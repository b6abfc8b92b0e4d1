"""Who this node is, and that it is so only once on this machine: the node's name, its lock and its run file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from nearfar.errors import DuplicateNode, StoreError
from nearfar.types.ids import NodeId, is_name


class Running(msgspec.Struct, frozen=True):
    """A node that runs on this machine, for commands that want to reach it."""

    node: NodeId
    pid: int
    fleet: str
    endpoints: tuple[str, ...]
    gateway: str = ""


def node_id(home: Path, stated: str) -> NodeId:
    """The stated name, else the one kept in the home folder, else a new one made from the host name.

    Raises `StoreError` when a new one cannot be kept.
    """
    if stated:
        return NodeId(stated)
    file = home / "node-id"
    with contextlib.suppress(OSError):
        kept = file.read_text().strip()
        if kept:
            return NodeId(kept)
    host = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().partition(".")[0].lower()).strip("-")
    made = f"{host[:40] or 'node'}-{uuid.uuid4().hex[:4]}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        file.write_text(made + "\n")
    except OSError as error:
        raise StoreError(
            f"The node's name cannot be kept in {file}: {error.strerror}.",
            "Set NEARFAR_HOME to a folder that you own, on a disk with room.",
        ) from None
    return NodeId(made)


class Claim:
    """Holds a node's name on this machine while it runs. The kernel lets go of the lock when the process dies."""

    def __init__(self, home: Path, node: NodeId) -> None:
        """Raises `DuplicateNode` when another process has the name, `StoreError` when the folder cannot be written."""
        folder = home / "run"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / f"{node}.json"
            self._file = self._path.open("a+b", buffering=0)  # what could not be written is not tried again
        except OSError as error:
            raise StoreError(f"{folder} cannot be written: {error.strerror}.", "Set NEARFAR_HOME elsewhere.") from None
        end = time.monotonic() + 0.5
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < end:  # a command that looks who runs holds it for a moment
                    time.sleep(0.02)
                    continue
                self._file.close()
                raise DuplicateNode(
                    f"A node named {node!r} runs on this machine already.",
                    "Stop it, or give this one a name of its own: nearfar up --name NAME.",
                ) from None

    def tell(self, running: Running) -> None:
        """Write how this node can be reached. Raises `StoreError`, as on a full disk."""
        try:
            self._file.truncate(0)
            self._file.write(msgspec.json.encode(running))
        except OSError as error:
            raise StoreError(
                f"{self._path} cannot be written: {error.strerror}.", "Make room, or set NEARFAR_HOME elsewhere."
            ) from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.truncate(0)
        self._file.close()


def running(home: Path) -> list[Running]:
    """The nodes of this home folder that run now."""
    found = []
    for path in sorted((home / "run").glob("*.json")):
        with contextlib.suppress(OSError, ValueError), path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # somebody holds it: the node runs
                found.append(msgspec.json.decode(file.read(), type=Running))
    return [entry for entry in found if _is_alive(entry.pid)]


def coming(home: Path) -> list[NodeId]:
    """The nodes of this home folder that have begun to start, and do not say yet how they are reached."""
    found = []
    for path in sorted((home / "run").glob("*.json")):
        with contextlib.suppress(OSError), path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if not file.read(1):
                    found.append(NodeId(path.stem))
    return found


def asked_later(home: Path, node: NodeId) -> Path:
    """The file that names, one a line, the models that the node serves beside those it was started with. Gone when it
    starts."""
    return home / "run" / f"{node}.serve"


def read_later(path: Path) -> tuple[str, ...]:
    """The names in it, none when it is not there. Raises `StoreError` when it cannot be read."""
    try:
        return tuple(filter(is_name, path.read_text(encoding="utf-8").split()))
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read: {error}.", "Remove it; then use `nearfar models serve`.") from None


def write_later(path: Path, names: Sequence[str]) -> None:
    """Replace it in one step. Raises `StoreError`."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text("".join(f"{name}\n" for name in names))
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written: {error.strerror}.", "Make room on its disk.") from None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
