"""The engine: plays a scenario in virtual time, one event after the other, the same for the same seed.

Gateways decide with the real `placement.decide` on snapshots folded by the real `fleet.reduce`, retry as
`client/client.py` does, and give up at the deadline. One heap of (moment, number, what, arguments); nothing sleeps.
"""

from __future__ import annotations

import gc
import heapq
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nearfar.errors import DeadlineExceeded, NoCandidate, Overloaded, Unreachable
from nearfar.fleet.events import RequestAnswered, RequestFailed, RequestSent
from nearfar.placement.decide import Decision, decide
from nearfar.placement.policies.base import Policy
from nearfar.simulate import baselines, happenings
from nearfar.simulate.devices import LARGE
from nearfar.simulate.foresight import foresee
from nearfar.simulate.frames import Frame, Outcome, Stream
from nearfar.simulate.measures import Measures, Summary
from nearfar.simulate.scenario import Scenario
from nearfar.simulate.view import ANSWER, Gateway
from nearfar.simulate.world import MODEL, Node, World
from nearfar.types.request import Qos, Request, Stages
from nearfar.types.units import Bytes, Milliseconds, Seconds

PATIENCE = 30.0
"""Seconds to wait for an answer without a deadline; as `client/client.py`."""
START = 3.0
"""Seconds before the first frame, in which telemetry and pings come in."""
PROVOKED_S = 3.0
"""A move so soon before a true change is known to all counts as provoked by it: gateways may notice it first."""

Progress = Callable[[float, float], None]
"""(virtual seconds played, seconds in all)."""
Watcher = Callable[[Frame, Node | None, Decision | None, float], None]
"""Called with every decision: (frame, the node chosen, the decision unless clairvoyant, now)."""


