"""The hottest sensor of the machine, in degrees Celsius."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from nearfar.devices.files import folders, read_int, read_text
from nearfar.types.telemetry import Reading

_LEAST, _MOST = -40_000, 150_000
"""Millidegrees between which a sensor is believed; broken ones say -273 or 32767 degrees."""


class Sensor(NamedTuple):
    name: str
    path: Path
    """Holds millidegrees (Linux, Documentation/ABI/testing/sysfs-class-thermal and sysfs-class-hwmon)."""


def sensors(root: Path = Path("/")) -> list[Sensor]:
    """Every sensor of the thermal and hwmon classes. Looked up once: there may be dozens."""
    found: list[Sensor] = []
    for zone in folders(root / "sys/class/thermal", "thermal_zone*"):
        found.append(Sensor(read_text(zone / "type") or zone.name, zone / "temp"))
    for chip in folders(root / "sys/class/hwmon", "hwmon*"):
        name = read_text(chip / "name") or chip.name
        for entry in folders(chip, "temp*_input"):
            label = read_text(chip / entry.name.replace("_input", "_label"))
            found.append(Sensor(f"{name} {label}" if label else name, entry))
    return found


def hottest(known: list[Sensor]) -> Reading:
    """Degrees Celsius of the hottest sensor that answers, or unavailable with the reason."""
    if not known:
        return Reading(None, "no sensor in /sys/class/thermal or /sys/class/hwmon")
    best: tuple[int, str] | None = None
    for sensor in known:
        value = read_int(sensor.path)
        if value is not None and _LEAST <= value <= _MOST and (best is None or value > best[0]):
            best = (value, sensor.name)
    if best is None:
        return Reading(None, f"none of {len(known)} sensors gives a value that can be")
    return Reading(best[0] / 1000, f"hottest of {len(known)} sensors: {best[1]}")
