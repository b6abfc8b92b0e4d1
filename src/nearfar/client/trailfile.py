"""A trail on the disk: `streams/<stream>/trail.jsonl` in the home folder, its older part beside it as `.1`.

Only whole lines are appended, so what a killed process leaves can be read as far as it goes. The file is locked while
its stream runs: the kernel lets go of the lock when the process dies, and that tells a running stream from a dead one.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from nearfar.placement import trail as entries
from nearfar.types.ids import StreamId, is_name

FOLDER, FILE, OLDER = "streams", "trail.jsonl", "trail.jsonl.1"
LIMIT = 8 * 1024 * 1024
"""Bytes of one file; a trail has two at most."""
TAIL = 256 * 1024
"""Bytes at a file's end in which the newest entries are looked for without reading all of it."""


def folder_of(home: Path, stream: StreamId) -> Path:
    """Raises `ValueError` for what is no name: a path is never made of anything else."""
    if not is_name(stream):
        raise ValueError(f"{stream!r} is no stream's name")
    return home / FOLDER / stream


class TrailFile:
    """The writer's side. All methods raise `OSError`; used from one thread."""

    def __init__(self, home: Path, stream: StreamId, limit: int = LIMIT) -> None:
        self._folder = folder_of(home, stream)
        self._limit = limit
        self._file: io.FileIO | None = None
        self._size = 0

    def open(self) -> int:
        """Open and lock; the highest number in it, -1 for a new one.

        Raises `BlockingIOError` when another process writes it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._open()
        last = -1
        for path in (self._folder / FILE, self._folder / OLDER):
            with contextlib.suppress(FileNotFoundError):
                last = max([last, *(entry.number for entry in entries.read(_tail(path)))])
        return last

    def _open(self) -> None:
        file = io.FileIO(self._folder / FILE, "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size = file.seek(0, os.SEEK_END)
            if self._size:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a process was killed in the middle of a line
                    self._size += file.write(b"\n")
        except BaseException:
            file.close()
            raise
        self._file = file

    def append(self, data: bytes, head: bytes) -> None:
        """Add whole lines; `head` opens the next file when this one is full. On a full disk nothing of `data` stays.

        Does nothing once it is closed.
        """
        if self._file is None:
            return
        if self._size and self._size + len(data) > self._limit:
            (self._folder / FILE).replace(self._folder / OLDER)
            self._file.close()
            self._open()
            data = head + data
        before, rest = self._size, memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            raise
        self._size += len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def prune(home: Path, keep: int) -> None:
    """Remove the trails of the longest ended streams beyond `keep`. Those that run stay, and what is not ours."""
    found = sorted(recent(home), key=lambda item: item[1], reverse=True)
    for stream, _ in found[keep:]:
        folder = folder_of(home, stream)
        if is_running(folder / FILE):
            continue
        for name in (FILE, OLDER):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        with contextlib.suppress(OSError):  # it holds something of somebody else's
            folder.rmdir()


def recent(home: Path) -> list[tuple[StreamId, float]]:
    """(stream, when it was last written to) of every trail in the home folder. Empty when there is none."""
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for folder in (home / FOLDER).iterdir():
            if is_name(folder.name):
                with contextlib.suppress(OSError):
                    found.append((StreamId(folder.name), (folder / FILE).stat().st_mtime))
    return found


def is_running(path: Path) -> bool:
    """Whether a process holds this file, which it does as long as the stream runs."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read(home: Path, stream: StreamId, since: int = -1) -> list[entries.AnyEntry]:
    """The entries with a number above `since`; empty when there is no such trail. Raises `OSError`."""
    folder = folder_of(home, stream)
    lines: list[bytes] = []
    for name in (OLDER, FILE):
        with contextlib.suppress(FileNotFoundError):
            lines += (folder / name).read_bytes().splitlines()
    return entries.read(lines, since)


def glance(home: Path, stream: StreamId) -> entries.Status | None:
    """The stream in one line, from the first and the last lines of its file; None when there is no trail."""
    path = folder_of(home, stream) / FILE
    try:
        with path.open("rb") as file:
            first = file.readline(64 * 1024)
        newest = entries.read([first, *_tail(path)])
    except OSError:
        return None
    return status_of(stream, newest, running=is_running(path))


def status_of(stream: StreamId, known: list[entries.AnyEntry], *, running: bool) -> entries.Status | None:
    """The stream in one line, as its entries tell it; None when they do not say what it is."""
    status: entries.Status | None = None
    for entry in known:
        match entry:
            case entries.Started():
                # Taken up once more, it is the same stream, and no longer over.
                since = status.since if status is not None else entry.at
                status = entries.Status(stream, entry.model, since, running, entry.source, entry.by)
            case entries.Decided() if status is not None and entry.chosen is not None:
                status = msgspec.structs.replace(status, served_by=entry.chosen, last=entry.until)
            case entries.Level() if status is not None:
                status = msgspec.structs.replace(status, level=entry.level)
            case entries.HandedOver() if status is not None:
                status = msgspec.structs.replace(status, handed_to=entry.target)
            case entries.Ended() if status is not None:
                status = msgspec.structs.replace(status, ended=entry.reason, counts=entry.counts)
        if status is not None:
            status = msgspec.structs.replace(status, last=max(status.last, entry.at))
    return status


def _tail(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        lines = file.read(TAIL).splitlines()
    return lines if size <= TAIL else lines[1:]


class Writer:
    """One thread that does what may wait for a disk, in order, so that no stream ever does.

    A daemon: a disk that hangs does not keep the process from its end. `post` may be called from any thread.
    """

    most = 10_000
    """Pieces of work that may wait; a disk that is this far behind counts as broken."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def post(self, work: Callable[[], None]) -> bool:
        """Do this soon; False when too much is waiting already. `work` answers for its own exceptions."""
        if self._work.qsize() > self.most:
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="trails", daemon=True)
            self._thread.start()
        self._work.put(work)
        return True

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def close(self, timeout: float = 2.0) -> None:
        """Do what is left, for `timeout` seconds at most."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join(timeout)
            self._thread = None
