"""A node that serves language models of random weights, and the real `openai` client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nearfar.runtimes.llamacpp import LlamaCppRuntime
from tests.fleetlab import Lab, LabModel, Node
from tests.tinygguf import tiny

openai = pytest.importorskip("openai", reason="the openai client is not installed")

LONG = {"width": 96, "layers": 12, "context": 8192}
"""A model that takes seconds for an answer of thousands of tokens."""
LONG_ENV = {"NEARFAR_LANGUAGE_CONTEXT": "8192", "NEARFAR_LANGUAGE_SLOTS": "2"}
KEY = "a-secret-key"


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    if why := LlamaCppRuntime().available():
        pytest.skip(why)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory, engine: None) -> Iterator[Node]:
    """A node with `tiny`, with `vectors` for embeddings, and with the embedded detector; it asks for a key."""
    folder = tmp_path_factory.mktemp("talker")
    with Lab(folder) as lab:
        models: list[LabModel | str] = [tiny(folder), tiny(folder, "vectors", embedding=True), "yard"]
        yield lab.node("talker", models, api_key=KEY)


def client_of(node: Node, key: str = KEY, **options: Any) -> Any:
    """An `openai.OpenAI` of a node's gateway, which asks once: it would try again what is to be seen."""
    return openai.OpenAI(base_url=node.url + "/v1", api_key=key, max_retries=0, timeout=60.0, **options)


@pytest.fixture
def client(talker: Node) -> Iterator[Any]:
    with client_of(talker) as made:
        yield made
