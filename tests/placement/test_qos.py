"""The monitor of a promise: figures against numpy's, and what it must and must not take for trouble.

`python -m tests.placement.test_qos` prints what one frame costs to observe and assess: 20 us on an x86-64 core.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import InputError
from nearfar.placement.qos import (
    CALM,
    HOLD,
    MOST,
    STAGES,
    WINDOW,
    Assessment,
    Level,
    Monitor,
    Promise,
    gives_up,
    theil_sen,
)
from nearfar.types.request import Degrade, Qos, Stages
from nearfar.types.units import Milliseconds, Seconds

PROMISE = Promise(Milliseconds(100.0))
PERCENTILES = st.sampled_from([50.0, 90.0, 95.0, 99.0, 99.9])
LOST = math.inf


def stages_of(total: float, queue: float = 0.0) -> Stages:
    return Stages(link=2.0, queue=queue, preprocess=1.0, inference=max(0.0, total - queue - 5.0), postprocess=1.0)


def tell(monitor: Monitor, total: float, at: float, queue: float = 0.0) -> None:
    if total == LOST:
        monitor.missed(Seconds(at))
    else:
        monitor.observe(stages_of(total, queue), total, Seconds(at))


def play(
    latency: Callable[[float], float],
    seconds: float,
    *,
    promise: Promise = PROMISE,
    rate: float = 30.0,
    monitor: Monitor | None = None,
) -> Iterator[tuple[float, Assessment]]:
    """A stream of that rate whose frame at t takes latency(t); what is found after each."""
    monitor = monitor or Monitor(Seconds(0.0))
    for number in range(int(seconds * rate)):
        at = number / rate
        tell(monitor, latency(at), at)
        yield at, monitor.assess(promise, Seconds(at))


def levels(played: Iterator[tuple[float, Assessment]]) -> list[tuple[float, Level]]:
    """Every change of the level, with its moment."""
    changes: list[tuple[float, Level]] = []
    for at, found in played:
        if found.level is not (changes[-1][1] if changes else Level.KEPT):
            changes.append((at, found.level))
    return changes


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 500.0) | st.just(LOST), st.floats(0.0, 300.0)),
        min_size=1,
        max_size=120,
    ),
    PERCENTILES,
)
def test_the_quantiles_are_numpys_over_the_same_window(ends: list[tuple[float, float, float]], p: float) -> None:
    monitor = Monitor(Seconds(0.0))
    now, kept = 0.0, []
    for gap, total, queue in ends:
        now += gap
        tell(monitor, total, now, queue)
        kept.append((now, total, queue))
    found = monitor.assess(Promise(Milliseconds(100.0), p), Seconds(now))
    window = [(total, queue) for at, total, queue in kept if at >= now - WINDOW]
    totals = np.sort([total for total, _ in window])
    # "inverted_cdf" is the nearest rank; numpy interpolates infinities into NaN, so ranks are taken of the sorted ones.
    rank = int(np.quantile(np.arange(len(totals)), p / 100, method="inverted_cdf"))
    assert found.quantile == totals[rank]
    assert found.ends == len(window) and found.late == sum(total > 100.0 for total, _ in window)
    queues = [queue for total, queue in window if total != LOST]
    if queues:
        assert found.stages["queue"] == np.quantile(queues, p / 100, method="inverted_cdf")
    assert set(found.stages) == (set(STAGES) if queues else set())


@settings(deadline=None, max_examples=60)
@given(st.floats(0.1, 95.0), st.sampled_from([1.0, 5.0, 30.0, 100.0]), PERCENTILES)
def test_constant_latencies_below_the_deadline_never_threaten(latency: float, rate: float, p: float) -> None:
    promise = Promise(Milliseconds(100.0), p)
    assert levels(play(lambda _: latency, 1200 / rate, rate=rate, promise=promise)) == []


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.floats(5.0, 60.0), st.floats(0.0, 0.15), st.sampled_from([10.0, 30.0]))
def test_noise_below_the_deadline_never_threatens(seed: int, middle: float, sigma: float, rate: float) -> None:
    rng = random.Random(seed)
    assert levels(play(lambda _: middle * rng.lognormvariate(0, sigma), 600 / rate, rate=rate)) == []


@settings(deadline=None, max_examples=60)
@given(
    st.floats(5.0, 60.0), st.floats(2.0, 12.0), st.floats(5.0, 30.0), st.sampled_from([5.0, 15.0, 30.0]),
    st.integers(0, 1000),
)  # fmt: skip
def test_a_steady_ramp_threatens_before_an_answer_is_late(
    base: float, slope: float, start: float, rate: float, seed: int
) -> None:
    rng = random.Random(seed)

    def latency(at: float) -> float:
        return base + slope * max(0.0, at - start) + rng.uniform(-1.0, 1.0)

    threatened = None
    for at, found in play(latency, start + 100 / slope, rate=rate):
        if threatened is None and found.level is Level.THREATENED:
            threatened = at
            assert found.slope > 0 and found.forecast is not None and found.forecast > 100
            assert found.blame == "inference" and "threatened" in found.reason and "inference" in found.reason
        if found.late:
            break
    assert threatened is not None, f"the first late answer came at {at}, unforeseen"


@pytest.mark.parametrize("start", [0.0, 3.0, 40.0])
@pytest.mark.parametrize("rate", [2.0, 10.0, 30.0])
@pytest.mark.parametrize("bad", [300.0, LOST])
def test_one_bad_second_moves_nothing(start: float, rate: float, bad: float) -> None:
    assert levels(play(lambda at: bad if start <= at < start + 1 else 40.0, 60.0, rate=rate)) == []


def test_a_single_late_answer_moves_nothing_however_strict_the_promise() -> None:
    promise = Promise(Milliseconds(100.0), 99.9)
    assert levels(play(lambda at: 300.0 if at == 20.0 else 40.0, 60.0, promise=promise)) == []


@pytest.mark.parametrize("bad", [120.0, LOST])
def test_a_lasting_step_is_told_and_calm_ends_it(bad: float) -> None:
    changes = levels(play(lambda at: bad if 20 <= at < 30 else 40.0, 90.0))
    assert changes[0][1] is not Level.KEPT and 21 < changes[0][0] < 23
    assert Level.BROKEN in {level for _, level in changes}
    # Ten bad seconds of thirty: the window must let go of them before anybody may call it kept.
    assert changes[-1][1] is Level.KEPT and changes[-1][0] > 30 + CALM
    assert len(changes) <= 3


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([20.0, 90.0, 99.0, 101.0, 150.0, LOST]), min_size=10, max_size=40), PERCENTILES)
def test_changes_of_the_level_are_bounded_whatever_comes(seconds: list[float], p: float) -> None:
    promise = Promise(Milliseconds(100.0), p)
    changes = levels(play(lambda at: seconds[int(at)], len(seconds), rate=20, promise=promise))
    # Up takes HOLD or a budget of late answers, down takes CALM: of a round (threatened, broken, kept) one each.
    assert len(changes) <= 3 * (len(seconds) / (CALM + HOLD) + 1)
    for (at, _), (again, level) in itertools.pairwise(changes):
        assert level is not Level.KEPT or again - at >= CALM


def test_after_a_restart_the_past_is_no_longer_held_against_the_new_service() -> None:
    monitor = Monitor(Seconds(0.0))
    at, found = list(play(lambda _: 150.0, 10.0, monitor=monitor))[-1]
    assert found.level is Level.BROKEN
    monitor.restart(Seconds(at))
    found = monitor.assess(PROMISE, Seconds(at))
    assert found.level is Level.KEPT and found.forecast is None
    assert found.share > 0.9  # what the user gets to see is the stream's, whoever served it


def test_each_restart_makes_the_next_threat_slower() -> None:
    """A stream whose moves do not help moves ever less."""
    waits = []
    monitor = Monitor(Seconds(0.0))
    began = 0.0
    for number in range(30 * 60):
        at = number / 30
        # Every third answer is late: the median is below the deadline, the percentile is not.
        tell(monitor, 130.0 if number % 3 == 0 else 99.0, at)
        if monitor.assess(Promise(Milliseconds(100.0), 80.0), Seconds(at)).level is not Level.KEPT:
            waits.append(at - began)
            monitor.restart(Seconds(at))
            began = at
    assert len(waits) >= 5 and waits[:5] == sorted(waits[:5]) and waits[4] > waits[0] + 5 * HOLD


def expecting(wait: Callable[[float], float], seconds: float = 20.0) -> list[tuple[float, Assessment]]:
    """A stream whose answers take 60 ms without any queue, and what the fleet's telemetry says of waiting there."""
    monitor, found = Monitor(Seconds(0.0)), []
    for number in range(int(seconds * 30)):
        at = number / 30
        tell(monitor, 60.0, at)
        found.append((at, monitor.assess(PROMISE, Seconds(at), Milliseconds(wait(at)))))
    return found


