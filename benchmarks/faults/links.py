"""Bad links: slow, lossy, thin, cut, and a fleet in two halves."""

from __future__ import annotations

import subprocess

from benchmarks.faults.base import Stage, fault, needs_cut
from benchmarks.faults.fleet import Broken, Fleet
from benchmarks.faults.ground import Namespace
from nearfar.client.view import PRUNE_EVERY
from nearfar.fleet.reduce import FORGET_AFTER


def _emulated(stage: Stage, **settings: str) -> None:
    """Restart node two with a worse link, let all ask for a while, restart it with none."""
    two = stage.node("two")
    stage.note(", ".join(f"{key.lower()} {value}" for key, value in settings.items()))
    for env in ({f"NEARFAR_EMULATE_{key}": value for key, value in settings.items()}, {}):
        if (code := two.stop()) != 0:
            raise Broken(f"two ended with {code}: {two.tail()}")
        two.env = env
        two.launch()
        stage.fleet.wait(lambda: not stage.fleet.troubles(), "the node is back")
        if env:
            stage.hold(2.0)
            stage.goes_on()


@fault("slow-link", "one node answers over 60 ms +- 20 ms each way and 500 kB/s (emulated)")
def slow_link(stage: Stage) -> None:
    _emulated(stage, DELAY_MS="60", JITTER_MS="20", BANDWIDTH="500000")


@fault("loss", "one node loses 5 % of its messages (emulated: requests are sent again 0.2 s later, telemetry is lost)")
def loss(stage: Stage) -> None:
    _emulated(stage, LOSS="0.05")


def _needs_shaping(fleet: Fleet) -> str:
    if why := needs_cut(fleet):
        return why
    place = fleet.node("two").place
    assert isinstance(place, Namespace)
    done = _tc("add", place, "rate", "100mbit", "burst", "64kb", "latency", "400ms")
    _tc("del", place)
    return "" if done else "the kernel has no token bucket filter (tc tbf)"


@fault("thin-link", "a real link of 2 Mbit/s to one node, which drops what does not fit its queue", _needs_shaping)
def thin_link(stage: Stage) -> None:
    place = stage.node("two").place
    assert isinstance(place, Namespace)
    before = stage.fleet.services()
    _tc("add", place, "rate", "2mbit", "burst", "16kb", "latency", "200ms")
    try:
        stage.hold(4.0)
        stage.goes_on()
    finally:
        _tc("del", place)
    stage.never_restarted(before)


def _tc(verb: str, place: Namespace, *shape: str) -> bool:
    words = ("tc", "qdisc", verb, "dev", place.outer, "root", *(("tbf", *shape) if shape else ()))
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@fault("cut", "one node's cable is cut without a word for one to six seconds, then heals", needs_cut)
def cut(stage: Stage) -> None:
    _cut(stage, stage.rng.uniform(1.0, 6.0))


@fault("long-cut", "as cut, for so long that everybody has forgotten the node", needs_cut, long=True)
def long_cut(stage: Stage) -> None:
    _cut(stage, FORGET_AFTER + 2 * PRUNE_EVERY)


def _cut(stage: Stage, seconds: float) -> None:
    node = stage.node()
    stage.note(f"{node.name} for {seconds:.1f} s")
    before = stage.fleet.services()
    stage.fleet.ground.cut(node.place)
    try:
        stage.hold(seconds)
    finally:
        stage.fleet.ground.heal()
    stage.never_restarted(before)
    took = stage.fleet.wait(lambda: not stage.fleet.troubles(), "the fleet is one again")
    stage.note(f"one again after {took:.1f} s")
    stage.never_restarted(before)


@fault("partition", "the fleet in two halves with a gateway and streams on each; both go on, then it heals", needs_cut)
def partition(stage: Stage) -> None:
    fleet = stage.fleet
    before = fleet.services()
    halves = (("one",), ("two", "three")) if stage.rng.random() < 0.5 else (("one", "two"), ("three",))
    stage.note(" | ".join("+".join(half) for half in halves))
    fleet.ground.part([fleet.node(name).place for name in halves[1]])
    try:
        stage.hold(2.0)
        for half, gateway in zip(halves, ("one", "three"), strict=True):
            fleet.wait(
                lambda half=half, gateway=gateway: not fleet.troubles(half, (gateway,)),  # type: ignore[misc]
                f"{gateway} sees its half",
            )
        stage.goes_on()  # at both gateways, on what each half has
        stage.hold(2.0)
    finally:
        fleet.ground.heal()
    stage.never_restarted(before)
    took = fleet.wait(lambda: not fleet.troubles(), "the fleet is one again")
    stage.note(f"one again after {took:.1f} s")
    stage.never_restarted(before)


FAULTS = (slow_link, loss, thin_link, cut, long_cut, partition)
