"""Why a candidate was not chosen: data that the CLI, the API and the dashboard show in the same words."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """`subject` is a service id, a node id or a model name; `code` one of `CODES`; `reason` a phrase for people."""

    subject: str
    code: str
    reason: str

    def as_mapping(self) -> dict[str, str]:
        return {"subject": self.subject, "code": self.code, "reason": self.reason}


CODES: Mapping[str, str] = {
    "gone": "it said goodbye, or its process ended while its node lives",
    "disconnected": "its node vanished with all its services and without a goodbye; it may come back as it was",
    "stale": "a token, but no telemetry for longer than two seconds",
    "starting": "the service is loading its variant",
    "failed": "the service gave up or waits for its next restart",
    "stopping": "the service is being shut down",
    "self-test": "the service answered a question wrongly whose answer is known",
    "error-rate": "half of its last requests failed by its own fault; it is tried again when it has rested",
    "excluded": "it already failed this very request",
    "pinned": "the request names another node",
    "private": "the request's data may not travel there",
    "cost": "one request costs more there than the caller allows",
    "slow": "the language service lately wrote fewer tokens a second than the caller asks for",
    "far": "a far end or paid service, asked only when nothing near keeps the promise (`degrade` has `far`)",
    "not-served": "the node runs no service for the model",
    "queue-full": "the service's queue is full",
    "memory": "the node has almost no memory left",
    "silent": "it owes this client an answer, and nothing has been heard from it for longer than is usual",
    "quarantined": "several requests in a row failed there; it is tried again after a while",
    "unreliable": "a promise was broken there; it is tried again after a while",
    "late": "it would answer after the deadline, and the caller would rather be refused (`degrade` has `refuse`)",
    "unknown-model": "no node of the fleet serves the model or has it in its store",
}
"""Every code a refusal can have, with its meaning."""
