"""Which language models the fleet has just now, near and far, from the snapshot; a pure function."""

from __future__ import annotations

import math

import msgspec

from nearfar.fleet.snapshot import FRESH, Snapshot, service_health
from nearfar.placement.filters import FAR_RUNTIMES
from nearfar.types.ids import ModelName
from nearfar.types.units import Bytes, Seconds


class Offer(msgspec.Struct, frozen=True):
    """One model, with the best of what its services report."""

    model: ModelName
    far: bool
    services: int
    """That may be asked just now."""
    context: int = 0
    """Tokens of prompt and answer together; 0 when not told."""
    cost: float = 0.0
    """What one request is expected to cost there."""
    decode_per_s: float = 0.0
    """Tokens a second of one answer; 0 before the first."""
    memory: Bytes = Bytes(0)
    price_in: float = 0.0
    """Of a far end, for a million tokens of prompt."""
    price_out: float = 0.0
    """The same for a million tokens of answer."""
    currency: str = ""
    embedding: bool = False
    """It gives vectors, not text."""
    nodes: tuple[str, ...] = ()
    reason: str = ""
    """Why nobody may be asked, when `services` is 0."""


def offers(snapshot: Snapshot, now: Seconds) -> tuple[Offer, ...]:
    """Models that take text: those near first, of these the largest first; then those far, the cheapest first.

    What a model takes in memory stands for its size, as reports do not tell of parameters.
    """
    found: dict[ModelName, Offer] = {}
    for view in snapshot.services.values():
        report = view.report
        if report.text is None or not view.alive:
            continue
        healthy, _, reason = service_health(view, snapshot.nodes.get(report.node), now)
        old = found.get(report.model) or Offer(report.model, True, 0)
        found[report.model] = Offer(
            report.model,
            far=old.far and report.runtime in FAR_RUNTIMES,
            services=old.services + healthy,
            context=max(old.context, report.text.context),
            cost=report.cost if not old.nodes else min(old.cost, report.cost),
            decode_per_s=max(old.decode_per_s, report.text.decode_per_s),
            memory=max(old.memory, report.memory),
            price_in=max(old.price_in, report.text.price_in),
            price_out=max(old.price_out, report.text.price_out),
            embedding=report.text.embedding,
            currency=report.text.currency or old.currency,
            nodes=(*old.nodes, report.node),
            reason="" if healthy or old.services else reason,
        )
    return tuple(sorted(found.values(), key=_order))


class Lasting:
    """`offers`, made anew only when it could come out otherwise: each call of a language model asks more than once."""

    def __init__(self) -> None:
        self._from: tuple[object, object] = (None, None)
        self._until = -math.inf
        self._made: tuple[Offer, ...] = ()

    def of(self, snapshot: Snapshot, now: Seconds) -> tuple[Offer, ...]:
        services, nodes = self._from  # mappings are never changed once they stand in a snapshot
        if services is not snapshot.services or nodes is not snapshot.nodes or now > self._until:
            self._made = offers(snapshot, now)
            self._from = (snapshot.services, snapshot.nodes)
            self._until = _lasts(snapshot, now)
        return self._made


def _lasts(snapshot: Snapshot, now: Seconds) -> float:
    """Until when the time alone changes nothing: the first healthy service to go stale. The reasons of those that are
    not healthy tell ages, which are never old."""
    until = math.inf
    for view in snapshot.services.values():
        if view.report.text is not None and view.alive:
            healthy, _, _ = service_health(view, snapshot.nodes.get(view.report.node), now)
            until = min(until, view.heard + FRESH if healthy else -math.inf)
    return until


def _order(offer: Offer) -> tuple[bool, bool, float, str]:
    size = offer.cost if offer.far else -float(offer.memory)
    return offer.far, not offer.services, size, offer.model
