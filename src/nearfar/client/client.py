"""Ask the fleet: decide from the snapshot, send over the mesh, try the next best while the deadline allows."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import msgspec

from nearfar.client.backup import Backup, Choice, Robust, Sent
from nearfar.client.listening import Listeners
from nearfar.client.reading import (
    ELSEWHERE,
    MOST_ATTEMPTS,
    MOST_DEATHS,
    again,
    description,
    failure,
    read,
    refused_as_doomed,
    tell,
)
from nearfar.client.talking import Talking
from nearfar.client.view import FleetView
from nearfar.errors import (
    DeadlineExceeded,
    InferenceError,
    MeshError,
    NearfarError,
    NoCandidate,
    Overloaded,
    UnknownModel,
    Unreachable,
)
from nearfar.fleet.events import NEVER, PromiseBroken, RequestAnswered, RequestFailed, RequestSent
from nearfar.fleet.snapshot import Snapshot
from nearfar.mesh.base import Buffer, Mesh
from nearfar.node import keys
from nearfar.node.prober import Prober
from nearfar.node.worker import Description
from nearfar.placement.decide import Decision, decide
from nearfar.placement.hedging import SHARE
from nearfar.placement.late import refused_as_late
from nearfar.placement.policies.base import Policy
from nearfar.placement.policies.registry import load as load_policy
from nearfar.placement.silence import given_up_code
from nearfar.types.ids import ModelName, NodeId, ServiceId, StreamId, node_of
from nearfar.types.image import Image
from nearfar.types.request import FRAME, Answer, Privacy, Qos, Request
from nearfar.types.tensor import Tensor
from nearfar.types.units import Bytes, Milliseconds, Seconds
from nearfar.types.wire import (
    CallHead,
    Operation,
    body_of,
    encode,
    heads_of,
)

PATIENCE = 30.0
"""Seconds to wait for an answer when the request has no deadline."""
UNKNOWN_RTT_MS = 5.0
"""What is assumed of a way that nobody has measured yet."""
SILENT_FIRST = 0.8
"""Seconds without a report before a service vanished: then its machine or the way to it is gone, which no request does.
Reports come twice a second, and the shortest lease that is of use is 1 s."""
_NO_QOS = Qos()


class Client:
    """One participant that asks. `me` is the node it runs on, or an id of its own when it runs on none.

    `hedge_share`: second copies against the tail, at most so many per request with a deadline; 0 sends none.

    Used from one event loop. Every method that asks raises: `UnknownModel`, `NoCandidate` with the refusals of every
    candidate, `Overloaded`, `DeadlineExceeded`, `InputError`, or what the last service tried said.
    """

    def __init__(self, mesh: Mesh, me: str, policy: Policy | str = "predictive", hedge_share: float = SHARE) -> None:
        self.mesh = mesh
        self.me = me
        self.view = FleetView(mesh, me)
        self.policy = load_policy(policy) if isinstance(policy, str) else policy
        self.listeners = Listeners()
        """Hear every decision before it is acted on, and every attempt that failed."""
        self.robust = Robust(hedge_share)
        """Second copies: their budget, and how many there were."""
        self.text = Talking(self)
        """Calls of language models."""
        self.random = random.Random()  # noqa: S311 - spreads load, keeps no secret
        self._prober: Prober | None = None
        self._probing: asyncio.Task[None] | None = None
        self._descriptions: dict[tuple[ServiceId, str], Description] = {}

    # -- what is known --------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        return self.view.snapshot(Seconds(time.monotonic()))

    def decide(self, request: Request) -> Decision:
        """Where the request would go now, with the figures and the refusals; nothing is sent."""
        now = Seconds(time.monotonic())
        return decide(self.view.snapshot(now), request, now, self.random, self.policy)

    def link_to(self, model: ModelName, incumbent: ServiceId | None) -> tuple[float, float | None]:
        """Round trip in milliseconds and bandwidth in bytes per second to whom the model's next request will likely go.

        (0, None) on our own node; bandwidth is None also when it was not measured yet.
        """
        snapshot = self.snapshot()
        services = (incumbent,) if incumbent is not None else snapshot.by_model.get(model, ())
        if not services or any(node_of(service) == self.me for service in services):
            return 0.0, None
        links = [snapshot.links.get((NodeId(self.me), node_of(service))) for service in services[:8]]
        best = min((link for link in links if link is not None), key=lambda link: link.rtt, default=None)
        return (best.rtt, best.bandwidth) if best else (UNKNOWN_RTT_MS, None)

    async def wait_for(self, model: ModelName, timeout: float, node: str | None = None) -> None:
        """Return once a service for the model (on that node) may be asked; after `timeout` seconds raises why not."""
        end = time.monotonic() + timeout
        while True:
            decision = self.decide(Request(model, self.me, qos=Qos(node=node)))
            if decision.chosen is not None:
                return
            if time.monotonic() > end:
                raise self.nobody(model, decision, [])
            await asyncio.sleep(0.02)

    def probe_links(self) -> None:
        """Measure the way to every node ourselves; for a client that runs on no node, whose agent would."""
        if self._prober is None:
            self._prober = Prober(self.mesh, self.view.measured)
            self._probing = asyncio.create_task(self._follow_nodes(self._prober), name="follow nodes")

    async def _follow_nodes(self, prober: Prober) -> None:
        while True:
            snapshot = self.snapshot()
            prober.follow(node for node, view in snapshot.nodes.items() if view.alive and node != self.me)
            await asyncio.sleep(0.25)

    def promise_broken(self, service: ServiceId, deadline: Milliseconds, reason: str) -> None:
        """A stream's promise was broken at a service: new requests keep away for a while. `reason` is for people."""
        self.view.add(PromiseBroken(service, deadline, Seconds(time.monotonic()), reason))

    # -- asking -----------------------------------------------------------------------------------------------------

    async def infer(
        self,
        model: ModelName,
        inputs: Sequence[Tensor],
        qos: Qos = _NO_QOS,
        *,
        wanted: Sequence[str] = (),
        stream: StreamId | None = None,
        incumbent: ServiceId | None = None,
    ) -> Answer:
        """Tensors in, tensors out, untouched by any processing."""
        head = CallHead(Operation.INFER, 0.0, heads_of(inputs), None, tuple(wanted))
        size = sum(tensor.nbytes for tensor in inputs)
        frame = FRAME.get()
        request = Request(model, self.me, Bytes(size), qos=qos, stream=stream, incumbent=incumbent, frame=frame)
        return await self._ask(request, head, body_of(inputs) or [b""])

    async def see(
        self,
        model: ModelName,
        image: Image,
        qos: Qos = _NO_QOS,
        *,
        stream: StreamId | None = None,
        incumbent: ServiceId | None = None,
        forecast: Milliseconds | None = None,
    ) -> Answer:
        """An image in; `boxes`, `scores` and `class_ids` (or a classifier's `scores`, `class_ids`) out.

        `forecast`: what the stream's monitor expects of the incumbent, when it sees the promise in danger there.
        """
        head = CallHead(Operation.SEE, 0.0, (), (image.kind.value, image.width, image.height))
        frame = FRAME.get()
        request = Request(model, self.me, Bytes(image.nbytes), qos=qos, stream=stream, incumbent=incumbent, frame=frame)
        if forecast is not None:
            request = msgspec.structs.replace(request, forecast=forecast)
        return await self._ask(request, head, [image.buffer])

    async def described(self, answer: Answer, timeout: float = 2.0) -> Description | None:
        """What the service that gave an answer serves: its own manifest, and no other of that name. None when it does
        not say so within `timeout` seconds; a good answer must not fail over its labels."""
        node, _, model = answer.served_by.partition("/")
        view = self.snapshot().services.get(answer.served_by)
        known = self._descriptions.get((answer.served_by, view.report.instance if view else ""))
        if known is not None:
            return known
        try:
            return await self.describe(ModelName(model), Qos(Milliseconds(timeout * 1000), node=node))
        except NearfarError:
            return None

    async def describe(self, model: ModelName, qos: Qos = _NO_QOS) -> Description:
        """The manifest and the tensors of a model, as one of its services states them; kept while that one lives."""
        decision = self.decide(Request(model, self.me, qos=qos))
        if decision.chosen is not None:
            view = self.snapshot().services.get(decision.chosen)
            known = self._descriptions.get((decision.chosen, view.report.instance if view else ""))
            if known is not None:
                return known
        answer = await self._ask(Request(model, self.me, qos=qos), CallHead(Operation.DESCRIBE), [b""])
        described = description(answer)
        view = self.snapshot().services.get(answer.served_by)
        if view is not None:
            for old in [key for key in self._descriptions if key[0] == answer.served_by]:
                del self._descriptions[old]
            self._descriptions[(answer.served_by, view.report.instance)] = described
        return described

    async def _ask(self, request: Request, head: CallHead, body: Sequence[Buffer]) -> Answer:
        start = time.monotonic()
        deadline = request.qos.deadline
        end = start + (deadline / 1000 if deadline is not None else PATIENCE)
        attempts: list[tuple[ServiceId, NearfarError]] = []
        aside = False
        asking = _Asking(self, request, head, body, end, attempts)
        backup = Backup(self.robust, asking, end, self._counted(deadline))
        try:
            while True:
                now = Seconds(time.monotonic())
                snapshot = self.view.snapshot(now)
                decision = decide(snapshot, request, now, self.random, self.policy)
                if self.listeners:
                    self.listeners.decided(request, decision, snapshot, now)
                if decision.chosen is None:
                    raise self.nobody(request.model, decision, attempts)
                if decision.late and (refused := refused_as_late(snapshot, request, decision, now)) is not None:
                    raise refused
                service = decision.chosen
                aside = aside or decision.aside
                try:
                    sent = self._launch(decision)
                    attempt = self._attempt(sent, decision, asking)
                    answer = await backup.first(decision, snapshot, sent, attempt)
                    return msgspec.structs.replace(answer, aside=True) if aside else answer
                except NearfarError as error:
                    if self.listeners:
                        self.listeners.failed(request, service, error, Milliseconds((time.monotonic() - now) * 1000))
                    if not isinstance(error, ELSEWHERE) and not refused_as_doomed(error):
                        raise
                    attempts.append((service, error))
                    second = await backup.rest()
                    if second is not None:
                        return second
                    attempts += backup.failed
                    backup.failed.clear()
                    deaths = sum(isinstance(e, Unreachable) and e.vanished for _, e in attempts)
                    if deaths >= MOST_DEATHS:
                        raise InferenceError(
                            f"{deaths} services died over this request: {tell(attempts)}.",
                            "It is not tried again: its input may be what ends them.",
                        ) from None
                    if len(attempts) >= MOST_ATTEMPTS:
                        raise
                    left = end - time.monotonic()
                    if left <= 0:
                        raise DeadlineExceeded(f"The deadline passed after {tell(attempts)}.") from None
                    aside = True  # what befell one request does not move its stream; the next decision may
                    request = again(request, Milliseconds(left * 1000), attempts)
        finally:
            backup.close()

    def _counted(self, deadline: Milliseconds | None) -> bool:
        """Count one more request; whether it may be hedged."""
        robust = self.robust
        robust.counts.requests += 1
        robust.budget = robust.budget.earn()
        return deadline is not None and robust.budget.share > 0

    def _launch(self, decision: Decision) -> Sent:
        """Count a copy as under way, at once: another decision of this moment must see it."""
        assert decision.chosen is not None
        now = time.monotonic()
        due = Seconds(now + decision.expected.total / 1000) if decision.expected is not None else NEVER
        self.view.add(RequestSent(decision.chosen, Seconds(now), due))
        return Sent(decision.chosen, Seconds(now), due)

    def _drop(self, sent: Sent) -> None:
        """Nobody waits for this copy any more; what a silent service owed stays on its account."""
        if not sent.settled:
            sent.settled = True
            now = Seconds(time.monotonic())
            code = given_up_code(self.view.snapshot(now), sent.service, now)
            self.view.add(RequestFailed(sent.service, code, now, None, sent.due))

    def _fail(self, sent: Sent, error: NearfarError, since: float, queued: int | None = None) -> None:
        if not sent.settled:
            sent.settled = True
            now = time.monotonic()
            code = "doomed" if refused_as_doomed(error) else error.code
            waited = Milliseconds((now - since) * 1000)
            self.view.add(RequestFailed(sent.service, code, Seconds(now), waited, sent.due, queued))

    async def _attempt(self, copy: Sent, decision: Decision, asking: _Asking) -> Answer:
        service, request, head, end = copy.service, asking.request, asking.head, asking.end
        sent = time.monotonic()
        queued: int | None = None
        try:
            if request.qos.deadline is not None:
                left = Milliseconds((end - sent) * 1000)
                budget = left if decision.expected is None else decision.expected.budget(left)
                head = msgspec.structs.replace(head, budget_ms=max(0.01, budget))
            private = request.qos.privacy is Privacy.LOCAL
            message = await self.mesh.request(
                keys.service_key(service), encode(head), asking.body, end - sent, private=private
            )
            reply, outputs = read(message, service, head.operation)
            if reply.failure is not None:
                queued = reply.queued
                raise failure(reply.failure)
        except NearfarError as error:
            if isinstance(error, Unreachable) and error.vanished and self._was_silent(service):
                error.vanished = False
            self._fail(copy, error, sent, queued)
            raise
        except BaseException:  # cancelled: the caller left, or another copy was first
            self._drop(copy)
            raise
        now = time.monotonic()
        if request.qos.deadline is not None and now > end:  # our own timer was late: a promise is a promise
            late = DeadlineExceeded(f"{service} answered {(now - end) * 1000:.1f} ms after the deadline.")
            self._fail(copy, late, sent)
            raise late
        stages = reply.stages
        stages = msgspec.structs.replace(stages, link=max(0.0, (now - sent) * 1000 - stages.total))
        moved = Bytes(request.size + len(message.body))
        copy.settled = True
        self.view.add(RequestAnswered(service, stages, Seconds(now), reply.queued, moved, copy.due))
        return Answer(outputs, service, reply.variant, stages, tuple(f"{s}: {e.message}" for s, e in asking.attempts))

    def _was_silent(self, service: ServiceId) -> bool:
        view = self.snapshot().services.get(service)
        return view is not None and time.monotonic() - view.heard > SILENT_FIRST

    def nobody(
        self, model: ModelName, decision: Decision, attempts: Sequence[tuple[ServiceId, NearfarError]]
    ) -> NearfarError:
        """Why no service can take a request, as the error to raise."""
        tried = dict(attempts)
        refusals = [
            {"subject": r.subject, "code": r.code, "reason": str(tried.get(ServiceId(r.subject), r.reason))}
            for r in decision.refusals
        ]
        last = attempts[-1][1] if attempts else None
        if last is not None and (
            refused_as_doomed(last) or (isinstance(last, MeshError) and not isinstance(last, Unreachable))
        ):
            return last  # nobody else can take it, and this says more than that nobody can
        snapshot = self.snapshot()
        if not (any(n.alive for n in snapshot.nodes.values()) or any(s.alive for s in snapshot.services.values())):
            return NoCandidate(
                f"No node of the fleet can be seen, so nobody can take {model}.",
                "Start one with 'nearfar up', or give --join ENDPOINT.",
                refusals,
            )
        if any(r.code == UnknownModel.code for r in decision.refusals):
            return UnknownModel(decision.reason, "See 'nearfar services' for what the fleet serves.")
        overloaded = [e for _, e in attempts if isinstance(e, Overloaded)]
        retry = min((e.retry_after for e in overloaded), default=1.0)
        if overloaded and len(overloaded) == len(attempts):
            return Overloaded(f"Every service of {model} is busy: {tell(attempts)}.", "Try again later.", retry)
        told = f" after {tell(attempts)}" if attempts else ""
        hint = "See 'nearfar services' for how each one does."
        return NoCandidate(f"No service can take {model}{told}: {decision.reason}", hint, refusals, retry)

    async def close(self) -> None:
        """Stop listening; the mesh is the caller's to close."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        if self._prober is not None:
            await self._prober.close()
        self.robust.lookout.close()
        self.view.close()


class _Asking:
    """One request of a client, as its copies see it. Filters hold for every copy: what is private stays."""

    __slots__ = ("attempts", "body", "client", "end", "head", "request")

    def __init__(
        self,
        client: Client,
        request: Request,
        head: CallHead,
        body: Sequence[Buffer],
        end: float,
        attempts: list[tuple[ServiceId, NearfarError]],
    ) -> None:
        self.client = client
        self.request = request
        self.head = head
        self.body = body
        self.end = end
        self.attempts = attempts

    def snapshot(self) -> Snapshot:
        return self.client.snapshot()

    def choose(self, excluded: tuple[ServiceId, ...]) -> Choice:
        client, now = self.client, Seconds(time.monotonic())
        second = again(self.request, Milliseconds((self.end - now) * 1000), self.attempts, excluded)
        snapshot = client.view.snapshot(now)
        return Choice(second, decide(snapshot, second, now, client.random, client.policy), snapshot)

    def ask(self, choice: Choice, first: ServiceId, since: float) -> tuple[Sent, Coroutine[Any, Any, Answer]]:
        client, now = self.client, Seconds(time.monotonic())
        if client.listeners:
            client.listeners.decided(choice.request, choice.decision, choice.snapshot, now)
        sent = client._launch(choice.decision)
        if client.listeners:
            client.listeners.hedged(choice.request, sent.service, first, Milliseconds((now - since) * 1000))
        return sent, client._attempt(sent, choice.decision, self)

    def drop(self, sent: Sent) -> None:
        self.client._drop(sent)
