"""Which board or machine this is, its operating system, and an id that tells hosts apart without naming them."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from nearfar.devices.files import read_text
from nearfar.types.telemetry import Reading

_FILLER = {"", "to be filled by o.e.m.", "system product name", "default string", "not specified", "none"}
"""What vendors leave in DMI fields that they did not fill."""


def board(root: Path = Path("/")) -> Reading:
    """The board: the device tree's model, else DMI's vendor and product."""
    for place in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if model := read_text(root / place):
            return Reading(model, f"/{place}")
    dmi = root / "sys/class/dmi/id"
    vendor, product = (read_text(dmi / name) or "" for name in ("sys_vendor", "product_name"))
    if product.strip().lower() not in _FILLER:
        known = vendor if vendor.strip().lower() not in _FILLER else ""
        return Reading(f"{known} {product}".strip(), "/sys/class/dmi/id")
    return Reading(None, "neither /proc/device-tree/model nor /sys/class/dmi/id names it")


def operating_system(root: Path = Path("/")) -> Reading:
    """Distribution and kernel."""
    release = read_text(root / "etc/os-release") or read_text(root / "usr/lib/os-release") or ""
    pairs = dict(line.split("=", 1) for line in release.splitlines() if "=" in line)
    name = pairs.get("PRETTY_NAME", "").strip("\"'")
    kernel = read_text(root / "proc/sys/kernel/osrelease")
    here = f"{platform.system()} {kernel or platform.release()} {platform.machine()}"
    reason = "/etc/os-release and the kernel's release" if name else "the kernel's release; /etc/os-release is absent"
    return Reading(f"{name}, {here}" if name else here, reason)


def container(root: Path = Path("/")) -> Reading:
    """`docker`, `podman`, `kubernetes`, ... when this process runs in a container, else `none`."""
    if (root / ".dockerenv").exists():
        return Reading("docker", "/.dockerenv exists")
    if (root / "run/.containerenv").exists():
        return Reading("podman", "/run/.containerenv exists")
    groups = read_text(root / "proc/self/cgroup") or ""
    for word, name in (("kubepods", "kubernetes"), ("docker", "docker"), ("lxc", "lxc"), ("containerd", "containerd")):
        if word in groups:
            return Reading(name, "/proc/self/cgroup")
    return Reading("none", "no sign of one in /.dockerenv, /run/.containerenv or /proc/self/cgroup")


def host_id(root: Path = Path("/")) -> Reading:
    """16 hex digits, the same for all processes of a machine until it boots again.

    A hash of the machine's id and the boot's id; the ids themselves are confidential
    (machine-id(5)) and never leave the machine. The boot id tells apart machines cloned from one image.
    """
    parts = {
        "/etc/machine-id": read_text(root / "etc/machine-id"),
        "/proc/sys/kernel/random/boot_id": read_text(root / "proc/sys/kernel/random/boot_id"),
    }
    known = {place: text for place, text in parts.items() if text}
    if not known:
        return Reading(None, f"none of {', '.join(parts)} can be read")
    digest = hashlib.blake2b(b"nearfar host", digest_size=8)
    for place, text in known.items():
        digest.update(f"\0{place}\0{text}".encode())
    return Reading(digest.hexdigest(), f"hash of {' and '.join(known)}")
