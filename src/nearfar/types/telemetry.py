"""What nodes and services say of themselves and of each other. These structs are the wire format of telemetry.

Clocks of different machines are never compared: a report carries no time stamp; the receiver notes when it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from nearfar.types.ids import ModelName, NodeId, ServiceId, VariantId
from nearfar.types.units import Bytes, BytesPerSecond, Celsius, Milliseconds, Ratio, Seconds


class Reading(msgspec.Struct, frozen=True):
    """A detected value and why it is believed. `value` None means unavailable, and the reason says why."""

    value: str | float | int | None
    reason: str

    def __str__(self) -> str:
        return "unavailable" if self.value is None else str(self.value)


class UnitKind(StrEnum):
    CPU = "cpu"
    GPU = "gpu"
    TPU = "tpu"
    VPU = "vpu"
    NPU = "npu"
    MCU = "mcu"
    FAR = "far"
    """Somebody else's machine; no part of this one."""


class ComputeUnit(msgspec.Struct, frozen=True):
    """Something that can run a variant; `name` is the runtime's own name for it."""

    kind: UnitKind
    name: str
    reason: str


class DeviceInfo(msgspec.Struct, frozen=True):
    """What a machine is. Every entry of `readings` carries its reason (`cpu_model`, `cores`, `isa`, `board`, ...)."""

    readings: Mapping[str, Reading]
    units: tuple[ComputeUnit, ...]
    cores: float
    """Cores this process may use, after cgroup limits and affinity."""
    memory: Bytes
    """Memory this process may use, after cgroup limits."""


class ServiceState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    """Gave up or waits for its next restart; `reason` says which."""
    STOPPING = "stopping"


class StageSummary(msgspec.Struct, frozen=True):
    """A histogram of one stage since the service started, in milliseconds."""

    counts: Mapping[int, int]
    sum: float


class SelfTest(msgspec.Struct, frozen=True):
    """What became of the last question whose answer is known."""

    passed: bool | None = None
    """None when it was not asked, or cannot be; the reason says why."""
    reason: str = "not asked yet"
    age: Seconds = Seconds(0.0)
    """How long ago that was, when the report was made."""
    failed: int = 0
    """Self-tests of this service that failed since its node started."""


NOT_TESTED = SelfTest()


class TextReport(msgspec.Struct, frozen=True):
    """What a language service measured of itself lately; 0 where nothing was measured yet."""

    context: int = 0
    """Tokens of prompt and answer together that one conversation may have."""
    first_token_ms: Milliseconds = Milliseconds(0.0)
    """Recent mean time from the start of the work on a call to its first token, without waiting."""
    prefill_per_s: float = 0.0
    """Tokens of a prompt read per second."""
    decode_per_s: float = 0.0
    """Tokens of one answer written per second."""
    tokens_in: int = 0
    """Of all prompts since the start."""
    tokens_reused: int = 0
    """Of these, how many needed no work as the beginning was known."""
    tokens_out: int = 0
    price_in: float = 0.0
    """Of a far end, for a million tokens of prompt; 0 on hardware of one's own."""
    price_out: float = 0.0
    """The same for a million tokens of answer."""
    currency: str = ""
    embedding: bool = False
    """It gives vectors, not text."""
    build: str = ""
    """Of model file and engine: conversations move with their state where it is equal. "" where none moves so."""


REVISION = 12
"""Digits of a digest that tell one file of a model from another."""


class ServiceReport(msgspec.Struct, frozen=True):
    """Telemetry of one service, published by the service itself (or by its agent when it is not running)."""

    service: ServiceId
    node: NodeId
    model: ModelName
    variant: VariantId
    runtime: str
    unit: str
    """The compute unit it runs on, e.g. `cpu`."""
    state: ServiceState
    reason: str
    """Why this variant, or why it is in this state."""
    instance: str = ""
    """Differs after every restart."""
    queued: int = 0
    in_flight: int = 0
    queue_limit: int = 0
    workers: int = 1
    answered: int = 0
    failed: int = 0
    refused: int = 0
    service_ms: float = 0.0
    """Recent mean of preprocess + inference + postprocess, 0 before the first measurement."""
    profile_ms: float = 0.0
    """Mean service time measured when the service started."""
    stages: Mapping[str, StageSummary] = {}
    memory: Bytes = Bytes(0)
    """Resident memory of the process; 0 when it is not running."""
    cost: float = 0.0
    """What one request costs there, in the operator's currency; 0 on hardware of one's own."""
    error_rate: Ratio = Ratio(0.0)
    """Share of its last requests that failed by its own fault (`node/meter.py`); 0 while there are too few to tell."""
    self_test: SelfTest = NOT_TESTED
    text: TextReport | None = None
    """Of a language service."""
    revision: str = ""
    """The first `REVISION` digits of the sha256 of the file it serves: another file gives other answers."""


class LinkReport(msgspec.Struct, frozen=True):
    """What one node measured towards another. Loss is the share of pings without an answer."""

    peer: NodeId
    rtt: Milliseconds
    jitter: Milliseconds
    loss: Ratio
    bandwidth: BytesPerSecond | None
    """None until enough bulk data has been timed."""


class NodeReport(msgspec.Struct, frozen=True):
    """Telemetry of one node, published by its agent twice a second or on change."""

    node: NodeId
    instance: str
    version: str
    device: DeviceInfo
    models: tuple[ModelName, ...]
    """Models in this node's store, served or not."""
    cpu: Ratio
    """Share of the machine's usable cores that is busy."""
    memory_free: Bytes
    temperature: Celsius | None
    temperature_reason: str
    links: tuple[LinkReport, ...] = ()
    gateway: str | None = None
    """URL of this node's gateway, as it is reachable from its own machine."""
    host: str = ""
    """An id of the machine: services of one host share its cores and need no network between them."""
    throttled: bool | None = None
    """Whether its processor is held back just now, for heat or want of power; None when the system does not tell."""
    throttled_reason: str = "not told"
    leaving: bool = False
    """It says goodbye: what follows is no accident."""
