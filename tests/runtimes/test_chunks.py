"""A whole answer put together from chunks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nearfar.errors import InferenceError
from nearfar.runtimes.chunks import Whole


def whole(*chunks: Any, chat: bool = True) -> dict[str, Any]:
    made = Whole(chat)
    for chunk in chunks:
        made.add(json.dumps(chunk).encode())
    answer: dict[str, Any] = json.loads(made.answer())
    return answer


def delta(index: int = 0, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": "a", "choices": [{"index": index, "delta": fields, "finish_reason": reason}]}


def test_texts_of_several_choices_do_not_mix() -> None:
    answer = whole(delta(0, role="assistant", content=None), delta(1, content="x"), delta(0, content="a"),
                   delta(0, content="b"), delta(1, "stop"), delta(0, "length"),
                   {"id": "a", "choices": [], "usage": {"completion_tokens": 3}})  # fmt: skip
    told = [(choice["message"]["content"], choice["finish_reason"]) for choice in answer["choices"]]
    assert told == [("ab", "length"), ("x", "stop")]
    assert answer["usage"] == {"completion_tokens": 3}
    assert answer["object"] == "chat.completion"


def test_calls_of_tools_are_joined_by_their_number() -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}
    answer = whole(delta(tool_calls=[call]), delta(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
                   delta(0, "tool_calls"))  # fmt: skip
    message = answer["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [{"type": "function", "id": "c", "function": {"name": "f", "arguments": '{"a":1}'}}]


@pytest.mark.parametrize("piece", [b"", b"[]", b"{", b'{"choices": 5}', b'{"choices": [{"delta": 5}]}', b"\xff"])
def test_what_is_no_chunk_is_an_error(piece: bytes) -> None:
    with pytest.raises(InferenceError):
        Whole(True).add(piece)


def test_no_chunk_is_no_answer() -> None:
    with pytest.raises(InferenceError, match="without an answer"):
        Whole(False).answer()
