"""The emulated network with real sockets, and that nothing of a dead lab is left. Needs root; else skipped."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nearfar.lab import remains
from nearfar.lab.network import LoopbackNetwork, TapNetwork, unavailable
from nearfar.lab.plan import Reroute
from nearfar.simulate.links import make_link
from nearfar.simulate.scenario import LinkSpec
from tests.waiting import until_now

pytestmark = [
    pytest.mark.skipif(bool(unavailable()), reason=f"no emulated network: {unavailable()}"),
    pytest.mark.xdist_group("lab"),
]
LINKS = {"near": LinkSpec(rtt_ms=10.0, bandwidth_mbit=1000), "far": LinkSpec(rtt_ms=60.0, bandwidth_mbit=1000)}
ECHO = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind(("0.0.0.0", 9)); print("ready", flush=True)
    while True:
        data, sender = s.recvfrom(2000); s.sendto(data, sender)
"""
ASK = """
import socket, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(1.0); start = time.perf_counter(); s.sendto(b"x", ("10.78.0.2", 9))
    try: s.recv(2000); print(time.perf_counter() - start)
    except TimeoutError: print(-1)
"""


@asynccontextmanager
async def pair() -> AsyncIterator[TapNetwork]:
    network = TapNetwork(remains.new_mark(), ["a", "b"], LINKS, {("a", "b"): ("near",)}, 0)
    try:
        await network.start()
        yield network
    finally:
        await network.close()


async def ask(network: TapNetwork) -> float:
    """Seconds of a round trip from a to b; -1 without an answer in a second."""
    command = (*network.inside("a"), sys.executable, "-c", ASK)
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    return float(out)


def test_packets_are_late_as_the_link_says_and_a_cut_is_silent_until_it_heals() -> None:
    async def main() -> None:
        async with pair() as network:
            echo = await asyncio.create_subprocess_exec(
                *network.inside("b"), sys.executable, "-c", ECHO, stdout=subprocess.PIPE
            )
            try:
                assert echo.stdout is not None
                await echo.stdout.readline()
                assert await ask(network) >= 0.010
                await network.reroute(Reroute(0.0, "a", "b", ("far",)))
                assert await ask(network) >= 0.060
                await network.cut("b", True)
                assert await ask(network) == -1
                await network.cut("b", False)
                assert await ask(network) >= 0.060
                await network.cut("b", True)
                await network.begin(time.monotonic())  # all as at first
                assert await ask(network) >= 0.010
                figures = await network.figures()
                assert figures is not None
                assert figures.passed >= 8
            finally:
                echo.kill()
                await echo.wait()

    asyncio.run(main())


def test_nothing_is_left_and_names_tell_whose_it_was() -> None:
    async def main() -> str:
        async with pair() as network:
            name = network.inside("a")[3]
            assert name in remains.namespaces()
            assert remains.clear_dead() == [], "the living are let be"
            assert name in remains.namespaces()
        return name

    name = asyncio.run(main())
    assert name.startswith(f"{remains.PREFIX}{os.getpid()}-")
    assert name not in remains.namespaces()


def test_what_a_dead_lab_left_is_cleared_by_the_next() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    mark = f"{remains.PREFIX}{gone.pid}-abcdef"
    subprocess.run(("ip", "netns", "add", f"{mark}-0"), check=True)
    remains.take_folder(mark).close()
    sleeper = subprocess.Popen(
        ("ip", "netns", "exec", f"{mark}-0", "sleep", "600"), env={**os.environ, remains.VARIABLE: mark}
    )
    try:
        # A process is known by its environment, which is its own only once `ip` has become `sleep`.
        comm = Path(f"/proc/{sleeper.pid}/comm")
        until_now(lambda: comm.read_text().strip() == "sleep", "it sleeps in its namespace")
        assert mark in remains.clear_dead()
        assert sleeper.wait(20) == -9
        assert f"{mark}-0" not in remains.namespaces()
        assert not remains.folder_of(mark).exists()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_loopback_hosts_delay_their_own_messages() -> None:
    links = {name: make_link(name, spec) for name, spec in LINKS.items()}
    network = LoopbackNetwork(["n-0", "gw"], links, {("gw", "n-0"): ("far",)})
    assert network.impairment("n-0").delay_ms == pytest.approx(30.0)
    assert not network.impairment("gw")
    assert network.endpoint("n-0") != network.endpoint("gw")
    assert network.inside("n-0") == ()
