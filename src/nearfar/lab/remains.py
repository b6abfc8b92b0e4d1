"""Nothing of a lab is left behind: its processes, namespaces and folder are known by a mark, and taken away by it.

A mark holds the pid of the lab. `keeper.py` clears when the lab dies however it dies, and each new lab clears what dead
ones left, should their keepers have died with them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import IO

VARIABLE = "NFLAB_MARK"
"""Set in the environment of every process of a lab. No setting: what nodes read begins otherwise."""
PREFIX = "nflab-"
LOCK = "lab"
_MARK = re.compile(rf"{PREFIX}(\d+)-[0-9a-f]+")
_GONE_LIMIT = 10.0


def new_mark() -> str:
    """A mark of this process: a prefix of names and the value of `VARIABLE`."""
    return f"{PREFIX}{os.getpid()}-{uuid.uuid4().hex[:6]}"


def folder_of(mark: str) -> Path:
    """Where a lab keeps its nodes' homes."""
    return Path(tempfile.gettempdir()) / mark


def take_folder(mark: str) -> IO[bytes]:
    """Make the folder. As long as the file that comes back is open, the lab lives; the kernel closes it with us."""
    folder = folder_of(mark)
    folder.mkdir(mode=0o700)
    held = (folder / LOCK).open("wb")
    fcntl.flock(held, fcntl.LOCK_EX)
    return held


def clear(mark: str) -> None:
    """Kill the processes with the mark, remove the namespaces whose names begin with it, and its folder."""
    end = time.monotonic() + _GONE_LIMIT
    while (found := _processes(mark)) and time.monotonic() < end:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        time.sleep(0.05)
    for name in namespaces():
        if name.startswith(mark):
            subprocess.run(("ip", "netns", "delete", name), check=False, capture_output=True)
    shutil.rmtree(folder_of(mark), ignore_errors=True)


def clear_dead() -> list[str]:
    """Clear after labs whose process is gone; their marks."""
    marks = {match[0] for name in namespaces() if (match := _MARK.match(name))}
    marks |= {match[0] for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if (match := _MARK.match(path.name))}
    dead = [mark for mark in sorted(marks) if not _lives(mark)]
    for mark in dead:
        clear(mark)
    return dead


def namespaces() -> list[str]:
    """Names of the network namespaces of this machine; none where there is nothing of the kind."""
    try:
        return sorted(os.listdir("/run/netns"))  # noqa: PTH208 - names only
    except OSError:
        return []


def _lives(mark: str) -> bool:
    try:
        with (folder_of(mark) / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no folder yet, or no more
        match = _MARK.fullmatch(mark)
        return match is None or Path(f"/proc/{match[1]}").exists()
    return False


def _processes(mark: str) -> list[int]:
    """Pids of the living processes that carry the mark."""
    wanted = f"{VARIABLE}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
