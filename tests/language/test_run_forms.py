"""Routed calls in forms that a split or a cascade cannot serve, or that fail in the middle of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.far.misbehaving import Act, FarServer, Kind
from tests.fleetlab import Lab
from tests.fleetlab import lab as lab
from tests.language.test_run import Here

DOCUMENT = "The gate of the yard opens at nine and closes at five, but for holidays. " * 120
SPLIT = {"NEARFAR_ROUTING_ROUTER": "length", "NEARFAR_ROUTING_SPLIT": "true", "NEARFAR_ROUTING_THRESHOLD": "1.0"}


@pytest.fixture
def server() -> Iterator[FarServer]:
    with FarServer() as made:
        yield made


def _messages(question: str = "When does it open?") -> list[dict[str, Any]]:
    return [{"role": "system", "content": DOCUMENT}, {"role": "user", "content": question}]


def test_a_streamed_split_that_fails_or_does_not_pay_is_asked_whole(
    lab: Lab, tmp_path: Path, server: FarServer
) -> None:
    with Here(lab, tmp_path, server, SPLIT) as here:
        here.fault.write_text("fail")
        text, about = here.stream("", messages=_messages(), max_tokens=40)
        assert (text, about["where"]) == ("one two three four", "far")
        assert any("the split failed" in line for line in about["why"])
        assert DOCUMENT[:200].encode() in bytes(server.received), "whole, as the split did not work"
        here.fault.unlink()

        text, about = here.stream("", messages=_messages("And when does it close?"), max_tokens=40)
        assert about["where"] == "split" and about["saved"] > 500

        server.add(Act(Kind.STATUS, status=500))  # the far end fails on the condensed prompt, not on the whole one
        text, about = here.stream("", messages=_messages("And on holidays?"), max_tokens=40)
        assert (text, about["where"]) == ("one two three four", "far")


def test_what_the_caller_says_of_the_form_is_not_lost_in_a_split(lab: Lab, tmp_path: Path, server: FarServer) -> None:
    with Here(lab, tmp_path, server, SPLIT) as here:
        for fields in (
            {"response_format": {"type": "json_object"}},
            {"stop": ["\n"]},
            {"logprobs": True},
        ):
            told = here.ask("", messages=_messages(), max_tokens=40, **fields)["nearfar"]
            assert told["where"] == "far", told
            sent = json.loads(server.requests[-1].body)
            assert {name: sent[name] for name in fields} == fields
            assert sent["messages"][0]["content"] == DOCUMENT


def test_several_answers_at_once_are_not_judged_in_a_cascade(lab: Lab, tmp_path: Path, server: FarServer) -> None:
    env = {"NEARFAR_ROUTING_ROUTER": "always-near", "NEARFAR_ROUTING_STRATEGY": "cascade"}
    with Here(lab, tmp_path, server, env) as here:
        for path, body in (
            ("/v1/completions", {"prompt": "2 + 2 =", "best_of": 2}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "2 + 2?"}], "n": 2}),
        ):
            told = here.http.post(path, json={"model": "auto", "max_tokens": 4, **body}).json()
            assert told["nearfar"]["where"] == "near", told
