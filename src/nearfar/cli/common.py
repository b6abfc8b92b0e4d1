"""Options that several verbs share, and how they become settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    import asyncio

    from rich.console import Console

    from nearfar.settings import Settings

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Home = Annotated[Path | None, typer.Option("--home", help="State folder; else NEARFAR_HOME, else the platform's.")]
Fleet = Annotated[str | None, typer.Option("--fleet", help="Name of the fleet; others are not seen.")]
Join = Annotated[
    list[str] | None, typer.Option("--join", help="Endpoint of a node to connect to, such as tcp/10.0.0.5:7447.")
]
Config = Annotated[Path | None, typer.Option("--config", help="Settings file instead of ./nearfar.toml.")]


def settings(flags: Mapping[str, Any]) -> Settings:
    """Settings with these flags on top; unset flags (None, empty lists) do not count."""
    from nearfar.settings import load

    return load({key: value for key, value in flags.items() if value is not None and value != []})


def fleet_flags(home: Path | None, fleet: str | None, join: list[str] | None, config: Path | None) -> dict[str, Any]:
    return {
        "home": str(home) if home else None,
        "mesh.fleet": fleet,
        "mesh.join": tuple(join) if join else None,
        "config": str(config) if config else None,
    }


def asking(home: Path | None, fleet: str | None, join: list[str] | None, config: Path | None) -> Settings:
    """Settings of a command that asks a fleet. Where nobody names one, it is that of the nodes which run in this home
    folder: who typed `nearfar up --fleet yard` need not repeat it."""
    from nearfar.node.identity import running
    from nearfar.settings import MeshSettings

    flags = fleet_flags(home, fleet, join, config)
    chosen = settings(flags)
    if fleet is None and not join and chosen.mesh.fleet == MeshSettings().fleet:
        fleets = {entry.fleet for entry in running(chosen.home)}
        if len(fleets) == 1:
            return settings({**flags, "mesh.fleet": fleets.pop()})
    return chosen


def stop_once(task: asyncio.Task[Any]) -> Callable[[], None]:
    """What cancels the task when it is called first, and does nothing after that: what cleans up is left alone.

    `task.cancelling()` would not tell: a timeout in the task that ends just now cancels it too, and takes that back.
    """
    called = False

    def stop() -> None:
        nonlocal called
        if not called:
            called = True
            task.cancel()

    return stop


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where there is one. Ctrl-C cancels the work, which cleans up, and exits with 130.

    A second Ctrl-C changes nothing, as it would tear the loop from under what cleans up; a third ends at once.
    """
    import asyncio
    import os
    import signal

    async def interruptible() -> T:
        task = asyncio.current_task()
        assert task is not None
        pressed = 0

        def interrupt() -> None:
            nonlocal pressed
            pressed += 1
            if pressed == 1:
                task.cancel()
            elif pressed > 2:
                os._exit(130)

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
        try:
            return await work
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            # What is left takes no time, and an interrupt in it would show a traceback.
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    try:
        import uvloop
    except ImportError:
        return asyncio.run(interruptible())
    result: T = uvloop.run(interruptible())
    return result


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def home_and_config(context: typer.Context, home: Path | None, config: Path | None) -> tuple[Path | None, Path | None]:
    """--home and --config, which may stand before the verb below `models` as well as behind it."""
    before_home, before_config = context.obj or (None, None)
    return home or before_home, config or before_config


def escape(text: str) -> str:
    """Text of others as rich markup that shows just it: `[mesh]` in an error is no style."""
    from rich.markup import escape as escaped

    return escaped(text)


def console(*, error: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=error, highlight=False)
