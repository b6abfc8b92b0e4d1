"""The application: every path but the hot one, and the OpenAPI document of them all."""

from __future__ import annotations

import time
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from nearfar import __version__
from nearfar.errors import Cancelled, InputError, NearfarError, UnknownModel
from nearfar.gateway import oip
from nearfar.gateway.answers import answer_as_json, manifest_of
from nearfar.gateway.body import Scope, read
from nearfar.gateway.feedback import add_feedback
from nearfar.gateway.fleet import fleet_as_json
from nearfar.gateway.headers import stated, told
from nearfar.gateway.hot import App, HotPath, version_of
from nearfar.gateway.leaving import UntilLeft
from nearfar.gateway.metrics import render
from nearfar.gateway.openai.describe import add_openai
from nearfar.gateway.openai.routes import OpenAi
from nearfar.gateway.openapi import BUSY, DETECT, INFER, MODEL, OPEN
from nearfar.gateway.problems import Internal, NotFound, UnsupportedMedia, problem
from nearfar.gateway.state import State
from nearfar.gateway.streams import add_streams
from nearfar.types.ids import ModelName
from nearfar.types.image import Image
from nearfar.types.units import Seconds


def make_app(state: State) -> App:
    """The ASGI application of one gateway."""
    app = FastAPI(
        title="nearfar",
        version=__version__,
        summary="Inference on the node that can keep the deadline.",
        docs_url=None,  # its page would load scripts from a CDN; /openapi.json is all there is
        redoc_url=None,
    )
    _handle_errors(app)
    _add_protocol(app, state)
    _add_fleet(app, state)
    _add_detect(app, state)
    add_streams(app, state)
    add_feedback(app, state)
    add_openai(app)
    return HotPath(OpenAi(_Guarded(app, state), state), state)


