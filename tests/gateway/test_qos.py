"""What a caller of the gateway may state beside the deadline, and what it hears when nobody keeps it."""

from __future__ import annotations

import httpx
import pytest

from nearfar.errors import InputError
from nearfar.gateway.headers import qos_of
from nearfar.types.request import Degrade, Qos
from tests.gateway.conftest import SLOW_MS

TENSOR = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


def test_cost_and_what_to_give_up_are_read() -> None:
    assert qos_of([]) == Qos()
    stated = qos_of([(b"nearfar-max-cost", b"0.02"), (b"nearfar-degrade", b"far, refuse"), (b"accept", b"*/*")])
    assert stated == Qos(max_cost=0.02, degrade=(Degrade.FAR, Degrade.REFUSE))
    assert qos_of([(b"nearfar-tokens-per-second", b"7.5")]) == Qos(tokens_per_s=7.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Nearfar-Max-Cost", "cheap"),
        ("Nearfar-Max-Cost", "-1"),
        ("Nearfar-Max-Cost", "nan"),
        ("Nearfar-Max-Cost", "inf"),
        ("Nearfar-Tokens-Per-Second", "0"),
        ("Nearfar-Tokens-Per-Second", "fast"),
        ("Nearfar-Tokens-Per-Second", "inf"),
        ("Nearfar-Degrade", "rate"),  # one request has no rate
        ("Nearfar-Degrade", "refuse,refuse"),
        ("Nearfar-Degrade", "\xff"),
    ],
)
def test_what_makes_no_sense_is_named(name: str, value: str) -> None:
    with pytest.raises(InputError, match=name):
        qos_of([(name.lower().encode(), value.encode("latin-1"))])


def test_a_request_that_nobody_keeps_is_refused_at_once(http: httpx.Client) -> None:
    """The model `slow` takes 200 ms by its profile, which every client knows before it asks."""
    path, within = "/v2/models/slow/infer", f"{SLOW_MS / 4:.0f}ms"
    answered = http.get("/v1/fleet").json()["services"]
    (before,) = [row["answered"] for row in answered if row["model"] == "slow"]
    refused = http.post(path, json=TENSOR, headers={"Nearfar-Deadline": within, "Nearfar-Degrade": "refuse"})
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
    told = refused.json()
    assert told["code"] == "no-candidate" and "Nobody is expected to answer within 50 ms" in told["detail"]
    (late,) = [refusal for refusal in told["refusals"] if refusal["code"] == "late"]
    assert late["subject"] == "house/slow" and late["reason"].startswith("would answer in 20")
    in_time = http.post(path, json=TENSOR, headers={"Nearfar-Deadline": "20s", "Nearfar-Degrade": "refuse"})
    assert in_time.status_code == 200
    (row,) = [row for row in http.get("/v1/fleet").json()["services"] if row["model"] == "slow"]
    assert row["answered"] <= before + 1  # the refused one never reached it


def test_what_a_request_costs_is_told_and_bounded(http: httpx.Client) -> None:
    assert {row["cost"] for row in http.get("/v1/fleet").json()["services"]} == {0.0}
    free = http.post("/v2/models/identity/infer", json=TENSOR, headers={"Nearfar-Max-Cost": "0"})
    assert free.status_code == 200
