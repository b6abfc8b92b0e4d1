"""Policies by name: a short name, `module:attribute`, or an entry point of the group `nearfar.policies`.

A policy is imported only when it is chosen; built-ins come the same way as those of third parties.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nearfar import plugins
from nearfar.errors import SettingsError
from nearfar.placement.policies.base import Policy

GROUP = "nearfar.policies"
DEFAULT = "predictive"
PAGE = "docs/explanation-placement.md"
BUILT_IN: Mapping[str, str] = {
    "nearest": "nearfar.placement.policies.nearest:Nearest",
    "predictive": "nearfar.placement.policies.predictive:Predictive",
    "weighted": "nearfar.placement.policies.weighted:Weighted",
}


def names() -> list[str]:
    """Short names that can be used here, built-in and installed, sorted."""
    return plugins.names(GROUP, BUILT_IN)


def load(name: str = DEFAULT, **options: Any) -> Policy:
    """A policy, made with the options (`alpha=0.5`, `hysteresis=0.3`, ...).

    Raises `SettingsError` for a name that is not known, cannot be imported or is no policy, and for wrong options.

    >>> load("weighted", alpha=1, beta=0, gamma=0).name
    'weighted'
    """
    policy: Policy = plugins.make("policy", GROUP, BUILT_IN, name, PAGE, **options)
    if not (isinstance(getattr(policy, "name", None), str) and callable(getattr(policy, "rank", None))):
        raise SettingsError(
            f"{name!r} is not a policy.", "It needs `name`, `sample` and `rank`, as in policies/base.py."
        )
    return policy
