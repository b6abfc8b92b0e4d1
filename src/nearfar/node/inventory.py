"""What this machine can run: devices and runtimes, looked at in a process of its own.

Asking an engine for its units loads it (hundreds of megabytes, and now and then a crash in a driver); the agent stays
small and alive. `python -m nearfar.node.inventory` prints the inventory as JSON.
"""

from __future__ import annotations

import asyncio
import os
import sys

import msgspec

from nearfar.errors import RuntimeUnavailable
from nearfar.models.choose import Offer
from nearfar.types.telemetry import DeviceInfo


class Missing(msgspec.Struct, frozen=True):
    """A runtime that cannot be used here, and why."""

    runtime: str
    reason: str


class Inventory(msgspec.Struct, frozen=True):
    device: DeviceInfo
    offers: tuple[Offer, ...]
    missing: tuple[Missing, ...] = ()


def take() -> Inventory:
    """Look at this machine, in this process; loads every installed engine."""
    from nearfar.devices.detect import detect
    from nearfar.runtimes.registry import FAKES, idle_accelerators, installed

    offers: list[Offer] = []
    missing: list[Missing] = []
    for entry in installed():
        if entry.runtime is None or entry.reason:
            missing.append(Missing(entry.name, entry.reason))
            continue
        offers.append(Offer(entry.name, tuple(entry.runtime.formats), entry.runtime.units()))
    units = [unit for offer in offers if offer.runtime not in FAKES for unit in offer.units]
    return Inventory(detect(units, idle=idle_accelerators()), tuple(offers), tuple(missing))


async def take_isolated() -> Inventory:
    """As `take`, in a process of its own. Raises `RuntimeUnavailable` when that process fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nearfar.node.inventory"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        start_new_session=True,
    )
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    try:
        return msgspec.json.decode(out.splitlines()[-1], type=Inventory)
    except (ValueError, IndexError):  # not JSON, not UTF-8, nothing
        last = err.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise RuntimeUnavailable(
            f"This machine could not be looked at: {last[0]}.", "See 'python -m nearfar.node.inventory'."
        ) from None


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(take()) + b"\n")
