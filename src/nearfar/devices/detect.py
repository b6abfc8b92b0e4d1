"""All that can be said of this machine, each value with the reason why it is believed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nearfar.devices import board, cpu, temperature
from nearfar.limits import usable_cores, usable_memory
from nearfar.types.telemetry import ComputeUnit, DeviceInfo, Reading
from nearfar.types.units import Bytes


def detect(units: Iterable[ComputeUnit] = (), root: Path = Path("/"), idle: Iterable[str] = ()) -> DeviceInfo:
    """Describe the machine. Reads files below `root` only, raises nothing, takes a few milliseconds.

    `units` are what the runtimes found (`runtimes.registry.all_units`): only an engine knows which accelerator it can
    drive. `idle` says which ones are there that none can (`runtimes.registry.idle_accelerators`).

    Readings: `cpu_model`, `isa`, `cores` (usable, may be a fraction), `memory` (usable, bytes), `board`, `os`,
    `container`, `temperature` (degrees Celsius), `host` (16 hex digits), `accelerators` (their names).
    """
    found = _once(units)
    cores, memory = usable_cores(root), usable_memory(root)
    readings = {
        "board": board.board(root),
        "os": board.operating_system(root),
        "container": board.container(root),
        "cpu_model": cpu.cpu_model(root),
        "isa": cpu.isa(root),
        "cores": Reading(cores.value, cores.reason),
        "memory": Reading(memory.value or None, memory.reason),
        "accelerators": _accelerators(found, tuple(idle)),
        "temperature": temperature.hottest(temperature.sensors(root)),
        "host": board.host_id(root),
    }
    return DeviceInfo(readings, found, cores.value, Bytes(memory.value))


def _once(units: Iterable[ComputeUnit]) -> tuple[ComputeUnit, ...]:
    """Each unit of this machine once: several runtimes use the same CPU. The first reason stays, and accelerators come
    first."""
    kept: dict[tuple[str, str], ComputeUnit] = {}
    for unit in units:
        if unit.kind == "far":
            continue
        kept.setdefault((unit.kind.value, unit.name), unit)
    return tuple(sorted(kept.values(), key=lambda unit: unit.kind == "cpu"))


def _accelerators(units: tuple[ComputeUnit, ...], idle: tuple[str, ...]) -> Reading:
    if not units and not idle:
        return Reading(None, "no runtime was asked")
    names = [unit.name for unit in units if unit.kind != "cpu"]
    reasons = [*(unit.reason for unit in units if unit.kind != "cpu"), *idle]
    return Reading(", ".join(names) or "none", "; ".join(reasons) or "no installed runtime can use one here")
