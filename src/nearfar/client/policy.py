"""The placement policy that the settings name."""

from __future__ import annotations

from typing import Any

from nearfar.placement.policies.base import Policy
from nearfar.placement.policies.registry import load as load_policy
from nearfar.settings import Settings


def placement_policy(settings: Settings) -> Policy:
    """Raises `SettingsError` for a policy that is not there."""
    placement = settings.placement
    options: dict[str, Any] = {}
    if placement.policy == "weighted":
        options = {"alpha": placement.alpha, "beta": placement.beta, "gamma": placement.gamma}
    elif placement.policy == "predictive":
        options = {"hysteresis": placement.hysteresis}
    return load_policy(placement.policy, **options)
