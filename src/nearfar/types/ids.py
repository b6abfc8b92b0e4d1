"""Ids are types: a node id is never handed over where a service id is meant."""

from __future__ import annotations

import re
from typing import NewType

NodeId = NewType("NodeId", str)
"""One running agent. Letters, digits, `-` and `_`; unique in a fleet."""
ServiceId = NewType("ServiceId", str)
"""One served variant on one node: `<node>/<model>`. Also its place in the mesh's key space."""
ModelName = NewType("ModelName", str)
VariantId = NewType("VariantId", str)
StreamId = NewType("StreamId", str)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""Names of models and nodes: safe in a path, in a URL and in a mesh key."""


def is_name(text: str) -> bool:
    """Whether the text may name a model or a node.

    >>> is_name("yolox-nano"), is_name("../etc"), is_name("a/b")
    (True, False, False)
    """
    return NAME.fullmatch(text) is not None and ".." not in text


def service_id(node: NodeId, model: ModelName) -> ServiceId:
    return ServiceId(f"{node}/{model}")


def node_of(service: ServiceId) -> NodeId:
    """
    >>> node_of(service_id(NodeId("pi"), ModelName("yard")))
    'pi'
    """
    return NodeId(service.partition("/")[0])
