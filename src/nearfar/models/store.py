"""The models of one machine: manifests by name, files by content, and the embedded models behind them.

    <root>/manifests/<name>.toml
    <root>/blobs/sha256/ab/abcd...
    <root>/answers/<sha256 of a file>.json      what that file answers to the question of the self-test, if it was asked

Reading takes no lock: a manifest is replaced in one step, and its files are there before it is.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from nearfar.errors import ManifestError, ModelError, ModelFileError, StoreError, UnknownModel
from nearfar.models import blobs, embedded
from nearfar.models.manifest import LONGEST_TEXT, Manifest, Variant, parse_manifest
from nearfar.models.manifest_toml import to_toml
from nearfar.types.ids import is_name

ANSWER = ".answer.json"
"""Behind the name of an embedded model's file: its recorded answer."""


class StoredModel(msgspec.Struct, frozen=True):
    """A model and where the file of each variant lies. An embedded one cannot be changed or removed."""

    manifest: Manifest
    paths: Mapping[str, Path]
    embedded: bool = False
    answers: Mapping[str, Path] = {}
    """Where the recorded answer of each variant lies; not all have one."""

    def answer(self, variant_id: str) -> str:
        """The recorded answer of a variant to the question of the self-test, as it was kept; "" when there is none."""
        try:
            return self.answers[variant_id].read_text(encoding="utf-8")
        except (KeyError, OSError, UnicodeDecodeError):
            return ""  # the service then learns its own, and says so

    def open(self, variant_id: str) -> Path:
        """The path of a variant's file, after its length and sha256 were checked: for serving.

        Raises `ManifestError` for an unknown variant, `ModelFileError` when the file is not what the manifest says.
        """
        variant = self.manifest.variant(variant_id)
        path = self.paths[variant_id]
        again = f"Run `nearfar models remove {self.manifest.name}` and add or pull it again."
        if self.embedded:
            again = "Install nearfar again."
        try:
            size = path.stat().st_size
        except OSError:
            raise ModelFileError(f"The file of {self.manifest.name}/{variant_id} is gone.", again) from None
        if size != variant.bytes:
            raise ModelFileError(
                f"The file of {self.manifest.name}/{variant_id} has {size} bytes, not {variant.bytes}.", again
            )
        if (found := blobs.sha256_of(path)) != variant.sha256:
            raise ModelFileError(
                f"The file of {self.manifest.name}/{variant_id} has the sha256 {found}, not {variant.sha256}.", again
            )
        return path


