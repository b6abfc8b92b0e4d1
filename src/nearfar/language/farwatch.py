"""What a node serves while it runs: the models it was started with, those it is asked for since (`nearfar models
serve`), and the far ends of its home folder as they come and go.

`FarWatch.look` is asked twice a second and answers at once while nothing has changed: it costs a `stat` of every
manifest and of every key file. What cannot be read, or is half written, leaves its far end as it was, and is said once.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from nearfar.errors import ModelError, RuntimeUnavailable, StoreError
from nearfar.language.far import VARIANT, is_far
from nearfar.models.manifest import Manifest
from nearfar.models.store import Store
from nearfar.node.identity import read_later
from nearfar.node.plan import Wanted
from nearfar.runtimes.remote.description import FarEnd, read, read_key
from nearfar.types.ids import ModelName

log = logging.getLogger(__name__)


class _Stamp(msgspec.Struct, frozen=True):
    """A file as a look from outside knows it; zeros when it is not there."""

    path: str
    inode: int = 0
    changed: int = 0
    """Nanoseconds since 1970."""
    size: int = 0


class _End(msgspec.Struct, frozen=True):
    """A far end as it was read last."""

    sha256: str
    """Of its description."""
    key_file: _Stamp | None = None
    """Of the file that holds its key, if one does."""
    key: str = ""
    """A digest of the key itself, salted for this process."""
    refusal: str = ""
    """Why it cannot be served; "" when it can."""

    @property
    def revision(self) -> str:
        """Another one when a service would do another thing: its description or its key is another."""
        return f"{self.sha256} {self.key}"


class FarWatch:
    """Used by one thread at a time. What is wrong is logged, never raised."""

    def __init__(
        self,
        store: Store,
        node: str,
        models: Sequence[str],
        later: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`models`: what the node was started with, far ends or not; `later`: the file of those it is asked for since.
        Keys are read from `environment`, which is that of this process, as its services inherit it."""
        self._store = store
        self._node = node
        self._models = tuple(map(ModelName, models))
        self._later = later
        self._asked: tuple[str, ...] = ()
        self._environment = os.environ if environment is None else environment
        self._salt = os.urandom(32)
        self._ends: Mapping[str, _End] = {}
        self._seen: tuple[_Stamp, ...] | None = None
        """What there was at the last look; None: read again, whatever there is."""
        self._unread = False
        """A far end that was never served cannot be read; perhaps it can be at the next look."""
        self._given: Wanted | None = None
        self._told: frozenset[str] = frozenset()

    def look(self) -> Wanted | None:
        """What is wanted now; None when that is the same as at the last look. The first time always something."""
        seen = self._stamps()
        if seen is not None and seen == self._seen:
            return None
        troubles: set[str] = set()
        self._unread = False
        self._ends = self._read(troubles)
        try:
            self._asked = read_later(self._later) if self._later is not None else ()
        except StoreError as error:
            troubles.add(str(error))
        self._seen = None if troubles or self._unread else seen
        for trouble in sorted(troubles - self._told):
            log.warning("%s: what it serves stays as it was: %s", self._node, trouble)
        self._told = frozenset(troubles)
        wanted = self._wanted()
        if wanted == self._given:
            return None
        self._given = wanted
        return wanted

    def _stamps(self) -> tuple[_Stamp, ...] | None:
        """Of all that decides what is wanted; None when that cannot be told."""
        try:
            with os.scandir(self._store.manifests) as entries:
                found = [_stamp(entry.path) for entry in entries if entry.name.endswith(".toml")]
        except FileNotFoundError:
            found = []
        except OSError:
            return None
        if self._later is not None:
            found.append(_stamp(str(self._later)))
        keys = [_stamp(end.key_file.path) for end in self._ends.values() if end.key_file is not None]
        return tuple(sorted((*found, *keys), key=lambda stamp: stamp.path))

    def _read(self, troubles: set[str]) -> Mapping[str, _End]:
        """The far ends as they are now; those that cannot be read, and why, as they were."""
        before = self._ends
        try:
            listed, broken = self._store.list(), self._store.broken()
        except ModelError as error:
            troubles.add(str(error))
            return before
        if before and not self._store.manifests.is_dir():  # removing the last one leaves the folder
            troubles.add(f"The folder {self._store.manifests} is gone.")
            return before
        ends = {name: end for name, end in before.items() if name in broken}
        troubles.update(broken[name] for name in ends)
        for manifest in filter(is_far, listed):
            try:
                ends[manifest.name] = self._end(manifest, troubles)
            except ModelError as error:
                known = before.get(manifest.name)
                if known is None or known.refusal:
                    self._unread = True
                    ends[manifest.name] = _End(manifest.variant(VARIANT).sha256, refusal=str(error))
                else:
                    troubles.add(str(error))
                    ends[manifest.name] = known
        return ends

    def _end(self, manifest: Manifest, troubles: set[str]) -> _End:
        sha256 = manifest.variant(VARIANT).sha256
        far = read(self._store.get(manifest.name).open(VARIANT))
        file = _stamp(str(Path(far.key_file).expanduser())) if far.key_file else None
        try:
            key = read_key(far, self._environment)
        except RuntimeUnavailable as error:
            before = self._ends.get(manifest.name)
            if before is not None and not before.refusal and before.sha256 == sha256:
                troubles.add(str(error))  # its key file is being written, or lost: who runs has read it
                return before
            return _End(sha256, file, refusal=self._refusal(far, error))
        return _End(sha256, file, self._digest(key.value) if key is not None else "")

    def _digest(self, key: str) -> str:
        return hashlib.blake2b(key.encode(), key=self._salt, digest_size=16).hexdigest()

    def _refusal(self, far: FarEnd, error: RuntimeUnavailable) -> str:
        name = far.key_env
        if not name or self._environment.get(name, "").strip():
            return str(error)
        return (
            f"{name} is not set in the environment of node {self._node}. Stop the node, type: export {name}=..., and "
            "start it again with nearfar up; or add the far end again with --key-file FILE, which needs no restart."
        )

    def _wanted(self) -> Wanted:
        able = [ModelName(name) for name, end in sorted(self._ends.items()) if not end.refusal]
        refused = {ModelName(name): end.refusal for name, end in self._ends.items() if end.refusal}
        told = [name for name in (*self._models, *map(ModelName, self._asked)) if name not in refused]
        told = list(dict.fromkeys(told))
        revisions = {ModelName(name): end.revision for name, end in self._ends.items()}
        return Wanted((*told, *(name for name in able if name not in told)), revisions, refused)


def _stamp(path: str) -> _Stamp:
    try:
        state = Path(path).stat()
    except OSError:
        return _Stamp(path)
    return _Stamp(path, state.st_ino, state.st_mtime_ns, state.st_size)
