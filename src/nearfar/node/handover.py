"""States of conversations on their way from one service to another.

A service that is to end offers the state of each answer that it hands over, and keeps it in memory until it was fetched
once or some moments have passed. Of an answer that it finished it tells a ticket only, and saves the state when another
service is to answer the next turn and asks for it, if the slot still has it.

The service that goes on fetches a state over the mesh, directly: it does not pass through the caller, who only carries
the ticket. What does not arrive whole and in time is done without: then the answer is written, or the prompt read, from
its beginning. A call whose data may not leave its machine is never offered and never fetched.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any, NamedTuple

import msgspec

from nearfar.errors import InputError, MeshError, NearfarError
from nearfar.mesh.base import Call, Handle, Mesh, Message
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
_NO_STAGES = Stages()
OFFERED = 2.5
"""Seconds in which an offered state must be fetched; so much longer may a service that ends take at most."""
FETCH = 2.0
"""Seconds in which the state of an answer must have arrived, else it is written again."""
FETCH_TURN = 0.5
"""The same for the next turn: reading its prompt takes no longer than that, as a rule."""
WORTH = 512
"""Bytes of a call below which reading its prompt takes no longer than fetching its state."""
TURNS = 256
"""Finished answers whose tickets are remembered; a slot keeps but the last one it was given."""


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
        self._turns: OrderedDict[str, int] = OrderedDict()
        """Secret -> mark, of finished answers."""
        self._handle: Handle | None = None
        self._given = threading.Condition()
        self._giving = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Give states to who asks for them from now on."""
        self._handle = self._mesh.serve(keys.state_key(self._service), self._asked)

    def marked(self, body: bytes, context: TextContext) -> Marked | None:
        """The call as it must be run so that its state can be offered; None when it will not be."""
        if not context.streamed or not self._most or context.privacy is Privacy.LOCAL:
            return None
        return self._states.marked(body)

    # -- the service that has the state -------------------------------------------------------------------------------

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

    def finished(self, mark: int) -> StateTicket:
        """A ticket for the turn after an answer that has ended by itself."""
        secret = secrets.token_hex(16)
        with self._given:
            self._turns[secret] = mark
            while len(self._turns) > TURNS:
                self._turns.popitem(last=False)
        return StateTicket(self._service, secret, self._states.build, "", 0, -1)

    def _asked(self, call: Call) -> None:
        """The mesh's callback: the work is done on a thread of its own."""
        with self._given:
            self._giving += 1
        threading.Thread(target=self._give, args=(call,), name="state", daemon=True).start()

    def _give(self, call: Call) -> None:
        try:
            state = self._asked_for(call)
            told = StateTicket(self._service, "", self._states.build, _digest(state), len(state))
            call.reply(encode(ReplyHead("", _NO_STAGES, state=told)), [state])
        except NearfarError as error:
            log.info("a state is not given: %s", error)
            with contextlib.suppress(NearfarError):
                call.reply(encode(ReplyHead("", _NO_STAGES, (), Failure.of(error))))
        except Exception:
            log.exception("a state could not be given")
        finally:
            with self._given:
                self._giving -= 1
                self._given.notify_all()

    def _asked_for(self, call: Call) -> bytes:
        try:
            head = decode_call(call.head)
        except msgspec.MsgspecError as error:
            raise InputError(f"The request cannot be read: {error}.", "Does it run another version?") from None
        ticket = head.text.state if head.operation is Operation.STATE and head.text is not None else None
        with self._given:
            offer = self._offers.pop(ticket.secret, None) if ticket is not None else None
            mark = self._turns.pop(ticket.secret, None) if ticket is not None else None
        if offer is not None and time.monotonic() <= offer.until:
            return offer.state
        if mark is not None:
            return self._states.save(mark, self._most)
        raise MeshError("The state is not here any more.", "It is done without.")

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
        if ticket.service == self._service or not self._states.build or ticket.build != self._states.build:
            return None
        if ticket.size > self._most or (ticket.written < 0 and len(body) < WORTH):
            return None
        try:
            return self._states.resume(operation, body, self._fetched(ticket), ticket.written)
        except (NearfarError, TimeoutError) as error:
            log.info("an answer goes on without its state: %s", error)
            return None

    def _fetched(self, ticket: StateTicket) -> bytes:
        key = keys.state_key(ServiceId(ticket.service))
        if not self._mesh.alive(key):
            raise MeshError("The service that had the state is gone.", "It is done without.")
        head = encode(CallHead(Operation.STATE, text=TextContext(state=ticket)))
        limit = FETCH_TURN if ticket.written < 0 else FETCH
        message = self._ask(self._mesh.request(key, head, (b"",), limit), limit)
        try:
            reply = decode_reply(message.head)
        except msgspec.MsgspecError:
            raise MeshError("The state came with a head that cannot be read.", "Does it run another version?") from None
        if reply.failure is not None:
            raise reply.failure.error()
        state, told = bytes(message.body), reply.state
        if told is None or len(state) > self._most or (told.size, told.digest) != (len(state), _digest(state)):
            raise MeshError("The state did not arrive as it was sent.", "It is done without.")
        if ticket.size and (ticket.size, ticket.digest) != (told.size, told.digest):
            raise MeshError("The state is not the one that was offered.", "It is done without.")
        return state

    def _ask(self, request: Coroutine[Any, Any, Message], limit: float) -> Message:
        """On one event loop for all threads, as the mesh wants it; it runs from the first time on."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run, args=(self._loop,), name="states", daemon=True).start()
        asked = asyncio.run_coroutine_threadsafe(request, self._loop)
        try:
            return asked.result(limit + 0.5)
        except TimeoutError:
            asked.cancel()
            raise

    def close(self) -> None:
        """Forget what was offered, and give nothing any more."""
        with self._given:
            self._offers.clear()
            self._turns.clear()
        if self._handle is not None:
            self._handle.close()
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _digest(state: bytes) -> str:
    return hashlib.blake2b(state, digest_size=32).hexdigest()
