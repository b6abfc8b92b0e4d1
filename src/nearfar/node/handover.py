"""States of answers on their way from a service that is to end to the one that goes on.

The service that ends keeps what it offered in memory, until it was fetched once or some moments have passed. The one
that goes on fetches it over the mesh, directly: it does not pass through the caller, who only carries the ticket. What
does not arrive whole and in time is done without: the answer is then written again from its beginning.

A call whose data may not leave its machine is never offered and never fetched.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections.abc import Coroutine
from typing import Any, NamedTuple

import msgspec

from nearfar.errors import MeshError, NearfarError
from nearfar.mesh.base import Call, Mesh, Message
from nearfar.node import keys
from nearfar.runtimes.states import Marked, Resumed, States
from nearfar.types.ids import ServiceId
from nearfar.types.request import Privacy, Stages
from nearfar.types.wire import (
    CallHead,
    Failure,
    Operation,
    ReplyHead,
    StateTicket,
    TextContext,
    decode_call,
    decode_reply,
    encode,
)

log = logging.getLogger(__name__)
OFFERED = 1.5
"""Seconds in which an offered state must be fetched; so much longer may a service that ends take at most."""
FETCH = 1.5
"""Seconds in which a state must have arrived, else the answer is written again."""


class _Offer(NamedTuple):
    state: bytes
    until: float


class Handover:
    """Of one service. `most` is the largest state, in bytes; 0 for none."""

    def __init__(self, service: ServiceId, states: States, mesh: Mesh, most: int) -> None:
        self._service = service
        self._states = states
        self._mesh = mesh
        self._most = most
        self._offers: dict[str, _Offer] = {}
        self._given = threading.Condition()
        self._giving = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def marked(self, body: bytes, context: TextContext) -> Marked | None:
        """The call as it must be run so that its state can be offered; None when it will not be."""
        if not context.streamed or not self._most or context.privacy is Privacy.LOCAL:
            return None
        return self._states.marked(body)

    # -- the service that ends ----------------------------------------------------------------------------------------

    def offer(self, mark: int) -> StateTicket | None:
        """Keep the state of a marked call that was stopped; None when there is none to be had."""
        try:
            state = self._states.save(mark, self._most)
        except NearfarError as error:
            log.info("the state of an answer does not move: %s", error)
            return None
        secret = secrets.token_hex(16)
        with self._given:
            self._offers[secret] = _Offer(state, time.monotonic() + OFFERED)
        return StateTicket(self._service, secret, self._states.build, _digest(state), len(state))

    def takes(self, call: Call) -> bool:
        """Whether the call asks for a state; it is then answered, on a thread of its own."""
        if not self._offers:
            return False
        try:
            head = decode_call(call.head)
        except msgspec.MsgspecError:
            return False
        if head.operation is not Operation.STATE:
            return False
        ticket = head.text.state if head.text is not None else None
        with self._given:
            offer = self._offers.pop(ticket.secret, None) if ticket is not None else None
            self._giving += 1
        threading.Thread(target=self._give, args=(call, offer), name="state", daemon=True).start()
        return True

    def _give(self, call: Call, offer: _Offer | None) -> None:
        try:
            if offer is None or time.monotonic() > offer.until:
                gone = MeshError("The state is not here any more.", "The answer is written again without it.")
                call.reply(encode(ReplyHead("", Stages(), (), Failure.of(gone))))
            else:
                call.reply(encode(ReplyHead("", Stages())), [offer.state])
        except NearfarError as error:
            log.info("a state could not be sent: %s", error)
        finally:
            with self._given:
                self._giving -= 1
                self._given.notify_all()

    def finish(self, end: float) -> None:
        """Wait until what was offered is fetched or too old; at most until `end` of the monotonic clock."""
        with self._given:
            while self._offers or self._giving:
                now = time.monotonic()
                for secret in [secret for secret, offer in self._offers.items() if offer.until <= now]:
                    del self._offers[secret]
                left = min((offer.until for offer in self._offers.values()), default=end if self._giving else now) - now
                left = min(left, end - now)
                if left <= 0:
                    if now >= end:
                        return
                    continue
                self._given.wait(left)

    # -- the service that goes on -------------------------------------------------------------------------------------

    def resumed(self, operation: Operation, body: bytes, context: TextContext) -> Resumed | None:
        """What is to be run instead of the call, as its state was restored; None when it is run as it is."""
        ticket = context.state
        if ticket is None or not context.streamed or context.privacy is Privacy.LOCAL:
            return None
        if not self._states.build or ticket.build != self._states.build or not 0 < ticket.size <= self._most:
            return None
        try:
            return self._states.resume(operation, body, self._fetched(ticket), ticket.written)
        except (NearfarError, TimeoutError) as error:
            log.info("an answer goes on without its state: %s", error)
            return None

    def _fetched(self, ticket: StateTicket) -> bytes:
        key = keys.service_key(ServiceId(ticket.service))
        if not self._mesh.alive(key):
            raise MeshError("The service that had the state is gone.", "The answer is written again.")
        head = encode(CallHead(Operation.STATE, text=TextContext(state=ticket)))
        message = self._ask(self._mesh.request(key, head, (b"",), FETCH))
        try:
            reply = decode_reply(message.head)
        except msgspec.MsgspecError:
            raise MeshError("The state came with a head that cannot be read.", "Does it run another version?") from None
        if reply.failure is not None:
            raise reply.failure.error()
        state = bytes(message.body)
        if len(state) != ticket.size or not hmac.compare_digest(_digest(state), ticket.digest):
            raise MeshError("The state did not arrive as it was sent.", "The answer is written again.")
        return state

    def _ask(self, request: Coroutine[Any, Any, Message]) -> Message:
        """On one event loop for all threads, as the mesh wants it; it runs from the first time on."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run, args=(self._loop,), name="states", daemon=True).start()
        asked = asyncio.run_coroutine_threadsafe(request, self._loop)
        try:
            return asked.result(FETCH + 0.5)
        except TimeoutError:
            asked.cancel()
            raise

    def close(self) -> None:
        """Forget what was offered."""
        with self._given:
            self._offers.clear()
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _digest(state: bytes) -> str:
    return hashlib.blake2b(state, digest_size=32).hexdigest()
