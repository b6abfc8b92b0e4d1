"""The processor: its name, and the instructions that decide how fast inference can be."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

from nearfar.devices.files import read_text
from nearfar.types.telemetry import Reading

ISA = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    # aarch64 (Linux, Documentation/arch/arm64/elf_hwcaps.rst)
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
    # 32-bit Arm
    *("neon", "vfpv4"),
)
"""Flags of /proc/cpuinfo that matter to float32, float16, bfloat16 or int8 arithmetic, in the order of reporting."""

_PARTS: Mapping[int, tuple[str, Mapping[int, str]]] = {
    0x41: (
        "Arm",
        {
            0xC07: "Cortex-A7",
            0xC08: "Cortex-A8",
            0xC09: "Cortex-A9",
            0xC0F: "Cortex-A15",
            0xD03: "Cortex-A53",
            0xD04: "Cortex-A35",
            0xD05: "Cortex-A55",
            0xD07: "Cortex-A57",
            0xD08: "Cortex-A72",
            0xD09: "Cortex-A73",
            0xD0A: "Cortex-A75",
            0xD0B: "Cortex-A76",
            0xD0C: "Neoverse-N1",
            0xD0D: "Cortex-A77",
            0xD0E: "Cortex-A76AE",
            0xD40: "Neoverse-V1",
            0xD41: "Cortex-A78",
            0xD42: "Cortex-A78AE",
            0xD44: "Cortex-X1",
            0xD46: "Cortex-A510",
            0xD47: "Cortex-A710",
            0xD49: "Neoverse-N2",
            0xD4B: "Cortex-A78C",
            0xD4D: "Cortex-A715",
            0xD4F: "Neoverse-V2",
            0xD80: "Cortex-A520",
            0xD81: "Cortex-A720",
        },
    ),
    0x4E: ("NVIDIA", {0x003: "Denver 2", 0x004: "Carmel"}),
    0x51: ("Qualcomm", {0x800: "Kryo 2xx Gold", 0x801: "Kryo 2xx Silver", 0x802: "Kryo 385 Gold", 0x001: "Oryon"}),
    0x61: (
        "Apple",
        {
            0x022: "M1 Icestorm",
            0x023: "M1 Firestorm",
            0x032: "M2 Blizzard",
            0x033: "M2 Avalanche",
            0x042: "M3",
            0x043: "M3",
        },
    ),
}
"""MIDR implementer and part numbers (Arm, MIDR_EL1; the cores' technical reference manuals)."""


def cpu_model(root: Path = Path("/")) -> Reading:
    """The processor's name: as /proc/cpuinfo states it, else from its MIDR codes, each kind of core once."""
    text = read_text(root / "proc/cpuinfo")
    if text is None:
        return Reading(platform.processor() or None, "/proc/cpuinfo cannot be read; as Python's platform module says")
    blocks = [_fields(block) for block in text.split("\n\n") if block.strip()]
    for fields in blocks:
        # "Model" of a Raspberry Pi names the board, and 32-bit Arm kernels write a generic "ARMv7 Processor".
        name = fields.get("model name", "")
        if name and "CPU implementer" not in fields:
            return Reading(name, "model name in /proc/cpuinfo")
    counts: dict[str, int] = {}
    for fields in blocks:
        if found := _core_name(fields):
            counts[found] = counts.get(found, 0) + 1
    if counts:
        name = " + ".join(f"{count}x {core}" for core, count in counts.items())
        return Reading(name, "CPU implementer and part in /proc/cpuinfo")
    return Reading(None, "/proc/cpuinfo has neither a model name nor codes")


def isa(root: Path = Path("/")) -> Reading:
    """The flags of `ISA` that every core has, separated by blanks."""
    text = read_text(root / "proc/cpuinfo")
    if text is None:
        return Reading(None, "/proc/cpuinfo cannot be read")
    common: set[str] | None = None
    for block in text.split("\n\n"):
        fields = _fields(block)
        flags = fields.get("flags", fields.get("Features"))
        if flags is not None:
            common = set(flags.split()) if common is None else common & set(flags.split())
    if common is None:
        return Reading(None, "/proc/cpuinfo lists no flags")
    found = [flag for flag in ISA if flag in common]
    return Reading(" ".join(found) or "baseline", "flags that every core has in /proc/cpuinfo")


def _core_name(fields: Mapping[str, str]) -> str:
    try:
        implementer, part = int(fields["CPU implementer"], 16), int(fields["CPU part"], 16)
    except (KeyError, ValueError):
        return ""
    maker, names = _PARTS.get(implementer, (f"implementer 0x{implementer:02x}", {}))
    return f"{maker} {names.get(part, f'part 0x{part:03x}')}"


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}
