"""Models that come with the package: a folder each, with `<name>.toml` and the files its variants name."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from nearfar.errors import ManifestError
from nearfar.models.manifest import Manifest, parse_manifest


@functools.cache
def folders() -> Mapping[str, Traversable]:
    """The folder of each embedded model by its name; a folder without its manifest is not a model."""
    here = resources.files(__name__)
    return {
        folder.name: folder
        for folder in sorted(here.iterdir(), key=lambda f: f.name)
        if folder.is_dir() and folder.joinpath(f"{folder.name}.toml").is_file()
    }


@functools.cache
def read(name: str) -> tuple[Manifest, Mapping[str, Path]]:
    """An embedded model and the path of each variant's file.

    Raises `KeyError` for a name that is not there, `ManifestError` when its manifest is wrong or names another model.
    """
    folder = folders()[name]
    manifest = parse_manifest(folder.joinpath(f"{name}.toml").read_text(encoding="utf-8"), f"embedded {name}.toml")
    if manifest.name != name:
        raise ManifestError(f"embedded {name}.toml: name is {manifest.name!r}.", f"Write name = {name!r}.")
    # Engines open files by path, and the wheel is always installed unpacked.
    return manifest, {v.id: Path(str(folder.joinpath(v.file))) for v in manifest.variants}
