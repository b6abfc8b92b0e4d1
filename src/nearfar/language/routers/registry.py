"""Routers by name: a short name, `module:attribute`, or an entry point of the group `nearfar.routers`.

A router is imported only when it is chosen; built-ins come the same way as those of third parties.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from nearfar.errors import SettingsError
from nearfar.language.routers.base import Router

GROUP = "nearfar.routers"
DEFAULT = "ngram"
BUILT_IN: Mapping[str, str] = {
    "always-near": "nearfar.language.routers.fixed:AlwaysNear",
    "always-far": "nearfar.language.routers.fixed:AlwaysFar",
    "random": "nearfar.language.routers.fixed:Random",
    "length": "nearfar.language.routers.fixed:Length",
    "ngram": "nearfar.language.routers.ngram:Ngram",
    "embedding": "nearfar.language.routers.embedding:Embedding",
}


def names() -> list[str]:
    """Short names that can be used here, built-in and installed, sorted."""
    return sorted({*BUILT_IN, *(point.name for point in metadata.entry_points(group=GROUP))})


def load(name: str = DEFAULT, **options: Any) -> Router:
    """A router, made with the options (`seed=7`, `half=300`, `path="router.npz"`, ...).

    Raises `SettingsError` for a name that is not known, cannot be imported or is no router, and for wrong options.

    >>> load("length", half=100).name
    'length'
    """
    factory = _find(name)
    try:
        router: Router = factory(**options)
    except TypeError as error:
        raise SettingsError(
            f"Router {name!r} does not take these options: {error}.",
            "Leave them out, or see docs/explanation-routing.md.",
        ) from error
    if not (isinstance(getattr(router, "name", None), str) and callable(getattr(router, "score", None))):
        raise SettingsError(f"{name!r} is not a router.", "It needs `name` and `score`, as in routers/base.py.")
    return router


def _find(name: str) -> Any:
    path = BUILT_IN.get(name)
    try:
        if path is None and ":" not in name:
            points = metadata.entry_points(group=GROUP, name=name)
            if not points:
                raise SettingsError(f"There is no router {name!r}.", f"Use one of: {', '.join(names())}.")
            return next(iter(points)).load()
        module, _, attribute = (path or name).partition(":")
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"Router {name!r} cannot be loaded: {error}.", "Check the name, and that its package is installed."
        ) from error
