"""No room left: on the disk, in memory."""

from __future__ import annotations

import contextlib
import subprocess
import sys

from benchmarks.faults.base import Stage, fault
from benchmarks.faults.fleet import Broken, Fleet
from benchmarks.faults.parts import Orders


def _needs_disk(fleet: Fleet) -> str:
    return "" if fleet.is_small(fleet.node("two")) else "a small file system can be mounted by root only"


@fault("full-disk", "the file system of a node's home is full: it serves on, and says what it cannot do", _needs_disk)
def full_disk(stage: Stage) -> None:
    two = stage.node("two")
    filler = two.home / "filler"
    try:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        pid = two.kill_service("mirror")
        stage.fleet.wait(lambda: two.service_pid("mirror") not in (0, pid), "it is started again on a full disk")
        stage.fleet.wait(lambda: not stage.fleet.troubles(), "all serve with one disk full")
        stage.goes_on()
        _adding_is_refused(stage)
    finally:
        filler.unlink()


def _adding_is_refused(stage: Stage) -> None:
    two = stage.node("two")
    source = stage.fleet.folder / "large.fake.json"
    source.write_text('{"format": "nearfar-fake", "inputs": [], "outputs": []}' + " " * (1 << 20))
    command = (sys.executable, "-m", "nearfar.cli.main", "models", "add", str(source), "--home", str(two.home))
    done = subprocess.run(
        command, capture_output=True, text=True, env=stage.fleet.environment, cwd=stage.fleet.folder, check=False
    )
    left = [path for path in two.home.rglob("*") if path.is_file() and "partial" in path.name]
    if done.returncode != 3 or "full" not in done.stderr:
        raise Broken(f"models add on a full disk ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    if "Traceback" in done.stderr or left:
        raise Broken(f"models add on a full disk left {left} and said {done.stderr.strip()[-300:]}")


@fault("memory-leak", "a service that keeps more memory with every request, until its limit ends it")
def memory_leak(stage: Stage) -> None:
    node = stage.node()
    stage.note(node.name)
    pid = node.service_pid("mirror")
    stage.order(node, Orders("leak", mib=120))
    try:
        stage.fleet.wait(lambda: stage.poke(node) and node.service_pid("mirror") != pid, "its memory ended it")
    finally:
        stage.order(node, None)


@fault("memory-starved", "a service whose allocations fail (RLIMIT_AS): each is refused with words, others answer")
def memory_starved(stage: Stage) -> None:
    node = stage.node()
    stage.note(node.name)
    stage.order(node, Orders("starve", mib=256))
    try:
        told = stage.poke(node)
        if told.get("code") not in ("inference", "no-candidate") or not told.get("detail"):
            raise Broken(f"{node.name}/mirror without memory ended in {told}")
        stage.note(told["detail"])
        stage.hold(2.0)
        stage.goes_on()
    finally:
        stage.order(node, None)
        node.kill_service("mirror")  # the limit is the process's; it is started again without


FAULTS = (full_disk, memory_leak, memory_starved)
