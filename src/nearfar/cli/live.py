"""`nearfar simulate --live`: the scenario on real processes of this machine, with a bar and a way out by Ctrl-C."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nearfar.cli.common import console, in_loop

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from nearfar.simulate.measures import Summary
    from nearfar.simulate.scenario import Scenario


def run_live(
    scenario: Scenario, names: Sequence[str], seed: int | None, grid_seconds: float, network: str, quiet: bool = False
) -> list[Summary]:
    """One policy after the other on the same nodes; what was played when Ctrl-C came.

    Raises `InputError` for what cannot be played live, before anything starts, and `MeshError` when a node or the
    network does not come up.
    """
    from nearfar.errors import InputError
    from nearfar.lab.check import check
    from nearfar.lab.network import choose
    from nearfar.lab.plan import Plan

    if network not in ("auto", "tap", "mesh"):
        raise InputError(f"There is no network {network!r}.", "Type --network auto, tap or mesh.")
    kind, why = choose(network)
    check(Plan(scenario, seed), kind, names)
    if not quiet:
        console(error=True).print(f"[dim]network {kind}: {why}[/]")
    summaries: list[Summary] = []
    with contextlib.suppress(KeyboardInterrupt):  # what there is, is shown
        in_loop(_play(scenario, names, seed, grid_seconds, kind, summaries))
    return summaries


async def _play(
    scenario: Scenario,
    names: Sequence[str],
    seed: int | None,
    grid_seconds: float,
    kind: str,
    summaries: list[Summary],
) -> None:
    import asyncio

    from rich.progress import Progress

    from nearfar.lab.play import Lab
    from nearfar.simulate.compare import best_weights

    with Progress(console=console(error=True), transient=True) as bar:
        task = bar.add_task("starting nodes", total=None)
        async with Lab(scenario, kind, seed) as lab:
            for name in names:
                options: dict[str, float] = {}
                if name == "weighted" and grid_seconds > 0:
                    bar.update(task, description="weights, simulated", total=None)
                    options = await asyncio.to_thread(best_weights, scenario, seed, grid_seconds)
                bar.update(task, description=name, total=scenario.seconds, completed=0)
                summary = await lab.play(name, options, _shower(bar, task, name))
                summaries.append(summary)
                if not summary.complete:
                    return


def _shower(bar: Progress, task: TaskID, name: str) -> Callable[[float, float], None]:
    """Moves the bar; where none is seen, such as in a log, says once that the policy is played."""
    said = bar.console.is_terminal

    def show(now: float, _: float) -> None:
        nonlocal said
        bar.update(task, completed=now)
        if not said and now > 0:
            said = True
            bar.console.print(f"plays {name}")

    return show
