"""The engine: plays a scenario in virtual time, one event after the other, the same for the same seed.

Gateways decide with the real `placement.decide` on snapshots folded by the real `fleet.reduce`, retry as
`client/client.py` does, and give up at the deadline. One heap of (moment, number, what, arguments); nothing sleeps.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable
from typing import Any

import msgspec

from nearfar.errors import DeadlineExceeded, NoCandidate, Overloaded, Unreachable
from nearfar.fleet.doomed import doomed, refusable
from nearfar.fleet.events import NEVER, RequestAnswered, RequestFailed, RequestSent
from nearfar.fleet.snapshot import Snapshot
from nearfar.placement.decide import Decision, decide
from nearfar.placement.hedging import hedge_at, second_of
from nearfar.placement.migration import Switch
from nearfar.placement.policies.base import Policy
from nearfar.placement.silence import alarm, given_up_code, tolerance
from nearfar.simulate import baselines, entrance, happenings
from nearfar.simulate.devices import LARGE
from nearfar.simulate.foresight import foresee
from nearfar.simulate.frames import Copy, Frame, Outcome, Stream
from nearfar.simulate.garbage import few_collections
from nearfar.simulate.measures import Measures, Summary
from nearfar.simulate.scenario import Scenario
from nearfar.simulate.stream import Guard
from nearfar.simulate.view import ANSWER, Gateway
from nearfar.simulate.world import MODEL, Node, World
from nearfar.types.ids import ServiceId, node_of
from nearfar.types.request import Qos, Request, Stages
from nearfar.types.units import Bytes, Milliseconds, Seconds

PATIENCE = 30.0
"""Seconds to wait for an answer without a deadline; as `client/client.py`."""
MOST_ATTEMPTS = 8
MOST_COPIES = 3
"""Of a frame, under way at a time. Both as `client/client.py`."""
PROVOKED_S = 3.0
"""A move so soon before a true change is known to all counts as provoked by it: gateways may notice it first."""

Progress = Callable[[float, float], None]
"""(virtual seconds played, seconds in all)."""
Watcher = Callable[[Frame, Node | None, Decision | None, float], None]
"""Called with every decision: (frame, the node chosen, the decision unless clairvoyant, now)."""


class Engine:
    """One run of one scenario under one policy."""

    def __init__(
        self, scenario: Scenario, policy: Policy | baselines.Bound, seed: int | None = None,
        watcher: Watcher | None = None, robust: bool = True,
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
        self._bound = isinstance(policy, baselines.Bound)
        self._robust = not self._bound and robust
        self.guarded = not self._bound and policy.name not in baselines.PER_FRAME
        entrance.enter(self)
        happenings.begin(self)

    def at(self, moment: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call at that virtual moment. Of one moment, what was asked for first comes first."""
        self._number += 1
        heapq.heappush(self._heap, (moment, self._number, call, arguments))

    # -- frames --------------------------------------------------------------------------------------------------------

    def born(self, stream: Stream, number: int) -> None:
        now, rng = self.now, stream.rng
        factor = rng.uniform(*LARGE) if stream.large else 1.0
        end = now + (stream.deadline or PATIENCE)
        frame = Frame(stream, number, now, end, rng.gauss(0.0, 1.0), rng.random(), rng.random(), factor)
        self.measures.frames += 1
        again = now + stream.period / stream.gateway.rate
        if again < self.scenario.seconds:
            self.at(again, self.born, stream, number + 1)
        self.at(end, self._deadline, frame)
        if self._bound:
            node = foresee(self.world, frame, now, self.policy.deaths)  # type: ignore[union-attr]
            if self._watcher is not None:
                self._watcher(frame, node, None, now)
            if node is None:
                self._end(frame, Outcome.LOST, NoCandidate.code)
            else:
                self._send(frame, node, NEVER, False)
            return
        gateway = stream.gateway
        gateway.hedges = gateway.hedges.earn()
        if stream.guard is None:
            frame.owner = stream.incumbent
            self._ask(frame)
        else:
            self._due(frame, stream.guard)

    def _due(self, frame: Frame, guard: Guard) -> None:
        """Ask the decision, then the stream's moves, who has this frame; and send the copy that a move wants of it."""
        frame.owner = guard.state.owner
        snapshot, decision = self._decide(frame, ())
        assigned = guard.due(frame, decision, self.now)
        if assigned.pin is not None:
            self._ask(frame)
        elif decision.chosen is None:
            self._end(frame, Outcome.LOST, NoCandidate.code)
        else:
            self._launch(frame, snapshot, decision)
        if assigned.copy is not None:
            self._shadow(frame, assigned.copy)

    def _shadow(self, frame: Frame, target: ServiceId) -> None:
        """A copy of the frame, as real a load as any; its answer is no result."""
        number = frame.number
        luck = random.Random(f"{self.seed} {frame.stream.id} {number} to {target}")  # noqa: S311
        copy = Frame(frame.stream, number, self.now, frame.end, luck.gauss(0.0, 1.0), luck.random(), luck.random(),
                     frame.factor)  # fmt: skip
        copy.owner = copy.pin = copy.copy_to = target
        self.measures.shadows += 1
        self.at(copy.end, self._deadline, copy)
        self._ask(copy)

    def _decide(self, frame: Frame, excluded: tuple[ServiceId, ...]) -> tuple[Snapshot, Decision]:
        stream, now = frame.stream, self.now
        gateway = stream.gateway
        deadline = Milliseconds((frame.end - now) * 1000) if stream.deadline else None
        request = Request(
            MODEL, gateway.name, Bytes(stream.size), Bytes(ANSWER), Qos(deadline), None, frame.owner, excluded
        )
        guard = stream.guard
        if guard is not None:
            forecast = guard.forecast((now - frame.born) * 1000) if frame.copy_to is None else None
            if frame.pin is not None:
                qos = Qos(deadline, node=node_of(frame.pin))
                request = msgspec.structs.replace(request, qos=qos, forecast=forecast)
            elif forecast is not None:
                request = msgspec.structs.replace(request, forecast=forecast)
        snapshot = gateway.snapshot(now)
        decision = decide(snapshot, request, Seconds(now), gateway.rng, self.policy)  # type: ignore[arg-type]
        if self._watcher is not None:
            node = self.world.by_service[decision.chosen] if decision.chosen is not None else None
            self._watcher(frame, node, decision, now)
        return snapshot, decision

    def _ask(self, frame: Frame) -> None:
        """Send it to whoever is best; when nobody may take it and no copy is under way, that is its end."""
        snapshot, decision = self._decide(frame, frame.excluded)
        if decision.chosen is None and frame.pin is not None and frame.copy_to is None and not frame.open:
            frame.failed, frame.pin, frame.owner = (frame.pin,), None, None
            snapshot, decision = self._decide(frame, frame.excluded)
        if decision.chosen is None:
            if not frame.open:
                self._end(frame, Outcome.LOST, frame.code or NoCandidate.code)
            return
        self._launch(frame, snapshot, decision)

    def _launch(self, frame: Frame, snapshot: Snapshot, decision: Decision) -> None:
        stream, now = frame.stream, self.now
        expected, service = decision.expected, decision.chosen
        assert expected is not None and service is not None
        gateway = stream.gateway
        node = self.world.by_service[service]
        due = now + expected.total / 1000
        copy = self._send(frame, node, due, frame.copies > 0 or decision.aside)
        if stream.deadline:
            copy.budget_ms = expected.budget(Milliseconds((frame.end - now) * 1000))
        gateway.add(RequestSent(service, Seconds(now), Seconds(due)))
        if not self._robust:
            return
        if frame.copies == 1 and stream.deadline and frame.pin is None:
            observed = snapshot.observed.get(service)
            at = hedge_at(expected, observed, second_of(decision), Seconds(now), Seconds(frame.end))
            if at is not None:
                self.at(at, self._hedge, copy)
        view = snapshot.services[service]
        look = alarm(snapshot, view, Seconds(due)) or due
        if look <= now:  # it is silent already, and was asked because nobody else is there
            look = due + tolerance(view, snapshot.observed.get(service)) / 1000
        if look < frame.end:
            self.at(look, self._look, copy)

    def _send(self, frame: Frame, node: Node, due: float, aside: bool) -> Copy:
        copy = Copy(frame, node, self.now, due, aside)
        frame.copies += 1
        frame.open.append(copy)
        if frame.copies > 1:  # another packet, another moment at the engine: luck of its own, the same for every policy
            luck = random.Random(f"{self.seed} {frame.stream.id} {frame.number} {frame.copies}")  # noqa: S311
            copy.z, copy.up, copy.down = luck.gauss(0.0, 1.0), luck.random(), luck.random()
        self.measures.attempts += 1
        self.at(self.now + frame.stream.gateway.up_s(node, self.now, copy.up, frame.stream.size), self._arrived, copy)
        return copy

    # -- second copies -------------------------------------------------------------------------------------------------

    def _hedge(self, copy: Copy) -> None:
        """The 95th percentile has passed: a second copy, if the budget has one and another can still be in time."""
        frame = copy.frame
        gateway = frame.stream.gateway
        if frame.ended or frame.given_up or copy not in frame.open or not gateway.hedges.affords:
            return
        snapshot, decision = self._decide(frame, (*frame.excluded, *(c.node.service for c in frame.open)))
        expected = decision.expected
        if expected is None or self.now + expected.total / 1000 > frame.end:
            return
        gateway.hedges = gateway.hedges.spend()
        self.measures.hedges += 1
        self._launch(frame, snapshot, decision)

    def _look(self, copy: Copy) -> None:
        """Its answer is overdue: when the service has fallen silent, ask another as well."""
        frame = copy.frame
        if frame.ended or frame.given_up or copy not in frame.open or len(frame.open) >= MOST_COPIES:
            return
        gateway = frame.stream.gateway
        snapshot = gateway.snapshot(self.now)
        view = snapshot.services.get(copy.node.service)
        if view is None:
            return
        at = alarm(snapshot, view)
        if at is None:
            return
        if at > self.now:
            self.at(at, self._look, copy)
            return
        self.measures.suspected += 1
        if copy.node.up:
            self.measures.suspected_wrongly += 1
        snapshot, decision = self._decide(frame, (*frame.excluded, *(c.node.service for c in frame.open)))
        if decision.chosen is not None and not decision.late:
            self.measures.asked_again += 1
            self._launch(frame, snapshot, decision)

    # -- at the nodes --------------------------------------------------------------------------------------------------

    def _arrived(self, copy: Copy) -> None:
        node = copy.node
        if not node.up:
            self.swallowed(copy)
            return
        queued = len(node.queue)
        if node.leaving:  # its queryable is withdrawn: nobody is there to take it
            self.refused(copy, Unreachable.code)
        elif queued >= node.queue_limit:
            self.refused(copy, Overloaded.code)
        elif copy.budget_ms and refusable(copy.budget_ms, node.recent_ms, queued, len(node.working), node.workers):
            self.refused(copy, "doomed")
        elif not self._left(copy):
            copy.received = self.now
            node.queue.append(copy)
            if len(node.working) < node.workers:
                self._start(node)
            happenings.queue_changed(self, node)

    def _left(self, copy: Copy) -> bool:
        """Whether the node knows that nobody waits for it: the cancellation travels as long as a message."""
        frame = copy.frame
        return frame.ended and self.now >= frame.ended_at + frame.stream.gateway.delay_s(copy.node, self.now)

    def _start(self, node: Node) -> None:
        """Work on the next frame that somebody may still wait for."""
        while node.queue:
            copy = node.queue.popleft()
            now = self.now
            if self._left(copy):
                continue
            if now >= copy.frame.end:
                self.refused(copy, DeadlineExceeded.code)
                continue
            copy.wait_ms = (now - copy.received) * 1000
            others = copy.wait_ms > 0 or bool(node.queue)
            if copy.budget_ms and doomed(copy.budget_ms - copy.wait_ms, node.recent_ms, others):
                self.refused(copy, "doomed")
                continue
            copy.service_ms = node.service_ms(copy.z, copy.frame.factor)
            node.pieces += 1
            node.working[node.pieces] = copy
            self.at(now + copy.service_ms / 1000, self._finished, node, node.pieces)
            return

    def _finished(self, node: Node, piece: int) -> None:
        copy = node.working.pop(piece, None)
        if copy is None:
            return  # it died meanwhile
        node.note_answer(copy.service_ms)
        back = copy.frame.stream.gateway.up_s(node, self.now, copy.down, ANSWER)
        self.at(self.now + back, self._answered, copy, len(node.queue))
        self._start(node)
        happenings.queue_changed(self, node)

    # -- back at the gateway -------------------------------------------------------------------------------------------

    def _answered(self, copy: Copy, queued: int) -> None:
        now, frame = self.now, copy.frame
        if frame.ended:
            return
        if frame.given_up:
            self._end(frame, Outcome.LATE)
            return
        if copy not in frame.open:
            return
        frame.open.remove(copy)
        if not self._bound:
            service = copy.node.service
            link = max(0.0, (now - copy.sent) * 1000 - copy.wait_ms - copy.service_ms)
            stages = Stages(link, copy.wait_ms, 0.0, copy.service_ms, 0.0)
            moved = Bytes(frame.stream.size + ANSWER)
            gateway = frame.stream.gateway
            gateway.add(RequestAnswered(service, stages, Seconds(now), queued, moved, Seconds(copy.due)))
            self._cancel_others(frame)
            guard = frame.stream.guard
            if guard is not None:
                if frame.copy_to is None:
                    guard.ended(frame, service, copy.aside, now)
                    guard.answered(frame, service, copy.aside or frame.rescued, stages, now)
                else:
                    guard.copied(service, (now - frame.born) * 1000, "", now)
        self._end(frame, Outcome.IN_TIME)
        if not copy.aside and frame.stream.guard is None:
            self._served(frame, copy.node)

    def _cancel_others(self, frame: Frame) -> None:
        """The first answer wins. What was owed by a silent service stays on its account."""
        gateway, now = frame.stream.gateway, self.now
        for copy in frame.open:
            code = given_up_code(gateway.snapshot(now), copy.node.service, Seconds(now))
            gateway.add(RequestFailed(copy.node.service, code, Seconds(now), None, Seconds(copy.due)))
        frame.open.clear()

    def refused(self, copy: Copy, code: str) -> None:
        """The node says no, or the network says that it is gone; the gateway learns of it one way later."""
        delay = copy.frame.stream.gateway.up_s(copy.node, self.now, copy.down, 0)
        self.at(self.now + delay, self.failed, copy, code, len(copy.node.queue))

    def swallowed(self, copy: Copy) -> None:
        """The copy is with a node that is away. A crash resets connections and is noticed; a cut is silent."""
        copy.swallowed = True
        if copy.node.outages[copy.node.outage].kind != "cut":
            self.refused(copy, Unreachable.code)
        elif copy.frame.given_up:
            self._gone(copy, "silent")
        else:
            happenings.missing(self, copy)

    def failed(self, copy: Copy, code: str, queued: int | None = None) -> None:
        """A copy failed: ask another while time is left."""
        frame, now = copy.frame, self.now
        if frame.ended:
            return
        if frame.given_up:
            self._gone(copy, code)
            return
        if copy not in frame.open:
            return
        frame.open.remove(copy)
        if not self._bound:
            waited = Milliseconds((now - copy.sent) * 1000)
            frame.stream.gateway.add(
                RequestFailed(copy.node.service, code, Seconds(now), waited, Seconds(copy.due), queued)
            )
        frame.code = code
        if code == DeadlineExceeded.code or now >= frame.end or self._bound:
            self._end(frame, Outcome.LOST, code)
            return
        frame.excluded = (*frame.excluded, copy.node.service)
        if frame.copies < MOST_ATTEMPTS:
            self._ask(frame)
        elif not frame.open:
            self._end(frame, Outcome.LOST, code)

    def _deadline(self, frame: Frame) -> None:
        """Nobody waits any longer; the frame itself ends when its answer comes, or when its copies are dropped."""
        if frame.ended or not frame.open:
            return
        frame.given_up = True
        self._unanswered(frame, DeadlineExceeded.code)
        gone = []
        for copy in frame.open:
            if not self._bound:
                waited = Milliseconds((self.now - copy.sent) * 1000)
                gateway = frame.stream.gateway
                code = DeadlineExceeded.code
                gateway.add(RequestFailed(copy.node.service, code, Seconds(self.now), waited, Seconds(copy.due)))
            if copy.swallowed:
                gone.append(copy)
        for copy in gone:
            self._gone(copy, "silent")

    def _gone(self, copy: Copy, code: str) -> None:
        """A copy of a frame that was given up will not come late either; the last of them is the frame's end."""
        frame = copy.frame
        if copy in frame.open:
            frame.open.remove(copy)
        if not frame.open and not frame.ended:
            self._end(frame, Outcome.LOST, code)

    def _end(self, frame: Frame, outcome: Outcome, code: str = "") -> None:
        if outcome is Outcome.LOST and not frame.given_up:
            self._unanswered(frame, code)
        if frame.copy_to is None:
            self.measures.end(frame, outcome, self.now, code)
        frame.ended = True
        frame.ended_at = self.now

    def _unanswered(self, frame: Frame, code: str) -> None:
        """Whoever waited for the frame waits no longer."""
        guard, now = frame.stream.guard, self.now
        if guard is None:
            return
        if frame.copy_to is not None:
            guard.copied(frame.copy_to, (now - frame.born) * 1000, code, now)
            return
        guard.ended(frame, None, False, now)
        guard.missed(now)

    def _served(self, frame: Frame, node: Node) -> None:
        """Who serves the stream now, where the policy picks anew for every frame."""
        stream = frame.stream
        if frame.number < stream.newest:
            return  # an older answer that came later moves nothing
        stream.newest = frame.number
        before = stream.incumbent
        stream.incumbent = node.service
        if before is not None and before != node.service:
            self._move(stream, before, node.service)

    def went_over(self, stream: Stream, switch: Switch) -> None:
        self._move(stream, switch.source, switch.target)

    def _move(self, stream: Stream, before: ServiceId, after: ServiceId) -> None:
        """Count a move, and whether it was provoked, or a flap."""
        now, measures = self.now, self.measures
        measures.moved(now)
        old, new = self.world.by_service[before], self.world.by_service[after]
        changed = max(old.changed_at, new.changed_at, stream.gateway.changed_at)
        if changed < stream.moved_at - PROVOKED_S:
            measures.unprovoked += 1
        back = stream.left == after and now - stream.left_at <= self.scenario.flap_s
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
            with few_collections():
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
