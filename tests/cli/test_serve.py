"""`nearfar models serve|unserve`: what a running node serves beside what it was started with, as somebody types it."""

from __future__ import annotations

from pathlib import Path

from nearfar.models.store import Store
from tests.cli.commands import nearfar
from tests.fleetlab import Lab, fake
from tests.fleetlab import lab as lab
from tests.runtimes import tiny


def test_a_model_is_served_by_a_running_node_until_it_ends(lab: Lab, tmp_path: Path) -> None:
    node = lab.node("a", ["yard"])
    file = tiny.fake_identity(tmp_path / "other.fake")
    added = nearfar("models", "add", file, "--task", "tensors", "--name", "other", home=node.home)
    assert "nearfar models serve other" in added.out
    row = node.service_json("other")
    assert row is None, "only what is asked for is served"
    yard = node.service_pid("yard")
    served = nearfar("models", "serve", "other", home=node.home)
    assert served.code == 0 and "Node a serves other now" in served.out, served.err
    assert (node.service_json("other") or {})["healthy"]
    undone = nearfar("models", "unserve", "other", "--json", home=node.home).json
    assert undone["nodes"] == [{"node": "a", "done": True, "reason": ""}]
    assert not (node.service_json("other") or {"healthy": False})["healthy"]

    store = Store(node.home / "models")
    broken = fake(tmp_path, "broken", load_error="its sum is wrong")
    store.add(broken.file, broken.manifest)
    told = nearfar("models", "serve", "broken", "--json", home=node.home).json["nodes"]
    assert not told[0]["done"] and "its sum is wrong" in told[0]["reason"]
    assert node.service_pid("yard") == yard

    assert node.stop() == 0
    node.launch()
    node.wait_ready()
    assert node.service_json("broken") is None, "a node starts with what it is told then"


def test_what_cannot_be_served_is_said_with_what_to_type(lab: Lab, tmp_path: Path) -> None:
    home = tmp_path / "nobody"
    alone = nearfar("models", "serve", "yard", home=home)
    assert alone.code == 2 and "nearfar up --model yard" in alone.sentence
    node = lab.node("a", ["yard"])
    unknown = nearfar("models", "serve", "yrad", home=node.home)
    assert unknown.code == 3 and "did you mean 'yard'" in unknown.sentence
    elsewhere = nearfar("models", "serve", "yard", "--node", "b", home=node.home)
    assert elsewhere.code == 2 and "No node b" in elsewhere.sentence
    started = nearfar("models", "unserve", "yard", home=node.home)
    assert started.code == 2 and "Start the node again without it" in started.sentence
