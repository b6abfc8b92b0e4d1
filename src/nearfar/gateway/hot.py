"""`POST /v2/models/NAME/infer` as plain ASGI, in front of the application: the path that must cost least."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from nearfar.errors import Cancelled, InputError, NearfarError
from nearfar.gateway import oip
from nearfar.gateway.answers import manifest_of
from nearfar.gateway.body import Receive, Scope, Send, header, read
from nearfar.gateway.headers import stated, told
from nearfar.gateway.leaving import UntilLeft
from nearfar.gateway.problems import Internal, NotFound, problem
from nearfar.gateway.state import State
from nearfar.types.ids import ModelName
from nearfar.types.request import Answer

App = Callable[[Scope, Receive, Send], Awaitable[None]]
_PREFIX = "/v2/models/"
MOST_VERSIONS = 4096
_LENGTH = b"inference-header-content-length"


def target(path: str) -> tuple[str, str] | None:
    """(model, version) of an infer path, version "" when not stated; None for any other path.

    >>> target("/v2/models/yard/infer"), target("/v2/models/yard/versions/1/infer"), target("/v2/models/yard")
    (('yard', ''), ('yard', '1'), None)
    """
    if not (path.startswith(_PREFIX) and path.endswith("/infer")):
        return None
    parts = path[len(_PREFIX) : -len("/infer")].split("/")
    if len(parts) == 1:
        return parts[0], ""
    if len(parts) == 3 and parts[1] == "versions":
        return parts[0], parts[2]
    return None


class HotPath:
    """Answers inference itself and hands everything else to the application."""

    def __init__(self, app: App, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            found = target(scope["path"])
            if found is not None:
                await self._infer(found[0], found[1], scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _infer(self, model: str, version: str, scope: Scope, receive: Receive, send: Send) -> None:
        state = self._state
        headers = scope["headers"]
        try:
            state.authorize(headers)
            state.enter()
            try:
                parts, length, extra = await self._answer(model, version, headers, receive)
            finally:
                state.leave()
        except Cancelled:
            state.failed(model, Cancelled.code)
            return
        except NearfarError as error:
            state.failed(model, error.code)
            await respond(send, error)
            return
        except Exception as error:  # ours to answer for: the client must see a failure, not a closed connection
            state.failed(model, Internal.code)
            await respond(send, Internal.of(error))
            raise
        kind = b"application/json" if length is None else b"application/octet-stream"
        size = sum(map(len, parts))
        start = [(b"content-type", kind), (b"content-length", str(size).encode()), *extra]
        if length is not None:
            start.append((b"inference-header-content-length", str(length).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": start})
        for part in parts[:-1]:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": parts[-1]})

    async def _answer(
        self, model: str, version: str, headers: list[tuple[bytes, bytes]], receive: Receive
    ) -> tuple[list[bytes | memoryview], int | None, list[tuple[bytes, bytes]]]:
        state = self._state
        body = await read(receive, headers, state.limits.max_body)
        qos, name = stated(headers, state.limits.default_deadline_ms)
        length_stated = header(headers, _LENGTH)
        if length_stated is not None and not (length_stated.isdigit() and len(length_stated) <= 12):
            shown = length_stated.decode("latin-1")[:40]
            raise InputError(f"Inference-Header-Content-Length is {shown!r}, not a length.")
        parsed = oip.parse(body, int(length_stated) if length_stated is not None else None)
        if version:
            known = await version_of(state, model)
            if version != known:
                raise NotFound(f"Model {model} has no version {version}.", f"It has {known}.")
        with UntilLeft(receive):
            if not name:
                answer = await state.client.infer(ModelName(model), parsed.tensors, qos, wanted=parsed.wanted)
            else:
                ask = partial(state.client.infer, ModelName(model), parsed.tensors, qos, wanted=parsed.wanted)
                answer = await state.streams.asked(name, ModelName(model), ask)
        state.answered(model, answer)
        parts, length = oip.encode(model, version or await self._version(answer), answer, parsed)
        return parts, length, told(answer)

    async def _version(self, answer: Answer) -> str:
        """The version of the model that answered; asked for once per instance of its service."""
        state = self._state
        view = state.client.snapshot().services.get(answer.served_by)
        key = (answer.served_by, view.report.instance if view is not None else "")
        known = state.versions.get(key)
        if known is None:
            described = await state.client.described(answer)
            known = manifest_of(described.manifest).version if described is not None else "1"
            if len(state.versions) > MOST_VERSIONS:
                state.versions.clear()
            state.versions[key] = known
        return known


async def version_of(state: State, model: str) -> str:
    """The version in the manifest of a model that the fleet serves. Raises what `describe` raises."""
    return manifest_of((await state.client.describe(ModelName(model))).manifest).version


async def respond(send: Send, error: NearfarError) -> None:
    """Send an error as problem details."""
    status, headers, body = problem(error)
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
