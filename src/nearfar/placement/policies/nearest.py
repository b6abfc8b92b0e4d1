"""The published baseline `nearest`: among healthy nodes the one with the least network latency to the end device.

It is Algorithm 1 of the heterogeneous-edge literature as meant, not as printed: the print assigns the last node looked
at, and can select none when all latencies equal the maximum. `docs/explanation-placement.md` has the difference.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from nearfar.fleet.snapshot import ServiceView, Snapshot
from nearfar.placement.expectation import link_to
from nearfar.placement.policies.base import SHOWN, Ranked
from nearfar.types.ids import NodeId
from nearfar.types.request import Request
from nearfar.types.units import Seconds


class Nearest:
    """Cost: round trip from the data to the node, in ms. Equal ones keep the order of the candidates."""

    name = "nearest"
    sample: int | None = None

    def rank(
        self,
        snapshot: Snapshot,
        request: Request,
        candidates: Sequence[ServiceView],
        now: Seconds,
        rng: random.Random,
    ) -> Sequence[Ranked]:
        origin = NodeId(request.origin)
        links = [(link_to(snapshot, origin, view, now), view) for view in candidates]
        links.sort(key=lambda entry: entry[0].rtt)  # stable
        return [
            Ranked(view.report.service, link.rtt, note=f"{link.rtt:.2f} ms away, {link.basis}" if place < SHOWN else "")
            for place, (link, view) in enumerate(links)
        ]
