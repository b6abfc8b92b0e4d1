"""Whether the processor is held back just now: for heat, for want of voltage, or by the firmware."""

from __future__ import annotations

from pathlib import Path

from nearfar.devices.files import folders, read_int, read_text
from nearfar.types.telemetry import Reading

_PI = "sys/devices/platform/soc/soc:firmware/get_throttled"
_PI_NOW = {1: "the arm frequency is capped", 2: "throttled", 3: "the soft temperature limit is active"}
"""Bits of the Raspberry Pi's firmware that speak of now (documentation of `vcgencmd get_throttled`)."""
_COOLING = ("processor", "thermal-cpufreq", "cpufreq", "cpu-cluster", "thermal-devfreq")
"""Types of cooling devices that cool by working less (Linux, drivers/thermal; `Processor` is ACPI's). Fans do not."""


class Throttle:
    """Looks at what the system tells; sources are looked up once. Not safe for two threads at once."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._pi = root / _PI
        self._has_pi = self._pi.exists()
        self._cooling = [
            device
            for device in folders(root / "sys/class/thermal", "cooling_device*")
            if (read_text(device / "type") or "").lower().startswith(_COOLING)
        ]
        cores = folders(root / "sys/devices/system/cpu", "cpu[0-9]*")
        places = ("thermal_throttle/core_throttle_count", "thermal_throttle/package_throttle_count")
        self._counters = [core / place for core in cores for place in places if (core / place).exists()]
        self._counted = self._count()

    def _count(self) -> int:
        return sum(read_int(counter) or 0 for counter in self._counters)

    def sample(self) -> Reading:
        """1 while it is held back, else 0, or unavailable; the reason says by what this is known.

        The counters of x86 processors tell whether it was since the sample before.
        """
        known: list[str] = []
        if self._has_pi and (text := read_text(self._pi)):
            try:
                bits = int(text, 16)
            except ValueError:
                bits = -1
            if bits >= 0:
                if now := [words for bit, words in _PI_NOW.items() if bits >> bit & 1]:
                    return Reading(1, f"the firmware says: {', '.join(now)}")
                known.append("the firmware")
        for device in self._cooling:
            state = read_int(device / "cur_state")
            if state is not None and state > 0:
                return Reading(1, f"{device.name} ({read_text(device / 'type')}) is at {state}")
        if self._cooling:
            known.append(f"{len(self._cooling)} cooling devices")
        if self._counters:
            before, self._counted = self._counted, self._count()
            if self._counted > before:
                return Reading(1, f"the processor counted {self._counted - before} thermal events")
            known.append(f"{len(self._counters)} counters of thermal events")
        if not known:
            return Reading(None, "neither firmware, cooling devices nor counters of thermal events are to be seen")
        return Reading(0, " and ".join(known))
