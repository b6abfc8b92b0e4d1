"""Quicker models of the same task and the same labels that the fleet serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nearfar.errors import NearfarError
from nearfar.types.ids import ModelName
from nearfar.types.request import Qos, Request
from nearfar.types.units import Milliseconds
from nearfar.vision.degrade import Smaller

if TYPE_CHECKING:
    from nearfar.client.client import Client
    from nearfar.fleet.snapshot import Snapshot

QUICKER = 0.8
"""A model whose profile is above this share of the stream's own is not worth another answer."""
MOST = 3
_DESCRIBED_MS = Milliseconds(2000.0)


async def smaller_models(client: Client, model: ModelName, qos: Qos) -> tuple[Smaller, ...]:
    """At most `MOST`, the slowest first. A model counts by the quickest profile (`profile_ms`) of its services."""
    snapshot = client.snapshot()
    own = _profile(snapshot, model)
    asked = Qos(_DESCRIBED_MS, qos.privacy, qos.node)
    mine = await _described(client, model, asked)
    if own is None or mine is None:
        return ()
    found: list[Smaller] = []
    for other in snapshot.by_model:
        profile = _profile(snapshot, other) if other != model else None
        if profile is None or profile > QUICKER * own:
            continue
        if client.decide(Request(other, client.me, qos=asked)).chosen is None:
            continue  # nobody whom the stream's privacy and node allow
        if mine[1] and await _described(client, other, asked) == mine:
            found.append(Smaller(other, Milliseconds(own - profile)))
    return tuple(sorted(found, key=lambda smaller: smaller.saves)[:MOST])


def _profile(snapshot: Snapshot, model: ModelName) -> float | None:
    views = [snapshot.services[service] for service in snapshot.by_model.get(model, ())]
    return min((v.report.profile_ms for v in views if v.alive and v.report.profile_ms > 0), default=None)


async def _described(client: Client, model: ModelName, qos: Qos) -> Any:
    """(task, labels) of a model as its service states them; None when it does not say."""
    from nearfar.models.labels import labels_of
    from nearfar.models.manifest import parse_manifest

    try:
        manifest = parse_manifest((await client.describe(model, qos)).manifest, "service")
        return manifest.task, tuple(labels_of(manifest))
    except NearfarError:
        return None
