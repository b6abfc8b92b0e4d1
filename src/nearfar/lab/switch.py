"""The switch: a process of its own that carries Ethernet frames between the hosts of a lab, late and lossy as told.

Started by `network.py` as `python -m nearfar.lab.switch` with a `SwitchSpec` as the first line of its standard input;
each further line is an `Order`. Every host is a network namespace with a TAP device whose other end is here. It ends
with its input. It prints one line when it is ready, and one for every order that asks for figures.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import select
import struct
import sys
import time
from collections.abc import Iterator

import msgspec

from nearfar.lab.fabric import Fabric
from nearfar.simulate.links import make_link
from nearfar.simulate.scenario import LinkSpec

DEVICE = "lab0"
NAMESPACES = "/run/netns"
TUN = "/dev/net/tun"
LONGEST = 65535
_SETS_NAME = 0x400454CA  # TUNSETIFF, linux/if_tun.h
_TAP_WITHOUT_HEADER = 0x0002 | 0x1000  # IFF_TAP | IFF_NO_PI
_NETWORK = 0x40000000  # CLONE_NEWNET, linux/sched.h
_AT_ONCE = 64
"""Frames that are read from one host before the others get their turn."""


class SwitchSpec(msgspec.Struct, frozen=True):
    """`hosts` are namespaces in the order of their ports; `ways` are (port, port, links)."""

    hosts: tuple[str, ...]
    links: dict[str, LinkSpec]
    ways: tuple[tuple[int, int, tuple[str, ...]], ...]
    seed: int = 0


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """What shall be otherwise from now on; only what is stated."""

    cut: int | None = None
    heal: int | None = None
    ways: tuple[tuple[int, int, tuple[str, ...]], ...] = ()
    begun: float | None = None
    tell: bool = False


class Figures(msgspec.Struct, frozen=True):
    """Frames that passed and that were lost, and by how many milliseconds the switch itself was late with them."""

    passed: int
    lost: int
    late_ms: float
    latest_ms: float


@contextlib.contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """This thread in the network of a namespace. Python has `os.setns` only from 3.12 on."""
    system = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as own, open(f"{NAMESPACES}/{namespace}") as other:  # noqa: PTH123 - the descriptors
        if system.setns(other.fileno(), _NETWORK):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        try:
            yield
        finally:
            system.setns(own.fileno(), _NETWORK)


def open_tap(namespace: str) -> int:
    """A new TAP device in the namespace; the descriptor of its other end. Raises `OSError`."""
    with _inside(namespace):
        tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tap, _SETS_NAME, struct.pack("16sH14x", DEVICE.encode(), _TAP_WITHOUT_HEADER))
    return tap


class Switch:
    """Moves bytes until the standard input ends."""

    def __init__(self, spec: SwitchSpec) -> None:
        links = {name: make_link(name, link) for name, link in spec.links.items()}
        luck = random.Random(f"{spec.seed} switch")  # noqa: S311 - an emulated network
        self._fabric = Fabric(len(spec.hosts), links, luck)
        for way in spec.ways:
            self._fabric.join(*way)
        self._taps = [open_tap(host) for host in spec.hosts]
        self._ports = {tap: port for port, tap in enumerate(self._taps)}
        self._late = self._latest = 0.0
        self._orders = b""

    def run(self) -> None:
        fabric, orders = self._fabric, sys.stdin.fileno()
        watched = [orders, *self._taps]
        while True:
            at = fabric.next_at()
            wait = None if at is None else max(0.0, at - time.monotonic())
            for ready in select.select(watched, (), (), wait)[0]:
                if ready != orders:
                    self._read(ready)
                elif not self._obey():
                    return
            for port, frame, late in fabric.due(time.monotonic()):
                self._late += late
                self._latest = max(self._latest, late)
                with contextlib.suppress(OSError):  # the host's device is down or its queue is full: as on any wire
                    os.write(self._taps[port], frame)

    def _read(self, tap: int) -> None:
        port = self._ports[tap]
        for _ in range(_AT_ONCE):
            try:
                frame = os.read(tap, LONGEST)
            except OSError:
                return
            self._fabric.take(port, frame, time.monotonic())

    def _obey(self) -> bool:
        """False when the lab is gone or needs the switch no more."""
        data = os.read(sys.stdin.fileno(), 65536)
        *lines, self._orders = (self._orders + data).split(b"\n")
        for line in lines:
            order = msgspec.json.decode(line, type=Order)
            for port, cut in ((order.cut, True), (order.heal, False)):
                if port is not None:
                    self._fabric.cut(port, cut)
            for way in order.ways:
                self._fabric.join(*way)
            if order.begun is not None:
                self._fabric.begun = order.begun
            if order.tell:
                passed = self._fabric.passed
                mean = self._late / passed if passed else 0.0
                _say(Figures(passed, self._fabric.lost, mean * 1000, self._latest * 1000))
        return bool(data)


def _say(figures: Figures) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(figures) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    line = b""
    while not line.endswith(b"\n"):  # byte by byte: what follows belongs to `Switch`
        line += os.read(sys.stdin.fileno(), 1) or sys.exit("no spec")
    with contextlib.suppress(OSError):  # a switch that waits for a core would add to every delay
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    switch = Switch(msgspec.json.decode(line, type=SwitchSpec))
    _say(Figures(0, 0, 0.0, 0.0))
    switch.run()


if __name__ == "__main__":
    main()
