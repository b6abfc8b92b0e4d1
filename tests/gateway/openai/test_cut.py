"""Answers that end before their time: the client leaves, or the service dies in the middle of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleetlab import Lab, Node, poll
from tests.gateway.openai.conftest import LONG, LONG_ENV, client_of, openai
from tests.tinygguf import tiny

ASKED = {"model": "long", "prompt": "Once upon a time", "temperature": 0, "stream": True}
MOST = 6000


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Node]:
    with Lab(tmp_path) as lab:
        yield lab.node("alone", [tiny(tmp_path, "long", **LONG)], env=LONG_ENV)


def busy(node: Node, on: str = "") -> int:
    return int((node.service_json("long", on) or {})["in_flight"])


def test_a_client_that_leaves_frees_the_slot(alone: Node) -> None:
    """Two slots, and two answers of thousands of tokens whose readers leave: then a third one is served."""
    with client_of(alone) as client:
        streams = [client.completions.create(**ASKED, max_tokens=MOST) for _ in range(2)]
        for stream in streams:
            next(iter(stream))
        poll(lambda: busy(alone) == 2, "both slots are taken")
        for stream in streams:
            stream.close()
        poll(lambda: busy(alone) == 0, "both slots are free")
        assert client.completions.create(**ASKED | {"stream": False}, max_tokens=2).usage.completion_tokens == 2
        with alone.http() as http:
            metrics = http.get("/metrics").text
    assert 'nearfar_language_requests_total{model="long",outcome="cancelled",where=""} 2.0' in metrics
    assert "nearfar_in_flight 0.0" in metrics


def test_the_same_for_a_whole_answer(alone: Node) -> None:
    with client_of(alone) as client, pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).completions.create(**ASKED | {"stream": False}, max_tokens=MOST)
    poll(lambda: busy(alone) == 0, "the slot is free")
    service = alone.service_json("long") or {}
    assert service["answered"] == 0, "the service went on for a client that had left"


def test_a_service_that_dies_ends_the_stream_with_an_error(alone: Node) -> None:
    """With nobody to go on, the client is told so, and never sees an end that looks like one."""
    with alone.http() as http, http.stream("POST", "/v1/completions", json={**ASKED, "max_tokens": MOST}) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        read = [next(lines)]
        alone.kill9_service("long")
        read += lines
    events = [line for line in read if line]
    assert '"error"' in events[-1] and "[DONE]" not in "".join(events)


def test_the_client_raises_when_a_stream_is_cut(alone: Node) -> None:
    with client_of(alone) as client:
        stream = client.completions.create(**ASKED, max_tokens=MOST)
        got = [next(iter(stream))]
        alone.kill9_service("long")
        with pytest.raises(openai.APIError) as cut:
            got += list(stream)
    body: Any = cut.value.body
    assert body["nearfar"]["code"] and body["nearfar"]["request"].startswith("req-")


def test_with_a_second_node_the_stream_goes_on(tmp_path: Path) -> None:
    """Greedy, the text is the one that an undisturbed run gives, but for what ties decide otherwise after the move."""
    model = tiny(tmp_path, "long", **LONG)
    with Lab(tmp_path) as lab:
        first = lab.node("first", [model], env=LONG_ENV)
        second = lab.node("second", [model], env=LONG_ENV, join=[first])
        poll(lambda: first.service_json("long", "second") is not None, "the first knows the second")
        nodes = {"first": first, "second": second}
        tokens = 1500
        with client_of(first) as client:
            text: list[str] = []
            about: Any = None
            killed = ""
            for chunk in client.completions.create(**ASKED, max_tokens=tokens):
                if not killed and len(text) >= 3:
                    poll(lambda: any(busy(first, name) for name in nodes), "somebody is seen to answer", every=0.02)
                    killed = next(name for name in nodes if busy(first, name))
                    nodes[killed].kill9_service("long")
                text += [choice.text for choice in chunk.choices if choice.text]
                about = getattr(chunk, "nearfar", None) or about
    assert about is not None, "the last chunk says where the answer came from"
    assert (about["moved"], about["served_by"]) == (1, f"{'second' if killed == 'first' else 'first'}/long")
    assert len("".join(text)) == tokens
