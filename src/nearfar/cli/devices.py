"""`nearfar devices`: what this machine is and what it can run, each value with its reason."""

from __future__ import annotations

from nearfar.cli.common import Json, console, in_loop, print_json


def devices(json: Json = False) -> None:
    """Show what this machine is: processor, memory, accelerators, runtimes, each with its reason."""
    import msgspec
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from nearfar.node.inventory import take_isolated
    from nearfar.types.units import show_bytes

    inventory = in_loop(take_isolated())
    if json:
        print_json(msgspec.to_builtins(inventory))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("what", "value", "because"):
        table.add_column(name, overflow="fold")
    for name, reading in inventory.device.readings.items():
        value = show_bytes(int(reading.value)) if name == "memory" and reading.value else str(reading)
        table.add_row(name.replace("_", " "), escape(value), f"[dim]{escape(reading.reason)}[/]")
    console().print(table)
    runtimes = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("runtime", "loads", "runs on", "because"):
        runtimes.add_column(name, overflow="fold")
    for offer in inventory.offers:
        reasons = "; ".join(dict.fromkeys(unit.reason for unit in offer.units))
        runtimes.add_row(
            f"[green]{offer.runtime}[/]",
            ", ".join(offer.formats),
            ", ".join(u.name for u in offer.units),
            f"[dim]{escape(reasons)}[/]",
        )
    for missing in inventory.missing:
        runtimes.add_row(f"[red]{missing.runtime}[/]", "", "unavailable", f"[dim]{escape(missing.reason)}[/]")
    console().print(runtimes)
