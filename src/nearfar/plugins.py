"""Things that are chosen by name: a short name of ours, `module:attribute`, or an entry point of somebody's package.

Nothing is imported before it is chosen; built-ins come the same way as those of third parties.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from nearfar.errors import SettingsError


def names(group: str, built_in: Mapping[str, str]) -> list[str]:
    """Short names that can be used here, built-in and installed, sorted."""
    return sorted({*built_in, *(point.name for point in metadata.entry_points(group=group))})


def make(kind: str, group: str, built_in: Mapping[str, str], name: str, page: str, **options: Any) -> Any:
    """What stands at a name, made with the options. `kind` is its word in messages, `page` where its options stand.

    Raises `SettingsError` for a name that is not known or cannot be imported, and for wrong options.
    """
    factory = _find(kind, group, built_in, name)
    try:
        return factory(**options)
    except TypeError as error:
        raise SettingsError(
            f"{kind.capitalize()} {name!r} does not take these options: {error}.", f"Leave them out, or see {page}."
        ) from error


def _find(kind: str, group: str, built_in: Mapping[str, str], name: str) -> Any:
    path = built_in.get(name)
    try:
        if path is None and ":" not in name:
            points = metadata.entry_points(group=group, name=name)
            if not points:
                raise SettingsError(
                    f"There is no {kind} {name!r}.", f"Use one of: {', '.join(names(group, built_in))}."
                )
            return next(iter(points)).load()
        module, _, attribute = (path or name).partition(":")
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"{kind.capitalize()} {name!r} cannot be loaded: {error}.",
            "Check the name, and that its package is installed.",
        ) from error
