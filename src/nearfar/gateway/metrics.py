"""`/metrics`: the gateway's own counts, and the fleet as its snapshot shows it, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from nearfar.fleet.health import Health, health
from nearfar.fleet.snapshot import Snapshot
from nearfar.gateway.openai.counts import LanguageCounts
from nearfar.gateway.state import State
from nearfar.types.histogram import Histogram
from nearfar.types.ids import node_of
from nearfar.types.units import Seconds

BOUNDS_MS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0)

METRICS: Mapping[str, str] = {
    "nearfar_requests": "Requests that this gateway took, by model and outcome.",
    "nearfar_in_flight": "Requests that this gateway works on now.",
    "nearfar_request_stage_seconds": "Time of answered requests by model and stage.",
    "nearfar_language_requests": "Language calls that this gateway took: who answered, where, and how it ended.",
    "nearfar_language_tokens": "Tokens of answered language calls: of the prompts (in) and of the answers (out).",
    "nearfar_language_first_token_seconds": "Time to the first token of streamed answers.",
    "nearfar_language_cost": "What the answers cost, by currency.",
    "nearfar_node_up": "1 when the node is on the mesh.",
    "nearfar_node_cpu_ratio": "Busy share of the node's usable cores.",
    "nearfar_node_memory_free_bytes": "Memory that the node has left.",
    "nearfar_node_temperature_celsius": "Hottest sensor of the node; absent when it has none.",
    "nearfar_node_throttled": "1 while the node's processor is held back; absent when the system does not tell.",
    "nearfar_link_rtt_seconds": "Round trip between two nodes.",
    "nearfar_link_loss_ratio": "Share of pings between two nodes without an answer.",
    "nearfar_link_bandwidth_bytes_per_second": "Measured bandwidth between two nodes; absent when unknown.",
    "nearfar_service_up": "1 when the service may be asked.",
    "nearfar_service_health": "1 for the state that the service is in, 0 for every other one.",
    "nearfar_service_error_ratio": "Share of the service's last requests that failed by its own fault.",
    "nearfar_service_self_tests_failed": "Self-tests of the service that failed since its node started.",
    "nearfar_service_queued": "Requests that wait at the service.",
    "nearfar_service_in_flight": "Requests that the service works on.",
    "nearfar_service_answered": "Requests that the service answered since it started.",
    "nearfar_service_failed": "Requests that failed in the service since it started.",
    "nearfar_service_refused": "Requests that the service refused since it started.",
    "nearfar_service_memory_bytes": "Resident memory of the service process.",
    "nearfar_service_stage_seconds": "Time in the service by stage since it started.",
    "nearfar_text_first_token_seconds": "Recent mean time to a first token, without waiting; absent before the first.",
    "nearfar_text_prefill_tokens_per_second": "Recent mean speed of reading prompts; absent before the first.",
    "nearfar_text_decode_tokens_per_second": "Recent mean speed of writing one answer; absent before the first.",
    "nearfar_text_tokens_in": "Tokens of all prompts since the service started.",
    "nearfar_text_tokens_reused": "Tokens of prompts that needed no work, as their beginning was known.",
    "nearfar_text_tokens_out": "Tokens of all answers since the service started.",
    "nearfar_text_slots": "Conversations that the service answers at the same time.",
}
"""Every metric with its help text; documented in docs/reference-http.md."""

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class FleetCollector(Collector):
    """Reads state and snapshot at scrape time; nothing is counted twice."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterable[Family]:
        now = Seconds(time.monotonic())
        yield from self._own()
        yield from _fleet(self._state.client.snapshot(), now)

    def _own(self) -> Iterable[Family]:
        state = self._state
        requests = _counter("nearfar_requests", "model", "outcome")
        for (model, outcome), count in state.outcomes.items():
            requests.add_metric([model, outcome], count)
        yield requests
        in_flight = _gauge("nearfar_in_flight")
        in_flight.add_metric([], state.in_flight)
        yield in_flight
        stages = _histogram("nearfar_request_stage_seconds", "model", "stage")
        for (model, stage), histogram in state.stages.items():
            _add(stages, [model, stage], histogram)
        yield stages
        yield from _language(state.language)


def _language(counts: LanguageCounts) -> Iterable[Family]:
    requests = _counter("nearfar_language_requests", "model", "where", "outcome")
    for key, count in counts.requests.items():
        requests.add_metric(key, count)
    tokens = _counter("nearfar_language_tokens", "model", "where", "direction")
    for key, count in counts.tokens.items():
        tokens.add_metric(key, count)
    first = _histogram("nearfar_language_first_token_seconds", "model", "where")
    for pair, histogram in counts.first.items():
        _add(first, [*pair], histogram)
    cost = _counter("nearfar_language_cost", "model", "currency")
    for pair, spent in counts.cost.items():
        cost.add_metric(pair, spent)
    yield from (requests, tokens, first, cost)


