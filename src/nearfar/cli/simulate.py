"""`nearfar simulate`: play a scenario in virtual time, or live, under several policies and set them side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nearfar.cli.common import Json, console, print_json

if TYPE_CHECKING:
    from nearfar.simulate.measures import Summary
    from nearfar.simulate.scenario import Scenario

WIDE = 120
"""Columns of a terminal from which on the table shows everything."""


def simulate(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (TOML); examples/scenarios has some.")],
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", help="Policy to play: a baseline, a built-in policy or module:attribute; else all."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed instead of the scenario's.")] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=4.0, help="Virtual seconds instead of the scenario's.")
    ] = None,
    plots: Annotated[Path | None, typer.Option("--plots", help="Folder for pictures; needs the extra plots.")] = None,
    grid_seconds: Annotated[
        float,
        typer.Option(
            "--grid-seconds",
            min=0.0,
            help="Virtual seconds of each of the 15 runs that find the best "
            "weights of the policy weighted; 0 takes equal weights.",
        ),
    ] = 30.0,
    live: Annotated[
        bool, typer.Option("--live", help="Play it in real time on real nodes and clients of this machine.")
    ] = False,
    network: Annotated[
        str,
        typer.Option(
            "--network",
            help="With --live: tap gives each its own emulated network (root), mesh delays on loopback; auto chooses.",
        ),
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Play a scenario in virtual time, or live, and compare policies. Ctrl-C shows what was played so far."""
    import msgspec

    from nearfar.simulate.baselines import ORDER, PLAYABLE
    from nearfar.simulate.compare import policy_of
    from nearfar.simulate.plots import need_matplotlib
    from nearfar.simulate.scenario import load

    played = load(scenario)
    if seconds is not None:
        played = msgspec.structs.replace(played, seconds=seconds)
    if plots is not None:
        need_matplotlib()  # before minutes of work, not after
    names = tuple(policy or (PLAYABLE if live else ORDER))
    for name in names:
        policy_of(name)
    if live:
        from nearfar.cli.live import run_live

        summaries = run_live(played, names, seed, grid_seconds, network, quiet=as_json)
    else:
        summaries = run_all(played, names, seed, grid_seconds)
    show(played, summaries, plots, as_json, live)
    if len(summaries) < len(names) or not summaries[-1].complete:
        raise typer.Exit(130)


def run_all(scenario: Scenario, names: tuple[str, ...], seed: int | None, grid_seconds: float) -> list[Summary]:
    """One after the other, with a bar on standard error; what was played when Ctrl-C came."""
    from rich.progress import Progress, TaskID

    from nearfar.simulate.compare import compare

    summaries: list[Summary] = []
    with Progress(console=console(error=True), transient=True) as bar:

        def begin(name: str):  # type: ignore[no-untyped-def]
            task: TaskID = bar.add_task(name, total=scenario.seconds)
            return lambda now, _: bar.update(task, completed=now)

        try:
            for summary in compare(scenario, names, seed, begin, grid_seconds):
                summaries.append(summary)
        except KeyboardInterrupt:
            pass  # between two runs: what there is, is shown
    return summaries


def show(scenario: Scenario, summaries: list[Summary], plots: Path | None, as_json: bool, live: bool = False) -> None:
    """Table or JSON, then the pictures; of an interrupted run what there is."""
    from nearfar.lab.check import live_assumptions
    from nearfar.simulate import report
    from nearfar.simulate.assumptions import assumptions_of

    told = live_assumptions() if live else assumptions_of(scenario)
    if as_json:
        print_json(report.json_of(summaries, told))
    elif summaries:
        out = console()
        title = f"{scenario.name}{', live' if live else ''}: {scenario.about}"
        out.print(report.table(summaries, title, wide=out.width >= WIDE))
        if sentence := report.verdict(summaries):
            out.print(sentence)
        for line in (*report.notes(summaries), *(f"assumed: {one}" for one in told)):
            out.print(f"[dim]  {line}[/]")
    if plots is not None and summaries:
        from nearfar.errors import InputError
        from nearfar.simulate.plots import draw

        try:
            written = draw(summaries, plots)
        except OSError as error:
            raise InputError(f"The plots cannot be written: {error}.", "Choose another folder for --plots.") from None
        for path in written:
            console(error=True).print(f"[dim]  wrote {path}[/]")
