"""Routers by name: a short name, `module:attribute`, or an entry point of the group `nearfar.routers`.

A router is imported only when it is chosen; built-ins come the same way as those of third parties.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nearfar import plugins
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
    return plugins.names(GROUP, BUILT_IN)


def load(name: str = DEFAULT, **options: Any) -> Router:
    """A router, made with the options (`seed=7`, `half=300`, `path="router.npz"`, ...).

    Raises `SettingsError` for a name that is not known, cannot be imported or is no router, and for wrong options.

    >>> load("length", half=100).name
    'length'
    """
    router: Router = plugins.make("router", GROUP, BUILT_IN, name, "docs/explanation-routing.md", **options)
    if not (isinstance(getattr(router, "name", None), str) and callable(getattr(router, "score", None))):
        raise SettingsError(f"{name!r} is not a router.", "It needs `name` and `score`, as in routers/base.py.")
    return router
