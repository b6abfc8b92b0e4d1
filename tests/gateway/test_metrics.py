"""`/metrics`: what Prometheus reads, what is documented, and that it counts."""

from __future__ import annotations

import itertools
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from nearfar.gateway.metrics import METRICS
from tests.fleetlab import Node, poll
from tests.gateway.raw import count, infer_json, metrics

REFERENCE = Path(__file__).parents[2] / "docs" / "reference-http.md"
INFER = "/v2/models/identity/infer"


def test_the_page_is_what_prometheus_reads(http: httpx.Client) -> None:
    http.post(INFER, content=infer_json([1.0]))
    answer = http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert set(families) == set(METRICS)
    for name, family in families.items():
        assert family.documentation == METRICS[name]
        for sample in family.samples:
            assert sample.value == sample.value, f"{sample.name} is NaN"


def test_histograms_are_whole(http: httpx.Client) -> None:
    http.post(INFER, content=infer_json([1.0]))
    families = text_string_to_metric_families(http.get("/metrics").text)
    histograms = [family for family in families if family.type == "histogram"]
    assert {h.name for h in histograms} == {
        "nearfar_request_stage_seconds",
        "nearfar_language_first_token_seconds",
        "nearfar_service_stage_seconds",
    }
    for family in histograms:
        series: dict[frozenset[tuple[str, str]], list[float]] = {}
        counts: dict[frozenset[tuple[str, str]], float] = {}
        for sample in family.samples:
            key = frozenset((k, v) for k, v in sample.labels.items() if k != "le")
            if sample.name.endswith("_bucket"):
                series.setdefault(key, []).append(sample.value)
            elif sample.name.endswith("_count"):
                counts[key] = sample.value
        assert series or family.name.startswith("nearfar_language")  # nobody has talked to this node
        for key, buckets in series.items():
            assert buckets == sorted(buckets) and buckets[-1] == counts[key]


def test_counters_move_by_what_happened(house: Node, http: httpx.Client) -> None:
    for _ in range(3):
        assert http.post("/v2/models/counted/infer", content=infer_json([1.0] * 4)).status_code == 200
    for _ in range(2):
        assert http.post("/v2/models/counted/infer", content=infer_json([1.0])).status_code == 400  # by the service
    assert http.post("/v2/models/counted/infer", content=b"{}").status_code == 400  # by the gateway
    found = metrics(http)
    for stage in ("link", "queue", "preprocess", "inference", "postprocess"):
        labels = frozenset({"model": "counted", "stage": stage}.items())
        assert found[("nearfar_request_stage_seconds_count", labels)] == 3
    assert count(http, "counted", "ok") == 3
    assert count(http, "counted", "invalid-input") == 3

    def reported() -> tuple[int, int]:
        row = house.service_json("counted") or {}
        return row["answered"], row["failed"]

    poll(lambda: reported() == (3, 2), "the service reports what it answered and what it refused")


def test_the_node_and_its_services_are_up(house: Node, http: httpx.Client) -> None:
    found = metrics(http)
    assert found[("nearfar_node_up", frozenset({("node", "house")}))] == 1
    services = [(dict(labels), value) for (name, labels), value in found.items() if name == "nearfar_service_up"]
    up = {labels["model"]: value for labels, value in services if labels["node"] == "house"}
    assert up == dict.fromkeys(house.models, 1.0)


def rows_of(table: str) -> dict[str, str]:
    """The rows of the reference's table under a header line: the first cell in backticks, and the whole row."""
    lines = REFERENCE.read_text().partition(table)[2].splitlines()[2:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return {line.split("`")[1]: line for line in rows}


def test_the_table_of_metrics_is_that_of_the_code(http: httpx.Client) -> None:
    rows = rows_of("| Metric | Type | Labels | Meaning |")
    assert list(rows) == list(METRICS)
    for family in text_string_to_metric_families(http.get("/metrics").text):
        assert rows[family.name].split("|")[2].strip() == family.type


def test_every_path_and_header_is_documented(http: httpx.Client) -> None:
    text = REFERENCE.read_text()
    document = http.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f"`{method.upper()} {path}" in text
            for parameter in operation.get("parameters", ()):
                assert parameter["in"] != "header" or f"`{parameter['name']}`" in text
            for status in set(operation["responses"]) - {"200", "422"}:
                assert f"| {status} |" in text, (path, status)


def test_every_metric_is_documented() -> None:
    text = REFERENCE.read_text()
    missing = [name for name in METRICS if f"`{name}`" not in text]
    assert not missing
