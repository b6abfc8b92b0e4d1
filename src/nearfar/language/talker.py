"""Answers language calls: the one door that the gateway and the command line use.

Whatever comes in passes the privacy gate first; only what the gate ruled on is planned, and only what is planned is
sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from nearfar.client.client import Client
from nearfar.errors import InputError
from nearfar.language.call import AUTO, TextAnswer, TextCall, TextEvent
from nearfar.language.director import Director
from nearfar.language.offers import Offer
from nearfar.language.plan import Plan
from nearfar.language.privacy.gate import Ruling, rule
from nearfar.language.run import Run
from nearfar.types.ids import is_name
from nearfar.types.request import Privacy

LARGE = 64 * 1024
"""Bytes of a body from which on it is searched in a thread: a hostile megabyte takes seconds, and others wait."""


class Talker:
    """Used from one event loop. Raises what `Client` raises, `PersonalDataRefused`, and `StreamCut` in the middle of a
    streamed answer."""

    def __init__(self, client: Client, director: Director | None = None) -> None:
        self.client = client
        self.director = director or Director(client)

    async def answer(self, call: TextCall) -> TextAnswer:
        """The whole answer of a call whose body does not ask for chunks."""
        return await (await self._run(call)).answer()

    async def stream(self, call: TextCall) -> AsyncGenerator[TextEvent, None]:
        """The answer in chunks; the last event says where it came from."""
        events = (await self._run(call)).stream()
        async with aclosing(events):
            async for event in events:
                yield event

    async def explain(self, call: TextCall) -> tuple[Ruling, Plan]:
        """What would be done, and why; no model is asked for an answer. Raises what deciding raises."""
        large = len(call.body) > LARGE
        ruling = await asyncio.to_thread(self._rule, call) if large else self._rule(call)
        vector = await self.director.look(call, ruling)
        return ruling, self.director.plan(call, ruling, vector)

    def feedback(self, request: str, good: bool | float) -> None:
        """What somebody said of an answer: True, False, or -1 to 1. Raises `InputError`, `StoreError`."""
        self.director.feedback(request, good)

    def models(self) -> tuple[Offer, ...]:
        """Language models that the fleet serves just now, near ones first."""
        return self.director.offers()

    async def _run(self, call: TextCall) -> Run:
        ruling, plan = await self.explain(call)
        return Run(self.director, call, ruling, plan)

    def _rule(self, call: TextCall) -> Ruling:
        if call.model != AUTO and not is_name(call.model):
            raise InputError(f"{call.model[:80]!r} is no name of a model.", "See /v1/models for what there is.")
        call.policy.check_model(call.model)
        if call.qos.privacy is Privacy.ANY and self.director.near_only(call):
            # It stays near anyway, so nobody need search it for what must not go far; and nobody said so in a header.
            ruling = rule(call.body, Privacy.FLEET, call.policy)
            said = tuple(reason for reason in ruling.reasons if not reason.startswith("the header"))
            ruling = msgspec.structs.replace(ruling, reasons=said)
        else:
            ruling = rule(call.body, call.qos.privacy, call.policy)
        ruling.check()
        return ruling
