"""Reading scenarios: strict, and every message names the field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nearfar.errors import InputError
from nearfar.simulate.devices import CATALOGUE
from nearfar.simulate.scenario import TABLES, load, parse
from tests.simulate.worlds import plain

ROOT = Path(__file__).parents[2]


def test_the_reference_names_every_table_and_every_field() -> None:
    page = (ROOT / "docs" / "reference-scenario.md").read_text()
    sections = {part.partition("\n")[0].strip("`"): part for part in page.split("\n## ")[1:]}
    for name, table in TABLES.items():
        section = sections[name or "the top"]
        documented = set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))
        assert documented == set(table.__struct_fields__), name
    for device in CATALOGUE.values():
        assert f"| `{device.name}` | {device.mean_ms:g} |" in sections["built-in devices"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"secnds": 3}, r"no field 'secnds' \(did you mean 'seconds'\?\)"),
        ({"seconds": "long"}, r"seconds: Expected `float`, got `str`"),
        ({"seconds": 1}, r"seconds: Expected `float` >= 4"),
        ({"nodes": []}, r"nodes: Expected `array` of length >= 1"),
        ({"nodes": [{"name": "n", "device": "pi5", "link": "lan", "cont": 2}]}, r"nodes\[.*\]: .*did you mean 'count'"),
        ({"nodes": [{"name": "n", "device": "pi5", "link": "lam"}]}, r"nodes\[0\].link: .*did you mean 'lan'"),
        ({"nodes": [{"name": "n", "device": "pi6", "link": "lan"}]}, r"nodes\[0\].device: .*did you mean 'pi5'"),
        ({"nodes": [{"name": "N!", "device": "pi5", "link": "lan"}]}, r"nodes\[.*\].name: Expected `str` matching"),
        ({"clients": [{"name": "c", "streams": 1, "fps": 0}]}, r"clients\[.*\].fps: Expected `float` > 0"),
        ({"clients": [{"name": "c", "streams": 1, "fps": 1, "gateways": 2}]}, r"clients\[0\].gateways: 2 gateways"),
        ({"clients": [{"name": "c", "streams": 1, "fps": 1, "mobile": True}]}, r"clients\[0\].mobile: .*sites.count"),
        ({"clients": [{"name": "c", "streams": 1, "fps": 1, "access": "lte"}]}, r"clients\[0\].access: .*'lte'"),
        ({"changes": [{"at_s": 1, "kind": "crash", "nodes": "x*"}]}, r"changes\[0\].nodes: 'x\*' matches no node"),
        ({"changes": [{"at_s": 1, "kind": "rate", "clients": "x"}]}, r"changes\[0\].clients: 'x' matches no group"),
        ({"changes": [{"at_s": 1, "kind": "boom"}]}, r"changes\[.*\].kind: Invalid enum value 'boom'"),
        ({"sites": {"count": 2}}, r"sites.backhaul: there is no ''"),
        ({"links": {"lan": {}, "wifi": {"kind": "table"}}}, r"links.wifi.quantiles: a table needs two"),
        ({"links": {"lan": {}, "wifi": {"kind": "trace"}}}, r"links.wifi.path: a trace needs"),
        ({"telemetry": {"services_s": 3}}, r"telemetry.services_s: Expected `float` <= 1.9"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse(plain(**changes), "my.toml")
    assert str(caught.value).startswith("my.toml: ") and str(caught.value).endswith("docs/reference-scenario.md.")


def test_two_groups_of_one_name_are_refused() -> None:
    node = {"name": "n", "device": "pi5", "link": "lan"}
    with pytest.raises(InputError, match="nodes: two have the same name"):
        parse(plain(nodes=[node, node]))


def test_files_that_are_absent_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read: No such file.*Check the path"):
        load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(InputError, match="is not TOML"):
        load(tmp_path / "bad.toml")


def test_a_trace_counts_from_the_folder_of_its_scenario(tmp_path: Path) -> None:
    scenario = parse(plain(links={"lan": {}, "wifi": {"kind": "trace", "path": "t.up"}}), "s", tmp_path)
    assert scenario.links["wifi"].path == str(tmp_path / "t.up")


def test_a_device_of_ones_own() -> None:
    node = {"name": "n", "device": "mine", "link": "lan"}
    scenario = parse(plain(devices=[{"name": "mine", "mean_ms": 7.0}], nodes=[node]))
    assert scenario.device("mine").mean_ms == 7.0
