"""Everything that changes a snapshot. Each event is a frozen value with the moment `at` when this client learned of it.

Events come from the mesh (tokens and telemetry), from the link prober, and from this client's own requests.
"""

from __future__ import annotations

import math

import msgspec

from nearfar.types.ids import NodeId, ServiceId
from nearfar.types.request import Stages
from nearfar.types.telemetry import LinkReport, NodeReport, ServiceReport
from nearfar.types.units import Bytes, Milliseconds, Seconds

NEVER = Seconds(-math.inf)
"""The moment of what has not happened yet."""


class NodeAppeared(msgspec.Struct, frozen=True, tag=True):
    """The node's liveliness token is there."""

    node: NodeId
    at: Seconds


class NodeVanished(msgspec.Struct, frozen=True, tag=True):
    """The node's liveliness token is gone."""

    node: NodeId
    at: Seconds


class NodeReported(msgspec.Struct, frozen=True, tag=True):
    """Telemetry of a node came, with the links it measured."""

    report: NodeReport
    at: Seconds


class NodeForgotten(msgspec.Struct, frozen=True, tag=True):
    """The node has been gone long enough: it leaves the snapshot with its links. No effect on a living one."""

    node: NodeId
    at: Seconds


class ServiceAppeared(msgspec.Struct, frozen=True, tag=True):
    """The service's liveliness token is there."""

    service: ServiceId
    at: Seconds


class ServiceVanished(msgspec.Struct, frozen=True, tag=True):
    """The service's liveliness token is gone; its last report is kept to say why."""

    service: ServiceId
    at: Seconds


class ServiceReported(msgspec.Struct, frozen=True, tag=True):
    """Telemetry of a service came, from itself or (instance "") from its agent."""

    report: ServiceReport
    at: Seconds


class ServiceForgotten(msgspec.Struct, frozen=True, tag=True):
    """The service has been gone long enough: it leaves the snapshot. No effect on a living one."""

    service: ServiceId
    at: Seconds


class LinkMeasured(msgspec.Struct, frozen=True, tag=True):
    """`source` measured its link to `report.peer`."""

    source: NodeId
    report: LinkReport
    at: Seconds


class RequestSent(msgspec.Struct, frozen=True, tag=True):
    """This client sent a request. Exactly one `RequestAnswered` or `RequestFailed` must follow, also when cancelled."""

    service: ServiceId
    at: Seconds
    due: Seconds = NEVER
    """When its answer is expected; `NEVER` when nobody estimated it: then its silence is not judged."""


class RequestAnswered(msgspec.Struct, frozen=True, tag=True):
    """An answer came. `queued` is how many waited at the service when it answered; `moved` counts bytes both ways."""

    service: ServiceId
    stages: Stages
    at: Seconds
    queued: int = 0
    moved: Bytes = Bytes(0)
    due: Seconds = NEVER
    """That of its `RequestSent`."""


class RequestFailed(msgspec.Struct, frozen=True, tag=True):
    """No answer came. `code` is that of the exception (`errors.py`); some codes are not held against the service.

    Two more are no exceptions: `doomed`, the service refused what it could not answer in time (`fleet/doomed.py`); and
    `silent`, this client no longer waited because another answered what this one owed (`placement/silence.py`).
    """

    service: ServiceId
    code: str
    at: Seconds
    waited: Milliseconds | None = None
    """How long this client waited for it. A missed deadline that the service could not have kept is the caller's."""
    due: Seconds = NEVER
    """That of its `RequestSent`."""
    queued: int | None = None
    """How many waited at the service when it refused, if it said so."""


class PromiseBroken(msgspec.Struct, frozen=True, tag=True):
    """More answers of a stream of ours were late or lost at the service than it was promised; `reason` has figures."""

    service: ServiceId
    deadline: Milliseconds
    at: Seconds
    reason: str = ""


Event = (
    RequestSent
    | RequestAnswered
    | RequestFailed
    | ServiceReported
    | NodeReported
    | ServiceAppeared
    | ServiceVanished
    | ServiceForgotten
    | NodeAppeared
    | NodeVanished
    | NodeForgotten
    | LinkMeasured
    | PromiseBroken
)
