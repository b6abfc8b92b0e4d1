"""Who is asked to go on with an answer whose state was offered, and what happens when the state is of no use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import msgspec
import pytest

from nearfar.client.talking import Piece, Talking, TextRequest
from nearfar.errors import MeshError, Moved, NoCandidate, StreamCut
from nearfar.fleet.snapshot import ServiceView, Snapshot
from nearfar.language import carry
from nearfar.language.call import View
from nearfar.types.ids import ModelName, NodeId, ServiceId, VariantId
from nearfar.types.request import Stages
from nearfar.types.telemetry import ServiceReport, ServiceState, TextReport
from nearfar.types.wire import Operation, ReplyHead, StateTicket

WORDS = ["one ", "two ", "three ", "four ", "five "]
TICKET = StateTicket("a/m", "secret", "same", "digest", 100)
BUILDS = {"a": "same", "b": "other", "c": "same", "d": ""}


def chunk(text: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "finish_reason": reason, "delta": {"content": text}}
    return json.dumps({"id": "x", "choices": [choice]}).encode()


class Fleet:
    """The face of `Talking`: `a/m` hands its answer over after two words; the others do as the script says."""

    def __init__(self, script: dict[str, Any], ticket: StateTicket | None = TICKET) -> None:
        self._script = script
        self._ticket = ticket
        self.asked: list[tuple[str, TextRequest]] = []

    def snapshot(self) -> Snapshot:
        views = {}
        for node, build in BUILDS.items():
            service = ServiceId(f"{node}/m")
            report = ServiceReport(
                service, NodeId(node), ModelName("m"), VariantId("v"), "llamacpp", "cpu", ServiceState.READY, "",
                text=TextReport(build=build),
            )  # fmt: skip
            views[service] = ServiceView(report, alive=True)
        return Snapshot("me", services=views)

    async def stream(self, call: TextRequest) -> AsyncIterator[Piece]:
        left = [node for node in self._script if f"{node}/m" not in call.excluded]
        if not left:
            raise NoCandidate("Nobody takes it.", "Start one.")
        node = left[0]
        service = ServiceId(f"{node}/m")
        self.asked.append((node, call))
        words = self._script[node]
        words = words(call) if callable(words) else words
        for word in words:
            yield Piece(chunk(word), service)
        if node == "a":
            moved = Moved("It ends.", "Ask another.")
            moved.state = self._ticket
            raise StreamCut.of(moved, service)
        restored = 7 if call.context.state is not None else 0
        yield Piece(chunk("", "stop"), service, ReplyHead("v", Stages(), restored=restored))


def told(fleet: Fleet, **fields: Any) -> tuple[str, Piece]:
    fields = {"messages": [{"role": "user", "content": "count"}], "temperature": 0, **fields}
    request = TextRequest(Operation.CHAT, ModelName("m"), json.dumps(fields).encode())
    view = msgspec.convert(fields, View)

    async def collect() -> tuple[str, Piece]:
        said, piece = "", None
        async for piece, _ in carry.stream(cast(Talking, fleet), request, view):
            for line in piece.lines.splitlines():
                said += json.loads(line)["choices"][0]["delta"].get("content") or ""
        assert piece is not None
        return said, piece

    return asyncio.run(collect())


def test_the_next_one_of_the_same_build_is_asked_with_the_ticket() -> None:
    fleet = Fleet({"a": WORDS[:2], "b": WORDS, "d": WORDS, "c": ["one two ", *WORDS[2:]]})
    said, last = told(fleet)
    assert said == "".join(WORDS)
    assert [node for node, _ in fleet.asked] == ["a", "c"]
    assert fleet.asked[1][1].context.state == msgspec.structs.replace(TICKET, written=len("one two "))
    assert last.last is not None and last.last.restored == 7


def test_a_sampled_answer_gives_the_state_as_a_known_beginning() -> None:
    fleet = Fleet({"a": WORDS[:2], "b": WORDS, "c": WORDS[2:]})
    said, _ = told(fleet, temperature=1)
    assert said == "".join(WORDS)
    node, asked = fleet.asked[1]
    assert node == "c" and asked.context.state is not None and asked.context.state.written == -1
    assert json.loads(asked.body)["messages"][-1] == {"role": "assistant", "content": "one two "}


@pytest.mark.parametrize(
    "ticket",
    [None, msgspec.structs.replace(TICKET, build="unknown"), msgspec.structs.replace(TICKET, service="c/m")],
    ids=["no ticket", "a build that nobody has", "a ticket of somebody else"],
)
def test_without_a_use_for_a_ticket_any_is_asked_without(ticket: StateTicket | None) -> None:
    fleet = Fleet({"a": WORDS[:2], "b": WORDS, "c": WORDS}, ticket)
    assert told(fleet)[0] == "".join(WORDS)
    assert [node for node, _ in fleet.asked] == ["a", "b"]
    assert fleet.asked[1][1].context.state is None


def test_when_none_of_them_takes_it_any_is_asked_without_the_ticket() -> None:
    fleet = Fleet({"a": WORDS[:2], "b": WORDS})
    assert told(fleet)[0] == "".join(WORDS)
    assert [(node, call.context.state) for node, call in fleet.asked] == [("a", None), ("b", None)]


def test_a_state_that_brings_another_text_is_not_trusted() -> None:
    def says(call: TextRequest) -> list[str]:
        return ["one too ", "many"] if call.context.state is not None else WORDS

    fleet = Fleet({"a": WORDS[:2], "c": says})
    said, last = told(fleet)
    assert said == "".join(WORDS)
    assert [call.context.state is not None for _, call in fleet.asked] == [False, True, False]
    assert last.last is not None and last.last.restored == 0


def test_what_is_cut_for_another_reason_has_no_ticket() -> None:
    class Killed(Fleet):
        async def stream(self, call: TextRequest) -> AsyncIterator[Piece]:
            if not self.asked:
                self.asked.append(("a", call))
                yield Piece(chunk("one "), ServiceId("a/m"))
                raise StreamCut.of(MeshError("It is gone."), "a/m")
            async for piece in super().stream(call):
                yield piece

    fleet = Killed({"b": WORDS})
    assert told(fleet)[0] == "".join(WORDS)
    assert fleet.asked[1][1].context.state is None
