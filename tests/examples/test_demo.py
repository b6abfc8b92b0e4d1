"""The demo is the first thing that people run: shortened, but whole, with its real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

from nearfar.client import trailfile
from nearfar.placement.trail import Moved
from nearfar.types.ids import StreamId

ROOT = Path(__file__).parents[2]


def test_the_demo_accounts_for_every_frame_and_measures_its_accuracy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--seconds", "10", "--plain", "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # so that its nodes, too, are known by this folder
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "summary.json").read_text())
    frames = told["frames"]
    assert frames["read"] == 150
    assert frames["read"] == sum(frames[end] for end in ("answered", "late", "dropped", "failed"))
    assert sum(f["count"] for f in told["failures"].values()) == frames["failed"]  # each with its reason
    assert frames["answered"] > 75  # the overload, and a busy machine, may cost frames their deadline
    assert frames["answered"] + frames["late"] == sum(told["served_by"].values())
    assert told["moved"] >= 1, told["decisions"]  # away from the node that was overloaded
    assert len(told["served_by"]) >= 2
    assert told["ap50"] > 0.8
    assert "what happened" in done.stdout and "AP50" in done.stdout
    answers = {said["question"].partition(" (")[0]: said for said in told["talk"]}
    assert answers["fridge, how many eggs do I have?"]["answer"] == "You have 6 eggs."
    assert answers["Is there any butter?"]["answer"] == "I don't know."
    assert answers["how much brown sugar do I have?"]["where"] == "far"
    private = answers["how much milk do I have?"]
    assert (private["where"], private["privacy"], private["cost"]) == ("near", "fleet", 0)
    trail = trailfile.read(tmp_path / "home", StreamId("demo"))
    moves = [(entry.source, entry.target, entry.frame) for entry in trail if isinstance(entry, Moved)]
    assert moves == [(move["source"], move["target"], move["frame"]) for move in told["moves"]]
    assert f"nearfar explain demo --home {tmp_path / 'home'}" in done.stdout.replace("\n", "")
    left = [p for p in psutil.process_iter(["cmdline"]) if any(str(tmp_path) in a for a in p.info["cmdline"] or ())]
    assert not left