class Store:
    """`root` is made when something is first added. Safe for several processes and threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # A node lists its models twice a second: what did not change is not parsed again.
        self._parsed: dict[str, tuple[tuple[int, int, int], Manifest]] = {}

    @property
    def manifests(self) -> Path:
        """The folder of the manifests: it changes whenever a model is added, changed or removed."""
        return self.root / "manifests"

    def add(self, file: Path, manifest: Manifest, variant_id: str | None = None) -> Manifest:
        """Take a file in as one variant of `manifest` (the only one when `variant_id` is None), replacing or extending
        what is stored under that name; the manifest as it stands then.

        Its sha256 and length in the manifest must be the file's. Other variants that are stored are kept when task,
        labels, input and decoder stay as they are, and dropped when these change, for they would no longer fit.
        Raises `ManifestError`, `ModelFileError`, `StoreError`.
        """
        if variant_id is None and len(manifest.variants) != 1:
            raise ManifestError(
                f"The manifest of {manifest.name!r} has {len(manifest.variants)} variants, one file was given.",
                "Say which variant the file is.",
            )
        variant = manifest.variants[0] if variant_id is None else manifest.variant(variant_id)
        self.check_free(manifest.name)
        with blobs.locked(self.root, variant.bytes):
            sha256, size = blobs.write_blob(self.root, file)
            if (sha256, size) != (variant.sha256, variant.bytes):
                self._collect()
                raise ModelFileError(
                    f"{file.name} has {size} bytes and the sha256 {sha256}; the manifest says {variant.bytes} bytes "
                    f"and {variant.sha256}.",
                    "Fetch the file again, or correct the manifest.",
                )
            merged = self._merged(manifest, variant)
            try:
                blobs.write_text(self._manifest_path(manifest.name), to_toml(merged), self.root)
            finally:
                self._collect()
        return merged

    def check_free(self, name: str) -> None:
        """Raise `ManifestError` when the name belongs to an embedded model, which cannot be changed."""
        if name in embedded.folders():
            raise ManifestError(f"{name!r} is the name of an embedded model.", "Give another with --name.")

    def list(self) -> tuple[Manifest, ...]:
        """All models that can be read, sorted by name, embedded ones included; see `broken` for the others."""
        return self._all()[0]

    def broken(self) -> dict[str, str]:
        """Names of manifests that cannot be read, each with the reason."""
        return self._all()[1]

    def get(self, name: str) -> StoredModel:
        """A model by name; a stored one comes before an embedded one.

        Raises `UnknownModel` with the nearest name, `ManifestError` or `StoreError` when its manifest cannot be read.
        """
        if is_name(name):
            manifest = self._read(name)
            if manifest is not None:
                paths = {v.id: blobs.blob_path(self.root, v.sha256) for v in manifest.variants}
                answers = {v.id: self._answer_path(v.sha256) for v in manifest.variants}
                return StoredModel(manifest, paths, answers=answers)
            if name in embedded.folders():
                of_package, files = embedded.read(name)
                told = {variant: path.with_name(path.name + ANSWER) for variant, path in files.items()}
                return StoredModel(of_package, files, True, told)
        known = self._names()
        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        have = f"There are: {', '.join(known)}." if known else "The store is empty: run `nearfar models add FILE`."
        raise UnknownModel(f"There is no model {name!r}{guess}.", have)

    def keep_answer(self, sha256: str, answer: str) -> None:
        """Keep what the file of this sha256 answers to the question of the self-test. Raises `StoreError`."""
        with blobs.locked(self.root):
            blobs.write_text(self._answer_path(sha256), answer, self.root)

    def remove(self, name: str) -> None:
        """Forget a model and delete the files that no other one needs.

        Raises `UnknownModel`, `ManifestError` for an embedded one, `StoreError`. A manifest that cannot be read is
        removed too.
        """
        stored = is_name(name) and self._manifest_path(name).is_file()
        if not stored:
            self.get(name)  # says what is wrong with the name
            raise ManifestError(f"{name!r} is embedded.", "It cannot be removed; stop serving it instead.")
        with blobs.locked(self.root):
            blobs.remove(self._manifest_path(name), self.root)
            self._collect()

    def verify(self, name: str) -> dict[str, str]:
        """Hash every file of a model: what is wrong by variant id, empty when all is well. Raises as `get` does."""
        model = self.get(name)
        wrong: dict[str, str] = {}
        for variant in model.manifest.variants:
            try:
                model.open(variant.id)
            except ModelFileError as e:
                wrong[variant.id] = str(e)
        return wrong

    def _all(self) -> tuple[tuple[Manifest, ...], dict[str, str]]:
        """The manifests that can be read, and why the others cannot."""
        good: list[Manifest] = []
        broken: dict[str, str] = {}
        for name in self._names():
            try:
                good.append(self.get(name).manifest)
            except UnknownModel:
                continue  # removed meanwhile
            except ModelError as e:
                broken[name] = str(e)
        return tuple(good), broken

    def _read(self, name: str) -> Manifest | None:
        """A stored manifest; None when there is none. Raises `ManifestError`, `StoreError`."""
        path = self._manifest_path(name)
        try:
            with path.open(encoding="utf-8") as file:
                state = os.fstat(file.fileno())
                stamp = (state.st_ino, state.st_mtime_ns, state.st_size)
                known = self._parsed.get(name)
                if known is not None and known[0] == stamp:
                    return known[1]
                text = file.read(LONGEST_TEXT + 1)
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            raise ManifestError(f"{name}.toml: not UTF-8 text.", f"Run `nearfar models remove {name}`.") from None
        except OSError as e:
            raise StoreError(f"{path} cannot be read: {e.strerror}.", "Check its permissions.") from e
        manifest = parse_manifest(text, f"{name}.toml")
        if manifest.name != name:
            raise ManifestError(f"{name}.toml: name is {manifest.name!r}.", f"Write name = {name!r}.")
        self._parsed[name] = (stamp, manifest)
        return manifest

    def _manifest_path(self, name: str) -> Path:
        if not is_name(name):  # the one place where a name becomes a path
            raise ManifestError(f"{name!r} cannot name a model.", "Use a-z, 0-9, '.', '_', '-'.")
        return self.manifests / f"{name}.toml"

    def _answer_path(self, sha256: str) -> Path:
        return self.root / "answers" / f"{sha256}.json"

    def _names(self) -> tuple[str, ...]:
        try:
            stored = {p.stem for p in self.manifests.iterdir() if p.suffix == ".toml" and is_name(p.stem)}
        except FileNotFoundError:
            stored = set()
        except OSError as e:
            raise StoreError(f"The model store {self.root} cannot be read: {e.strerror}.", "Check it.") from e
        return tuple(sorted(stored | set(embedded.folders())))

    def _merged(self, manifest: Manifest, variant: Variant) -> Manifest:
        """`manifest` with only those variants whose files are there: the new one and those stored before."""
        kept: tuple[Variant, ...] = ()
        if self._manifest_path(manifest.name).is_file():
            old = self.get(manifest.name).manifest
            if all(getattr(old, key) == getattr(manifest, key) for key in ("task", "labels", "input", "decoder")):
                kept = tuple(v for v in old.variants if v.id != variant.id)
        return msgspec.structs.replace(manifest, variants=(*kept, variant))

    def _collect(self) -> None:
        """Delete files that no manifest names. Nothing is deleted while a manifest cannot be read."""
        stored = [n for n in self._names() if self._manifest_path(n).is_file()]
        if any(name in self.broken() for name in stored):
            return
        needed = {path for name in stored for path in self.get(name).paths.values()}
        for path in self.root.glob("blobs/sha256/*/*"):
            if path not in needed:
                blobs.remove(path, self.root)
                blobs.remove(self._answer_path(path.name), self.root)
