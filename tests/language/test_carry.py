"""A streamed answer that is cut anywhere goes on with the same text, or ends with an error; never with a splice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.client.talking import Piece, Talking, TextRequest
from nearfar.errors import MeshError, NoCandidate, StreamCut
from nearfar.fleet.snapshot import ServiceView, Snapshot
from nearfar.language import carry
from nearfar.language.call import read_call
from nearfar.runtimes.faketext import FakeTextRuntime, fake_text
from nearfar.runtimes.text import LoadedText, TextOptions, TextRuntime
from nearfar.types.ids import ModelName, NodeId, ServiceId, VariantId
from nearfar.types.request import Qos, Stages
from nearfar.types.telemetry import ServiceReport, ServiceState
from nearfar.types.wire import Operation, ReplyHead, TextContext
from tests.realdata import need_data
from tests.runtimes import tinygguf

LAST = ReplyHead("v", Stages())


class Cutting:
    """The face of `Talking`: services `a/m`, `b/m`, ... in turn, each an engine that is cut after so many chunks."""

    def __init__(self, engines: list[LoadedText], cuts: list[int], variants: dict[str, str]) -> None:
        self._variants = variants
        self._engines = engines
        self._cuts = cuts
        self.asked: list[TextRequest] = []

    def snapshot(self) -> Snapshot:
        views = {}
        for node, variant in self._variants.items():
            service = ServiceId(f"{node}/m")
            given = (
                service,
                NodeId(node),
                ModelName("m"),
                VariantId(variant),
                "llamacpp",
                "cpu",
                ServiceState.READY,
                "",
            )
            views[service] = ServiceView(ServiceReport(*given))
        return Snapshot("me", services=views)

    async def stream(self, call: TextRequest) -> AsyncIterator[Piece]:
        number = len(self.asked)
        self.asked.append(call)
        if number == len(self._engines):
            raise NoCandidate("Nobody is left.", "Start one.")
        service = call.incumbent or ServiceId(f"{'abcdefgh'[number]}/m")
        assert service not in call.excluded
        pieces: list[bytes] = []
        after = self._cuts[number] if number < len(self._cuts) else None

        def take(piece: bytes) -> bool:
            if piece:
                pieces.append(piece)
            return after is not None and len(pieces) >= after

        self._engines[number].run(call.operation, call.body, take, TextContext(streamed=True))
        for piece in pieces[:after]:
            yield Piece(piece, service)
        if after is not None and after <= len(pieces):
            raise StreamCut.of(MeshError("It is gone.", "Ask again."), service)
        yield Piece(b"", service, LAST)


def answer(
    engines: list[LoadedText],
    cuts: list[int],
    operation: Operation,
    body: dict[str, Any],
    variants: dict[str, str] | None = None,
) -> tuple[str, list[dict[str, Any]], int]:
    """(text, chunks, moves)"""
    call = read_call(operation, json.dumps({"stream": True, **body}).encode(), Qos())
    request = TextRequest(operation, ModelName("m"), call.body)
    talking = Cutting(engines, cuts, variants or {})

    async def collect() -> tuple[list[bytes], int]:
        lines: list[bytes] = []
        moves = 0
        async for piece, moved in carry.stream(cast(Talking, talking), request, call.view):
            lines += piece.lines.splitlines()
            moves = moved
        return lines, moves

    lines, moves = asyncio.run(collect())
    chunks = [json.loads(line) for line in lines]
    return text(chunks), chunks, moves


def text(chunks: list[dict[str, Any]]) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)


def loaded(runtime: TextRuntime, path: Path, slots: int = 1) -> LoadedText:
    return runtime.load_text(path, TextOptions("m", context=512, slots=slots))


def fake(folder: Path, seed: int = 0, length: int = 0) -> LoadedText:
    path = folder / f"fake-{seed}.json"
    path.write_bytes(fake_text(seed=seed, length=length))
    return loaded(FakeTextRuntime(), path)


def question(operation: Operation, words: str, limit: int, **more: Any) -> dict[str, Any]:
    what: dict[str, Any] = {"prompt": words}
    if operation is Operation.CHAT:
        what = {"messages": [{"role": "user", "content": words}]}
    return {**what, "temperature": 0, "max_tokens": limit, "stream_options": {"include_usage": True}, **more}


PROMPTS = ["Tell me a story about a cat", "x", "The big red ball. ", 'He said: "no"\n', "1 2 3", "äöü €"]


@pytest.mark.parametrize("operation", [Operation.CHAT, Operation.COMPLETE])
@pytest.mark.parametrize("kind", ["stories", "random"])
def test_the_real_engine_cut_at_every_chunk_goes_on_with_the_same_text(
    tmp_path: Path, kind: str, operation: Operation
) -> None:
    pytest.importorskip("xllamacpp")
    from nearfar.runtimes.llamacpp import LlamaCppRuntime

    path = need_data("slm", "stories260K.gguf") if kind == "stories" else tinygguf.llama(tmp_path / "r.gguf")
    engine = loaded(LlamaCppRuntime(), path)
    try:
        for words in PROMPTS:
            body = question(operation, words, 16)
            whole, chunks, moves = answer([engine], [], operation, body)
            assert moves == 0
            for cut in range(1, len(chunks) - 1):
                got, again, moves = answer([engine, engine], [cut], operation, body)
                finished = any(c.get("finish_reason") for chunk in chunks[:cut] for c in chunk["choices"])
                assert not finished and moves == 1
                assert got == whole, f"{words!r} cut after {cut} chunks"
                assert [c["choices"] for c in again] == [c["choices"] for c in chunks]
                assert {c["id"] for c in again} == {again[0]["id"]}
                assert again[-1]["usage"]["completion_tokens"] == chunks[-1]["usage"]["completion_tokens"]
    finally:
        engine.close()


@settings(deadline=None, max_examples=60)
@given(
    cuts=st.lists(st.integers(1, 12), max_size=6),
    operation=st.sampled_from([Operation.CHAT, Operation.COMPLETE]),
    words=st.text(min_size=1, max_size=20).filter(str.strip),
)
def test_any_number_of_cuts_anywhere_leaves_the_text_whole(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], operation: Operation, words: str
) -> None:
    engine = fake(tmp_path_factory.mktemp("fake"))
    body = question(operation, words, 12)
    whole, chunks, _ = answer([engine], [], operation, body)
    got, again, moves = answer([engine] * (len(cuts) + 1), cuts, operation, body)
    assert (got, moves) == (whole, len(cuts))
    assert [c["choices"] for c in again] == [c["choices"] for c in chunks]


def test_a_service_that_writes_another_text_is_left_for_the_next(tmp_path: Path) -> None:
    right, wrong = fake(tmp_path), fake(tmp_path, seed=9)
    body = question(Operation.CHAT, "Hi", 12)
    whole, _, _ = answer([right], [], Operation.CHAT, body)
    got, _, moves = answer([right, wrong, right], [5], Operation.CHAT, body)
    assert (got, moves) == (whole, 2)
    with pytest.raises(StreamCut, match="writes another text"):
        answer([right, wrong], [5], Operation.CHAT, body)


def test_one_with_the_same_variant_that_rounds_otherwise_continues_the_text(tmp_path: Path) -> None:
    right, wrong = fake(tmp_path), fake(tmp_path, seed=9)
    body = question(Operation.CHAT, "Hi", 12)
    whole, chunks, _ = answer([right], [], Operation.CHAT, body)
    begun = text(chunks[:5])
    messages = [*body["messages"], {"role": "assistant", "content": begun}]
    rest, _, _ = answer([wrong], [], Operation.CHAT, {**body, "messages": messages, "max_tokens": 12 - 4})
    got, again, moves = answer([right, wrong, wrong], [5], Operation.CHAT, body, {"a": "q4", "b": "q4"})
    assert (got, moves) == (begun + rest, 1)
    assert got != whole and len(got.split()) == 12 and again[-1]["usage"]["completion_tokens"] == 12
    with pytest.raises(StreamCut, match="writes another text"):
        answer([right, wrong], [5], Operation.CHAT, body, {"a": "q4", "b": "q8"})


def test_a_shorter_answer_of_another_service_is_no_end(tmp_path: Path) -> None:
    right = fake(tmp_path)
    call = question(Operation.COMPLETE, "Hi", 12)
    _, chunks, _ = answer([right], [], Operation.COMPLETE, call)
    delivered = carry.Delivered()
    for chunk in chunks[:6]:
        delivered.add(json.dumps(chunk).encode())
    rest = carry._Rest(delivered, Operation.COMPLETE, again=True)
    end = {"id": "z", "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}
    with pytest.raises(StreamCut, match="another text"):
        rest.of(Piece(json.dumps(end).encode(), ServiceId("b/m")))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"n": 2}, "several answers"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "schema"),
        ({"logprobs": True}, "log-probabilities"),
    ],
)
def test_what_cannot_be_carried_on_ends_with_the_reason(tmp_path: Path, more: dict[str, Any], why: str) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(fake_text())
    engine = loaded(FakeTextRuntime(), path, slots=2)
    with pytest.raises(StreamCut, match=f"cannot be carried on: .*{why}"):
        answer([engine, engine], [3], Operation.CHAT, question(Operation.CHAT, "Hi", 8, **more))


def test_without_another_service_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(StreamCut, match="cannot be carried on: no other service takes it"):
        answer([fake(tmp_path)], [3], Operation.CHAT, question(Operation.CHAT, "Hi", 8))


def test_a_sampled_answer_is_continued_from_its_text(tmp_path: Path) -> None:
    engine = fake(tmp_path)
    body = question(Operation.CHAT, "Hi", 12, temperature=0.7)
    got, chunks, moves = answer([engine, engine], [5], Operation.CHAT, body)
    assert moves == 1 and len(got.split()) == 12
    assert chunks[-1]["usage"]["completion_tokens"] == 12


def test_an_answer_that_fails_before_its_first_piece_raises_that_failure(tmp_path: Path) -> None:
    with pytest.raises(NoCandidate):
        answer([], [], Operation.CHAT, question(Operation.CHAT, "Hi", 8))