def test_a_queue_that_grows_and_that_only_telemetry_sees_is_part_of_the_forecast() -> None:
    played = expecting(lambda at: 55.0 if at >= 10 else 0.0, 12.5)
    (first, level), *_ = levels(iter(played))
    assert level is Level.THREATENED and 10.5 < first < 12
    found = played[-1][1]
    assert found.forecast == pytest.approx(115.0) and "55 ms of it by a queue that grows" in found.reason


@pytest.mark.parametrize(
    "wait", [lambda _: 55.0, lambda at: 55.0 if 10 <= at < 10.9 else 0.0, lambda at: math.nan if at > 5 else 0.0]
)
def test_a_wait_that_was_always_expected_or_for_a_moment_only_is_not(wait: Callable[[float], float]) -> None:
    """A stream with several frames on their way is told to expect its own queue, which never comes."""
    assert levels(iter(expecting(wait))) == []


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from([20.0, 80.0, 130.0, LOST]), min_size=2, max_size=25),
    st.floats(0.0, 1e6),
    st.integers(0, 20),
)
def test_a_monitor_that_travels_goes_on_as_if_it_had_not(seconds: list[float], shift: float, restart: int) -> None:
    """The clock of the other machine is another; what is found there is the same."""
    shift = float(round(shift * 8) / 8)  # exact as a float, as are the moments below: no frame may change its bin
    here, half = Monitor(Seconds(0.0)), len(seconds) * 8
    for number in range(half):
        at = number / 16
        tell(here, seconds[int(at)], at)
        here.assess(PROMISE, Seconds(at))
        if number == restart:
            here.restart(Seconds(at))
    at = half / 16
    there = Monitor.import_state(here.export_state(Seconds(at)), Seconds(at + shift))
    for number in range(half, 2 * half):
        at = number / 16
        tell(here, seconds[int(at)], at)
        tell(there, seconds[int(at)], at + shift)
        one, other = here.assess(PROMISE, Seconds(at)), there.assess(PROMISE, Seconds(at + shift))
        assert (one.level, one.ends, one.late, one.blame) == (other.level, other.ends, other.late, other.blame)
        assert one.quantile == other.quantile and one.stages == other.stages
        assert one.forecast == other.forecast or one.forecast == pytest.approx(other.forecast)


