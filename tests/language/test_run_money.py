"""A budget of money, with real nodes: no way round it, and no call that costs more than it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.far.misbehaving import FarServer
from tests.fleetlab import Lab
from tests.fleetlab import lab as lab
from tests.language.test_run import Here

MONEY = 0.00005
NEAR = {"NEARFAR_ROUTING_ROUTER": "always-near", "NEARFAR_ROUTING_MONEY_PER_DAY": str(MONEY)}


@pytest.fixture
def server() -> Iterator[FarServer]:
    with FarServer() as made:
        yield made


def test_money_holds_for_models_asked_by_name_and_when_near_fails(lab: Lab, tmp_path: Path, server: FarServer) -> None:
    with Here(lab, tmp_path, server, NEAR) as here:
        here.fault.write_text("fail")
        with ThreadPoolExecutor(8) as pool:  # all at once, each planned near: none was reserved
            told = list(pool.map(lambda n: here.ask(f"question {n}", max_tokens=4), range(12)))
        went = [one for one in told if "nearfar" in one]
        assert went and all(one["nearfar"]["where"] == "far" for one in went)
        refused = [one["error"]["message"] for one in told if "error" in one]
        assert refused and all("tiny" in one and "the day's money is spent" in one for one in refused), refused
        assert here.spent() == pytest.approx(sum(one["nearfar"]["cost"] for one in went)) and here.spent() <= MONEY

        by_name = [here.ask(f"by name {n}", model="large", max_tokens=4) for n in range(4)]
        assert "large may not be asked: the day's money is spent" in by_name[-1]["error"]["message"]
        streamed = here.http.post(
            "/v1/chat/completions",
            json={
                "model": "large",
                "messages": [{"role": "user", "content": "by name 3"}],
                "max_tokens": 4,
                "stream": True,
            },
        )
        assert "the day's money is spent" in streamed.json()["error"]["message"]
        assert here.spent() <= MONEY


def test_a_poor_answer_is_not_escalated_without_money(lab: Lab, tmp_path: Path, server: FarServer) -> None:
    env = NEAR | {"NEARFAR_ROUTING_STRATEGY": "cascade", "NEARFAR_ROUTING_THRESHOLD": "0.999"}
    with Here(lab, tmp_path, server, env) as here:
        with ThreadPoolExecutor(6) as pool:
            told = list(pool.map(lambda n: here.ask(f"What is {n} + 2?", max_tokens=4)["nearfar"], range(12)))
        assert {one["where"] for one in told} <= {"near", "far"} and told[-1]["where"] == "near"
        assert here.spent() <= MONEY
        assert json.dumps(told).count("the day's money is spent") >= 1
