"""How busy this machine is, twice a second: cheap enough to be asked for the telemetry of a small board."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from nearfar.devices import temperature
from nearfar.devices.files import read_text
from nearfar.devices.throttle import Throttle
from nearfar.limits import cgroups, free_memory, usable_cores, usable_memory
from nearfar.types.units import Bytes, Celsius, Ratio


class Usage(NamedTuple):
    """One sample, as `NodeReport` wants it."""

    cpu: Ratio
    """Share of the usable cores that was busy since the sample before, 0 to 1."""
    memory_free: Bytes
    temperature: Celsius | None
    temperature_reason: str
    throttled: bool | None = None
    throttled_reason: str = ""


class _Work(NamedTuple):
    """CPU time so far, in seconds, and the moment it was read."""

    busy: float
    moment: float


class UsageSampler:
    """Takes the difference to the sample before; the first one covers the time since the sampler was made.

    In a container with a CPU quota, busy is what its cgroup used of the quota; else what all processes used of the
    usable cores (/proc/stat, proc(5)). Not safe for two threads at once.
    """

    def __init__(self, root: Path = Path("/"), cpus: Collection[int] | None = None) -> None:
        """`cpus` are the numbers of the usable cores; None asks the affinity of this process."""
        self._root = root
        self._cpus = _pinned() if cpus is None else frozenset(cpus)
        self._cores = usable_cores(root)
        self._sensors = temperature.sensors(root)
        self._throttle = Throttle(root)
        # The group that has the quota: its own time is what the quota is spent on. v1 keeps time in a second hierarchy.
        quota = self._cores.quota
        self._groups = [] if quota is None else [quota, *cgroups(root, "cpuacct")]
        self._before = self._work()
        self._cpu = 0.0
        self._free = Bytes(usable_memory(root).value)

    def sample(self, moment: float | None = None) -> Usage:
        """The machine now. `moment` is the monotonic clock in seconds, for tests."""
        now = self._work(moment)
        passed = now.moment - self._before.moment
        if passed > 0.05:  # the kernel counts in ticks of 10 ms: over less, the share would be noise
            self._cpu = min(1.0, max(0.0, (now.busy - self._before.busy) / (passed * self._cores.value)))
            self._before = now
        hot = temperature.hottest(self._sensors)
        celsius = None if hot.value is None else Celsius(float(hot.value))
        free = free_memory(self._root).value
        if (
            free >= 0
        ):  # else it cannot be read at this moment, for want of file descriptors perhaps: the last one stands
            self._free = Bytes(free)
        held = self._throttle.sample()
        throttled = None if held.value is None else bool(held.value)
        return Usage(Ratio(self._cpu), self._free, celsius, hot.reason, throttled, held.reason)

    def _work(self, moment: float | None = None) -> _Work:
        busy = self._group_work()
        if busy is None:
            busy = self._machine_work()
        return _Work(busy, time.monotonic() if moment is None else moment)

    def _group_work(self) -> float | None:
        for folder in self._groups:
            for line in (read_text(folder / "cpu.stat") or "").splitlines():
                name, _, value = line.partition(" ")
                if name == "usage_usec" and value.isdigit():
                    return int(value) / 1e6
            nanoseconds = read_text(folder / "cpuacct.usage")
            if nanoseconds and nanoseconds.isdigit():
                return int(nanoseconds) / 1e9
        return None

    def _machine_work(self) -> float:
        """Busy seconds of all cores, or of those that this process is pinned to."""
        text = read_text(self._root / "proc/stat") or ""
        if not self._cpus:
            return _busy_seconds(text.partition("\n")[0])
        wanted = {f"cpu{number}" for number in self._cpus}
        lines = (line for line in text.splitlines() if line.startswith("cpu"))
        return sum(_busy_seconds(line) for line in lines if line.partition(" ")[0] in wanted)


def _busy_seconds(line: str) -> float:
    """Everything in a cpu line of /proc/stat that is not idle or iowait; 0 for a line that is none."""
    words = line.split()
    if len(words) < 8 or not words[0].startswith("cpu") or not all(word.isdigit() for word in words[1:]):
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq = (int(word) for word in words[1:8])
    steal = int(words[8]) if len(words) > 8 else 0  # taken by the hypervisor: not ours to use, so busy
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _pinned() -> frozenset[int]:
    """Cores that this process is pinned to; empty when it may use all."""
    if not hasattr(os, "sched_getaffinity"):
        return frozenset()
    allowed = frozenset(os.sched_getaffinity(0))
    return allowed if len(allowed) < (os.cpu_count() or 1) else frozenset()


_TICKS = 100
"""Clock ticks per second (USER_HZ is 100 on every Linux architecture that nearfar runs on; `getconf CLK_TCK`)."""
