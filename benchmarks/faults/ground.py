"""Where the nodes of a soak stand: each in a network namespace of its own that can be cut off, or all on loopback.

Namespaces need root and iproute2. Each hangs on a bridge by a veth pair; a cut takes the pair's outer end off the
bridge, so that packets vanish without a word (no RST, no link-down), and a partition moves it to a second bridge.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_MESH_PORT = 7447


class Place:
    """Where one node and its clients stand. This one is loopback: nothing to enter, nothing to cut."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.endpoint = f"tcp/127.0.0.1:{_free_port()}"
        """Where the node of this place listens on the mesh, also after a restart: as a machine with a fixed port."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """What stands before a command that shall run here."""
        return ()

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of `nearfar up` here."""
        return ("--listen", self.endpoint)

    def inside(self, work: Callable[[], T]) -> T:
        """Run something that opens connections, from here."""
        return work()

    @property
    def sockets(self) -> Path:
        """The kernel's list of Unix sockets that can be seen here."""
        return Path("/proc/self/net/unix")


class Ground:
    """Gives places; a context manager. Loopback: faults that need a cut say that they cannot be run."""

    can_cut = False
    why_not = ""
    """Why there are no cuts."""

    def __init__(self, why_not: str = "--loopback was given") -> None:
        self.why_not = why_not

    def place(self, name: str) -> Place:
        return Place(name)

    def cut(self, place: Place) -> None:
        raise NotImplementedError(self.why_not)

    def part(self, places: Sequence[Place]) -> None:
        raise NotImplementedError(self.why_not)

    def heal(self) -> None:
        """Undo all cuts."""

    def close(self) -> None:
        pass


class Namespace(Place):
    def __init__(self, name: str, netns: str, outer: str, address: str) -> None:
        self.name = name
        self.netns = netns
        self.outer = outer
        self.endpoint = f"tcp/{address}:{_MESH_PORT}"

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.netns)

    @property
    def flags(self) -> tuple[str, ...]:
        return (*super().flags, "--insecure")

    def inside(self, work: Callable[[], T]) -> T:
        """On a thread that has entered the namespace: what it opens belongs there for good."""
        done: list[Any] = []

        def run() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                with Path(f"/run/netns/{self.netns}").open("rb") as entry:
                    if libc.setns(entry.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"cannot enter {self.netns}")
                done.append((work(), None))
            except BaseException as error:
                done.append((None, error))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        result, error = done[0]
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    @property
    def sockets(self) -> Path:
        return Path("/proc/thread-self/net/unix")


class Bridged(Ground):
    """Namespaces on a bridge."""

    can_cut = True
    why_not = ""
    _numbers = itertools.count()

    def __init__(self) -> None:
        self._id = f"{os.getpid() % 100_000:05d}"
        self._bridges = (f"nfa{self._id}", f"nfb{self._id}")
        self._places: list[Namespace] = []
        self._away: set[str] = set()
        for bridge in self._bridges:
            _ip("link", "add", bridge, "type", "bridge")
            _ip("link", "set", bridge, "up")

    def place(self, name: str) -> Namespace:
        number = len(self._places) + 1
        netns, outer, inner = f"nf{self._id}-{number}", f"nf{self._id}o{number}", f"nf{self._id}i{number}"
        address = f"10.213.77.{number}"
        made = Namespace(name, netns, outer, address)
        self._places.append(made)
        _ip("netns", "add", netns)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
        _ip("link", "set", inner, "netns", netns)
        _ip("-n", netns, "addr", "add", f"{address}/24", "dev", inner)
        _ip("-n", netns, "link", "set", "lo", "up")
        _ip("-n", netns, "link", "set", inner, "up")
        _ip("link", "set", outer, "master", self._bridges[0], "up")
        return made

    def cut(self, place: Place) -> None:
        assert isinstance(place, Namespace)
        _ip("link", "set", place.outer, "nomaster")
        self._away.add(place.outer)

    def part(self, places: Sequence[Place]) -> None:
        """Those reach each other and nobody else."""
        for place in places:
            assert isinstance(place, Namespace)
            _ip("link", "set", place.outer, "master", self._bridges[1])
            self._away.add(place.outer)

    def heal(self) -> None:
        for outer in tuple(self._away):
            _ip("link", "set", outer, "master", self._bridges[0])
            self._away.discard(outer)

    def close(self) -> None:
        for place in self._places:
            _ip("netns", "del", place.netns, check=False)  # the pair goes with it once no process is left
            _ip("link", "del", place.outer, check=False)
        for bridge in self._bridges:
            _ip("link", "del", bridge, check=False)


def make_ground(loopback: bool) -> Ground:
    """Namespaces when they can be had here, else loopback with the reason."""
    if loopback:
        return Ground()
    if os.geteuid() != 0:
        return Ground("network namespaces need root")
    if shutil.which("ip") is None:
        return Ground("there is no `ip`: install iproute2")
    try:
        return Bridged()
    except RuntimeError as error:
        return Ground(f"no bridge can be made here: {error}")


def _ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(("ip", *words), capture_output=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.decode().strip()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
