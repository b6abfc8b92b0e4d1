"""What an agent tells a service process, as one JSON line on its standard input, and what the process answers."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from nearfar.mesh.impaired import Impairment
from nearfar.mesh.zenoh_options import ZenohOptions
from nearfar.types.ids import ModelName, NodeId, ServiceId, VariantId, service_id


class TextSpec(msgspec.Struct, frozen=True):
    """How a language model is loaded: `context` in tokens, `memory` in bytes (0: what is free)."""

    context: int
    slots: int
    memory: int = 0
    settings: Mapping[str, str] = {}
    state_limit: int = 0
    """Most bytes of a state that moves with its conversation; 0: none moves."""


class ServiceSpec(msgspec.Struct, frozen=True):
    """One variant to serve. `manifest` is the manifest's text; `reason` says why this variant was chosen."""

    node: NodeId
    model: ModelName
    variant: VariantId
    instance: str
    file: str
    manifest: str
    runtime: str
    unit: str
    reason: str
    mesh: ZenohOptions
    threads: int = 1
    workers: int = 1
    queue_limit: int = 64
    slowdown: float = 1.0
    """Emulated compute: inference takes so many times as long as it does here."""
    stuck_after: float = 0.0
    """Seconds after which an inference that has not ended ends the process; 0 for never."""
    impairment: Impairment = Impairment()
    cost: float = 0.0
    """Price of one request, as the node's settings state it."""
    self_test_every: float = 0.0
    """Seconds between questions whose answer is known; 0 for never, not even at the start."""
    known_answer: str = ""
    """The recorded answer as `runtimes/known_answer.py` wrote it; "" when there is none."""
    self_tests_failed: int = 0
    """Of this service since its node started."""

    text: TextSpec | None = None
    """Of a language model."""
    revision: str = ""
    """As `ServiceReport.revision`."""

    @property
    def service(self) -> ServiceId:
        return service_id(self.node, self.model)


class Milestone(StrEnum):
    READY = "ready"
    FAILED = "failed"


class Word(msgspec.Struct, frozen=True):
    """A line that the service process prints for its agent."""

    milestone: Milestone
    code: str = ""
    message: str = ""
    profile_ms: float = 0.0
