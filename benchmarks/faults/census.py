"""What is left over: processes, descriptors, threads, doors, files, memory; each compared with the calm before."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from pathlib import Path

import msgspec
import psutil

from benchmarks.faults.fleet import Broken, Fleet
from nearfar.mesh.door import address
from nearfar.node import keys
from nearfar.types.ids import ModelName, NodeId, service_id

SPARE = 12
"""Descriptors and threads that a survivor may have more than in its first calm: links that are just being replaced."""
GROWTH_MIB = 24.0
"""What a process may grow over a whole soak, by a robust fit (Theil-Sen) over its calm moments after the first two."""
LEAST_POINTS = 6
GROWN_UP = 15.0
"""Seconds of a process's life in which it may still open what it needs."""
SETTLE = 40.0
"""Seconds within which what is left over must have gone. The mesh keeps threads for ten seconds after a burst."""
_LISTENING = 0x10000  # __SO_ACCEPTCON in the flags of /proc/net/unix
_MIB = 1 << 20


class Life(msgspec.Struct):
    """One process as long as it lives."""

    words: str
    descriptors: int
    threads: int
    memory: list[tuple[float, float]] = []
    """(seconds, MiB) at each calm moment."""


class Census:
    """Call `take` at every calm moment."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._lives: dict[tuple[int, float], Life] = {}
        self._files: dict[str, set[str]] | None = None

    def take(self) -> str:
        """What was left over at first, and for how long; empty when nothing was. Raises `Broken` when it does not go
        within `SETTLE` seconds."""
        start = time.monotonic()
        end = start + SETTLE
        first = ""
        while left := self._left():
            first = first or left[0]
            if time.monotonic() > end:
                raise Broken("; ".join(left))
            time.sleep(0.25)
        for process, life in self._survivors():
            with contextlib.suppress(psutil.Error):
                life.memory.append((time.monotonic(), process.memory_full_info().uss / _MIB))
        return f"for {time.monotonic() - start:.1f} s {first}" if first else ""

    def _survivors(self) -> list[tuple[psutil.Process, Life]]:
        found = []
        for process in self._fleet.processes():
            with contextlib.suppress(psutil.Error):
                key = (process.pid, process.create_time())
                life = self._lives.get(key)
                if life is None:
                    words = " ".join(process.cmdline()[-1:])[-60:]
                    life = self._lives[key] = Life(words, 0, 0)
                if time.time() - process.create_time() < GROWN_UP:
                    life.descriptors = max(life.descriptors, process.num_fds())
                    life.threads = max(life.threads, process.num_threads())
                life.descriptors = life.descriptors or process.num_fds()
                life.threads = life.threads or process.num_threads()
                found.append((process, life))
        return found

    def _left(self) -> list[str]:
        return [*self._strangers(), *self._grown(), *self._doors(), *self._new_files()]

    def _strangers(self) -> list[str]:
        """Processes that bear our mark and are none of those that shall be there."""
        fleet = self._fleet
        wanted = {pid for node in fleet.nodes for pid in (node.pid, *(node.service_pid(m) for m in node.models))}
        wanted |= {asker.process.pid for asker in fleet.askers}
        wanted |= {fleet.watcher.process.pid} if fleet.watcher else set()
        left = []
        for process in fleet.processes():
            with contextlib.suppress(psutil.Error):
                if process.pid not in wanted:
                    left.append(f"process {process.pid} is left: {' '.join(process.cmdline())[-120:]}")
        return left

    def _grown(self) -> list[str]:
        left = []
        for process, life in self._survivors():
            with contextlib.suppress(psutil.Error):
                descriptors, threads = process.num_fds(), process.num_threads()
                if descriptors > life.descriptors + SPARE:
                    left.append(f"{life.words} ({process.pid}) has {descriptors} descriptors, had {life.descriptors}")
                if threads > life.threads + SPARE:
                    left.append(f"{life.words} ({process.pid}) has {threads} threads, had {life.threads}")
        return left

    def _doors(self) -> list[str]:
        """Sockets that are listened at under a name of ours, and are nobody's."""
        fleet = self._fleet
        wanted = set()
        for node in fleet.nodes:
            names = [keys.service_key(service_id(NodeId(node.name), ModelName(m))) for m in node.models]
            wanted |= {address(fleet.name, key) for key in (*names, keys.ping_key(NodeId(node.name)))}
        known = wanted | {address(fleet.name, keys.ping_key(NodeId("guest")))}
        left = []
        for node in fleet.nodes:
            place = node.place
            lines = place.inside(lambda place=place: place.sockets.read_text())  # type: ignore[misc]
            rows = [line.split() for line in lines.splitlines()[1:]]
            names = [row[7].replace("@", "\0") for row in rows if len(row) > 7 and int(row[3], 16) & _LISTENING]
            left += [f"a door of nobody is open: {name}" for name in names if name in known - wanted]
            left += [f"a door is open twice: {name}" for name in names if name in wanted and names.count(name) > 1]
        return left

    def _new_files(self) -> list[str]:
        now = {node.name: _files(node.home) for node in self._fleet.nodes} | {"tmp": _files(self._fleet.temporary)}
        if self._files is None:
            self._files = now
        return [
            f"a file is left in the home of {name}: {file}"
            for name, files in now.items()
            for file in sorted(files - self._files[name])
        ]

    def memory(self) -> tuple[list[dict[str, object]], list[str]]:
        """Growth of each process that lived long enough, and what grew too much."""
        told: list[dict[str, object]] = []
        wrong = []
        for life in self._lives.values():
            points = life.memory[2:]
            if len(points) < LEAST_POINTS:
                continue
            growth = slope(points) * (points[-1][0] - points[0][0])
            told.append(
                {
                    "process": life.words,
                    "seconds": round(points[-1][0] - points[0][0]),
                    "mib": round(points[-1][1], 1),
                    "growth_mib": round(growth, 1),
                    "lately_mib_per_hour": round(3600 * slope(points[len(points) // 2 :]), 1),
                }
            )
            if growth > GROWTH_MIB:
                wrong.append(f"{life.words} grew by {growth:.0f} MiB in {points[-1][0] - points[0][0]:.0f} s")
        return told, wrong


def slope(points: list[tuple[float, float]]) -> float:
    """The median slope of all pairs (Theil 1950, Sen 1968): a few outliers do not move it.

    >>> slope([(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 90.0), (4.0, 5.0)])
    1.0
    """
    pairs = itertools.combinations(points, 2)
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if b[0] > a[0])


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
