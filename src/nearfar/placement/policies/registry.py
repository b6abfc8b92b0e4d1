"""Policies by name: a short name, `module:attribute`, or an entry point of the group `nearfar.policies`.

A policy is imported only when it is chosen; built-ins come the same way as those of third parties.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from nearfar.errors import SettingsError
from nearfar.placement.policies.base import Policy

GROUP = "nearfar.policies"
DEFAULT = "predictive"
BUILT_IN: Mapping[str, str] = {
    "nearest": "nearfar.placement.policies.nearest:Nearest",
    "predictive": "nearfar.placement.policies.predictive:Predictive",
    "weighted": "nearfar.placement.policies.weighted:Weighted",
}


def names() -> list[str]:
    """Short names that can be used here, built-in and installed, sorted."""
    return sorted({*BUILT_IN, *(point.name for point in metadata.entry_points(group=GROUP))})


def load(name: str = DEFAULT, **options: Any) -> Policy:
    """A policy, made with the options (`alpha=0.5`, `hysteresis=0.3`, ...).

    Raises `SettingsError` for a name that is not known, cannot be imported or is no policy, and for wrong options.

    >>> load("weighted", alpha=1, beta=0, gamma=0).name
    'weighted'
    """
    factory = _find(name)
    try:
        policy: Policy = factory(**options)
    except TypeError as error:
        raise SettingsError(
            f"Policy {name!r} does not take these options: {error}.",
            "Leave them out, or see docs/explanation-placement.md.",
        ) from error
    if not (isinstance(getattr(policy, "name", None), str) and callable(getattr(policy, "rank", None))):
        raise SettingsError(
            f"{name!r} is not a policy.", "It needs `name`, `sample` and `rank`, as in policies/base.py."
        )
    return policy


def _find(name: str) -> Any:
    path = BUILT_IN.get(name)
    try:
        if path is None and ":" not in name:
            points = metadata.entry_points(group=GROUP, name=name)
            if not points:
                raise SettingsError(f"There is no policy {name!r}.", f"Use one of: {', '.join(names())}.")
            return next(iter(points)).load()
        module, _, attribute = (path or name).partition(":")
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"Policy {name!r} cannot be loaded: {error}.", "Check the name, and that its package is installed."
        ) from error
