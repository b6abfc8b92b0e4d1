"""Whether an accelerator is really there: a library that could drive one says nothing of that.

All reads go below `root`, so that a test can hand over a tree of its own.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

_NVIDIA = re.compile(r"nvidia\d+|nvhost-gpu|nvgpu|dxg")
"""Device nodes of an NVIDIA GPU: discrete, Jetson (two generations), and Windows' subsystem for Linux."""
_CORAL_USB = {("1a6e", "089a"), ("18d1", "9302")}
"""USB ids of the Coral accelerator before and after its firmware is loaded (libedgetpu's udev rules)."""
EDGETPU = "libedgetpu.so.1"


def nvidia(root: Path = Path("/")) -> str:
    """The device node of the first NVIDIA GPU, or '' when there is none."""
    try:
        names = sorted(entry.name for entry in (root / "dev").iterdir())
    except OSError:
        return ""
    return next((f"/dev/{name}" for name in names if _NVIDIA.fullmatch(name)), "")


def coral(root: Path = Path("/")) -> str:
    """Where the first Coral Edge TPU is (`/dev/apex_0`, or a USB port), or '' when there is none."""
    if (root / "dev/apex_0").exists():
        return "/dev/apex_0"
    try:
        ports = sorted((root / "sys/bus/usb/devices").iterdir())
    except OSError:
        return ""
    for port in ports:
        if (_word(port / "idVendor"), _word(port / "idProduct")) in _CORAL_USB:
            return f"USB port {port.name}"
    return ""


def has_edgetpu_library() -> bool:
    try:
        ctypes.CDLL(EDGETPU)
    except OSError:
        return False
    return True


def _word(path: Path) -> str:
    try:
        return path.read_text().strip().lower()
    except OSError:
        return ""
