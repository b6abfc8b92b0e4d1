"""Whether the processor is held back: what a Raspberry Pi, the kernel and an x86 tell, and what none of them does."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearfar.devices.throttle import Throttle
from nearfar.devices.usage import UsageSampler
from tests.devices.trees import plant

PI = "sys/devices/platform/soc/soc:firmware/get_throttled"
COOLING = "sys/class/thermal/cooling_device"
COUNT = "sys/devices/system/cpu/cpu{}/thermal_throttle/core_throttle_count"


@pytest.mark.parametrize(
    ("bits", "value", "told"),
    [
        ("0\n", 0, "the firmware"),
        ("0x0", 0, "the firmware"),
        ("50000", 0, "the firmware"),  # it was once, under-voltage too: that is over
        ("4", 1, "throttled"),
        ("e0008", 1, "soft temperature limit"),
        ("0x50006", 1, "capped, throttled"),
    ],
)
def test_a_raspberry_pi_says_it_in_bits(tmp_path: Path, bits: str, value: int, told: str) -> None:
    reading = Throttle(plant(tmp_path, {PI: bits})).sample()
    assert reading.value == value and told in reading.reason


def test_cooling_devices_count_when_they_slow_the_processor_and_fans_do_not(tmp_path: Path) -> None:
    fan = {f"{COOLING}0/type": "pwm-fan\n", f"{COOLING}0/cur_state": "3\n"}
    assert Throttle(plant(tmp_path, fan)).sample().value is None
    cpu = {f"{COOLING}1/type": "Processor\n", f"{COOLING}1/cur_state": "0\n"}
    throttle = Throttle(plant(tmp_path, cpu))
    assert throttle.sample().value == 0
    plant(tmp_path, {f"{COOLING}1/cur_state": "2\n"})
    assert throttle.sample().value == 1 and "Processor" in throttle.sample().reason


def test_counters_of_an_x86_tell_whether_it_was_since_the_last_look(tmp_path: Path) -> None:
    root = plant(tmp_path, {COUNT.format(0): "7\n", COUNT.format(1): "0\n"})
    throttle = Throttle(root)
    assert throttle.sample().value == 0, "what was before the start is not now"
    plant(root, {COUNT.format(1): "2\n"})
    reading = throttle.sample()
    assert reading.value == 1 and "2 thermal events" in reading.reason
    assert throttle.sample().value == 0


def test_a_system_that_does_not_tell_is_unavailable_with_the_reason(tmp_path: Path) -> None:
    reading = Throttle(plant(tmp_path, {PI: "what?"})).sample()
    assert reading.value is None and str(reading) == "unavailable" and "to be seen" in reading.reason
    usage = UsageSampler(tmp_path, cpus=()).sample()
    assert usage.throttled is None and usage.throttled_reason == reading.reason
