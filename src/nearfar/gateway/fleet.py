"""The fleet as JSON: what `GET /v1/fleet` and `nearfar nodes|services|models --json` show."""

from __future__ import annotations

from typing import Any

import msgspec

from nearfar.fleet.health import health, node_health
from nearfar.fleet.snapshot import Snapshot, freshness
from nearfar.types.histogram import Histogram
from nearfar.types.telemetry import ServiceReport, TextReport
from nearfar.types.units import Seconds


def fleet_as_json(snapshot: Snapshot, now: Seconds) -> dict[str, Any]:
    """Nodes, services, models and links with health and reasons. Ages in seconds, latencies in milliseconds."""
    return {
        "me": snapshot.me,
        "nodes": nodes_as_json(snapshot, now),
        "services": services_as_json(snapshot, now),
        "models": models_as_json(snapshot, now),
        "links": [
            {
                "source": source,
                "destination": destination,
                "rtt_ms": round(link.rtt, 3),
                "jitter_ms": round(link.jitter, 3),
                "loss": round(link.loss, 4),
                "bandwidth_bytes_per_second": link.bandwidth,
            }
            for (source, destination), link in sorted(snapshot.links.items())
        ],
    }


def nodes_as_json(snapshot: Snapshot, now: Seconds) -> list[dict[str, Any]]:
    rows = []
    for node, view in sorted(snapshot.nodes.items()):
        age = freshness(view, now)
        state, code, reason = node_health(view, now)
        row: dict[str, Any] = {"node": node, "alive": view.alive, "heard_seconds_ago": _finite(age)}
        row |= {"health": state.value, "code": code, "reason": reason}
        if view.report is not None:
            row |= {
                "version": view.report.version,
                "cpu": round(view.report.cpu, 3),
                "memory_free": view.report.memory_free,
                "temperature_celsius": view.report.temperature,
                "temperature_reason": view.report.temperature_reason,
                "throttled": view.report.throttled,
                "throttled_reason": view.report.throttled_reason,
                "gateway": view.report.gateway,
                "models": list(view.report.models),
                "device": msgspec.to_builtins(view.report.device),
            }
        rows.append(row)
    return rows


def services_as_json(snapshot: Snapshot, now: Seconds) -> list[dict[str, Any]]:
    rows = []
    for service, view in sorted(snapshot.services.items()):
        report = view.report
        state, code, reason = health(snapshot, service, now)
        test = report.self_test
        observed = snapshot.observed.get(service)
        rows.append(
            {
                "service": service,
                "node": report.node,
                "model": report.model,
                "variant": report.variant,
                "runtime": report.runtime,
                "unit": report.unit,
                "state": report.state.value,
                "healthy": state.may_be_asked,
                "health": state.value,
                "code": code,
                "reason": reason or report.reason,
                "self_test": {
                    "passed": test.passed,
                    "reason": test.reason,
                    "seconds_ago": None if test.passed is None else _finite(test.age + freshness(view, now)),
                    "failed": test.failed,
                },
                "error_rate": round(report.error_rate, 4),
                "queued": report.queued,
                "in_flight": report.in_flight,
                "queue_limit": report.queue_limit,
                "answered": report.answered,
                "failed": report.failed,
                "refused": report.refused,
                "service_ms": round(report.service_ms, 3),
                "cost": report.cost,
                "memory": report.memory,
                "stages": _stages(report),
                "text": None if report.text is None else _text(report, report.text),
                "failures_seen_here": observed.failures if observed else 0,
            }
        )
    return rows


def models_as_json(snapshot: Snapshot, now: Seconds) -> list[dict[str, Any]]:
    """Every model that the fleet serves or stores, with where."""
    rows: dict[str, dict[str, Any]] = {}
    for node, node_view in snapshot.nodes.items():
        if node_view.alive and node_view.report is not None:
            for model in node_view.report.models:
                rows.setdefault(model, {"model": model, "served_by": [], "stored_on": []})["stored_on"].append(node)
    for service, view in snapshot.services.items():
        row = rows.setdefault(view.report.model, {"model": view.report.model, "served_by": [], "stored_on": []})
        if health(snapshot, service, now)[0].may_be_asked:
            row["served_by"].append(service)
    return [rows[model] for model in sorted(rows)]


def _stages(report: ServiceReport) -> dict[str, dict[str, float | None]]:
    told = {}
    for stage, summary in report.stages.items():
        histogram = Histogram(summary.counts, summary.sum)
        told[stage] = {f"p{q}_ms": _finite(histogram.quantile(q / 100)) for q in (50, 95, 99)}
    return told


def _text(report: ServiceReport, text: TextReport) -> dict[str, float | None]:
    """What a language service measured; None where it has not yet."""
    return {
        "context": text.context,
        "slots": report.workers,
        "first_token_ms": _finite(text.first_token_ms) or None,
        "prefill_per_s": _finite(text.prefill_per_s) or None,
        "decode_per_s": _finite(text.decode_per_s) or None,
        "tokens_in": text.tokens_in,
        "tokens_reused": text.tokens_reused,
        "tokens_out": text.tokens_out,
    }


def _finite(value: float) -> float | None:
    return round(value, 3) if value - value == 0 else None  # NaN and infinity are not JSON
