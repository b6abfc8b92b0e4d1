"""Language calls as plain ASGI, in front of the application: they are many, and each must cost little."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import aclosing

import msgspec

from nearfar.errors import Cancelled, InputError, NearfarError, StreamCut
from nearfar.gateway.body import Receive, Scope, Send, header, read
from nearfar.gateway.headers import stated
from nearfar.gateway.hot import App
from nearfar.gateway.leaving import UntilLeft
from nearfar.gateway.openai.errors import MethodNotAllowed, WrongField, error_of
from nearfar.gateway.openai.models import model_as_json, models_as_json, unknown
from nearfar.gateway.openai.responseanswer import Responding
from nearfar.gateway.openai.sse import AsItCame
from nearfar.gateway.openai.told import about_headers
from nearfar.gateway.problems import Internal, NotFound
from nearfar.gateway.state import State
from nearfar.language.call import AUTO, Route, TextCall, read_call
from nearfar.language.privacy.policy import KeyPolicy
from nearfar.types.ids import is_name
from nearfar.types.request import Privacy, Qos
from nearfar.types.wire import Operation

OPERATIONS: Mapping[str, Operation] = {
    "/v1/chat/completions": Operation.CHAT,
    "/v1/completions": Operation.COMPLETE,
    "/v1/embeddings": Operation.EMBED,
    "/v1/responses": Operation.CHAT,
}
Form = AsItCame | Responding
FORMS: Mapping[str, type[Form]] = {"/v1/responses": Responding}
"""Paths whose requests and answers are not those of the engines."""
MODELS = "/v1/models"
RESPONSES = "/v1/responses/"
_STRICT = (Privacy.LOCAL, Privacy.FLEET, Privacy.ANY)
"""From the strictest on."""
log = logging.getLogger(__name__)
_JSON = (b"content-type", b"application/json")


class OpenAi:
    """Answers these paths itself and hands everything else to the application."""

    def __init__(self, app: App, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            operation = OPERATIONS.get(path)
            if operation is not None:
                await self._call(operation, scope, receive, send)
                return
            if path.startswith(MODELS) and path[len(MODELS) :][:1] in ("", "/"):
                await self._models(path[len(MODELS) + 1 :], scope, send)
                return
            if path.startswith(RESPONSES):
                await self._kept(scope, send)
                return
        await self._app(scope, receive, send)

    # -- calls ----------------------------------------------------------------------------------------------------

    async def _call(self, operation: Operation, scope: Scope, receive: Receive, send: Send) -> None:
        state = self._state
        model = AUTO
        request = ""
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed("POST")
            headers = scope["headers"]
            policy = state.authorize(headers)
            state.enter()
            try:
                body = await read(receive, headers, state.limits.max_body)
                form, call = self._read(scope["path"], operation, body, headers, policy)
                model, request = call.model, call.id
                if call.view.stream:
                    await self._stream(form, call, receive, send)
                else:
                    await self._answer(form, call, receive, send)
            finally:
                state.leave()
        except Cancelled:
            state.failed(model, Cancelled.code, language=True)
        except NearfarError as error:
            state.failed(model, error.code, language=True)
            await respond(send, error, request)
        except Exception as error:  # ours to answer for: the client must see a failure, not a closed connection
            state.failed(model, Internal.code, language=True)
            await respond(send, Internal.of(error), request)
            raise

    def _read(
        self, path: str, operation: Operation, body: bytes, headers: list[tuple[bytes, bytes]], policy: KeyPolicy
    ) -> tuple[Form, TextCall]:
        qos, stream = stated(headers, self._state.limits.default_deadline_ms)
        route = header(headers, b"nearfar-route")
        wanted = route.decode("latin-1").strip() if route is not None else ""
        if route is not None and not wanted:
            raise InputError("Nearfar-Route is empty.", f"Use one of {', '.join(Route)}, or leave it away.")
        try:
            form = FORMS.get(path, AsItCame)(body)
            call = read_call(operation, form.body, qos, policy, wanted)
        except RecursionError:
            raise InputError("The body is nested too deeply.", "Send less deep JSON.") from None
        _check(operation, call)
        if call.model != AUTO and not is_name(call.model):
            raise unknown(call.model, [model["id"] for model in models_as_json(self._state.client.snapshot())])
        wished = call.view.nearfar.privacy
        if wished or stream:
            call = msgspec.structs.replace(call, qos=_stricter(qos, wished), conversation=stream)
        return form, call

    async def _answer(self, form: Form, call: TextCall, receive: Receive, send: Send) -> None:
        with UntilLeft(receive):
            answer = await self._state.talker.answer(call)
        about = answer.about
        body = form.whole(call, answer.body, about)
        self._state.talked(about)
        head = [_JSON, (b"content-length", b"%d" % len(body)), *about_headers(about)]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, form: Form, call: TextCall, receive: Receive, send: Send) -> None:
        state = self._state
        out = form.events(call, send)
        try:
            with UntilLeft(receive):
                events = state.talker.stream(call)
                async with aclosing(events):
                    async for event in events:
                        if event.about is None:
                            await out.give(event.lines)
                            continue
                        await out.end(event.lines, event.about)
                        state.talked(event.about)
                        return
            raise StreamCut("The answer ended without its last word.", "Ask again.")
        except Cancelled:
            raise
        except NearfarError as error:
            if not out.started:
                raise
            state.failed(call.model, error.code, language=True)
            await out.fail(error_of(error, call.id)[2])
        except Exception as error:
            if not out.started:
                raise
            log.exception("a streamed answer failed")
            state.failed(call.model, Internal.code, language=True)
            await out.fail(error_of(Internal.of(error), call.id)[2])
        finally:
            out.close()

    # -- models ---------------------------------------------------------------------------------------------------

    async def _models(self, name: str, scope: Scope, send: Send) -> None:
        state = self._state
        try:
            if scope["method"] != "GET":
                raise MethodNotAllowed("GET")
            state.authorize(scope["headers"])
            snapshot = state.client.snapshot()
            if name:
                told: object = model_as_json(snapshot, name)
            else:
                told = {"object": "list", "data": models_as_json(snapshot)}
        except NearfarError as error:
            await respond(send, error)
            return
        await _send(send, 200, [_JSON], msgspec.json.encode(told))

    async def _kept(self, scope: Scope, send: Send) -> None:
        """A response that was made before: there is none."""
        try:
            self._state.authorize(scope["headers"])
        except NearfarError as error:
            await respond(send, error)
            return
        hint = "Keep what POST /v1/responses answers, and send the whole conversation in input."
        await respond(send, NotFound("nearfar keeps no responses, so there is none to get or to delete.", hint))


def _check(operation: Operation, call: TextCall) -> None:
    """Raise `WrongField` for what no engine could answer."""
    view = call.view
    match operation:
        case Operation.CHAT:
            if not view.messages:
                raise WrongField("messages", "messages is missing or empty.", "Send at least one message.")
        case Operation.COMPLETE:
            if view.prompt is None:
                raise WrongField("prompt", "prompt is missing.", "Send a text to continue.")
        case _:
            if not view.input:
                raise WrongField("input", "input is missing or empty.", "Send a text, or a list of texts.")
            if view.stream:
                raise WrongField("stream", "Embeddings do not come in pieces.", "Leave stream away.")


def _stricter(qos: Qos, wished: str) -> Qos:
    """The QoS with the stricter one of its privacy and the body's."""
    if not wished:
        return qos
    try:
        privacy = Privacy(wished)
    except ValueError:
        told = f"nearfar.privacy is {wished[:40]!r}."
        raise WrongField("nearfar.privacy", told, f"Use one of {', '.join(Privacy)}.") from None
    return (
        qos if _STRICT.index(qos.privacy) <= _STRICT.index(privacy) else msgspec.structs.replace(qos, privacy=privacy)
    )


async def respond(send: Send, error: NearfarError, request: str = "") -> None:
    """Send an error in OpenAI's form."""
    status, headers, told = error_of(error, request)
    await _send(send, status, headers, msgspec.json.encode(told))


async def _send(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
