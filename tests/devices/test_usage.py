"""How busy a machine is: the difference between two readings of the kernel's counters."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nearfar.devices.usage import UsageSampler
from tests.devices import trees


def sampler(root: Path) -> tuple[UsageSampler, float]:
    """A sampler and a moment just after it was made."""
    made = UsageSampler(root, cpus=())
    return made, time.monotonic()


def test_busy_is_what_all_cores_did_and_were_not_idle(tmp_path: Path) -> None:
    root = trees.raspberry_pi_5(tmp_path)
    made, start = sampler(root)
    # 10 s on 4 cores: 4000 ticks of which 1000 were user and 1000 system; iowait and idle do not count
    trees.plant(root, {"proc/stat": "cpu  2000 0 1500 81000 1300 0 20 0 0 0\n"})
    usage = made.sample(start + 10)
    assert usage.cpu == pytest.approx(0.5, rel=0.02)
    assert usage.memory_free == 7_000_000 * 1024
    assert usage.temperature == 55.13
    assert "rp1_adc" in usage.temperature_reason


def test_only_the_cores_that_one_is_pinned_to_count(tmp_path: Path) -> None:
    def stat(one: int, two: int) -> dict[str, str]:
        lines = [f"cpu{at} {user} 0 0 0 0 0 0 0 0 0" for at, user in enumerate((0, one, two, 0))]
        return {"proc/stat": "\n".join((f"cpu {one + two} 0 0 0 0 0 0 0 0 0", *lines, "intr 5 5 5"))}

    root = trees.plant(trees.raspberry_pi_5(tmp_path), stat(0, 0))
    made, start = UsageSampler(root, cpus={0, 1}), time.monotonic()
    trees.plant(root, stat(1000, 1000))
    # of 10 s on 4 cores core 1 was busy all the time; so was core 2, which is none of ours
    assert made.sample(start + 10).cpu == pytest.approx(0.25, rel=0.02)


def test_counters_that_are_no_numbers_count_as_none(tmp_path: Path) -> None:
    root = trees.plant(tmp_path, {"proc/stat": "cpu x y z 1 2 3 4 5\n"})
    made, start = sampler(root)
    assert made.sample(start + 10).cpu == 0.0


def test_a_second_sample_starts_where_the_first_ended(tmp_path: Path) -> None:
    root = trees.raspberry_pi_5(tmp_path)
    made, start = sampler(root)
    trees.plant(root, {"proc/stat": "cpu  5000 0 500 80000 300 0 20 0 0 0\n"})
    assert made.sample(start + 10).cpu == pytest.approx(1.0, rel=0.02)
    assert made.sample(start + 20).cpu == 0.0


def test_samples_close_together_repeat_the_last_share(tmp_path: Path) -> None:
    root = trees.raspberry_pi_5(tmp_path)
    made, start = sampler(root)
    trees.plant(root, {"proc/stat": "cpu  3000 0 500 80000 300 0 20 0 0 0\n"})
    first = made.sample(start + 10).cpu
    assert first == pytest.approx(0.5, rel=0.02)
    assert made.sample(start + 10.01).cpu == first


def test_in_a_container_busy_is_the_share_of_its_quota(tmp_path: Path) -> None:
    root = trees.limited_container(tmp_path)
    made, start = sampler(root)
    trees.plant(root, {"sys/fs/cgroup/cpu.stat": "usage_usec 9500000\n"})  # 7.5 s of 15 s
    usage = made.sample(start + 10)
    assert usage.cpu == pytest.approx(0.5, rel=0.02)
    assert usage.memory_free == (512 - (300 - 100)) * 1024**2
    assert usage.temperature is None
    assert usage.temperature_reason


def test_in_a_container_of_an_old_kernel_too(tmp_path: Path) -> None:
    root = trees.limited_container_v1(tmp_path)
    made, start = sampler(root)
    trees.plant(root, {"sys/fs/cgroup/cpu,cpuacct/cpuacct.usage": "13000000000\n"})  # 10 s of 20 s
    usage = made.sample(start + 10)
    assert usage.cpu == pytest.approx(0.5, rel=0.02)
    assert usage.memory_free == 768 * 1024**2


def test_counters_that_run_backwards_or_vanish_give_a_share_nonetheless(tmp_path: Path) -> None:
    root = trees.raspberry_pi_5(tmp_path)
    made, start = sampler(root)
    (root / "proc/stat").unlink()
    before = made.sample(start + 5).memory_free
    (root / "proc/meminfo").unlink()
    usage = made.sample(start + 10)
    assert usage.cpu == 0.0
    assert usage.memory_free == before > 0  # what cannot be read is not nothing: the last reading stands


def test_this_machine() -> None:
    usage = UsageSampler().sample()
    assert 0 <= usage.cpu <= 1
    assert usage.memory_free > 0
    assert usage.temperature_reason
