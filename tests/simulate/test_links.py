"""How long things take: the stable law, tables, traces, jitter, loss, and the devices."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nearfar.errors import InputError
from nearfar.simulate.devices import CATALOGUE, Heat
from nearfar.simulate.links import CUT_MS, make_link, stable, stable_ms
from nearfar.simulate.scenario import LinkSpec
from nearfar.simulate.traces import read_trace
from tests.realdata import need_data


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


def test_the_5g_law_has_the_quantiles_that_fit_the_paper() -> None:
    rng = random.Random(5)
    draws = [stable_ms(rng) for _ in range(40_000)]
    assert quantile(draws, 0.50) == pytest.approx(11.9, rel=0.02)
    assert quantile(draws, 0.99) == pytest.approx(37, rel=0.08)
    assert max(draws) <= CUT_MS and sum(draws) / len(draws) == pytest.approx(13.4, rel=0.05)


def test_the_grid_of_the_law_has_the_same_quantiles() -> None:
    link = make_link("5g", LinkSpec(kind="stable"))
    assert link.rtt(0, 0.5) == pytest.approx(11.9, rel=0.02) and link.rtt(0, 0.99) == pytest.approx(37, rel=0.06)


def test_at_shape_two_the_stable_law_is_normal_with_variance_two() -> None:
    rng = random.Random(2)
    draws = [stable(2.0, rng) for _ in range(40_000)]
    assert sum(x * x for x in draws) / len(draws) == pytest.approx(2.0, rel=0.03)
    assert quantile(draws, 0.8413) == pytest.approx(2**0.5, rel=0.04)


def test_a_table_goes_through_its_points_and_stays_within() -> None:
    link = make_link("t", LinkSpec(kind="table", quantiles=((0.0, 2.0), (0.5, 4.0), (1.0, 20.0))))
    values = [link.rtt(0, u / 1000) for u in range(1000)]
    assert values == sorted(values) and values[0] >= 2.0 and values[-1] <= 20.0
    assert values[500] == pytest.approx(4.0, abs=0.05) and values[750] == pytest.approx(12.0, abs=0.1)


def test_jitter_only_adds() -> None:
    link = make_link("j", LinkSpec(rtt_ms=5.0, jitter_ms=2.0))
    values = [link.rtt(0, (u + 0.5) / 1000) for u in range(1000)]
    assert min(values) >= 5.0 and sum(values) / 1000 == pytest.approx(5 + 2 * 0.798, rel=0.01)  # sqrt(2/pi)


def test_a_lost_packet_costs_a_time_out_as_often_as_stated() -> None:
    link = make_link("l", LinkSpec(rtt_ms=5.0, loss=0.03))
    slow = [u for u in range(10_000) if link.rtt(0, u / 10_000) > 200]
    assert len(slow) == 300 and link.rtt(0, 0.5) == 5.0
    assert link.bandwidth(0) == 100 * 125_000


def test_a_measured_5g_trace_gives_its_pings() -> None:
    path = need_data("network", "5g", "Download_Static_B_2019.12.16_13.40.04.csv")
    trace = read_trace(str(path))
    assert len(trace.rtts) == 2143 and not trace.rates and all(1 < rtt < 5000 for rtt in trace.rtts)
    link = make_link("5g", LinkSpec(kind="trace", path=str(path)))
    assert [link.rtt(second, 0.5) for second in (0, 100, 2143)] == [trace.rtts[0], trace.rtts[100], trace.rtts[0]]


def test_a_mahimahi_trace_gives_its_bandwidth() -> None:
    path = need_data("network", "mahimahi", "Verizon-LTE-short.up")
    link = make_link("lte", LinkSpec(kind="trace", path=str(path), rtt_ms=40))
    packets = [int(line) for line in path.read_text().split()]
    assert link.bandwidth(7.5) == 1500 * sum(1 for ms in packets if 7000 <= ms < 8000)
    assert link.rtt(7.5, 0.5) == 40


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "time,ms\n1,2\n", "no column PINGAVG"),
        ("a.csv", "PINGAVG\n-\n-\n", "holds no round trip"),
        ("a.up", "1\nx\n", "not of a known format"),
        ("a.up", "", "holds no round trip and no packet"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        read_trace(str(tmp_path / name))


def test_an_absent_trace_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere\.up cannot be read"):
        read_trace("nowhere.up")


def test_seconds_before_the_first_ping_take_the_first(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("PINGAVG\n-\n30\n-\n50\n")
    assert read_trace(str(tmp_path / "t.csv")).rtts == (30.0, 30.0, 30.0, 50.0)


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_service_times_have_the_published_mean(name: str) -> None:
    rng, device = random.Random(name), CATALOGUE[name]
    draws = [device.service_ms(rng.gauss(0, 1)) for _ in range(20_000)]
    assert sum(draws) / len(draws) == pytest.approx(device.mean_ms, rel=0.01) and min(draws) > 0
    assert device.active_w is None and "power unavailable" in device.source


def test_the_catalogue_holds_the_published_means() -> None:
    means = {name: device.mean_ms for name, device in CATALOGUE.items()}
    assert means == {"coral": 15.7, "jetson-nano": 61.6, "ncs2": 52.8, "pi3b+": 271.5, "pi5": 16.9}


def test_heat_comes_and_goes_with_a_gap_between() -> None:
    heat = Heat(CATALOGUE["pi5"], 40.0)
    changes = [second for second in range(1, 1200) if heat.step(second, 1.0 if second < 600 else 0.0)]
    assert len(changes) == 2 and changes[0] < 600 < changes[1]
    assert heat.temperature == pytest.approx(40.0, abs=0.1)
