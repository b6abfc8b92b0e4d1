"""The far ends of one machine: each is a model in the store whose only file describes it, served like any other."""

from __future__ import annotations

import difflib
import hashlib
import tempfile
from pathlib import Path

from nearfar.errors import ManifestError, UnknownModel
from nearfar.models.manifest import Manifest, manifest_of
from nearfar.models.store import Store, StoredModel
from nearfar.runtimes.remote.description import FarEnd, check, read, to_toml

FORMAT = "far"
VARIANT = "far"


def add(store: Store, name: str, far: FarEnd) -> Manifest:
    """Put a far end into the store, or another in place of the one of that name.

    Raises `ModelFileError` naming the field, `ManifestError` for a name that will not do or is that of a model of
    another kind, `StoreError`.
    """
    check(far)
    try:
        known = store.get(name).manifest
    except UnknownModel:
        known = None
    if known is not None and not is_far(known):
        raise ManifestError(f"{name!r} is a model of this machine.", "Give the far end another name.")
    text = to_toml(far).encode()
    manifest = manifest_of(
        {
            "schema": 1,
            "name": name,
            "task": "chat",
            "description": f"{far.model} at {far.host}",
            "provenance": {"far_end": far.host, "model": far.model},
            "variants": [
                {
                    "id": VARIANT,
                    "format": FORMAT,
                    "precision": "mixed",  # a far end does not tell
                    "file": f"{name}.far.toml",
                    "sha256": hashlib.sha256(text).hexdigest(),
                    "bytes": len(text),
                    "runtimes": ["remote"],
                }
            ],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "far.toml"
        file.write_bytes(text)
        return store.add(file, manifest)


def is_far(manifest: Manifest) -> bool:
    return any(variant.format == FORMAT for variant in manifest.variants)


def names(store: Store) -> tuple[str, ...]:
    """Names of all far ends in the store, sorted."""
    return tuple(manifest.name for manifest in store.list() if is_far(manifest))


def file_of(store: Store, name: str) -> Path:
    """The file that describes a far end, checked. Raises `UnknownModel` with the nearest name, `ModelFileError`."""
    return _get(store, name).open(VARIANT)


def get(store: Store, name: str) -> FarEnd:
    """Raises as `file_of`."""
    return read(file_of(store, name))


def remove(store: Store, name: str) -> None:
    """Forget a far end; its rows in the ledger stay. Raises `UnknownModel` with the nearest name, `StoreError`."""
    _get(store, name)
    store.remove(name)


def _get(store: Store, name: str) -> StoredModel:
    known = names(store)
    if name in known:
        return store.get(name)
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    have = f"There are: {', '.join(known)}." if known else "There is none yet: `nearfar far add --help` says how."
    raise UnknownModel(f"There is no far end {name!r}{guess}.", have)
