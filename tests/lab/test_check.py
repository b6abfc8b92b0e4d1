"""What cannot be played live is refused by name, all of it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nearfar.errors import InputError
from nearfar.lab.check import check
from nearfar.lab.network import choose
from nearfar.lab.plan import Plan
from nearfar.simulate.scenario import load
from tests.simulate.worlds import EXAMPLES, LINKS, small

NODE: dict[str, Any] = {"name": "n", "device": "coral", "link": "lan"}
CAMS: dict[str, Any] = {"name": "cams", "streams": 2, "fps": 5}


def refused(network: str = "tap", policies: tuple[str, ...] = ("random",), **changes: Any) -> str:
    with pytest.raises(InputError) as error:
        check(Plan(small(**{"nodes": [NODE], "clients": [CAMS], **changes})), network, policies)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nodes": [NODE | {"count": 13}]}, "it has 13 nodes, and one machine takes 12"),
        ({"clients": [CAMS | {"streams": 5, "gateways": 5}]}, "it has 5 gateways"),
        ({"clients": [CAMS | {"streams": 20, "fps": 10}]}, "frames/s, and one machine takes 120"),
        ({"clients": [CAMS | {"size_kb": 5000}]}, "MB/s, and one machine takes 12"),
        ({"changes": [{"at_s": 4, "kind": "rate", "clients": "cams", "factor": 20}]}, "frames/s, and one machine"),
        ({"clients": [CAMS | {"large": True}]}, "clients cams: large frames"),
        ({"nodes": [NODE | {"workers": 2}]}, "nodes n: workers"),
        ({"nodes": [NODE | {"device": "pi5", "ambient_c": 75}]}, "nodes n: pi5 may become so hot"),
        ({"telemetry": {"services_s": 1}}, "telemetry: the product's own pace"),
        ({"lease_s": 0.05}, "lease_s: at least 0.1"),
        (
            {
                "clients": [CAMS | {"mobile": True}],
                "sites": {"count": 2, "backhaul": "lan"},
            },
            "clients cams: mobile gateways",
        ),
    ],
)
def test_each_thing_is_named(changes: dict[str, Any], says: str) -> None:
    assert says in refused(**changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"changes": [{"at_s": 4, "kind": "cut", "nodes": "n-0"}]}, "cut: needs --network tap"),
        ({"changes": [{"at_s": 4, "kind": "link", "nodes": "*", "clients": "*", "link": "wifi"}]}, "link: needs"),
        ({"clients": [CAMS | {"access": "wifi"}]}, "access and backhaul: a way over several links needs"),
    ],
)
def test_loopback_cuts_and_reroutes_nothing(changes: dict[str, Any], says: str) -> None:
    check(Plan(small(**{"nodes": [NODE], "clients": [CAMS], **changes})), "tap", ("random",))
    assert says in refused("mesh", **changes)


def test_a_trace_needs_a_network_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "t.up").write_text("1\n2\n3\n")
    links = LINKS | {"lan": {"kind": "trace", "path": str(tmp_path / "t.up")}}
    assert "links.lan: a trace needs --network tap" in refused("mesh", links=links)


def test_nobody_knows_the_future_and_everything_wrong_is_said_at_once() -> None:
    said = refused(policies=("predictive", "clairvoyant"), lease_s=0.05)
    assert "clairvoyant knows the future" in said
    assert "lease_s" in said
    assert "--live" in said


def test_the_examples_made_for_it_can_be_played() -> None:
    for name in ("live-unequal", "live-failures"):
        check(Plan(load(EXAMPLES / f"{name}.toml")), "tap", ("random", "predictive"))


def test_why_there_is_no_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nearfar.lab.network.os.geteuid", lambda: 1000)
    assert choose("auto") == ("mesh", "no emulated network, as it needs root")
    assert choose("mesh") == ("mesh", "as asked")
    with pytest.raises(InputError, match=r"it needs root.*--network mesh"):
        choose("tap")
