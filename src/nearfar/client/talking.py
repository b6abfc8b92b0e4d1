"""Ask the fleet's language models: decide, send, try the next best while nothing was delivered yet.

A language call takes from milliseconds to minutes, as long as its answer is, so that a late answer says nothing of its
service: there are no second copies here, and nothing is owed at a moment. What a deadline means: of a streamed answer
that its first piece is there, of any other that all of it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nearfar.client.reading import ELSEWHERE, MOST_ATTEMPTS, MOST_DEATHS, again, failure, refused_as_doomed, tell
from nearfar.errors import DeadlineExceeded, InferenceError, MeshError, Moved, NearfarError, StreamCut, Unreachable
from nearfar.fleet.events import NEVER, RequestAnswered, RequestFailed, RequestSent
from nearfar.fleet.snapshot import FRESH, Snapshot
from nearfar.mesh.base import Buffer, Message
from nearfar.node import keys
from nearfar.placement.decide import Decision, decide
from nearfar.types.ids import ModelName, ServiceId, StreamId
from nearfar.types.request import Privacy, Qos, Request, Stages
from nearfar.types.units import Bytes, Milliseconds, Seconds
from nearfar.types.wire import CallHead, Operation, ReplyHead, TextContext, decode_reply, encode

if TYPE_CHECKING:
    from nearfar.client.client import Client

PATIENCE = 600.0
"""Seconds that an answer may take when no deadline is stated; it can be long, and a board slow."""
SILENCE = FRESH
"""Seconds without a piece *and* without a report after which a service counts as cut off. A slow board goes on
reporting twice a second while it thinks, and is left in peace."""
LOOK_EVERY = 0.25
"""Seconds between looks whether that is so."""


class TextRequest(msgspec.Struct, frozen=True):
    """One call of a language model. `body` is its JSON; `context.streamed` says whether that asks for chunks."""

    operation: Operation
    model: ModelName
    body: bytes
    qos: Qos = Qos()
    context: TextContext = TextContext()
    stream: StreamId | None = None
    incumbent: ServiceId | None = None
    """Who answered this conversation last: it knows its beginning already."""
    excluded: tuple[ServiceId, ...] = ()


class TextReply(NamedTuple):
    """A whole answer: its JSON, and who gave it."""

    body: Buffer
    served_by: ServiceId
    variant: str
    stages: Stages
    attempts: tuple[str, ...] = ()


class Piece(NamedTuple):
    """Chunks of a streamed answer, a JSON object a line; the last piece carries the stages and may hold none."""

    lines: bytes
    served_by: ServiceId
    last: ReplyHead | None = None


class _Asked(NamedTuple):
    decision: Decision
    service: ServiceId
    sent: float


class Talking:
    """Language calls of one client. Raises as `Client` does; what was tried stands in the message."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def decide(self, call: TextRequest) -> Decision:
        """Where the call would go now; nothing is sent."""
        return self._client.decide(self._request(call))

    def snapshot(self) -> Snapshot:
        """The fleet as the client sees it now."""
        return self._client.snapshot()

    async def ask(self, call: TextRequest) -> TextReply:
        """The whole answer."""
        request, end = self._request(call), self._end(call)
        attempts: list[tuple[ServiceId, NearfarError]] = []
        while True:
            asked = self._choose(request, attempts)
            try:
                message = await self._client.mesh.request(
                    keys.service_key(asked.service),
                    self._head(call, request, asked, end),
                    [call.body],
                    end - asked.sent,
                    private=call.qos.privacy is Privacy.LOCAL,
                )
                reply = _read(message, asked.service)
            except NearfarError as error:
                request = self._elsewhere(request, asked, error, attempts, end)
                continue
            except BaseException:
                self._dropped(asked)
                raise
            stages = self._answered(asked, reply, request, len(message.body))
            told = tuple(f"{service}: {error.message}" for service, error in attempts)
            return TextReply(message.body, asked.service, reply.variant, stages, told)

    async def stream(self, call: TextRequest) -> AsyncGenerator[Piece, None]:
        """The answer piece by piece. What fails before the first one is tried elsewhere; what fails after it raises
        `StreamCut`, for only the caller knows how to go on."""
        request, end = self._request(call), self._end(call)
        attempts: list[tuple[ServiceId, NearfarError]] = []
        while True:
            asked = self._choose(request, attempts)
            began = False
            moved = 0
            settled = False
            messages = self._client.mesh.stream(
                keys.service_key(asked.service),
                self._head(call, request, asked, end),
                [call.body],
                PATIENCE,
                private=call.qos.privacy is Privacy.LOCAL,
            )
            watch = _Watch(self._client, asked.service, end)
            try:
                async with contextlib.aclosing(messages):
                    while True:
                        watch.waits()
                        try:
                            message = await anext(messages)
                        except asyncio.CancelledError:
                            if watch.ended():
                                raise TimeoutError from None
                            raise
                        watch.came()
                        reply = _read(message, asked.service) if message.head else None
                        began = True
                        moved += len(message.body)
                        if reply is not None:
                            settled = True
                            self._answered(asked, reply, request, moved)
                        yield Piece(bytes(message.body), asked.service, reply)
                        if reply is not None:
                            return
            except TimeoutError:
                if watch.silent:
                    mute = Unreachable(f"{asked.service} fell silent: no word and no report for {SILENCE:g} s.")
                    if began:
                        self._failed(asked, mute)
                        raise StreamCut.of(mute, asked.service) from None
                    request = self._elsewhere(request, asked, mute, attempts, end)
                    continue
                late = DeadlineExceeded(f"{asked.service} said nothing within the deadline.", "Allow more time.")
                request = self._elsewhere(request, asked, late, attempts, end)
            except StopAsyncIteration:
                cut: NearfarError = MeshError(f"{asked.service} ended its answer without a last word.", "Ask again.")
                if began:
                    self._failed(asked, cut)
                    raise StreamCut.of(cut, asked.service) from None
                request = self._elsewhere(request, asked, cut, attempts, end)
            except NearfarError as error:
                if began:
                    if isinstance(error, Moved):
                        self._dropped(asked)  # it goes on purpose, and did nothing wrong
                    else:
                        self._failed(asked, error)
                    raise StreamCut.of(error, asked.service) from None
                request = self._elsewhere(request, asked, error, attempts, end)
            except BaseException:
                if not settled:
                    self._dropped(asked)
                raise
            finally:
                watch.close()

    # -- steps --------------------------------------------------------------------------------------------------------

    def _request(self, call: TextRequest) -> Request:
        return Request(
            call.model,
            self._client.me,
            Bytes(len(call.body)),
            qos=call.qos,
            stream=call.stream,
            incumbent=call.incumbent,
            excluded=call.excluded,
            first_token=call.context.streamed,
        )

    def _end(self, call: TextRequest) -> float:
        deadline = call.qos.deadline
        return time.monotonic() + (deadline / 1000 if deadline is not None else PATIENCE)

    def _head(self, call: TextRequest, request: Request, asked: _Asked, end: float) -> bytes:
        budget = 0.0
        if call.qos.deadline is not None:
            left = Milliseconds((end - asked.sent) * 1000)
            expected = asked.decision.expected
            budget = max(0.01, left if expected is None else expected.budget(left))
        context = msgspec.structs.replace(call.context, privacy=call.qos.privacy)
        return encode(CallHead(call.operation, budget, text=context))

    def _choose(self, request: Request, attempts: list[tuple[ServiceId, NearfarError]]) -> _Asked:
        client, now = self._client, Seconds(time.monotonic())
        snapshot = client.view.snapshot(now)
        decision = decide(snapshot, request, now, client.random, client.policy)
        if client.listeners:
            client.listeners.decided(request, decision, snapshot, now)
        if decision.chosen is None:
            raise client.nobody(request.model, decision, attempts)
        client.view.add(RequestSent(decision.chosen, now, NEVER))
        return _Asked(decision, decision.chosen, now)

    def _elsewhere(
        self,
        request: Request,
        asked: _Asked,
        error: NearfarError,
        attempts: list[tuple[ServiceId, NearfarError]],
        end: float,
    ) -> Request:
        """The request for another service; raises when there is no use in that, or no time."""
        self._failed(asked, error)
        if self._client.listeners:
            spent = Milliseconds((time.monotonic() - asked.sent) * 1000)
            self._client.listeners.failed(request, asked.service, error, spent)
        if not isinstance(error, ELSEWHERE) and not refused_as_doomed(error):
            raise error
        attempts.append((asked.service, error))
        deaths = sum(isinstance(e, Unreachable) and e.vanished for _, e in attempts)
        if deaths >= MOST_DEATHS:
            raise InferenceError(
                f"{deaths} services died over this request: {tell(attempts)}.",
                "It is not tried again: its input may be what ends them.",
            ) from None
        if len(attempts) >= MOST_ATTEMPTS:
            raise error
        left = end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"The deadline passed after {tell(attempts)}.") from None
        return again(request, Milliseconds(left * 1000), attempts)

    def _answered(self, asked: _Asked, reply: ReplyHead, request: Request, moved: int) -> Stages:
        now = time.monotonic()
        spent = (now - asked.sent) * 1000
        stages = msgspec.structs.replace(reply.stages, link=max(0.0, spent - reply.stages.total))
        size = Bytes(request.size + moved)
        self._client.view.add(RequestAnswered(asked.service, stages, Seconds(now), reply.queued, size, NEVER))
        return stages

    def _failed(self, asked: _Asked, error: NearfarError) -> None:
        now = time.monotonic()
        code = "doomed" if refused_as_doomed(error) else error.code
        waited = Milliseconds((now - asked.sent) * 1000)
        self._client.view.add(RequestFailed(asked.service, code, Seconds(now), waited, NEVER, None))

    def _dropped(self, asked: _Asked) -> None:
        """The caller left."""
        self._client.view.add(RequestFailed(asked.service, "cancelled", Seconds(time.monotonic()), None, NEVER))