def test_what_is_no_state_is_refused() -> None:
    monitor = Monitor(Seconds(0.0))
    tell(monitor, 50.0, 1.0)
    data = monitor.export_state(Seconds(1.0))
    for bad in (b"", b"\xc1", data[:-3], data.replace(b"kept", b"gone")):
        with pytest.raises(InputError):
            Monitor.import_state(bad, Seconds(0.0))
    state = monitor.state(Seconds(1.0))
    import msgspec

    for change in ({"version": 99}, {"since": math.nan}, {"samples": (state.samples[0],) * (MOST + 1)}):
        with pytest.raises(InputError):
            Monitor.of(msgspec.structs.replace(state, **change), Seconds(0.0))


def test_memory_of_a_fast_stream_is_bounded() -> None:
    monitor = Monitor(Seconds(0.0))
    for number in range(2 * MOST):
        tell(monitor, 1.0, number / 1000)
    found = monitor.assess(PROMISE, Seconds(2 * MOST / 1000))
    assert found.ends == MOST and len(monitor.state(Seconds(9.0)).samples) == MOST


def test_nothing_was_seen_yet() -> None:
    found = Monitor(Seconds(5.0)).assess(PROMISE, Seconds(5.0))
    assert found.level is Level.KEPT and math.isnan(found.quantile) and not found.blame
    assert "no answer has come yet" in found.reason


def test_one_far_off_point_in_five_does_not_turn_the_line() -> None:
    level, slope = theil_sen([(float(x), 10.0 + 2 * x + (500 if x % 5 == 4 else 0)) for x in range(10)])
    assert slope == pytest.approx(2.0, abs=0.5) and level == pytest.approx(10.0, abs=4)


def test_what_may_be_given_up_now_heads_the_list() -> None:
    far, refuse, rate = Degrade.FAR, Degrade.REFUSE, Degrade.RATE
    told = [(gives_up(Qos(degrade=d), far), gives_up(Qos(degrade=d), refuse)) for d in ((), (far,), (rate, far))]
    assert told == [(False, False), (True, False), (False, False)]
    assert gives_up(Qos(degrade=(far, refuse)), refuse) and not gives_up(Qos(degrade=(rate, refuse)), refuse)


def main() -> None:
    import time

    rng = random.Random(1)
    monitor, frames = Monitor(Seconds(0.0)), 9000
    ends = [(n / 30, rng.lognormvariate(3.6, 0.3)) for n in range(frames)]
    start = time.process_time()  # not of others on this machine
    for at, total in ends:
        monitor.observe(stages_of(total), total, Seconds(at))
        monitor.assess(PROMISE, Seconds(at))
    print(f"{(time.process_time() - start) / frames * 1e6:.1f} us per frame")


if __name__ == "__main__":
    main()
