"""A fault of the gateway itself: the client is told, the log has it, the next request is answered."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.gateway.raw import infer_json, problem_of
from tests.gateway.stub import gateway


async def broken(*_: Any, **__: Any) -> None:
    raise ZeroDivisionError("as told")


@pytest.mark.parametrize(("method", "path"), [("POST", "/v2/models/a/infer"), ("GET", "/v2/models/a")])
def test_a_fault_is_told_as_a_problem(method: str, path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with gateway(infer=broken, describe=broken) as (made, state):
            async with httpx.AsyncClient(base_url=made.url) as http:
                answer = await http.request(method, path, content=infer_json([1.0]))
                assert answer.status_code == 500
                assert answer.headers["content-type"] == "application/problem+json"
                told = problem_of(answer.content)
                assert told["code"] == "internal" and "ZeroDivisionError: as told" in told["detail"]
                assert (await http.get("/v2/health/live")).json() == {"live": True}
            assert state.in_flight == 0

    asyncio.run(main())
    assert "ZeroDivisionError: as told" in caplog.text
