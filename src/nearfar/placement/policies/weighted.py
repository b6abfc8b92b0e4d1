"""The published baseline `weighted`: W = alpha W_cpu + beta W_ai + gamma W_nl, the node with the greatest W.

Each weight is normalised over the candidates of this decision, 0 for the worst and 1 for the best (min-max); where all
are equal the weight says nothing and is 1 for all. They are computed from the snapshot at hand and so follow the load.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from nearfar.errors import SettingsError
from nearfar.fleet.snapshot import ServiceView, Snapshot
from nearfar.placement.expectation import link_to, service_time
from nearfar.placement.policies.base import SHOWN, Ranked
from nearfar.types.ids import NodeId
from nearfar.types.request import Request
from nearfar.types.units import Seconds


class Weighted:
    """alpha, beta and gamma weigh free processor, speed of inference and closeness; they are scaled to sum to 1.

    W_cpu: cores that are free on the node; a node that has sent no telemetry counts as having none.
    W_ai: requests per second of one worker, 1 / service time. W_nl: closeness, the negative round trip.
    Raises `SettingsError` when a weight is negative or not finite, or when all are 0.
    """

    name = "weighted"
    sample: int | None = None

    def __init__(self, alpha: float = 1 / 3, beta: float = 1 / 3, gamma: float = 1 / 3) -> None:
        weights = (alpha, beta, gamma)
        total = sum(weights)
        if not (all(w >= 0 and math.isfinite(w) for w in weights) and 0 < total < math.inf):
            raise SettingsError(
                f"The weights alpha={alpha}, beta={beta}, gamma={gamma} are not usable.",
                "Give three numbers of at least 0, one of them above 0, such as alpha=0.2, beta=0.5, gamma=0.3.",
            )
        self.alpha, self.beta, self.gamma = (w / total for w in weights)

    def rank(
        self,
        snapshot: Snapshot,
        request: Request,
        candidates: Sequence[ServiceView],
        now: Seconds,
        rng: random.Random,
    ) -> Sequence[Ranked]:
        cpu = normalised([_free_cores(snapshot, view) for view in candidates])
        ai = normalised([1 / service_time(v, snapshot.observed.get(v.report.service), now) for v in candidates])
        origin = NodeId(request.origin)
        near = normalised([-link_to(snapshot, origin, view, now).rtt for view in candidates])
        scored = [
            (self.alpha * c + self.beta * a + self.gamma * n, c, a, n, view.report.service)
            for c, a, n, view in zip(cpu, ai, near, candidates, strict=True)
        ]
        scored.sort(key=lambda entry: -entry[0])  # stable
        return [
            Ranked(
                service,
                1 - weight,
                note=f"W {weight:.3f} (cpu {c:.2f}, ai {a:.2f}, link {n:.2f})" if place < SHOWN else "",
            )
            for place, (weight, c, a, n, service) in enumerate(scored)
        ]


def normalised(values: Sequence[float]) -> list[float]:
    """Min-max over the values, all 1 when they are equal.

    >>> normalised([2.0, 4.0, 3.0]), normalised([7.0, 7.0])
    ([0.0, 1.0, 0.5], [1.0, 1.0])
    """
    least, most = min(values), max(values)
    span = most - least
    if not span > 0:
        return [1.0] * len(values)
    return [(value - least) / span for value in values]


def _free_cores(snapshot: Snapshot, view: ServiceView) -> float:
    node = snapshot.nodes.get(view.report.node)
    if node is None or node.report is None:
        return 0.0
    free = (1 - node.report.cpu) * node.report.device.cores
    return free if 0 < free < math.inf else 0.0
