"""`POST /v1/feedback`: what somebody says of an answer, by the id that its `nearfar` field names."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, FastAPI

from nearfar.gateway.openapi import OPEN
from nearfar.gateway.state import State


def add_feedback(app: FastAPI, state: State) -> None:
    """The router's probability follows what is said of near answers."""

    @app.post(
        "/v1/feedback",
        tags=["language"],
        summary="Say whether an answer was good",
        responses={**OPEN, 400: {"description": "No such request is kept here, or the score is out of range."}},
    )
    async def feedback(
        request: Annotated[str, Body(max_length=80, description="`nearfar.request` of the answer.")],
        score: Annotated[float, Body(ge=-1, le=1, description="From -1 (bad) to 1 (good).")],
    ) -> dict[str, bool]:
        state.talker.feedback(request, score)
        return {"kept": True}
