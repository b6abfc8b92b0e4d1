"""Three machines and this one, told by their files."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from nearfar.devices.detect import detect
from nearfar.types.telemetry import ComputeUnit, DeviceInfo, UnitKind
from tests.devices import trees


def values(info: DeviceInfo) -> dict[str, object]:
    return {name: reading.value for name, reading in info.readings.items()}


def test_a_raspberry_pi_5(tmp_path: Path) -> None:
    info = detect(root=trees.raspberry_pi_5(tmp_path))
    found = values(info)
    assert found["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert found["cpu_model"] == "4x Arm Cortex-A76"
    assert found["isa"] == "asimd asimdhp asimddp"
    assert found["temperature"] == 55.13
    assert info.readings["temperature"].reason == "hottest of 2 sensors: rp1_adc"
    assert str(found["os"]).startswith("Debian GNU/Linux 12 (bookworm), Linux 6.6.31+rpt-rpi-2712")
    assert found["container"] == "none"
    assert (info.cores, info.memory) == (4.0, 8_255_000 * 1024)


def test_a_jetson(tmp_path: Path) -> None:
    info = detect(root=trees.jetson_orin(tmp_path))
    found = values(info)
    assert found["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found["cpu_model"] == "6x Arm Cortex-A78AE"
    assert found["temperature"] == 61.5  # the broken sensor at -256 degrees is not believed
    assert info.cores == 6
    assert found["host"] is None
    assert "machine-id" in info.readings["host"].reason


def test_a_container_with_limits(tmp_path: Path) -> None:
    info = detect(root=trees.limited_container(tmp_path))
    found = values(info)
    assert (info.cores, info.memory) == (1.5, 512 * 1024**2)
    assert info.readings["cores"].reason == "CPU quota in /sys/fs/cgroup/cpu.max"
    assert info.readings["memory"].reason == "limit in /sys/fs/cgroup/memory.max"
    assert found["cpu_model"] == "Intel(R) Xeon(R) Gold 6430"
    assert found["isa"] == "avx2 fma f16c avx512f avx512_vnni amx_int8"
    assert found["board"] == "Dell Inc. PowerEdge R760"
    assert found["container"] == "docker"
    assert found["temperature"] is None
    assert "no sensor" in info.readings["temperature"].reason


def test_a_container_of_an_old_kernel(tmp_path: Path) -> None:
    info = detect(root=trees.limited_container_v1(tmp_path))
    assert (info.cores, info.memory) == (2.0, 1024**3)


def test_a_machine_without_any_file_is_described_without_an_exception(tmp_path: Path) -> None:
    info = detect(root=tmp_path)
    assert info.cores >= 1
    assert info.memory == 0
    assert all(reading.reason for reading in info.readings.values())
    assert info.readings["board"].value is None


def test_files_full_of_rubbish_are_survived(tmp_path: Path) -> None:
    good = trees.raspberry_pi_5(tmp_path)
    for path in sorted(good.rglob("*")):
        if path.is_file() and path.name != "cgroup":
            path.write_bytes(b"\xff\x00: \n:::\nx y z\n9999999999999999999999\n")
    info = detect(root=good)
    assert all(reading.reason for reading in info.readings.values())


def test_big_and_little_cores_are_both_named_and_only_common_flags_count(tmp_path: Path) -> None:
    little = "processor: 0\nFeatures: fp asimd\nCPU implementer: 0x41\nCPU part: 0xd05\n"
    big = "processor: 1\nFeatures: fp asimd i8mm\nCPU implementer: 0x41\nCPU part: 0xd41\n"
    unknown = "processor: 2\nFeatures: fp asimd\nCPU implementer: 0x99\nCPU part: 0x123\n"
    root = trees.plant(tmp_path, {"proc/cpuinfo": "\n".join((little, big, unknown))})
    found = values(detect(root=root))
    assert found["cpu_model"] == "1x Arm Cortex-A55 + 1x Arm Cortex-A78 + 1x implementer 0x99 part 0x123"
    assert found["isa"] == "asimd"


def test_dmi_fields_that_nobody_filled_are_no_board(tmp_path: Path) -> None:
    root = trees.plant(tmp_path, {"sys/class/dmi/id/product_name": "To be filled by O.E.M.\n"})
    assert detect(root=root).readings["board"].value is None


def test_the_tightest_limit_of_all_parents_counts(tmp_path: Path) -> None:
    root = trees.limited_container(tmp_path)
    trees.plant(
        root,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/a/memory.max": "max\n",
        },
    )
    info = detect(root=root)
    assert (info.cores, info.memory) == (0.5, 512 * 1024**2)
    assert info.readings["cores"].reason == "CPU quota in /sys/fs/cgroup/a/cpu.max"


def test_the_host_id_is_stable_secret_and_new_after_a_boot(tmp_path: Path) -> None:
    root = trees.raspberry_pi_5(tmp_path)
    first = detect(root=root).readings["host"].value
    assert first == detect(root=root).readings["host"].value
    assert isinstance(first, str)
    assert len(first) == 16
    assert first not in (root / "etc/machine-id").read_text()
    trees.plant(root, {"proc/sys/kernel/random/boot_id": "another\n"})
    assert detect(root=root).readings["host"].value != first


def test_units_come_from_the_caller_once_each_accelerators_first() -> None:
    cpu = ComputeUnit(UnitKind.CPU, "cpu", "one")
    info = detect([cpu, ComputeUnit(UnitKind.CPU, "cpu", "two"), ComputeUnit(UnitKind.TPU, "coral", "at /dev/apex_0")])
    assert [unit.name for unit in info.units] == ["coral", "cpu"]
    assert info.units[1] == cpu
    assert info.readings["accelerators"].value == "coral"
    assert info.readings["accelerators"].reason == "at /dev/apex_0"
    assert detect([cpu]).readings["accelerators"].value == "none"
    assert detect().readings["accelerators"].value is None
    unused = detect([cpu], idle=["a Coral is at /dev/apex_0, but its library is not installed"]).readings[
        "accelerators"
    ]
    assert (unused.value, unused.reason) == ("none", "a Coral is at /dev/apex_0, but its library is not installed")


def test_this_machine_is_described_and_travels() -> None:
    info = detect()
    assert info.cores > 0
    assert info.memory > 0
    back = msgspec.msgpack.decode(msgspec.msgpack.encode(info), type=DeviceInfo)
    assert back == info


@pytest.mark.parametrize("word", ["kubepods", "lxc"])
def test_a_container_is_told_by_its_cgroup(tmp_path: Path, word: str) -> None:
    root = trees.plant(tmp_path, {"proc/self/cgroup": f"0::/{word}/x\n"})
    assert detect(root=root).readings["container"].reason == "/proc/self/cgroup"
