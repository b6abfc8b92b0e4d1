"""Machines as trees of small files, in the form in which their kernels write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def plant(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def _arm_cores(parts: list[tuple[str, str]], features: str) -> str:
    return "\n".join(
        f"processor\t: {at}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: {maker}\n"
        f"CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: {part}\nCPU revision\t: 1\n"
        for at, (maker, part) in enumerate(parts)
    )


def _meminfo(total_kib: int, available_kib: int) -> str:
    free = f"MemFree:         1000 kB\nMemAvailable:   {available_kib} kB\n"
    return f"MemTotal:       {total_kib} kB\n{free}HugePages_Total: 0\n"


def raspberry_pi_5(root: Path) -> Path:
    cores = _arm_cores(
        [("0x41", "0xd0b")] * 4, "fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm asimddp"
    )
    return plant(
        root,
        {
            "proc/cpuinfo": cores + "\nRevision\t: c04170\nSerial\t\t: 0123456789abcdef\nModel\t\t: Raspberry Pi 5\n",
            "proc/meminfo": _meminfo(8_255_000, 7_000_000),
            "proc/device-tree/model": b"Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/self/cgroup": "0::/user.slice/session-1.scope\n",
            "sys/fs/cgroup/user.slice/session-1.scope/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user.slice/memory.max": "max\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "51250\n",
            "sys/class/hwmon/hwmon0/name": "rp1_adc\n",
            "sys/class/hwmon/hwmon0/temp1_input": "55130\n",
            "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n',
            "etc/machine-id": "b08dfa6083e7567a1921a715000001fb\n",
            "proc/sys/kernel/random/boot_id": "e0a7ee9e-6d1a-4cfb-8b8e-f6c1f3a5d2b1\n",
            "proc/sys/kernel/osrelease": "6.6.31+rpt-rpi-2712\n",
            "proc/stat": "cpu  1000 0 500 80000 300 0 20 0 0 0\ncpu0 250 0 125 20000 75 0 5 0 0 0\n",
        },
    )


def jetson_orin(root: Path) -> Path:
    cores = _arm_cores([("0x41", "0xd42")] * 6, "fp asimd aes fphp asimdhp cpuid asimddp")
    return plant(
        root,
        {
            "proc/cpuinfo": cores,
            "proc/meminfo": _meminfo(7_800_000, 5_000_000),
            "proc/device-tree/model": b"NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48000\n",
            "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
            "sys/class/thermal/thermal_zone1/temp": "61500\n",
            "sys/class/thermal/thermal_zone10/type": "broken-thermal\n",
            "sys/class/thermal/thermal_zone10/temp": "-256000\n",
            "dev/nvhost-gpu": "",
        },
    )


def _x86_core(at: int, flags: str) -> str:
    return (
        f"processor\t: {at}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Gold 6430\nflags\t\t: {flags}\n"
    )


def limited_container(root: Path) -> Path:
    """A container of 1.5 cores and 512 MiB on a server of 8: its cgroup is the root of what it sees."""
    flags = "fpu sse2 avx2 fma f16c avx512f avx512_vnni amx_int8"
    return plant(
        root,
        {
            "proc/cpuinfo": "\n".join(_x86_core(at, flags) for at in range(8)),
            "proc/meminfo": _meminfo(65_000_000, 60_000_000),
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/cpu.stat": "usage_usec 2000000\nuser_usec 1500000\nsystem_usec 500000\n",
            "sys/fs/cgroup/memory.max": f"{512 * 1024**2}\n",
            "sys/fs/cgroup/memory.current": f"{300 * 1024**2}\n",
            "sys/fs/cgroup/memory.stat": f"anon 1\nfile 2\ninactive_file {100 * 1024**2}\n",
            "sys/class/dmi/id/sys_vendor": "Dell Inc.\n",
            "sys/class/dmi/id/product_name": "PowerEdge R760\n",
            ".dockerenv": "",
        },
    )


def limited_container_v1(root: Path) -> Path:
    """The same on an old kernel, with the host's path in /proc/self/cgroup that is not there in the container."""
    flags = "fpu sse2 avx2"
    return plant(
        root,
        {
            "proc/cpuinfo": "\n".join(_x86_core(at, flags) for at in range(8)),
            "proc/meminfo": _meminfo(65_000_000, 60_000_000),
            "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpuacct.usage": "3000000000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{1024**3}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{256 * 1024**2}\n",
            "sys/fs/cgroup/memory/memory.stat": "cache 5\ntotal_inactive_file 0\n",
        },
    )
