"""Break a fleet in every way we know, for as long as you like, and see that its promises hold.

What runs: three `nearfar up` nodes with two services each (`yard`, and a mirror that answers what it is sent), each in
a network namespace of its own where root and iproute2 are there, else all on loopback; two of their gateways are asked
over HTTP by a process each (tensors in binary, pictures to /v1/detect), which also runs two streams of its own through
the library; `nearfar watch` tracks a third. All of that goes on during every fault.
What is done: faults by chance (`--seed`), all of them before any comes twice, until `--seconds` are over; each has a
beginning, a middle and an end, and then the fleet must become whole again.
What is measured, after each: that every answer was the right one (tensors and detections bit-equal to what the runtime
itself says), every request ended once with an answer or a reason, every frame came out once and in order; that no
process, descriptor, thread, socket or file is left; that memory is flat (`census.py` states the bounds). A service that
lies with the right shape cannot be told from an honest one by a client: wrong answers while one does are counted, as
`exposed`, not judged. No wall clock figure is judged but the bounds on waiting: time-outs are generous.
Warm-up: until the fleet is whole and everybody was answered in a row. Repetitions: one of each fault, more in an hour.
There is no limit of a library to compare with: the aim is 0 broken.

    python -m benchmarks.soak [--seconds 120] [--seed 1] [--only NAME[,NAME]] [--loopback] [--keep] [--list]

Progress on standard error; the last line of standard output is one JSON object. Ctrl-C ends it with that summary. Exit
code 1 when something was broken, with what; 2 for a wrong flag.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults import churn, clocks, death, lies, links, room, stops, twins
from benchmarks.faults.base import LONG, Fault, Stage
from benchmarks.faults.census import Census
from benchmarks.faults.fleet import Broken, Fleet
from benchmarks.faults.ground import make_ground

FAULTS: Sequence[Fault] = (
    *death.FAULTS,
    *stops.FAULTS,
    *lies.FAULTS,
    *clocks.FAULTS,
    *room.FAULTS,
    *links.FAULTS,
    *churn.FAULTS,
    *twins.FAULTS,
)
SHOWN = 6
"""Breaches that are told of one fault; the counts have them all."""
HEAL_LIMIT = 180.0
"""Seconds until the fleet must be whole again: the longest quarantine and back-off are 30 s each, and it must load."""


class Soak:
    """One run over one fleet."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self.fleet = fleet
        self.census = Census(fleet)
        self.broken: list[str] = []
        self.played: list[dict[str, Any]] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.longest_s = 0.0
        self._rng = rng
        self._start = time.monotonic()

    def say(self, words: str) -> None:
        print(f"{time.monotonic() - self._start:7.1f} s  {words}", file=sys.stderr, flush=True)

    def calm(self, stage: Stage) -> float:
        """Seconds until the fleet is whole, everybody is answered, and nothing is left over."""
        start = time.monotonic()
        self.fleet.wait(lambda: not self.fleet.troubles(), "the fleet is whole", HEAL_LIMIT)
        self.fleet.tell_askers()
        stage.goes_on(limit=HEAL_LIMIT)
        took = time.monotonic() - start
        if left := self.census.take():
            stage.note(left)
        return took

    def play(self, fault: Fault) -> bool:
        """False when the fleet did not become whole: nothing can be played after that."""
        stage = Stage(self.fleet, self._rng)
        start = time.monotonic()
        whole = True
        told: dict[str, Any] = {"fault": fault.name}
        try:
            try:
                fault.play(stage)
            except Broken as error:
                self._break(fault.name, str(error))
            told["played_s"] = round(time.monotonic() - start, 1)
            told["healed_s"] = round(self.calm(stage), 1)
        except Broken as error:
            self._break(fault.name, str(error))
            whole = not self.fleet.troubles()
        counts = self.take_accounts(fault.name)
        told |= {"notes": stage.notes, "counts": dict(sorted(counts.items()))}
        self.played.append(told)
        bad = {key: n for key, n in counts.items() if not key.endswith("/ok")}
        good = sum(n for key, n in counts.items() if key.endswith("/ok"))
        self.say(
            f"{fault.name}: {', '.join(stage.notes) or 'done'}; played {told.get('played_s')} s, healed "
            f"{told.get('healed_s')} s, {good} answers, {bad or 'nothing else'}"
        )
        return whole

    def take_accounts(self, during: str) -> collections.Counter[str]:
        """What the askers counted; breaches are noted."""
        for asker in self.fleet.askers:
            with contextlib.suppress(Broken):
                self.fleet.look(asker)
        return self._drain(during)

    def _drain(self, during: str) -> collections.Counter[str]:
        counts: collections.Counter[str] = collections.Counter()
        shown = 0
        for gateway, account in self.fleet.accounts:
            counts.update(account.counts)
            self.longest_s = max(self.longest_s, account.longest_s)
            for breach in account.broken[: max(0, SHOWN - shown)]:
                self._break(during, f"at {gateway}: {breach}")
            shown += len(account.broken)
        self.fleet.accounts.clear()
        self.counts.update(counts)
        return counts

    def finish(self) -> dict[str, Any]:
        """End those who ask and take their last word."""
        for asker in self.fleet.askers:
            try:
                self.fleet.accounts.append((asker.node.name, asker.tell("stop")))
                asker.process.wait(20)
            except Exception as error:
                self._break("the end", f"the asker at {asker.node.name}: {type(error).__name__}: {error}")
        self._drain("the end")
        summary: dict[str, Any] = {}
        if self.fleet.watcher is not None:
            summary, wrong = self.fleet.watcher.close()
            for words in wrong:
                self._break("the end", words)
        return summary

    def _break(self, during: str, words: str) -> None:
        self.broken.append(f"{during}: {words}")
        self.say(f"BROKEN during {during}: {words}")


