"""Where nodes and services stand in the mesh's key space."""

from __future__ import annotations

from nearfar.types.ids import NodeId, ServiceId, StreamId

SERVICES = "service/*/*"
"""Tokens of services; each is also the key of its requests."""
NODES = "node/*/*"
"""Tokens of agents: node id and instance."""
SERVICE_REPORTS = "report/service/*/*"
NODE_REPORTS = "report/node/*"
TRAILS = "trail/*"
"""Tokens of running streams; each is also the key at which its trail is asked for."""


def service_key(service: ServiceId) -> str:
    """
    >>> service_key(ServiceId("pi/yard"))
    'service/pi/yard'
    """
    return f"service/{service}"


def state_key(service: ServiceId) -> str:
    """Answers with the state of a conversation, to who has a ticket."""
    return f"state/{service}"


def service_of(key: str) -> ServiceId:
    """The service of a token's key; the inverse of `service_key`."""
    return ServiceId(key.partition("/")[2])


def service_report_key(service: ServiceId) -> str:
    return f"report/service/{service}"


def node_key(node: NodeId, instance: str) -> str:
    return f"node/{node}/{instance}"


def node_report_key(node: NodeId) -> str:
    return f"report/node/{node}"


def ping_key(node: NodeId) -> str:
    """Answers at once with the body it gets: for round trips, and for bandwidth with a large body."""
    return f"ping/{node}"


def trail_key(stream: StreamId) -> str:
    """Answers with the entries of a running stream's trail."""
    return f"trail/{stream}"
