"""Calls with the model `auto` through a real gateway: where they go, what they cost, what is kept, and what is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nearfar.language import far
from nearfar.language.keeping import Keeping, router_of
from nearfar.language.outcomes import FILE as OUTCOMES
from nearfar.language.outcomes import OutcomeStore, Record
from nearfar.language.routers.base import Prompt
from nearfar.language.routers.fixed import AlwaysNear
from nearfar.language.routers.ngram import Ngram
from nearfar.ledger import FILE as LEDGER
from nearfar.ledger import Ledger
from nearfar.models.store import Store
from nearfar.runtimes.remote.description import FarEnd
from nearfar.settings_language import RoutingSettings
from tests.far.misbehaving import Act, FarServer, Kind
from tests.fleetlab import Lab, Node, poll, talking
from tests.fleetlab import lab as lab


class Here:
    """A node with a near model, a far end, and a client."""

    def __init__(self, lab: Lab, folder: Path, server: FarServer, env: dict[str, str], delay_ms: float = 0.0) -> None:
        self.server = server
        self.fault = folder / "fault"
        home = lab.folder / "home-a"
        described = FarEnd(base_url=server.url, model="m", price_in=1, price_out=2, timeout_s=1, max_retries=0)
        far.add(Store(home / "models"), "large", described)
        says = [{"when": "eggs", "text": "You have 6 eggs.", "logprob": -0.01}]
        near = talking(folder, "tiny", fault_file=str(self.fault), says=says, delay_ms=delay_ms)
        self.node: Node = lab.node("a", [near], env=env)
        poll(lambda: (self.node.service_json("large") or {}).get("healthy"), "the far end is served")
        self.http = httpx.Client(base_url=self.node.url, timeout=30, trust_env=False)

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def ask(self, text: str, route: str = "auto", **fields: Any) -> dict[str, Any]:
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 6, **fields}
        answer = self.http.post("/v1/chat/completions", json=body, headers={"nearfar-route": route})
        told: dict[str, Any] = answer.json()
        return told

    def stream(self, text: str, route: str = "auto", **fields: Any) -> tuple[str, dict[str, Any]]:
        """The text of a streamed answer, and what was said about it."""
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 6, "stream": True}
        answer = self.http.post("/v1/chat/completions", json={**body, **fields}, headers={"nearfar-route": route})
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert answer.text.rstrip().endswith("[DONE]")
        parts = [(c.get("delta") or {}).get("content") or "" for chunk in chunks for c in chunk["choices"]]
        (about,) = [chunk["nearfar"] for chunk in chunks if "nearfar" in chunk]
        return "".join(parts), about

    def outcomes(self) -> list[Record]:
        store = OutcomeStore(self.node.home / OUTCOMES)
        found = list(store.records())
        store.close()
        return found

    def spent(self) -> float:
        ledger = Ledger(self.node.home / LEDGER)
        found = sum(row.cost for row in ledger.rows())
        ledger.close()
        return found


@pytest.fixture
def server() -> Iterator[FarServer]:
    with FarServer() as made:
        yield made


def test_near_far_and_the_other_side_when_one_fails(lab: Lab, tmp_path: Path, server: FarServer) -> None:
    # Slow enough that the last word of a stream comes by itself: what was counted must not be lost with it.
    with Here(lab, tmp_path, server, {"NEARFAR_ROUTING_ROUTER": "always-near"}, delay_ms=12.0) as here:
        near = here.ask("how many eggs?")
        assert near["choices"][0]["message"]["content"].startswith("You have 6 eggs")
        assert (near["nearfar"]["where"], near["nearfar"]["model"], near["nearfar"]["cost"]) == ("near", "tiny", 0)
        beyond = here.ask("anything", "far")["nearfar"]
        assert (
            beyond["where"] == "far" and beyond["cost"] == pytest.approx(here.spent()) and beyond["currency"] == "USD"
        )
        text, about = here.stream("how many eggs?")
        assert text.startswith("You have 6 eggs") and about["tokens_out"] >= 4 and about["first_token_ms"] > 0

        here.fault.write_text("fail")
        text, about = here.stream("how many eggs?")
        assert about["where"] == "far" and text == "one two three four"
        assert any("near failed" in line for line in about["why"]) and "tiny" in about["attempts"][0]
        private = here.ask("mail ann@example.org")["error"]
        assert private["code"] in ("no_candidate", "inference")
        assert "Not asked: large: private, fleet at most (found: " in private["message"]
        here.fault.unlink()
        server.add(Act(Kind.CLOSE))
        with_router = here.ask("how many eggs?", "far")
        assert "error" in with_router, "far was asked for: nobody else answers"

        kept = [here.ask("eggs again?", temperature=0)["nearfar"]["where"] for _ in range(2)]
        assert kept == ["near", "cache"]
        assert [here.ask("the same", temperature=0.7)["nearfar"]["where"] for _ in range(2)] == ["near", "near"]

        rows = {row.id: row for row in here.outcomes()}
        assert rows[near["nearfar"]["request"]].answered == "near" and rows[beyond["request"]].answered == "far"
        said = here.http.post("/v1/feedback", json={"request": near["nearfar"]["request"], "score": 1})
        assert said.json() == {"kept": True}
        assert {row.id: row for row in here.outcomes()}[near["nearfar"]["request"]].feedback == 1
        assert here.http.post("/v1/feedback", json={"request": "req-none", "score": 1}).status_code == 400


def test_what_is_redacted_is_put_back_whole_and_streamed(lab: Lab, tmp_path: Path, server: FarServer) -> None:
    env = {"NEARFAR_ROUTING_ROUTER": "always-far", "NEARFAR_PRIVACY_ON_PERSONAL_DATA": "redact"}
    with Here(lab, tmp_path, server, env) as here:
        words = ("To ", "<EMA", "IL_1", "> it ", "goes")
        server.add(Act(words=words), Act(words=words))
        assert here.ask("Write to ann@example.org")["choices"][0]["message"]["content"] == "To ann@example.org it goes"
        text, about = here.stream("Write to ann@example.org")
        assert text == "To ann@example.org it goes" and about["privacy"] == "any"
        assert b"ann@example.org" not in bytes(server.received) and b"<EMAIL_1>" in bytes(server.received)


def test_a_cascade_keeps_good_answers_and_escalates_poor_ones(lab: Lab, tmp_path: Path, server: FarServer) -> None:
    env = {"NEARFAR_ROUTING_ROUTER": "always-near", "NEARFAR_ROUTING_STRATEGY": "cascade"}
    with Here(lab, tmp_path, server, {**env, "NEARFAR_ROUTING_THRESHOLD": "0.999"}) as here:
        text, about = here.stream("What is 2 + 2?")
        assert (text, about["where"]) == ("one two three four", "far")
        assert any("judged" in line for line in about["why"]) and about["cost"] == pytest.approx(here.spent())
        (row,) = here.outcomes()
        assert (row.decision, row.answered, row.escalated) == ("cascade", "far", True) and row.judged is not None
        before = len(server.requests)
        private = here.ask("What is 2 + 2? Tell ann@example.org")["nearfar"]
        assert private["where"] == "near" and len(server.requests) == before


def test_an_escalated_answer_is_streamed_as_it_is_written(lab: Lab, tmp_path: Path, server: FarServer) -> None:
    env = {"NEARFAR_ROUTING_ROUTER": "always-near", "NEARFAR_ROUTING_STRATEGY": "cascade"}
    body = {"model": "auto", "messages": [{"role": "user", "content": "how many eggs?"}], "max_tokens": 6}
    with Here(lab, tmp_path, server, {**env, "NEARFAR_ROUTING_THRESHOLD": "0.999"}) as here:
        server.add(Act(Kind.STALL, at=2))  # who waited for the whole answer would have nothing of this one
        with here.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
            lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
        assert "one " in "".join(lines) and '"error"' in lines[-1] and "6 eggs" not in "".join(lines)
        assert server.requests[-1].json["stream"] is True

        text, about = here.stream("how many eggs?")
        assert (text, about["where"]) == ("one two three four", "far") and about["first_token_ms"] > 0
        (row,) = [one for one in here.outcomes() if one.id == about["request"]]
        assert row.escalated and row.near_out > 0 and row.far_out > 0
        assert about["tokens_out"] == row.near_out + row.far_out and about["cost"] == row.cost > 0

        for act in (Act(Kind.CLOSE), Act(Kind.STATUS, status=500), Act(Kind.STALL, at=0)):
            server.add(act)
            text, about = here.stream("how many eggs?")
            assert text.startswith("You have 6 eggs") and about["where"] == "near", act
            assert any("so the near answer stands" in line for line in about["why"])
            assert here.stream("how many eggs?")[1]["where"] == "far", "it is not out for one failure"

        here.fault.write_text("fail")
        text, about = here.stream("how many eggs?")
        assert (text, about["where"]) == ("one two three four", "far")
        assert any("the near model failed" in line for line in about["why"])


def test_what_a_judge_that_knows_such_answers_says_teaches_the_router(tmp_path: Path) -> None:
    keeping = Keeping(RoutingSettings(), tmp_path)
    router = Ngram()
    prompt = Prompt("A farmer has 12 hens and sells 5 of them. How many are left?")
    before = router.score(prompt).probability
    for _ in range(30):
        assert keeping.learn(router.score(prompt).probability, 0.0, router)
    assert router.score(prompt).probability < before - 0.05
    kept = router_of(RoutingSettings(), tmp_path)  # a node that starts anew has not forgotten it
    assert kept.score(prompt).probability == pytest.approx(router.score(prompt).probability)
    assert not keeping.learn(0.5, 0.0, AlwaysNear())
    keeping.close()


def test_a_long_context_in_the_grey_area_is_condensed_near(lab: Lab, tmp_path: Path, server: FarServer) -> None:
    env = {"NEARFAR_ROUTING_ROUTER": "length", "NEARFAR_ROUTING_SPLIT": "true", "NEARFAR_ROUTING_THRESHOLD": "1.0"}
    with Here(lab, tmp_path, server, env) as here:
        document = "The gate of the yard opens at nine and closes at five, but for holidays. " * 120
        messages = [{"role": "system", "content": document}, {"role": "user", "content": "When does it open?"}]
        told = here.ask("", messages=messages, max_tokens=40)["nearfar"]
        assert told["where"] == "split", told
        assert told["saved"] > 500 and any("instead of" in line for line in told["why"])
        assert document[:200].encode() not in bytes(server.received)


def test_a_long_private_document_is_read_near_by_a_plan_from_the_question_alone(
    lab: Lab, tmp_path: Path, server: FarServer
) -> None:
    with Here(
        lab, tmp_path, server, {"NEARFAR_ROUTING_ROUTER": "always-far", "NEARFAR_LANGUAGE_CONTEXT": "1024"}
    ) as here:
        document = "Ann's address is ann@example.org, and the gate opens at nine on every day but one. " * 90
        messages = [{"role": "system", "content": document}, {"role": "user", "content": "When does the gate open?"}]
        told = here.ask("", messages=messages, max_tokens=40)["nearfar"]
        assert told["where"] == "split" and told["privacy"] == "fleet", told
        assert any("planned from the question alone" in line for line in told["why"])
        received = bytes(server.received)
        assert (
            b"When does the gate open?" in received and b"ann@example.org" not in received and b"nine" not in received
        )
        before = len(server.requests)
        private = here.ask("", messages=messages, max_tokens=40, nearfar={"privacy": "fleet"})["nearfar"]
        assert private["where"] == "split" and len(server.requests) == before, "the question is private too"


def test_money_that_is_spent_is_spent(lab: Lab, tmp_path: Path, server: FarServer) -> None:
    env = {"NEARFAR_ROUTING_ROUTER": "always-far", "NEARFAR_ROUTING_MONEY_PER_DAY": "0.00005"}
    with Here(lab, tmp_path, server, env) as here:
        went = [here.ask(f"question {number}", max_tokens=4) for number in range(8)]
        where = [told["nearfar"]["where"] for told in went]
        assert where[0] == "far" and where[-1] == "near", where
        assert "money is spent" in " ".join(went[-1]["nearfar"]["why"])
        assert here.spent() <= 0.00005