class Engine:
    """One run of one scenario under one policy."""

    def __init__(
        self, scenario: Scenario, policy: Policy | baselines.Clairvoyant, seed: int | None = None,
        watcher: Watcher | None = None,
    ) -> None:  # fmt: skip
        self.scenario = scenario
        self.policy = policy
        self.seed = scenario.seed if seed is None else seed
        self.world = World(scenario, self.seed)
        self.measures = Measures(scenario.seconds)
        self.now = 0.0
        self.events = 0
        self.gateways: list[Gateway] = []
        self.streams: list[Stream] = []
        self._watcher = watcher
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._clairvoyant = isinstance(policy, baselines.Clairvoyant)
        self._enter()
        happenings.begin(self)

    def at(self, moment: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call at that virtual moment. Of one moment, what was asked for first comes first."""
        self._number += 1
        heapq.heappush(self._heap, (moment, self._number, call, arguments))

    def _enter(self) -> None:
        backhaul = self.world.links.get(self.scenario.sites.backhaul)
        for group in self.scenario.clients:
            access = self.world.links[group.access] if group.access else None
            gateways = [
                Gateway(f"{group.name}-gw{i}", group.name, self.world.nodes, access, self.seed)
                for i in range(group.gateways)
            ]
            for i, gateway in enumerate(gateways):
                gateway.site = i % self.scenario.sites.count
                gateway.route(self.world.nodes, backhaul)
            self.gateways += gateways
            for i in range(group.streams):
                number = len(self.streams)
                stream = Stream(
                    number, gateways[i % len(gateways)], 1 / group.fps, group.deadline_ms / 1000,
                    int(group.size_kb * 1000), group.large,
                    random.Random(f"{self.seed} stream {number}"),  # noqa: S311
                )  # fmt: skip
                self.streams.append(stream)
                self.at(START + stream.rng.random() * stream.period, self._born, stream, 0)

    # -- frames --------------------------------------------------------------------------------------------------------

    def _born(self, stream: Stream, number: int) -> None:
        now, rng = self.now, stream.rng
        factor = rng.uniform(*LARGE) if stream.large else 1.0
        end = now + (stream.deadline or PATIENCE)
        frame = Frame(stream, number, now, end, rng.gauss(0.0, 1.0), rng.random(), rng.random(), factor)
        self.measures.frames += 1
        again = now + stream.period / stream.gateway.rate
        if again < self.scenario.seconds:
            self.at(again, self._born, stream, number + 1)
        self.at(end, self._deadline, frame)
        self._ask(frame)

    def _ask(self, frame: Frame) -> None:
        stream, now = frame.stream, self.now
        gateway = stream.gateway
        if self._clairvoyant:
            node = foresee(self.world, frame, now)
            if self._watcher is not None:
                self._watcher(frame, node, None, now)
            if node is None:
                self.measures.end(frame, Outcome.LOST, now, NoCandidate.code)
                return
        else:
            deadline = Milliseconds((frame.end - now) * 1000) if stream.deadline else None
            request = Request(
                MODEL, gateway.name, Bytes(stream.size), Bytes(ANSWER), Qos(deadline), None, stream.incumbent,
                frame.excluded,
            )  # fmt: skip
            decision = decide(gateway.snapshot(now), request, Seconds(now), gateway.rng, self.policy)  # type: ignore[arg-type]
            node = self.world.by_service[decision.chosen] if decision.chosen is not None else None
            if self._watcher is not None:
                self._watcher(frame, node, decision, now)
            if node is None:
                self.measures.end(frame, Outcome.LOST, now, NoCandidate.code)
                return
        frame.attempt += 1
        frame.waiting = True
        frame.node = node
        frame.sent = now
        self.measures.attempts += 1
        if not self._clairvoyant:
            gateway.add(RequestSent(node.service, Seconds(now)))
        self.at(now + gateway.up_s(node, now, frame.up, stream.size), self._arrived, frame, node, frame.attempt)

    def _arrived(self, frame: Frame, node: Node, attempt: int) -> None:
        if not node.up:
            self.swallowed(frame, node)
            return
        if node.leaving:  # its queryable is withdrawn: nobody is there to take it
            self.refused(frame, node, attempt, Unreachable.code)
        elif len(node.queue) >= node.queue_limit:
            self.refused(frame, node, attempt, Overloaded.code)
        else:
            frame.received = self.now
            node.queue.append(frame)
            if len(node.working) < node.workers:
                self._start(node)
            happenings.queue_changed(self, node)

    def _start(self, node: Node) -> None:
        """Work on the next frame that somebody may still wait for."""
        while node.queue:
            frame = node.queue.popleft()
            if self.now >= frame.end:  # the worker sees that its budget is used up, or that its caller left
                self.refused(frame, node, frame.attempt, DeadlineExceeded.code)
                continue
            frame.wait_ms = (self.now - frame.received) * 1000
            frame.service_ms = node.service_ms(frame.z, frame.factor)
            node.pieces += 1
            node.working[node.pieces] = frame
            self.at(self.now + frame.service_ms / 1000, self._finished, node, node.pieces)
            return

    def _finished(self, node: Node, piece: int) -> None:
        frame = node.working.pop(piece, None)
        if frame is None:
            return  # it died meanwhile
        node.note_answer(frame.service_ms)
        gateway = frame.stream.gateway
        self.at(
            self.now + gateway.up_s(node, self.now, frame.down, ANSWER),
            self._answered, frame, node, frame.attempt, len(node.queue),
        )  # fmt: skip
        self._start(node)
        happenings.queue_changed(self, node)

    def _answered(self, frame: Frame, node: Node, attempt: int, queued: int) -> None:
        now = self.now
        if frame.ended:
            return
        if frame.given_up or frame.attempt != attempt:
            if frame.given_up and frame.attempt == attempt:
                self.measures.end(frame, Outcome.LATE, now)
            return
        frame.waiting = False
        if not self._clairvoyant:
            link = max(0.0, (now - frame.sent) * 1000 - frame.wait_ms - frame.service_ms)
            stages = Stages(link, frame.wait_ms, 0.0, frame.service_ms, 0.0)
            moved = Bytes(frame.stream.size + ANSWER)
            frame.stream.gateway.add(RequestAnswered(node.service, stages, Seconds(now), queued, moved))
        self.measures.end(frame, Outcome.IN_TIME, now)
        self._served(frame, node)

    def refused(self, frame: Frame, node: Node, attempt: int, code: str) -> None:
        """The node says no, or the network says that it is gone; the gateway learns of it one way later."""
        delay = frame.stream.gateway.up_s(node, self.now, frame.down, 0)
        self.at(self.now + delay, self.failed, frame, node, attempt, code)

    def swallowed(self, frame: Frame, node: Node) -> None:
        """The frame is with a node that is away. A crash resets connections and is noticed; a cut is silent."""
        if node.outages[node.outage].kind != "cut":
            self.refused(frame, node, frame.attempt, Unreachable.code)
        elif frame.given_up:
            if not frame.ended:
                self.measures.end(frame, Outcome.LOST, self.now, "silent")
        else:
            frame.gone = True
            happenings.missing(self, frame, node)

    def failed(self, frame: Frame, node: Node, attempt: int, code: str) -> None:
        """An attempt failed: ask another while time is left."""
        if frame.ended or frame.attempt != attempt:
            return
        now = self.now
        if frame.given_up or not frame.waiting:
            self.measures.end(frame, Outcome.LOST, now, code)
            return
        frame.waiting = False
        frame.gone = False
        if not self._clairvoyant:
            waited = Milliseconds((now - frame.sent) * 1000)
            frame.stream.gateway.add(RequestFailed(node.service, code, Seconds(now), waited))
        if code == DeadlineExceeded.code or now >= frame.end:
            self.measures.end(frame, Outcome.LOST, now, code)
            return
        frame.excluded = (*frame.excluded, node.service)
        self._ask(frame)

    def _deadline(self, frame: Frame) -> None:
        """Nobody waits any longer; the frame itself ends when its answer comes, or when it is dropped."""
        if frame.ended or not frame.waiting:
            return
        frame.waiting = False
        frame.given_up = True
        node = frame.node
        if node is not None and not self._clairvoyant:
            waited = Milliseconds((self.now - frame.sent) * 1000)
            code = DeadlineExceeded.code
            frame.stream.gateway.add(RequestFailed(node.service, code, Seconds(self.now), waited))
        if frame.gone:
            self.measures.end(frame, Outcome.LOST, self.now, "silent")

    def _served(self, frame: Frame, node: Node) -> None:
        """Who serves the stream now, and whether that is a move or a flap."""
        stream, now, measures = frame.stream, self.now, self.measures
        if frame.number < stream.newest:
            return  # an older answer that came later moves nothing
        stream.newest = frame.number
        before = stream.incumbent
        if before == node.service:
            return
        stream.incumbent = node.service
        if before is None:
            return
        measures.moved(now)
        old = self.world.by_service[before]
        changed = max(old.changed_at, node.changed_at, stream.gateway.changed_at)
        if changed < stream.moved_at - PROVOKED_S:
            measures.unprovoked += 1
        back = stream.left == node.service and now - stream.left_at <= self.scenario.flap_s
        if back and changed < stream.left_at - PROVOKED_S:
            measures.flaps += 1
        stream.left, stream.left_at = before, now
        stream.moved_at = now

    # -- playing -------------------------------------------------------------------------------------------------------

    def play(self, progress: Progress | None = None) -> Summary:
        """Until every frame has ended. Ctrl-C gives what was played so far, with `complete` false."""
        began = time.perf_counter()
        heap, seconds = self._heap, self.scenario.seconds
        step = seconds / 100
        told = step
        complete = True
        try:
            with _few_collections():
                while heap:
                    moment, _, call, arguments = heapq.heappop(heap)
                    if moment > seconds and self.measures.ended == self.measures.frames:
                        break
                    self.now = moment
                    self.events += 1
                    call(*arguments)
                    if progress is not None and moment >= told:
                        told = moment + step
                        progress(min(moment, seconds), seconds)
        except KeyboardInterrupt:
            complete = False
        played = min(self.now, seconds)
        name = self.policy.name
        wall = time.perf_counter() - began
        return self.measures.summary(
            self.scenario.name, name, self.seed, played, complete, self.world.nodes, self.events, wall
        )


@contextmanager
def _few_collections() -> Iterator[None]:
    """Snapshots are many small containers that refer to no cycle: the collector would walk them in vain."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
