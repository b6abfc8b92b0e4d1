"""What the operating system lets this process use: cores and memory, after affinity and cgroup limits.

Its own file on a low floor, because both the default of a setting and the description of a device need it. Reads only
below `root`, so that a test can hand over a tree of its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_UNLIMITED_V1 = 1 << 60
"""cgroup v1 writes a page-rounded 2^63 for "no limit"."""


class Cores(NamedTuple):
    """`value` may be a fraction: a cgroup gives time, not cores."""

    value: float
    reason: str
    quota: Path | None = None
    """Folder of the cgroup that sets the limit, when one does."""


class Memory(NamedTuple):
    """Bytes; 0 when nothing could be read."""

    value: int
    reason: str


def usable_cores(root: Path = Path("/")) -> Cores:
    """Cores this process may keep busy: the least of affinity and the CPU quotas of its cgroups.

    Sources: sched(7); Linux admin guide, cgroup-v2 `cpu.max`, and sched-bwc (v1 `cpu.cfs_quota_us`).
    """
    if root == Path("/") and hasattr(os, "sched_getaffinity"):
        count, reason = float(len(os.sched_getaffinity(0))), "CPU affinity of this process"
    else:
        count, reason = float(_listed_cores(root) or os.cpu_count() or 1), "cores that /proc/cpuinfo lists"
    limited: Path | None = None
    for folder in cgroups(root, "cpu"):
        quota, place = _quota(folder)
        if quota is not None and quota < count:
            count, reason, limited = quota, f"CPU quota in {_shown(place, root)}", folder
    return Cores(count, reason, limited)


def usable_memory(root: Path = Path("/")) -> Memory:
    """Bytes of memory this process may use: the least of what the machine has and the limits of its cgroups."""
    total = meminfo(root).get("MemTotal", 0)
    reason = "MemTotal in /proc/meminfo" if total else "/proc/meminfo could not be read"
    for folder in cgroups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(folder / name)
            if limit is not None and limit < _UNLIMITED_V1 and (limit < total or not total):
                total, reason = limit, f"limit in {_shown(folder / name, root)}"
    return Memory(total, reason)


def free_memory(root: Path = Path("/")) -> Memory:
    """Bytes that can still be had without swapping: the least of MemAvailable and the room below each cgroup limit; -1
    when that cannot be read.

    Page cache that the kernel would give back (`inactive_file`) counts as free, as in the kernel's own MemAvailable.
    """
    info = meminfo(root)
    if not info:
        return Memory(-1, "/proc/meminfo could not be read")
    free = info.get("MemAvailable", info.get("MemFree", 0))
    reason = "MemAvailable in /proc/meminfo"
    for folder in cgroups(root, "memory"):
        for limit_name, usage_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _number(folder / limit_name), _number(folder / usage_name)
            if limit is None or used is None or limit >= _UNLIMITED_V1:
                continue
            cache = _stat(folder / "memory.stat", ("total_inactive_file", "inactive_file"))
            room = max(0, limit - max(0, used - cache))
            if room < free:
                free, reason = room, f"room below {_shown(folder / limit_name, root)}"
    return Memory(free, reason)


def meminfo(root: Path = Path("/")) -> dict[str, int]:
    """/proc/meminfo in bytes; empty when it cannot be read."""
    found: dict[str, int] = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def cgroups(root: Path, controller: str) -> list[Path]:
    """Folders of this process's cgroup for a controller, and of all its parents: the tightest limit counts.

    Inside a container the path in /proc/self/cgroup may be the host's and absent here; then the mount point is it.
    """
    found: list[Path] = []
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        names = parts[1].split(",")
        if parts[1] == "":  # v2
            mounts = [base, base / "unified"]
        elif controller in names:
            mounts = [base / parts[1], base / controller]
        else:
            continue
        for mount in mounts:
            folder = mount / parts[2].lstrip("/")
            while True:
                if folder not in found and folder.is_dir():
                    found.append(folder)
                if folder == mount or mount not in folder.parents:
                    break
                folder = folder.parent
    return found


def _quota(folder: Path) -> tuple[float | None, Path]:
    words = _text(folder / "cpu.max").split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
        return int(words[0]) / int(words[1]), folder / "cpu.max"
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    if quota and period:
        return quota / period, folder / "cpu.cfs_quota_us"
    return None, folder


def _listed_cores(root: Path) -> int:
    return sum(line.startswith("processor") for line in _text(root / "proc/cpuinfo").splitlines())


def _stat(path: Path, names: tuple[str, ...]) -> int:
    found = dict(line.split(maxsplit=1) for line in _text(path).splitlines() if " " in line)
    return next((int(found[name]) for name in names if found.get(name, "").isdigit()), 0)


def _number(path: Path) -> int | None:
    """A file's non-negative number; None when absent, `max` or -1."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _shown(path: Path, root: Path) -> str:
    """A path as the machine itself names it, without a test's root."""
    return f"/{path.relative_to(root)}"
