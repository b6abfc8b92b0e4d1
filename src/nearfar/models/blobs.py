"""Files by the sha256 of their contents, written so that what is there is whole.

Every write goes to a partial file in the folder where the result will lie, is synced, and renamed. Writers of one store
exclude each other by a lock that the kernel frees when a process dies, so a partial file that is found under the lock
belongs to nobody and is removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nearfar.errors import ModelFileError, StoreError
from nearfar.types.units import show_bytes

_PARTIAL = ".partial-"
_CHUNK = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def blob_path(root: Path, sha256: str) -> Path:
    """Where contents of this hash lie. `sha256` was checked to be 64 hexadecimal digits."""
    return root / "blobs" / "sha256" / sha256[:2] / sha256


def sha256_of(path: Path) -> str:
    """The hash of a file in lower-case hexadecimal. Raises `ModelFileError` when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise ModelFileError(f"{path} cannot be read: {e.strerror}.", "Check the path and its permissions.") from e


@contextlib.contextmanager
def locked(root: Path, needed: int = 0) -> Iterator[None]:
    """Alone in the store, over processes and threads; left-over partial files are gone on entry.

    Waits for the other writer. `needed` is for the message: bytes that will be written. Raises `StoreError` when the
    folder cannot be made or written.
    """
    with _translated(root, needed):
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with _translated(root, 0):
            for folder in ("manifests", "answers", "blobs/sha256/*"):
                for left in root.glob(f"{folder}/{_PARTIAL}*"):
                    left.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def write_blob(root: Path, source: Path) -> tuple[str, int]:
    """Copy a file in; its sha256 and length in bytes. Call it under `locked`.

    Raises `ModelFileError` when the source cannot be read, `StoreError` when the copy cannot be written.
    """
    sha256 = sha256_of(source)
    size = source.stat().st_size
    target = blob_path(root, sha256)
    if target.is_file() and sha256_of(target) == sha256:
        return sha256, size
    with _translated(root, size):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.parent / f"{_PARTIAL}{os.getpid()}"
        try:
            digest = _copy(source, partial)
            if digest != sha256:
                raise ModelFileError(f"{source} changed while it was read.", "Wait until it is written, then add it.")
            partial.chmod(0o444)
            _into_place(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    return sha256, size


def write_text(path: Path, text: str, root: Path) -> None:
    """Replace a small file in one step. Call it under `locked`; raises `StoreError`."""
    data = text.encode()
    with _translated(root, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.parent / f"{_PARTIAL}{os.getpid()}"
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _into_place(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def remove(path: Path, root: Path) -> None:
    """Delete a file of the store if it is there. Raises `StoreError`."""
    with _translated(root, 0):
        path.unlink(missing_ok=True)


def _copy(source: Path, partial: Path) -> str:
    digest = hashlib.sha256()
    with source.open("rb") as reader, partial.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def _into_place(partial: Path, target: Path) -> None:
    partial.replace(target)
    # The rename itself must last too, or a power cut leaves a manifest whose file is not there.
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _translated(root: Path, needed: int) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in _FULL:
            raise StoreError(
                f"The disk of the model store {root} is full: {show_bytes(needed)} ({needed} bytes) are needed, "
                f"{_free(root)} are free. Nothing was kept.",
                "Free some space (`nearfar models remove NAME`), or set NEARFAR_HOME to a folder on another disk.",
            ) from e
        raise StoreError(
            f"The model store {root} cannot be written: {e.strerror or e}.",
            f"{needed} bytes are needed; check its permissions, or set NEARFAR_HOME to another folder.",
        ) from e


def _free(root: Path) -> str:
    try:
        return show_bytes(shutil.disk_usage(root).free)
    except OSError:
        return "an unknown number of bytes"
