"""The list of models in OpenAI's form: `auto`, then every language model that the fleet serves."""

from __future__ import annotations

import difflib
from typing import Any

from nearfar.errors import UnknownModel
from nearfar.fleet.snapshot import Snapshot
from nearfar.language.call import AUTO
from nearfar.placement.filters import FAR_RUNTIMES


def models_as_json(snapshot: Snapshot) -> list[dict[str, Any]]:
    """One object for each model. `created` is 0: a fleet does not know when a model was made."""
    found: dict[str, dict[str, Any]] = {}
    for view in snapshot.services.values():
        report = view.report
        if not view.alive or report.text is None:
            continue
        far = report.runtime in FAR_RUNTIMES
        entry = found.setdefault(
            report.model,
            {"where": "far" if far else "near", "nodes": set(), "variants": set(), "runtimes": set(), "context": 0},
        )
        entry["nodes"].add(report.node)
        entry["variants"].add(report.variant)
        entry["runtimes"].add(report.runtime)
        entry["context"] = max(entry["context"], report.text.context)
        if not far:
            entry["where"] = "near"
    listed = [_model(AUTO, "nearfar", {"where": "auto", "nodes": [], "variants": [], "runtimes": [], "context": 0})]
    for name, entry in sorted(found.items()):
        told = {key: sorted(value) if isinstance(value, set) else value for key, value in entry.items()}
        listed.append(_model(name, "far" if told["where"] == "far" else "nearfar", told))
    return listed


def _model(name: str, owner: str, told: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner, "nearfar": told}


def model_as_json(snapshot: Snapshot, name: str) -> dict[str, Any]:
    """The object of one model. Raises `UnknownModel` with the nearest names."""
    listed = {model["id"]: model for model in models_as_json(snapshot)}
    if name not in listed:
        raise unknown(name, list(listed))
    return listed[name]


def unknown(name: str, known: list[str]) -> UnknownModel:
    """That there is no such model, and which names are nearest."""
    near = difflib.get_close_matches(name.lower(), known, 3, 0.5)
    hint = f"Did you mean {', '.join(near)}?" if near else f"There are {', '.join(known)}."
    return UnknownModel(f"The model {name[:80]!r} is not there.", hint)
