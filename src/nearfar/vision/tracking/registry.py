"""Trackers by name: a short name, `module:attribute`, or an entry point of the group `nearfar.trackers`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from nearfar.errors import NearfarError, SettingsError
from nearfar.vision.tracking.base import Tracker
from nearfar.vision.tracking.state import kind_of

GROUP = "nearfar.trackers"
DEFAULT = "bytetrack"
BUILT_IN: Mapping[str, str] = {
    "bytetrack": "nearfar.vision.tracking.bytetrack:ByteTrack",
    "sort": "nearfar.vision.tracking.sort:Sort",
}


def known() -> dict[str, str]:
    """Every short name and the `module:attribute` behind it. A plug-in cannot take a built-in's name."""
    offered = {point.name: point.value for point in metadata.entry_points(group=GROUP)}
    return {**offered, **BUILT_IN}


def tracker(name: str = DEFAULT, **options: Any) -> Tracker:
    """A new tracker with these options (`max_misses=3`, `high=0.5`, ...).

    Raises `SettingsError` for a name that is not known or leads to no tracker and for wrong options, and
    `RuntimeUnavailable` when what it needs is not installed.
    """
    place = name if ":" in name else BUILT_IN.get(name)
    if place is None:  # only then: looking through what is installed takes milliseconds
        names = known()
        place = names.get(name)
    if place is None:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Use one of: {', '.join(sorted(names))}; or module:attribute."
        raise SettingsError(f"There is no tracker {name!r}.", hint)
    module, _, attribute = place.partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)(**options)
    except NearfarError:
        raise
    except Exception as error:  # somebody else's module may fail in any way
        raise SettingsError(
            f"The tracker {name!r} cannot be made: {type(error).__name__}: {error}.",
            "Check the name, its options, and that its package is installed.",
        ) from error
    if not isinstance(made, Tracker):
        raise SettingsError(
            f"{place} is no tracker but a {type(made).__name__}.",
            "Derive it from nearfar.vision.tracking.base.Tracker.",
        )
    return made


def tracker_named_in(data: bytes) -> str:
    """The short name of the tracker that exported this. Raises `InputError` when it is no tracker's state.

    Only a name, and to be looked up by `known`: a state must not be able to choose code to import.
    """
    from nearfar.errors import InputError

    room, _, name = kind_of(data).partition("/")
    if room != "tracker" or not name:
        raise InputError(
            "This is the state of something else than a tracker.", "Export it with Tracker.export_state()."
        )
    return name
