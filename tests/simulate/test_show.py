"""What comes out: the comparison, its JSON, its table, its pictures, and the verb."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from nearfar.cli.main import app
from nearfar.errors import NearfarError, RuntimeUnavailable, SettingsError
from nearfar.simulate import plots, report
from nearfar.simulate.baselines import ORDER
from nearfar.simulate.compare import best_weights, compare, grid, policy_of
from nearfar.simulate.measures import Summary, jain
from tests.simulate.worlds import EXAMPLES, small

STEADY = str(EXAMPLES / "steady.toml")


@pytest.fixture(scope="module")
def summaries() -> list[Summary]:
    return list(compare(small(), grid_seconds=5))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["simulate", *arguments])


def test_all_policies_stand_side_by_side(summaries: list[Summary]) -> None:
    assert [s.policy for s in summaries] == list(ORDER)
    assert len({s.frames for s in summaries}) == 1
    weighted = next(s for s in summaries if s.policy == "weighted")
    assert sum(weighted.options.values()) == pytest.approx(1)


def test_the_best_weights_are_the_best_of_the_grid() -> None:
    scenario = small(
        nodes=[{"name": "a", "device": "coral", "link": "wifi"}, {"name": "b", "device": "pi3b+", "link": "lan"}]
    )
    best = best_weights(scenario, seconds=6)
    assert best["beta"] > 0, "closeness and free cores alone choose the one that is too slow"
    assert tuple(best.values()) in set(grid())


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(SettingsError, match="no policy 'nope'"):
        policy_of("nope")
    assert policy_of("nearfar.simulate.baselines:Random").name == "random"


def test_ratios_by_hand(summaries: list[Summary]) -> None:
    def with_rate(policy: str, rate: float) -> Summary:
        return msgspec.structs.replace(summaries[0], policy=policy, violation_rate=rate)

    found = report.ratios([with_rate("random", 0.4), with_rate("nearest", 0.3), with_rate("predictive", 0.06),
                           with_rate("clairvoyant", 0.05)])  # fmt: skip
    assert (found["best_baseline"], found["of_best_baseline"], found["of_clairvoyant"]) == ("nearest", 0.2, 1.2)
    zero = report.ratios([with_rate("predictive", 0.1), with_rate("clairvoyant", 0.0)])
    assert zero["of_clairvoyant"] is None and zero["of_best_baseline"] is None


def test_jain_index() -> None:
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1.0) and jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)


def test_the_json_is_complete_and_plain(summaries: list[Summary]) -> None:
    plain = json.loads(json.dumps(report.json_of(summaries), allow_nan=False))
    assert plain["complete"] and len(plain["policies"]) == len(ORDER)
    first = plain["policies"][0]
    assert first["frames"] == first["in_time"] + first["late"] + first["lost"]
    assert set(first["latency_ms"]) == {"p50", "p90", "p95", "p99", "mean"}


def test_pictures_are_written(summaries: list[Summary], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    written = plots.draw(summaries, tmp_path / "new")
    assert [path.name for path in written] == [
        f"small-{name}.{suffix}" for name in ("violations", "overview") for suffix in ("png", "svg")
    ]
    for path in written:
        start = path.read_bytes()[:300]
        assert start.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in start


def test_without_matplotlib_it_is_said_before_anything_is_played(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'nearfar\[plots\]'"):
        plots.need_matplotlib()
    told = run(STEADY, "--plots", str(tmp_path / "p"), "--seconds", "4")
    assert isinstance(told.exception, RuntimeUnavailable) and not (tmp_path / "p").exists()


def test_the_verb_shows_a_table_and_what_is_assumed() -> None:
    told = run(STEADY, "--seconds", "5", "--policy", "random", "--policy", "predictive", "--policy", "clairvoyant")
    assert told.exit_code == 0, told.output
    for word in ("random", "predictive", "clairvoyant", "of the best baseline (random)", "assumed: service times"):
        assert word in " ".join(told.output.split()), word


def test_the_verb_prints_json_and_takes_a_seed() -> None:
    outputs = [run(STEADY, "--seconds", "5", "--policy", "random", "--seed", seed, "--json").stdout for seed in "112"]
    plain = [json.loads(text)["policies"][0] for text in outputs]
    for one in plain:
        one.pop("wall_s")
    assert plain[0] == plain[1] != plain[2]
    assert plain[2]["seed"] == 2


@pytest.mark.parametrize("arguments", [["none.toml"], [STEADY, "--policy", "nope"]])
def test_what_cannot_be_played_is_an_error_of_ours(arguments: list[str]) -> None:
    told = run(*arguments)
    assert isinstance(told.exception, NearfarError) and told.exception.exit_code == 2


def test_ctrl_c_shows_what_was_played_and_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    from nearfar.simulate import run as engine

    born, count = engine.Engine.born, 0

    def interrupted(self: Any, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 100:
            raise KeyboardInterrupt
        born(self, *arguments)

    monkeypatch.setattr(engine.Engine, "born", interrupted)
    told = run(STEADY, "--policy", "random", "--policy", "predictive", "--json")
    plain = json.loads(told.stdout)
    assert told.exit_code == 130 and plain["complete"] is False
    assert [one["policy"] for one in plain["policies"]] == ["random"] and plain["policies"][0]["frames"] == 99
