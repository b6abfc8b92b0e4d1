"""The switch's mind: when a frame arrives, that none overtakes, and what a cut swallows."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.lab.fabric import Fabric, hardware_address
from nearfar.simulate.links import Link

FAST = Link("fast", (10.0,), 1e9)
SLOW = Link("slow", (40.0,), 1000.0)
LOSSY = Link("lossy", (1.0,), 1e9, loss=0.5)
WILD = Link("wild", tuple(range(200)), 1e6)
TO_ALL = b"\xff" * 6


def fabric(ports: int = 3, *ways: tuple[int, int, tuple[str, ...]]) -> Fabric:
    made = Fabric(ports, {link.name: link for link in (FAST, SLOW, LOSSY, WILD)}, random.Random(1))
    for way in ways:
        made.join(*way)
    return made


def frame(target: int, size: int = 100) -> bytes:
    return bytes.fromhex(hardware_address(target).replace(":", "")).ljust(size, b"x")


def test_a_frame_takes_half_a_round_trip_and_the_time_of_its_bytes() -> None:
    made = fabric(3, (0, 1, ("fast", "slow")))
    made.take(0, frame(1), 5.0)
    assert made.next_at() == pytest.approx(5.0 + 0.1 + 0.025)  # 100 bytes at 1000 bytes/s, (10 + 40) / 2 ms
    assert list(made.due(5.12)) == []
    [(port, _, late)] = made.due(5.126)
    assert port == 1
    assert late == pytest.approx(0.001)
    made.take(1, frame(0), 6.0)
    assert made.next_at() == pytest.approx(6.125), "both ways are alike"


def test_bytes_of_one_pair_wait_for_each_other_and_those_of_another_do_not() -> None:
    made = fabric(3, (0, 1, ("slow",)), (2, 1, ("slow",)))
    for source in (0, 0, 2):
        made.take(source, frame(1), 0.0)
    assert [round(10 - late, 3) for _, _, late in made.due(10.0)] == [0.12, 0.12, 0.22]


def test_who_has_no_way_is_as_near_as_can_be_and_all_means_all_others() -> None:
    made = fabric(3)
    made.take(1, TO_ALL + b"x" * 20, 1.0)
    assert [port for port, _, _ in made.due(1.0)] == [0, 2]
    made.take(0, b"\x02" + b"?" * 40, 1.0)  # to nobody here
    made.take(0, b"short", 1.0)
    assert list(made.due(9.0)) == []


def test_a_cut_swallows_both_ways_and_what_is_under_way() -> None:
    made = fabric(3, (0, 1, ("fast",)))
    made.take(0, frame(1), 0.0)
    made.cut(1)
    made.take(0, frame(1), 0.001)
    made.take(1, frame(0), 0.001)
    made.take(0, frame(2), 0.001)
    assert [port for port, _, _ in made.due(1.0)] == [2]
    made.cut(1, False)
    made.take(0, frame(1), 2.0)
    assert [port for port, _, _ in made.due(3.0)] == [1]


def test_a_share_is_lost_and_nothing_of_the_rest_waits_for_a_retransmission() -> None:
    made = fabric(2, (0, 1, ("lossy",)))
    for number in range(1000):
        made.take(0, frame(1), float(number))
    late = [late for _, _, late in made.due(1000.0)]
    assert made.lost + len(late) == 1000
    assert 400 < made.lost < 600
    assert {round((1000.0 - each) % 1.0, 4) for each in late} == {0.0005}, "the hosts' TCP sends again, not the switch"


@given(st.lists(st.tuples(st.floats(0, 0.05), st.integers(14, 2000)), min_size=1, max_size=60))
def test_nothing_overtakes(steps: list[tuple[float, int]]) -> None:
    made = fabric(2, (0, 1, ("wild",)))
    now, sent = 0.0, []
    for number, (step, size) in enumerate(steps):
        now += step
        sent.append(frame(1, size)[:6] + number.to_bytes(8, "big") + b"x" * (size - 14))
        made.take(0, sent[-1], now)
    assert [got for _, got, _ in made.due(1e9)] == sent
