"""Policies side by side on one scenario: the same luck for each. `weighted` gets its best fixed weights first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from nearfar.placement.policies.base import Policy
from nearfar.placement.policies.registry import load as load_policy
from nearfar.simulate import baselines
from nearfar.simulate.measures import Summary
from nearfar.simulate.run import Engine, Progress
from nearfar.simulate.scenario import Scenario

STEPS = 4
"""The grid of alpha, beta, gamma has steps of 1/4 and sums to 1: 15 points."""
GRID_SECONDS = 30.0
"""The grid is searched on at most so many seconds of the scenario itself: in hindsight, in favour of the baseline."""


def policy_of(name: str, **options: float) -> Policy | baselines.Bound:
    """A baseline of the testbed, else a policy as the gateway knows it. Raises `SettingsError` for an unknown name."""
    built_in = baselines.BUILT_IN.get(name)
    if built_in is None:
        return load_policy(name, **options)
    made: Policy | baselines.Bound = built_in()
    return made


def grid(steps: int = STEPS) -> Iterator[tuple[float, float, float]]:
    """
    >>> len(list(grid(4))), all(abs(sum(point) - 1) < 1e-9 for point in grid(4))
    (15, True)
    """
    for a in range(steps + 1):
        for b in range(steps + 1 - a):
            yield a / steps, b / steps, (steps - a - b) / steps


def best_weights(scenario: Scenario, seed: int | None = None, seconds: float = GRID_SECONDS) -> dict[str, float]:
    """alpha, beta, gamma with the fewest violations; of equal ones those with the least mean latency."""
    short = msgspec.structs.replace(scenario, seconds=min(seconds, scenario.seconds))
    found: list[tuple[float, float, tuple[float, float, float]]] = []
    for point in grid():
        policy = load_policy("weighted", alpha=point[0], beta=point[1], gamma=point[2])
        summary = Engine(short, policy, seed).play()
        if not summary.complete:
            raise KeyboardInterrupt
        found.append((summary.violation_rate, summary.latency_ms["mean"] or 0.0, point))
    return dict(zip(("alpha", "beta", "gamma"), min(found)[2], strict=True))


def compare(
    scenario: Scenario,
    names: Sequence[str] = baselines.ORDER,
    seed: int | None = None,
    progress: Callable[[str], Progress | None] | None = None,
    grid_seconds: float = GRID_SECONDS,
) -> Iterator[Summary]:
    """One summary after the other. After an interrupted one (`complete` false) none follows.

    `progress` makes a callback for each policy. With `grid_seconds` 0 `weighted` keeps its equal weights.
    """
    for name in names:
        options: dict[str, float] = {}
        told = progress(name) if progress is not None else None
        if name == "weighted" and grid_seconds > 0:
            try:
                options = best_weights(scenario, seed, grid_seconds)
            except KeyboardInterrupt:
                return
        summary = Engine(scenario, policy_of(name, **options), seed).play(told)
        yield msgspec.structs.replace(summary, options=options)
        if not summary.complete:
            return
