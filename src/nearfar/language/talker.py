"""Answers language calls: the one door that the gateway and the command line use."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import msgspec

from nearfar.client.client import Client
from nearfar.client.talking import TextReply, TextRequest
from nearfar.errors import InputError, UnknownModel
from nearfar.language import carry
from nearfar.language.call import AUTO, About, TextAnswer, TextCall, TextEvent
from nearfar.placement.filters import FAR_RUNTIMES
from nearfar.types.ids import ModelName, ServiceId, is_name
from nearfar.types.request import Stages
from nearfar.types.wire import TextContext


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Counted(msgspec.Struct):
    usage: _Usage | None = None


_counted = msgspec.json.Decoder(_Counted)


class Talker:
    """Used from one event loop. Raises what `Client` raises, and `StreamCut` in the middle of a streamed answer."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def answer(self, call: TextCall) -> TextAnswer:
        """The whole answer of a call whose body does not ask for chunks."""
        start = time.monotonic()
        reply = await self.client.text.ask(self._request(call))
        body = bytes(reply.body)
        return TextAnswer(body, self._about(call, reply, _usage(body), start))

    async def stream(self, call: TextCall) -> AsyncIterator[TextEvent]:
        """The answer in chunks; the last event says where it came from."""
        start = time.monotonic()
        first: float | None = None
        usage = _Usage()
        pieces = carry.stream(self.client.text, self._request(call), call.view)
        async with aclosing(pieces):  # type: ignore[type-var]
            async for piece, moved in pieces:
                first = first or time.monotonic()
                if piece.last is None:
                    yield TextEvent(piece.lines)
                    continue
                for line in piece.lines.splitlines()[-2:]:
                    usage = _usage(line, usage)
                reply = TextReply(b"", piece.served_by, piece.last.variant, piece.last.stages)
                about = self._about(call, reply, usage, start)
                about = msgspec.structs.replace(about, moved=moved, first_token_ms=(first - start) * 1000)
                yield TextEvent(piece.lines, about)

    def models(self) -> list[ModelName]:
        """Language models that the fleet serves just now."""
        snapshot = self.client.snapshot()
        named = {view.report.model for view in snapshot.services.values() if view.alive and view.report.text}
        return sorted(named)

    def _request(self, call: TextCall) -> TextRequest:
        model = call.model
        if model == AUTO:
            models = self.models()
            if not models:
                raise UnknownModel("The fleet serves no language model.", "Start one: nearfar up --model FILE.gguf.")
            model = models[0]
        if not is_name(model):
            raise InputError(f"{model[:80]!r} is no name of a model.", "See /v1/models for what there is.")
        context = TextContext(call.qos.privacy, call.view.stream, "", call.conversation, call.key, call.id)
        return TextRequest(call.operation, ModelName(model), call.body, call.qos, context)

    def _about(self, call: TextCall, reply: TextReply, usage: _Usage, start: float) -> About:
        service: ServiceId = reply.served_by
        view = self.client.snapshot().services.get(service)
        far = view is not None and view.report.runtime in FAR_RUNTIMES
        return About(
            request=call.id,
            where="far" if far else "near",
            model=service.partition("/")[2],
            served_by=service,
            variant=reply.variant,
            tokens_in=usage.prompt_tokens,
            tokens_out=usage.completion_tokens,
            ms=(time.monotonic() - start) * 1000,
            attempts=reply.attempts,
            stages=reply.stages or Stages(),
        )


def _usage(body: bytes, known: _Usage | None = None) -> _Usage:
    try:
        return _counted.decode(body).usage or known or _Usage()
    except msgspec.MsgspecError:
        return known or _Usage()
