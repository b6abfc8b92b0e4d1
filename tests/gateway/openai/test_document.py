"""The language paths of the OpenAPI document, fuzzed with schemathesis against models that are there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from tests.fleetlab import Node
from tests.gateway.openai.conftest import KEY
from tests.gateway.test_openapi import EXCLUDED, FEW, no_5xx_but_503

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

CALLS = {"/v1/chat/completions": "tiny", "/v1/completions": "tiny", "/v1/embeddings": "vectors"} | {
    "/v1/responses": "tiny"
}


@pytest.fixture(scope="module")
def api(talker: Node) -> Any:
    with talker.http() as http:
        document = http.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=talker.url)
    return schema


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("path", CALLS)
def test_the_server_does_what_its_document_says(api: Any, path: str, mode: str) -> None:
    modes = schemathesis.GenerationMode
    strategy = api[path]["POST"].as_strategy(generation_mode=modes.POSITIVE if mode == "positive" else modes.NEGATIVE)

    @FEW
    @given(case=strategy)
    def holds(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model", ""), str):
            case.body["model"] = CALLS[path]
            case.body.setdefault("max_output_tokens" if path == "/v1/responses" else "max_tokens", 8)
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {KEY}"}
        case.call_and_validate(additional_checks=[no_5xx_but_503], excluded_checks=EXCLUDED)

    holds()
