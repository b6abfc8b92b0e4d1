"""Far ends that come, change and go while `nearfar up` runs: what somebody types, and what the node makes of it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from nearfar.ledger import FILE, Ledger
from tests.cli.commands import Said, nearfar
from tests.far.calls import KEY
from tests.far.misbehaving import Act, FarServer, Kind
from tests.fleetlab import Lab, Node, poll
from tests.fleetlab import lab as lab
from tests.waiting import until_now

ENV = {"FAR_TEST_KEY": KEY}


def add(node: Node, name: str, url: str, *more: object, prices: tuple[float, float] = (2, 10)) -> Said:
    words = ["--base-url", url, "--model", "large-1", "--price-in", prices[0], "--price-out", prices[1], *more]
    return nearfar("far", "add", name, *words, home=node.home)


def ask(node: Node, model: str = "large", **fields: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "Count, please."}], **fields}
    with node.http() as http:
        return http.post("/v1/chat/completions", json=body).raise_for_status().json()


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def test_a_running_node_serves_what_is_added_and_no_longer_what_is_removed(lab: Lab) -> None:
    with FarServer() as server, FarServer(then=Act(words=("five ", "six"))) as other:
        node = lab.node("a", ["yard"], env=ENV)
        assert "Node a serves it now" in add(node, "quiet", server.url, "--key-env", "FAR_TEST_KEY").out
        untouched = {model: node.service_pid(model) for model in ("yard", "quiet")}

        added = add(node, "large", server.url, "--key-env", "FAR_TEST_KEY")
        assert added.code == 0 and "Node a serves it now" in added.out, added.err
        said = nearfar("chat", "--model", "large", "Count, please.", home=node.home)
        assert said.out == "one two three four\n", said.err
        assert server.requests[-1].header("authorization") == f"Bearer {KEY}"
        assert text_of(ask(node, temperature=0)) == "one two three four"

        first = node.service_pid("large")
        changed = add(node, "large", other.url, "--key-env", "FAR_TEST_KEY", prices=(20, 100))
        assert "Changed large" in changed.out and "Node a serves it now" in changed.out
        assert node.service_pid("large") != first
        poll(
            lambda: (node.service_json("large") or {}).get("cost") == pytest.approx(580e-6),
            "what is expected to be paid is what was asked before at the new price",
        )
        assert text_of(ask(node, temperature=0)) == "five six", "no kept answer of whom it was before"
        ledger = Ledger(node.home / FILE)
        assert [row.price_out for row in ledger.rows()] == [10, 10, 100]
        ledger.close()

        again = node.service_pid("large")
        assert (
            "Node a serves it now" in add(node, "large", other.url, "--key-env", "FAR_TEST_KEY", prices=(20, 100)).out
        )
        removed = nearfar("far", "remove", "large", "--json", home=node.home)
        assert removed.json["nodes"] == [{"node": "a", "done": True, "reason": ""}]
        with node.http() as http:
            gone = http.post("/v1/chat/completions", json={"model": "large", "messages": [{"role": "user"}]})
        assert gone.status_code in (404, 503)
        assert node.stderr.count("stops large: it was changed") == 1, "what was added again as it was runs on"
        assert node.stderr.count("stops large: it is not wanted any more") == 1 and again
        assert untouched == {model: node.service_pid(model) for model in ("yard", "quiet")}
        assert len(server.requests) == 2 and len(other.requests) == 1, "nothing is paid to try a far end"


def test_a_key_that_is_not_at_hand_is_told_and_one_that_is_replaced_is_read(lab: Lab, tmp_path: Path) -> None:
    with FarServer() as server:
        node = lab.node("a", ["yard"])
        told = add(node, "large", server.url, "--key-env", "FAR_NO_KEY")
        assert told.code == 0 and "does not serve it" in told.out
        assert "FAR_NO_KEY is not set in the environment of node a" in " ".join(told.out.split())
        row = node.service_json("large") or {}
        assert row["health"] == "failed" and "--key-file" in row["reason"]
        assert node.stderr.count("does not serve large") == 1, "it is said once, and no process is started to find out"
        with pytest.raises(AssertionError, match="has no process"):
            node.service_pid("large")

        key = tmp_path / "key"
        key.write_text(KEY)
        assert "Node a serves it now" in add(node, "large", server.url, "--key-file", key).out
        ask(node)
        first = node.service_pid("large")
        key.unlink()
        poll(lambda: "stays as it was" in node.stderr, "the lost key is told")
        assert node.service_pid("large") == first, "who runs has read it"
        key.write_text("k-another")
        poll(lambda: node.stderr.count("serves large") == 2, "it is started again with the other key")
        poll(lambda: (node.service_json("large") or {}).get("healthy"), "and serves")
        ask(node)
        assert [seen.header("authorization") for seen in server.requests] == [f"Bearer {KEY}", "Bearer k-another"]


def test_an_answer_under_way_at_a_far_end_that_is_removed_comes_to_its_end(lab: Lab) -> None:
    words = tuple(f"{number} " for number in range(8))
    with FarServer(then=Act(Kind.SLOW, delay=0.2, words=words)) as server:
        node = lab.node("a", ["yard"])
        add(node, "large", server.url)
        answers: list[Said] = []
        chat = threading.Thread(
            target=lambda: answers.append(nearfar("chat", "--model", "large", "Count, please.", home=node.home))
        )
        chat.start()
        until_now(lambda: server.requests, "the call is under way")
        assert "does not serve it any more" in nearfar("far", "remove", "large", home=node.home).out
        chat.join()
        assert answers[0].out == "".join(words) + "\n", answers[0].err
        ledger = Ledger(node.home / FILE)
        assert [row.outcome.value for row in ledger.rows()] == ["ok"]
        ledger.close()
