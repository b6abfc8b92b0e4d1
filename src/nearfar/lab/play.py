"""The conductor: starts the hosts of a scenario, lets things happen when the plan says so, and has them counted."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO

import msgspec

from nearfar.errors import MeshError
from nearfar.lab import remains
from nearfar.lab.gateway import GatewaySpec, Said, Work, sleep_until
from nearfar.lab.host import Host, clean_environment, wait_all
from nearfar.lab.network import LoopbackNetwork, Network, TapNetwork
from nearfar.lab.plan import Down, Happening, Pace, Plan, Rate, Reroute, Up
from nearfar.lab.process import Process
from nearfar.lab.stage import READY_LIMIT, Progress, Stage
from nearfar.lab.tally import Run, summarise
from nearfar.mesh.zenoh_options import ZenohOptions
from nearfar.simulate.links import make_link
from nearfar.simulate.measures import Summary
from nearfar.simulate.scenario import Scenario
from nearfar.simulate.world import MODEL

OBSERVER = "observer"


class Lab:
    """All hosts of one scenario, standing; policies are played on it one after the other.

    `network` is `tap` or `mesh`. `start`, any number of `play`, and `close` whatever happened; on one event loop.
    """

    def __init__(self, scenario: Scenario, network: str, seed: int | None = None) -> None:
        self.scenario = scenario
        self.plan = Plan(scenario, seed)
        self.mark = remains.new_mark()
        self._gateways = [gateway.name for gateway in self.plan.gateways]
        names = [*(str(node.name) for node in self.plan.nodes), *self._gateways, OBSERVER]
        self.network: Network
        if network == "tap":
            self.network = TapNetwork(self.mark, names, scenario.links, self.plan.ways(), self.plan.seed)
        else:
            links = {name: make_link(name, spec) for name, spec in scenario.links.items()}
            self.network = LoopbackNetwork(names, links, self.plan.ways())
        self._environment = clean_environment({remains.VARIABLE: self.mark})
        self._hosts: dict[str, Host] = {}
        self._observer: Process | None = None
        self._seen: dict[str, float] = {}
        """Nodes whose service the observer sees, and since when."""
        self._changed = asyncio.Event()
        self._factors: dict[str, float] = {}
        self.work: dict[tuple[str, str], Work] = {}
        self._keeper: subprocess.Popen[bytes] | None = None
        self._folder: IO[bytes] | None = None

    # -- standing ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Until every node serves that is there at first. Raises `MeshError` with what a node said that does not."""
        await asyncio.to_thread(remains.clear_dead)
        self._folder = remains.take_folder(self.mark)
        keeper = (sys.executable, "-m", "nearfar.lab.keeper", self.mark)
        self._keeper = subprocess.Popen(keeper, stdin=subprocess.PIPE, start_new_session=True)  # noqa: ASYNC220 - at once
        await self.network.start()
        await asyncio.to_thread(self._furnish)
        self._observer = await self.join(GatewaySpec(OBSERVER, MODEL, self.mesh_of(OBSERVER)), self._hear)
        await self._stand()

    def _furnish(self) -> None:
        """Homes, stores and models of all nodes."""
        by_group = {group.name: group for group in self.scenario.nodes}
        for node in self.plan.nodes:
            others = [str(other.name) for other in self.plan.nodes if other is not node]
            join = [self.network.endpoint(name) for name in (*others, *self._gateways, OBSERVER)]
            self._hosts[node.name] = Host(
                remains.folder_of(self.mark), str(node.name), node.device, self.network, self._environment,
                self.mark, join, queue_limit=by_group[node.name.rpartition("-")[0]].queue_limit,
                lease_s=self.scenario.lease_s, seed=self.plan.seed * 1000 + node.index,
            )  # fmt: skip

    def mesh_of(self, name: str) -> ZenohOptions:
        join = tuple(self.network.endpoint(str(node.name)) for node in self.plan.nodes)
        lease = round(self.scenario.lease_s * 1000)
        return ZenohOptions(self.mark, (self.network.endpoint(name),), join, discover=False, lease_ms=lease)

    async def join(self, spec: GatewaySpec, hear: Callable[[Said], None]) -> Process:
        words = (*self.network.inside(spec.name), sys.executable, "-m", "nearfar.lab.gateway")
        spec = msgspec.structs.replace(spec, impairment=self.network.impairment(spec.name))
        return await Process.start(words, self._environment, msgspec.json.encode(spec), hear)

    async def _stand(self) -> None:
        """As at the beginning of the scenario: who is there serves, at its own speed, over its usual links."""
        away = set(self.plan.away_at_first())
        await self.network.begin(time.monotonic())
        self._factors = {}
        for name, host in self._hosts.items():
            if host.leaving:
                await asyncio.to_thread(host.wait_ended)
            if name in away:
                host.leave()
            elif host.runs:
                host.release()
                host.pace(1.0)
            else:
                host.launch()
        await self._until_seen(self._hosts.keys() - away)

    def _hear(self, said: Said) -> None:
        self._changed.set()
        if not said.node:
            return
        if said.alive:
            self._seen[said.node] = said.at
            if (factor := self._factors.get(said.node)) is not None:
                self._hosts[said.node].pace(factor)  # a new one has measured itself by now
        else:
            self._seen.pop(said.node, None)

    async def _until_seen(self, wanted: set[str]) -> None:
        """Until the observer sees exactly these nodes serve."""

        def agreed() -> bool:
            for name in wanted:
                self._hosts[name].must_run()
            return set(self._seen) == wanted

        try:
            await self._until(agreed, "Not all nodes of the lab are as they should be")
        except TimeoutError as error:
            name = min(wanted ^ set(self._seen))
            state = "is not seen" if name in wanted else "is still seen"
            raise MeshError(f"{error}: {name} {state}; it said: {self._hosts[name].last_words()}") from None

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        """Raises `TimeoutError` with what is wrong after `READY_LIMIT`."""
        end = time.monotonic() + READY_LIMIT
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"{what} after {READY_LIMIT:.0f} s")
            self.must_hear()
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.25):
                    await self._changed.wait()

    def must_hear(self) -> None:
        if self._observer is not None:
            self._observer.must_run()

    # -- playing -------------------------------------------------------------------------------------------------------

    async def play(
        self, policy: str, options: Mapping[str, float] | None = None, progress: Progress | None = None
    ) -> Summary:
        """The whole scenario under one policy, in real time; Ctrl-C gives what was played so far, `complete` false.

        Raises `MeshError` when a part of the lab breaks.
        """
        await self._stand()
        began = time.monotonic()
        before = dict(self.work)
        stage = Stage(self, policy, dict(options or {}))
        complete = True
        try:
            await stage.play(progress)
        except asyncio.CancelledError:
            if not stage.begun:
                raise
            complete = False
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
        finally:
            ended = time.monotonic()
            await stage.close()
        played = min(max(0.0, ended - stage.begun), self.scenario.seconds)
        run = Run(
            policy, dict(options or {}), stage.ended, before, dict(self.work), played, complete,
            time.monotonic() - began, stage.figures,
        )  # fmt: skip
        return summarise(self.scenario, self.plan.seed, run)

    async def happen(self, change: Happening) -> None:
        """Let it happen now. What would take long goes on by itself."""
        match change:
            case Down(_, name, "cut"):
                await self.network.cut(name, True)
            case Down(_, name, "leave"):
                self._hosts[name].leave()
            case Down(_, name, _):
                await asyncio.to_thread(self._hosts[name].crash)
            case Up(_, name, "cut"):
                await self.network.cut(name, False)
            case Up(_, name, _):
                raise AssertionError(f"{name} comes back by `bring_back`")
            case Pace(_, name, factor):
                self._factors[name] = factor
                if name in self._seen:
                    self._hosts[name].pace(factor)
            case Reroute():
                await self.network.reroute(change)
            case Rate():
                pass  # the births say it

    async def bring_back(self, name: str, moment: float) -> None:
        """Start a node that has gone, so that it serves at a moment of the monotonic clock, as near as can be."""
        host = self._hosts[name]
        await asyncio.to_thread(host.wait_ended)
        release = moment - host.warming_s
        held = time.monotonic() < release
        host.launch(held=held)
        if held:
            await sleep_until(release)
            host.release()

    def seen_since(self, node: str) -> float | None:
        """Moment of the monotonic clock at which the node's service was last seen to appear."""
        return self._seen.get(node)

    # -- the end -------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stop everything and leave nothing behind; may be called at any time, once."""
        try:
            if self._observer is not None:
                await self._observer.close()
            await asyncio.to_thread(wait_all, list(self._hosts.values()))
            await self.network.close()
        finally:
            if self._keeper is not None:
                assert self._keeper.stdin is not None
                self._keeper.stdin.close()
                await asyncio.to_thread(self._keeper.wait)
            if self._folder is not None:
                self._folder.close()

    async def __aenter__(self) -> Lab:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