def _fleet(snapshot: Snapshot, now: Seconds) -> Iterable[Family]:
    up = _gauge("nearfar_node_up", "node")
    cpu = _gauge("nearfar_node_cpu_ratio", "node")
    memory = _gauge("nearfar_node_memory_free_bytes", "node")
    heat = _gauge("nearfar_node_temperature_celsius", "node")
    throttled = _gauge("nearfar_node_throttled", "node")
    for node, view in snapshot.nodes.items():
        up.add_metric([node], int(view.alive))
        if view.report is not None:
            cpu.add_metric([node], view.report.cpu)
            memory.add_metric([node], view.report.memory_free)
            if view.report.temperature is not None:
                heat.add_metric([node], view.report.temperature)
            if view.report.throttled is not None:
                throttled.add_metric([node], int(view.report.throttled))
    yield from (up, cpu, memory, heat, throttled)
    rtt = _gauge("nearfar_link_rtt_seconds", "source", "destination")
    loss = _gauge("nearfar_link_loss_ratio", "source", "destination")
    bandwidth = _gauge("nearfar_link_bandwidth_bytes_per_second", "source", "destination")
    for (source, destination), link in snapshot.links.items():
        rtt.add_metric([source, destination], link.rtt / 1000)
        loss.add_metric([source, destination], link.loss)
        if link.bandwidth is not None:
            bandwidth.add_metric([source, destination], link.bandwidth)
    yield from (rtt, loss, bandwidth)
    yield from _services(snapshot, now)
    yield from _texts(snapshot)


def _services(snapshot: Snapshot, now: Seconds) -> Iterable[Family]:
    labels = ("node", "model", "variant", "runtime")
    gauges = {
        name: _gauge(f"nearfar_service_{name}", *labels)
        for name in ("up", "error_ratio", "queued", "in_flight", "memory_bytes")
    }
    counters = {name: _counter(f"nearfar_service_{name}", *labels) for name in ("answered", "failed", "refused")}
    states = _gauge("nearfar_service_health", *labels, "health")
    tests = _counter("nearfar_service_self_tests_failed", *labels)
    stages = _histogram("nearfar_service_stage_seconds", *labels, "stage")
    for service, view in snapshot.services.items():
        report = view.report
        key = [node_of(service), report.model, report.variant, report.runtime]
        state, _, _ = health(snapshot, service, now)
        for one in Health:
            states.add_metric([*key, one.value], int(one is state))
        tests.add_metric(key, report.self_test.failed)
        gauges["up"].add_metric(key, int(state.may_be_asked))
        gauges["error_ratio"].add_metric(key, report.error_rate)
        gauges["queued"].add_metric(key, report.queued)
        gauges["in_flight"].add_metric(key, report.in_flight)
        gauges["memory_bytes"].add_metric(key, report.memory)
        for name, counter in counters.items():
            counter.add_metric(key, getattr(report, name))
        for stage, summary in report.stages.items():
            _add(stages, [*key, stage], Histogram(summary.counts, summary.sum))
    yield from gauges.values()
    yield from counters.values()
    yield from (states, tests, stages)


def _texts(snapshot: Snapshot) -> Iterable[Family]:
    labels = ("node", "model", "variant", "runtime")
    first = _gauge("nearfar_text_first_token_seconds", *labels)
    prefill = _gauge("nearfar_text_prefill_tokens_per_second", *labels)
    decode = _gauge("nearfar_text_decode_tokens_per_second", *labels)
    slots = _gauge("nearfar_text_slots", *labels)
    counters = {
        name: _counter(f"nearfar_text_{name}", *labels) for name in ("tokens_in", "tokens_reused", "tokens_out")
    }
    for service, view in snapshot.services.items():
        report, text = view.report, view.report.text
        if text is None:
            continue
        key = [node_of(service), report.model, report.variant, report.runtime]
        slots.add_metric(key, report.workers)
        for gauge, value in ((first, text.first_token_ms / 1000), (prefill, text.prefill_per_s)):
            if value:
                gauge.add_metric(key, value)
        if text.decode_per_s:
            decode.add_metric(key, text.decode_per_s)
        for name, counter in counters.items():
            counter.add_metric(key, getattr(text, name))
    yield from (first, prefill, decode, slots)
    yield from counters.values()


def _counter(name: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, METRICS[name], labels=labels)


def _gauge(name: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, METRICS[name], labels=labels)


def _histogram(name: str, *labels: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, METRICS[name], labels=labels)


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    counts = histogram.at_most(BOUNDS_MS)
    buckets = [(str(bound / 1000), float(count)) for bound, count in zip(BOUNDS_MS, counts, strict=True)]
    family.add_metric(labels, [*buckets, ("+Inf", float(histogram.total))], histogram.sum / 1000)


def render(state: State) -> bytes:
    """The page, in Prometheus' text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FleetCollector(state))
    return bytes(generate_latest(registry))
