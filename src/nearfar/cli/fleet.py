"""`nearfar nodes` and `nearfar services`: who is there and what runs where, with health and reasons."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nearfar.cli.common import (
    Config,
    Fleet,
    Home,
    Join,
    Json,
    asking,
    console,
    escape,
    in_loop,
    print_json,
)

if TYPE_CHECKING:
    from nearfar.fleet.snapshot import Snapshot
    from nearfar.settings import Settings
    from nearfar.types.units import Seconds


async def look(chosen: Settings) -> tuple[Snapshot, Seconds]:
    """The fleet, seen once."""
    from nearfar.client.connect import connect
    from nearfar.types.units import Seconds

    async with connect(chosen) as client:
        return client.snapshot(), Seconds(time.monotonic())


def nodes(json: Json = False, home: Home = None, fleet: Fleet = None, join: Join = None, config: Config = None) -> None:
    """List the nodes of the fleet."""
    from nearfar.gateway.fleet import nodes_as_json

    rows = nodes_as_json(*in_loop(look(asking(home, fleet, join, config))))
    if json:
        print_json(rows)
        return
    show(
        rows,
        "No node was found.",
        {
            "node": lambda r: r["node"],
            "health": _health,
            "machine": lambda r: escape(_machine(r)),
            "cores": lambda r: f"{r['device']['cores']:g}" if "device" in r else "",
            "busy": lambda r: f"{r['cpu']:.0%}" if "cpu" in r else "",
            "free": lambda r: _bytes(r["memory_free"]) if "memory_free" in r else "",
            "heat": lambda r: f"{r['temperature_celsius']:.0f} °C" if r.get("temperature_celsius") else "-",
            "gateway": lambda r: escape(r.get("gateway") or "-"),
            "why": lambda r: escape(r["reason"]),
        },
        spare=("heat", "cores", "busy", "free", "machine", "gateway"),
        wraps="why" if any(row["reason"] for row in rows) else "machine",
    )


def services(
    json: Json = False, home: Home = None, fleet: Fleet = None, join: Join = None, config: Config = None
) -> None:
    """List the services of the fleet: what runs where, how it does, and why this variant."""
    from nearfar.gateway.fleet import services_as_json

    rows = services_as_json(*in_loop(look(asking(home, fleet, join, config))))
    if json:
        print_json(rows)
        return
    show(
        rows,
        "No service was found.",
        {
            "service": lambda r: r["service"],
            "health": _health,
            "variant": lambda r: escape(r["variant"] or "-"),
            "on": lambda r: escape(f"{r['runtime']}/{r['unit']}") if r["runtime"] else "-",
            "queue": lambda r: str(r["queued"]),
            "answered": lambda r: str(r["answered"]),
            "failed": lambda r: str(r["failed"] + r["refused"]),
            "errors": lambda r: f"{r['error_rate']:.0%}",
            "self-test": _self_test,
            "ms": lambda r: f"{r['service_ms']:.1f}" if r["service_ms"] else "-",
            **({"first token": _first_token, "tokens/s": _speed} if any(row["text"] for row in rows) else {}),
            "memory": lambda r: _bytes(r["memory"]) if r["memory"] else "-",
            "why": lambda r: escape(r["reason"]),
        },
        spare=("on", "failed", "memory", "errors", "queue", "answered", "variant", "self-test", "ms"),
        wraps="why",
    )


GAP = 3
"""Characters between two columns."""
LEAST_WRAPPED = 24
"""Characters that are worth having for the column with more lines than one."""


def show(
    rows: list[dict[str, Any]],
    nothing: str,
    columns: dict[str, Callable[[dict[str, Any]], str]],
    *,
    spare: tuple[str, ...] = (),
    wraps: str = "",
) -> None:
    """A table; without rows, a sentence that says so and what to type.

    Cells are rich markup: what others wrote must be escaped. `spare` columns are left out, in this order, where the
    terminal is too narrow for all of them; only the column `wraps` has more lines than one, and no word is cut.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console()
    if not rows:
        out.print(f"{nothing} Start one with [bold]nearfar up[/], or give --join ENDPOINT.")
        return
    cells = {name: [Text.from_markup(tell(row)) for row in rows] for name, tell in columns.items()}

    def width(name: str) -> int:
        whole = max(len(name), *(cell.cell_len for cell in cells[name]))
        if name != wraps:
            return whole
        return max(
            min(whole, LEAST_WRAPPED), *(len(word) for cell in cells[name] for word in cell.plain.split() or [""])
        )

    shown = list(columns)
    for name in spare:
        if sum(map(width, shown)) + GAP * len(shown) <= out.width:
            break
        shown.remove(name)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in shown:
        table.add_column(name, overflow="fold", no_wrap=name != wraps)
    for line in zip(*(cells[name] for name in shown), strict=True):
        table.add_row(*line)
    out.print(table)


def _health(row: dict[str, Any]) -> str:
    """The state, with the code where it says more."""
    state, code = row["health"], row["code"]
    colour = {"ready": "green", "degraded": "yellow", "starting": "yellow", "stopping": "yellow"}.get(state, "red")
    return f"[{colour}]{state}[/]" + (f" ({code})" if code not in ("", state) else "")


def _self_test(row: dict[str, Any]) -> str:
    test = row["self_test"]
    if test["passed"] is None:
        return "-"
    age = test["seconds_ago"]
    ago = "" if age is None else f" {age:.0f} s ago"
    return f"[green]passed[/]{ago}" if test["passed"] else f"[red]failed[/]{ago}"


def _first_token(row: dict[str, Any]) -> str:
    ms = (row["text"] or {}).get("first_token_ms")
    return f"{ms:.0f} ms" if ms else "-"


def _speed(row: dict[str, Any]) -> str:
    """Of writing; of reading it is in --json."""
    speed = (row["text"] or {}).get("decode_per_s")
    return f"{speed:.{0 if speed >= 10 else 1}f}" if speed else "-"


def _machine(row: dict[str, Any]) -> str:
    readings = row.get("device", {}).get("readings", {})
    for name in ("board", "cpu_model"):
        value = readings.get(name, {}).get("value")
        if value:
            return str(value)
    return ""


def _bytes(count: int) -> str:
    from nearfar.types.units import show_bytes

    return show_bytes(count)
