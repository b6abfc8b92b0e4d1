"""`GET /v1/streams` and `GET /v1/streams/{id}/decisions`: every stream, and what was decided for one of them."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from fastapi import FastAPI, Path, Query
from fastapi.responses import Response

from nearfar.gateway.openapi import DECISIONS, STREAMS
from nearfar.gateway.state import State
from nearfar.placement.trail import Page, page_as_json, status_as_json

MOST = 1000
"""Entries in one answer."""
_HIGHEST = 2**53 - 1


def add_streams(app: FastAPI, state: State) -> None:
    """Adds both paths. They count as requests in flight, as reading a trail takes a moment."""

    @app.get("/v1/streams", tags=["streams"], summary="Streams that run, and that left a trail", responses=STREAMS)
    async def streams() -> Response:
        state.enter()
        try:
            found = await state.streams.trails.list()
        finally:
            state.leave()
        return _json({"streams": [status_as_json(status) for status in found]})

    @app.get("/v1/streams/{id}/decisions", tags=["streams"], summary="What was decided, and why", responses=DECISIONS)
    async def decisions(
        stream: Annotated[str, Path(alias="id", description="The stream's id.")],
        since: Annotated[
            int | None,
            Query(ge=-1, le=_HIGHEST, description="Only entries with a higher number, the oldest of them first."),
        ] = None,
        limit: Annotated[int, Query(ge=1, le=MOST, description="At most so many; without `since` the newest.")] = 100,
    ) -> Response:
        state.enter()
        try:
            page = await state.streams.trails.page(stream, since, limit)
            body = await asyncio.to_thread(_encoded, page)
        finally:
            state.leave()
        return Response(body, media_type="application/json")


def _encoded(page: Page) -> bytes:
    return msgspec.json.encode(page_as_json(page))


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
