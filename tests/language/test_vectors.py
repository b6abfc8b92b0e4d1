"""The router over vectors: trained with an embedding model of the fleet, and asked before a prompt is planned."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.commands import nearfar
from tests.fleetlab import Lab, talking
from tests.fleetlab import lab as lab


def test_a_router_is_trained_with_vectors_of_the_fleet_and_scores_with_them(lab: Lab, tmp_path: Path) -> None:
    models = [talking(tmp_path, "tiny"), talking(tmp_path, "vectors", embedding=True)]
    node = lab.node("a", models)
    rows = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"easy {n}", "near": 1, "far": 1} for n in range(12)]
    lines += [{"prompt": f"hard {n} " * 9, "near": 0, "far": 1} for n in range(12)]
    rows.write_text("\n".join(map(json.dumps, lines)))
    here = ("--fleet", lab.fleet)
    env = {"NEARFAR_ROUTING_ROUTER": "embedding", "NEARFAR_ROUTING_EMBEDDING": "vectors"}
    untrained = nearfar("route", "explain", "easy 3", *here, home=node.home, env=env)
    assert untrained.code == 2 and "nearfar route train DATA --embedding MODEL" in untrained.sentence
    told = nearfar("route", "train", rows, "--embedding", "vectors", "--json", *here, home=node.home).json
    assert told["rows"] == 24 and (node.home / "router-embedding.json").is_file()
    known = nearfar("route", "explain", "easy 3", "--json", *here, home=node.home, env=env).json
    assert known["where"] == "near" and known["model"] == "tiny"
