"""`nearfar chat` and `nearfar route`, as somebody types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import environment, nearfar
from tests.fleetlab import Lab, talking
from tests.fleetlab import lab as lab


def test_without_a_node_the_words_say_what_to_type(tmp_path: Path) -> None:
    home = tmp_path / "home"
    alone = nearfar("chat", "Hello", home=home)
    assert alone.code == 6 and "nearfar up" in alone.sentence and not alone.out
    both = nearfar("chat", "--near", "--far", "Hello", home=home)
    assert both.code == 2 and "exclude each other" in both.sentence
    told = nearfar("route", "explain", "Hello", "--json", home=home).json
    assert told["where"] == "nowhere" and 0 <= told["score"] <= 1 and "nearfar up" in " ".join(told["why"])
    empty = nearfar("route", "report", home=tmp_path / "fresh")
    assert empty.code == 2 and "nearfar chat" in empty.sentence


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"prompt": "a", "near": 1, "far": 1}', "20"),
        ('{"prompt": "a"}', "line 1"),
        ("not json", "line 1"),
        ("", "20"),
    ],
)
def test_rows_that_nothing_can_be_learnt_from(tmp_path: Path, text: str, told: str) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(text)
    said = nearfar("route", "train", data, home=tmp_path / "home")
    assert said.code == 2 and told in said.sentence


def test_a_router_of_ones_own_is_trained_and_used(tmp_path: Path) -> None:
    home, data = tmp_path / "home", tmp_path / "rows.jsonl"
    rows = [{"prompt": f"How many eggs are in box {n}?", "near": 1, "far": 1} for n in range(40)]
    rows += [{"prompt": f"Prove theorem number {n} of Euclid.", "near": 0, "far": 1} for n in range(40)]
    data.write_text("\n".join(map(json.dumps, rows)))
    made = nearfar("route", "train", data, "--json", home=home).json
    assert made["rows"] == 80 and Path(made["weights"]).is_file()
    easy, hard = (
        nearfar("route", "explain", text, "--json", home=home).json["score"]
        for text in ("How many eggs are in box 99?", "Prove theorem number 99 of Euclid.")
    )
    assert easy > 0.7 > 0.3 > hard
    assert nearfar("route", "train", home=tmp_path / "none").code == 2


def test_a_conversation_with_a_node(lab: Lab, tmp_path: Path) -> None:
    node = lab.node("a", [talking(tmp_path, "tiny", says=[{"when": "eggs", "text": "You have 6 eggs."}])])
    said = nearfar("chat", "how many eggs?", home=node.home)
    assert said.code == 0 and said.out == "You have 6 eggs.\n"
    told = nearfar("chat", "--json", "--private", "how many eggs?", home=node.home).json
    assert told["answer"] == "You have 6 eggs." and told["nearfar"]["privacy"] == "fleet"
    unknown = nearfar("chat", "--model", "nobody", "Hello", home=node.home)
    assert unknown.code != 0 and "nobody" in unknown.sentence
    nowhere = nearfar("chat", "--far", "Hello", home=node.home)
    assert nowhere.code != 0 and "far" in nowhere.sentence
    command = [sys.executable, "-m", "nearfar.cli.main", "chat"]
    piped = subprocess.run(
        command,
        input="how many eggs?",
        capture_output=True,
        text=True,
        env=environment(node.home),
        check=False,
        timeout=60,
    )
    assert piped.stdout == "You have 6 eggs.\n"
    report = nearfar("route", "report", "--json", home=node.home).json
    assert report["prompts"] >= 2 and report["decisions"]["near"] >= 2
    shown = nearfar("route", "report", home=node.home)
    assert "always-far" in shown.out and "prompts in 7 days" in shown.out