class _Watch:
    """Ends the wait for a piece: for the first one at the deadline, for any when the service gives no sign of life.

    As `asyncio.timeout` would, but without an object and two more awaits for each piece, of which a fast model writes
    thousands a second. Only a wait is ever ended, never what the caller does between two."""

    def __init__(self, client: Client, service: ServiceId, end: float) -> None:
        """`end`: of the wait for the first piece, by the monotonic clock."""
        self._client = client
        self._service = service
        self._waiting: asyncio.Task[Any] | None = None
        """Who waits for a piece just now."""
        self._ending = False
        self._cancelling = 0
        self._since = now = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(LOOK_EVERY, self._look)
        self._first: asyncio.TimerHandle | None = self._loop.call_later(max(0.0, end - now), self._end)
        self.silent = False

    def waits(self) -> None:
        """A piece is awaited from now on."""
        self._waiting = asyncio.current_task()
        self._since = time.monotonic()

    def came(self) -> None:
        """It is there."""
        self._waiting = None
        if self._first is not None:
            self._first.cancel()
            self._first = None

    def ended(self) -> bool:
        """Whether a wait was cancelled by this watch, and by nobody else."""
        task = self._waiting
        return self._ending and task is not None and task.uncancel() <= self._cancelling

    def _look(self) -> None:
        self._timer = self._loop.call_later(LOOK_EVERY, self._look)
        now = time.monotonic()
        if self._waiting is None or self._ending or now - self._since < SILENCE:
            return
        view = self._client.snapshot().services.get(self._service)
        if view is None or now - view.heard >= SILENCE:
            self.silent = True
            self._end()

    def _end(self) -> None:
        task = self._waiting
        if task is not None and not self._ending:
            self._ending, self._cancelling = True, task.cancelling()
            task.cancel()

    def close(self) -> None:
        self._timer.cancel()
        if self._first is not None:
            self._first.cancel()


def _read(message: Message, service: ServiceId) -> ReplyHead:
    """The last word of an answer. Raises the failure in it, `MeshError` when it makes no sense."""
    try:
        reply = decode_reply(message.head)
    except msgspec.MsgspecError as error:
        raise MeshError(f"{service} answered what cannot be read: {error}.", "Does it run another version?") from None
    if reply.failure is not None:
        raise failure(reply.failure)
    return reply