class _Guarded:
    """Asks for the key, when there is one, on every path but health."""

    def __init__(self, app: FastAPI, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not scope["path"].startswith("/v2/health/"):
            try:
                self._state.authorize(scope["headers"])
            except NearfarError as error:
                await _problem_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _problem_response(error: NearfarError) -> Response:
    status, headers, body = problem(error)
    return Response(body, status, headers)


def _handle_errors(app: FastAPI) -> None:
    async def ours(_: Request, error: Exception) -> Response:
        assert isinstance(error, NearfarError)
        return _problem_response(error)

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return _problem_response(NotFound("There is nothing at this path.", "See /openapi.json."))
        wrong = NearfarError(f"{error.detail}.", "See /openapi.json.")
        wrong.http_status = error.status_code
        wrong.code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        response = _problem_response(wrong)
        response.headers.update(error.headers or {})
        return response

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return _problem_response(InputError(f"{first['loc'][-1]}: {first['msg']}.", "See /openapi.json."))

    async def fault(_: Request, error: Exception) -> Response:
        return _problem_response(Internal.of(error))  # it is raised again after this, for the log

    app.add_exception_handler(NearfarError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, fault)
    app.add_exception_handler(HTTPException, http)


def _add_protocol(app: FastAPI, state: State) -> None:
    @app.get("/v2", tags=["Open Inference Protocol"], summary="What this server is", responses=OPEN)
    async def server() -> dict[str, Any]:
        return {"name": "nearfar", "version": __version__, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live", tags=["Open Inference Protocol"], summary="The gateway runs")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", tags=["Open Inference Protocol"], summary="Some service is ready", responses=BUSY)
    async def ready() -> Response:
        snapshot = state.client.snapshot()
        rows = fleet_as_json(snapshot, Seconds(time.monotonic()))["services"]
        good = any(row["healthy"] for row in rows)
        return JSONResponse({"ready": good}, 200 if good else 503)

    @app.get("/v2/models/{model}", tags=["Open Inference Protocol"], summary="What a model takes", responses=MODEL)
    async def metadata(model: str) -> dict[str, Any]:
        described = await state.client.describe(ModelName(model))
        manifest = manifest_of(described.manifest)
        platform = f"{described.runtime}_{described.variant}"
        return dict(oip.metadata(model, manifest.version, platform, described.inputs, described.outputs))

    @app.get("/v2/models/{model}/versions/{version}", tags=["Open Inference Protocol"], responses=MODEL)
    async def versioned_metadata(model: str, version: str) -> dict[str, Any]:
        await _check_version(model, version)
        return await metadata(model)

    @app.get("/v2/models/{model}/ready", tags=["Open Inference Protocol"], responses=MODEL)
    async def model_ready(model: str) -> dict[str, Any]:
        await state.client.describe(ModelName(model))
        return {"name": model, "ready": True}

    @app.get("/v2/models/{model}/versions/{version}/ready", tags=["Open Inference Protocol"], responses=MODEL)
    async def versioned_ready(model: str, version: str) -> dict[str, Any]:
        await _check_version(model, version)
        return await model_ready(model)

    async def _check_version(model: str, version: str) -> None:
        known = await version_of(state, model)
        if version != known:
            raise NotFound(f"Model {model} has no version {version}.", f"It has {known}.")

    async def infer() -> None:
        """Answered by `hot.py`, before this application is reached; stands here for the OpenAPI document."""
        raise NotFound("This path is served elsewhere.")

    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        app.add_api_route(
            path,
            infer,
            methods=["POST"],
            tags=["Open Inference Protocol"],
            summary="Run a model on tensors",
            **INFER(path),
        )


def _add_fleet(app: FastAPI, state: State) -> None:
    @app.get("/v1/fleet", tags=["fleet"], summary="Nodes, services, models and links as this node sees them")
    async def fleet() -> dict[str, Any]:
        return fleet_as_json(state.client.snapshot(), Seconds(time.monotonic()))

    @app.get("/metrics", tags=["fleet"], summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(render(state), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_detect(app: FastAPI, state: State) -> None:
    @app.post("/v1/detect", tags=["vision"], summary="An image in, detections out", **DETECT)
    async def detect(request: Request, model: str = "") -> Response:
        name = model or _only_model(state)
        state.enter()
        try:
            image = await _image_in(request, state.limits.max_body)
            qos, stream = stated(request.headers.raw, state.limits.default_deadline_ms)
            with UntilLeft(request.receive):
                ask = partial(state.client.see, ModelName(name), Image.encoded(image), qos)
                answer = await (state.streams.asked(stream, ModelName(name), ask) if stream else ask())
                described = await state.client.described(answer)
        except Cancelled:
            state.failed(name, Cancelled.code)
            return Response(status_code=499)
        except NearfarError as error:
            state.failed(name, error.code)
            raise
        finally:
            state.leave()
        state.answered(name, answer)
        response = Response(
            msgspec.json.encode(answer_as_json(answer, described.manifest if described else None)),
            media_type="application/json",
        )
        response.raw_headers.extend(told(answer))
        return response


def _only_model(state: State) -> str:
    models = sorted(state.client.snapshot().by_model)
    if len(models) == 1:
        return str(models[0])
    if not models:
        raise UnknownModel("The fleet serves no model.", "Start one with: nearfar up --model NAME.")
    raise InputError("The fleet serves more than one model.", f"Add ?model= with one of {', '.join(models)}.")


async def _image_in(request: Request, limit: int) -> bytes:
    """The image in the body: raw, or the first file of a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await read(request.receive, request.headers.raw, limit)
    if kind == "multipart/form-data":
        return await _first_file(request, body)
    if kind and not (kind.startswith("image/") or kind in ("application/octet-stream", _CURL_DEFAULT)):
        raise UnsupportedMedia(f"The body is {kind}, not an image.", "Send image/jpeg, or a form with a file.")
    if not body:
        raise InputError("The body is empty.", "Send an image: curl --data-binary @photo.jpg ...")
    return body


_CURL_DEFAULT = "application/x-www-form-urlencoded"
"""What curl says of --data-binary when nobody told it better; the bytes are an image all the same."""


async def _first_file(request: Request, body: bytes) -> bytes:
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def parts() -> Any:
        yield body

    try:
        form = await MultiPartParser(request.headers, parts(), max_files=8, max_fields=32).parse()
    except (MultiPartException, KeyError, UnicodeDecodeError, AssertionError) as error:
        raise InputError(f"The form cannot be read: {error}.", "Send: curl -F image=@photo.jpg ...") from None
    try:
        for value in form.values():
            if not isinstance(value, str):
                content: bytes = await value.read()
                return content
    finally:
        await form.close()
    raise InputError("The form holds no file.", "Send: curl -F image=@photo.jpg ...")