def rotation(faults: Sequence[Fault], rng: random.Random) -> Iterator[Fault]:
    """All of them in an order by chance, then again in another; for ever."""
    while True:
        yield from rng.sample(faults, len(faults))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Break a fleet and see that its promises hold.")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="begin no fault later than this after the start (default 120)"
    )
    parser.add_argument("--seed", type=int, default=None, help="order and targets of the faults; else by the clock")
    parser.add_argument("--only", default="", help="these faults only, by name, separated by commas")
    parser.add_argument("--loopback", action="store_true", help="no network namespaces, even where they can be had")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs, and say where it is")
    parser.add_argument("--list", action="store_true", help="list the faults and end")
    chosen = parser.parse_args(argv)
    if chosen.list:
        for fault in FAULTS:
            print(f"{fault.name:20} {fault.summary}")
        return 0
    by_name = {fault.name: fault for fault in FAULTS}
    names = [name.strip() for name in chosen.only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in by_name]:
        parser.error(f"no fault is called {', '.join(unknown)}; see --list")
    seed = chosen.seed if chosen.seed is not None else int(time.time()) % 100_000
    faults = [by_name[name] for name in names] or list(FAULTS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: with the summary
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        result = run(faults, chosen.seconds, seed, folder, loopback=chosen.loopback)
    finally:
        if chosen.keep:
            print(f"logs are in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result))
    return 1 if result["broken"] else 0


def run(faults: Sequence[Fault], seconds: float, seed: int, folder: Path, *, loopback: bool) -> dict[str, Any]:
    """One soak in a folder; what the last line says."""
    rng = random.Random(seed)
    start = time.monotonic()
    ground = make_ground(loopback)
    fleet = Fleet(folder, ground, seed)
    soak = Soak(fleet, rng)
    ended = "time is over"
    skipped: dict[str, str] = {}
    watched: dict[str, Any] = {}
    try:
        soak.say(f"seed {seed}; " + (f"loopback only: {ground.why_not}" if not ground.can_cut else "namespaces"))
        fleet.start()
        soak.calm(Stage(fleet, rng))
        soak.take_accounts("the start")
        soak.say("the fleet is whole, and everybody is answered")
        whole = time.monotonic()
        skipped = {fault.name: why for fault in faults if (why := fault.needs(fleet))}
        if len(faults) > 1 and seconds < LONG:
            skipped |= {fault.name: f"it is for soaks of {LONG:.0f} s" for fault in faults if fault.long}
        for name, why in skipped.items():
            soak.say(f"{name} is not played: {why}")
        able = [fault for fault in faults if fault.name not in skipped]
        for fault in rotation(able, rng) if able else ():
            if not soak.play(fault):
                ended = f"the fleet was not whole after {fault.name}"
                break
            if time.monotonic() - whole > seconds:
                break
    except KeyboardInterrupt:
        ended = "interrupted"
    except Broken as error:
        soak.broken.append(f"the start: {error}")
        ended = "the fleet did not start"
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            watched = soak.finish() if fleet.askers else {}
        memory, grown = soak.census.memory()
        soak.broken += grown
        soak.broken += fleet.close()
    if soak.broken:
        _show_logs(fleet)
    played = {told["fault"] for told in soak.played}
    return {
        "benchmark": "soak",
        "seed": seed,
        "seconds": round(time.monotonic() - start, 1),
        "ended": ended,
        "namespaces": ground.can_cut,
        "played": soak.played,
        "not_played": [fault.name for fault in faults if fault.name not in played | skipped.keys()],
        "cannot_be_played": skipped,
        "counts": dict(sorted(soak.counts.items())),
        "longest_request_s": round(soak.longest_s, 2),
        "watch": {key: watched[key] for key in ("frames", "drops", "failures", "moved") if key in watched},
        "memory": sorted(memory, key=lambda row: -float(str(row["growth_mib"])))[:6],
        "cpus": os.cpu_count(),
        "memory_of_machine_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "broken": soak.broken,
    }


def _show_logs(fleet: Fleet) -> None:
    for file in sorted(fleet.folder.glob("*.log")):
        lines = file.read_text(errors="replace").strip().splitlines()
        if lines:
            print(f"-- {file.name}", *lines[-8:], sep="\n", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
