"""Which variant of a model a node should serve, with the reason; a pure function."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nearfar.models.manifest import Manifest, Variant
from nearfar.types.ids import VariantId
from nearfar.types.telemetry import ComputeUnit, UnitKind

# CPU engines have kernels for int8 and fp32; half precision is converted to fp32 on the way and gains nothing there.
_ON_CPU = ("int8", "mixed", "fp32", "bf16", "fp16", "int4")
_ON_ACCELERATOR = ("int8", "fp16", "bf16", "mixed", "fp32", "int4")


class Offer(msgspec.Struct, frozen=True):
    """A runtime that is available on a node: the formats it loads and its compute units, best first."""

    runtime: str
    formats: tuple[str, ...]
    units: tuple[ComputeUnit, ...]


class NotChosen(msgspec.Struct, frozen=True):
    """A variant and why it is not served."""

    variant: VariantId
    reason: str


class Choice(msgspec.Struct, frozen=True):
    """What to serve: a variant, on a compute unit of a runtime."""

    variant: Variant
    runtime: str
    unit: ComputeUnit
    reason: str
    others: tuple[NotChosen, ...] = ()


class _Way(msgspec.Struct, frozen=True):
    variant: Variant
    offer: Offer
    unit: ComputeUnit
    rank: tuple[int, int, int, int]


def choose(manifest: Manifest, offers: Sequence[Offer], only: str | None = None) -> Choice | tuple[NotChosen, ...]:
    """The best way to run a model here, or why each variant cannot.

    Accelerators before the CPU; on each, precisions in the order that is usually fastest there (int8 first); then the
    order of `offers` and of their units, then of the manifest. `only` pins the variant.
    """
    ways: list[_Way] = []
    refused: list[NotChosen] = []
    for place, variant in enumerate(manifest.variants):
        if only is not None and variant.id != only:
            refused.append(NotChosen(VariantId(variant.id), f"only {only} was asked for"))
            continue
        mine, why = _ways(variant, offers, place)
        ways += mine
        if not mine:
            refused.append(NotChosen(VariantId(variant.id), why))
    if not ways:
        return tuple(refused)
    best = min(ways, key=lambda way: way.rank)
    for variant_id in dict.fromkeys(way.variant.id for way in ways):
        if variant_id != best.variant.id:
            own = min((w for w in ways if w.variant.id == variant_id), key=lambda way: way.rank)
            refused.append(NotChosen(VariantId(variant_id), _behind(own, best)))
    places = {v.id: i for i, v in enumerate(manifest.variants)}
    refused.sort(key=lambda r: places[r.variant])
    reason = _because(best, len(manifest.variants) - 1)
    return Choice(best.variant, best.offer.runtime, best.unit, reason, tuple(refused))


def _ways(variant: Variant, offers: Sequence[Offer], place: int) -> tuple[list[_Way], str]:
    allowed = [o for o in offers if not variant.runtimes or o.runtime in variant.runtimes]
    able = [o for o in allowed if variant.format in o.formats]
    ways = []
    for offer in able:
        index = offers.index(offer)
        for n, unit in enumerate(offer.units):
            cpu = unit.kind is UnitKind.CPU
            order = _ON_CPU if cpu else _ON_ACCELERATOR
            rank = (int(cpu), order.index(variant.precision), index * 100 + n, place)
            ways.append(_Way(variant, offer, unit, rank))
    if ways:
        return ways, ""
    if able:
        return [], f"{', '.join(o.runtime for o in able)} found no compute unit here"
    if variant.runtimes and not allowed:
        return [], f"it may only run on {' or '.join(variant.runtimes)}, which is not available here"
    return [], f"no runtime here loads {variant.format} ({', '.join(o.runtime for o in offers) or 'none is available'})"


def _because(way: _Way, others: int) -> str:
    where = f"{way.offer.runtime} on {way.unit.name}"
    if not others:
        return f"the only variant ({way.variant.precision}), {where}"
    if way.unit.kind is not UnitKind.CPU:
        return f"{where} is an accelerator, with {way.variant.precision}"
    return f"{way.variant.precision} is the best precision for a CPU that can be loaded here, {where}"


def _behind(way: _Way, best: _Way) -> str:
    chosen = f"{best.variant.id} on {best.offer.runtime}/{best.unit.name}"
    if way.rank[0] != best.rank[0]:
        return f"runs on {way.unit.name} here; {chosen} is an accelerator"
    if way.rank[1] != best.rank[1]:
        return f"{way.variant.precision} is usually slower than {best.variant.precision} of {chosen}"
    return f"as good as {chosen}, which comes first"
