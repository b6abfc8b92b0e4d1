"""Streams over HTTP: `Nearfar-Stream` on requests, `GET /v1/streams`, `GET /v1/streams/{id}/decisions`."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from nearfar.gateway import named
from tests.fleetlab import Lab, Node, fake, poll
from tests.gateway.raw import exchange, problem_of, request

INPUT = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


def infer(http: httpx.Client, stream: str | None = None, model: str = "identity") -> httpx.Response:
    headers = {} if stream is None else {"Nearfar-Stream": stream}
    return http.post(f"/v2/models/{model}/infer", json=INPUT, headers=headers)


def decisions(http: httpx.Client, stream: str, **query: int) -> dict[str, Any]:
    answer = http.get(f"/v1/streams/{stream}/decisions", params=query)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def frames(told: dict[str, Any]) -> list[int]:
    """Every frame that decisions speak of, in their order."""
    runs = [run for entry in told["entries"] if entry["kind"] == "decided" for run in entry["frames"]]
    return [first + at * step for first, count, step in runs for at in range(count)]


def names(http: httpx.Client) -> dict[str, Any]:
    return {row["stream"]: row for row in http.get("/v1/streams").json()["streams"]}


def test_requests_of_a_named_stream_have_an_incumbent_and_a_trail(http: httpx.Client) -> None:
    stream = f"s-{uuid.uuid4().hex[:8]}"
    for _ in range(5):
        assert infer(http, stream).status_code == 200
    told = decisions(http, stream)
    assert frames(told) == list(range(5))
    decided = [entry for entry in told["entries"] if entry["kind"] == "decided"]
    assert decided[0]["chosen"] == "house/identity" and "incumbent" not in decided[0]
    assert decided[-1]["incumbent"] == "house/identity"
    assert decided[0]["candidates"][0]["service"] == "house/identity" and decided[0]["reason"]
    assert told["stream"]["running"] and told["stream"]["answered"] == 5 and told["stream"]["lost"] == 0
    row = names(http)[stream]
    assert (row["model"], row["source"], row["served_by"]) == ("identity", "HTTP", "house/identity")


def test_images_are_a_stream_as_well(http: httpx.Client) -> None:
    from tests.gateway.test_detect import JPEG, YARD, encoded

    stream = f"s-{uuid.uuid4().hex[:8]}"
    for _ in range(2):
        assert http.post(YARD, content=encoded(), headers={**JPEG, "Nearfar-Stream": stream}).status_code == 200
    assert frames(decisions(http, stream)) == [0, 1]


def test_without_the_header_nothing_is_written(http: httpx.Client) -> None:
    before = set(names(http))
    assert infer(http).status_code == 200
    assert set(names(http)) == before


def test_failures_are_in_the_trail_with_their_reason(http: httpx.Client) -> None:
    stream = f"s-{uuid.uuid4().hex[:8]}"
    assert infer(http, stream, model="yrad").status_code == 404
    told = decisions(http, stream)
    (entry,) = [entry for entry in told["entries"] if entry["kind"] == "decided"]
    assert entry["chosen"] is None and entry["refusals"][0]["code"] == "unknown-model"
    assert told["stream"]["lost"] == 1 and told["stream"]["answered"] == 0


def test_pages_follow_each_other(http: httpx.Client) -> None:
    stream = f"s-{uuid.uuid4().hex[:8]}"
    for model in ("identity", "slow", "identity", "slow"):
        infer(http, stream, model)
    whole = decisions(http, stream, limit=1000)["entries"]
    assert len(whole) >= 5
    found, since = [], -1
    while True:
        part = decisions(http, stream, since=since, limit=2)
        found += part["entries"]
        since = part["next"]
        if not part["more"]:
            break
    assert found == whole
    assert decisions(http, stream, limit=1)["entries"] == whole[-1:]
    assert decisions(http, stream, since=since) == {**part, "entries": [], "more": False, "next": since}


@pytest.mark.parametrize("query", ["since=x", "since=-2", "limit=0", "limit=1001", "limit=", "since=1e400"])
def test_a_query_that_will_not_do_is_a_problem(http: httpx.Client, query: str) -> None:
    answer = http.get(f"/v1/streams/whatever/decisions?{query}")
    assert answer.status_code == 400
    assert problem_of(answer.content)["code"] == "invalid-input"


@pytest.mark.parametrize(
    "path", ["../x", "..%2fx", "%2e%2e", "%2e%2e%2f%2e%2e%2fnode-id", "a%2fb", "%00", "A", "*", "**", "a" * 300, "%ff"]
)
def test_hostile_ids_find_nothing(house: Node, path: str) -> None:
    (house.home / "streams").mkdir(exist_ok=True)
    for place in (house.home, house.home / "streams"):
        (place / "trail.jsonl").write_text('{"kind":"started","number":0,"at":"x","stream":"x","model":"secret"}\n')
    status, _, body = exchange(house.url, request(f"/v1/streams/{path}/decisions", {}, b"", method="GET"))
    assert status == 404, body
    assert b"secret" not in body and problem_of(body)["hint"]


def test_near_names_are_offered(http: httpx.Client) -> None:
    stream = f"camera-{uuid.uuid4().hex[:8]}"
    infer(http, stream)
    answer = http.get(f"/v1/streams/{stream[:-1]}/decisions")
    problem = problem_of(answer.content)
    assert (answer.status_code, problem["code"]) == (404, "unknown-stream") and stream in problem["hint"]


@pytest.mark.parametrize("name", ["../x", "a b", "A", "", "a" * 65, "*", "%2e%2e"])
def test_a_name_that_is_none_is_refused(http: httpx.Client, name: str) -> None:
    answer = infer(http, name)
    assert answer.status_code == 400 and "Nearfar-Stream" in problem_of(answer.content)["detail"]


def test_named_streams_are_bounded_and_the_oldest_ends(http: httpx.Client) -> None:
    mark = uuid.uuid4().hex[:6]
    for at in range(named.MOST + 2):
        assert infer(http, f"many-{mark}-{at}").status_code == 200

    def running() -> set[str]:
        return {name for name, row in names(http).items() if row["running"]}

    poll(lambda: len(running()) <= named.MOST, "so many run at most")
    assert f"many-{mark}-{named.MOST + 1}" in running() and f"many-{mark}-0" not in running()
    told = decisions(http, f"many-{mark}-0")
    assert told["entries"][-1]["kind"] == "ended" and "made room" in told["stream"]["ended"]
    assert infer(http, f"many-{mark}-0").status_code == 200, "it may come back"
    again = decisions(http, f"many-{mark}-0")["entries"]
    assert [entry["number"] for entry in again] == [3, 4], "and goes on where it ended"


def test_keys_hold_and_another_node_tells_of_what_runs_here(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        first = lab.node("first", [fake(tmp_path, "echo")])
        second = lab.node("second", [], join=[first], api_key="secret")
        with first.http() as asking, second.http() as other:
            poll(lambda: "first" in {row["node"] for row in second.fleet_json()["nodes"]}, "they see each other")
            assert infer(asking, "over-there", "echo").status_code == 200
            poll(lambda: "over-there" in names(other), "the other node sees the stream")
            told = decisions(other, "over-there")
            assert told["stream"]["by"] == "first" and frames(told) == [0]
            assert told == decisions(asking, "over-there")
            for path in ("/v1/streams", "/v1/streams/over-there/decisions"):
                answer = httpx.get(f"{second.url}{path}", trust_env=False)
                assert answer.status_code == 401 and problem_of(answer.content)["code"] == "unauthorized"
        first.stop()
        with second.http() as other:
            poll(
                lambda: other.get("/v1/streams/over-there/decisions").status_code == 404,
                "nobody can tell of it any more: its files are the other node's",
            )
        ended = [json.loads(line) for line in (first.home / "streams/over-there/trail.jsonl").read_text().splitlines()]
        assert ended[-1]["kind"] == "ended" and ended[-1]["reason"] == "the gateway was stopped"
        first.launch()
        first.wait_ready()
        with first.http() as asking:
            assert decisions(asking, "over-there")["stream"]["ended"] == "the gateway was stopped"
