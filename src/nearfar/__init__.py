"""nearfar: AI inference where it should run.

Importing this package opens no socket, reads no key and loads no heavy library; names are resolved when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nearfar.client.client import Client
    from nearfar.client.connect import connect
    from nearfar.types.detections import Detections
    from nearfar.types.image import Image
    from nearfar.types.request import Answer, Qos, Request
    from nearfar.types.tensor import Tensor

__all__ = ["Answer", "Client", "Detections", "Image", "Qos", "Request", "Tensor", "__version__", "connect"]

_HOME = {
    "Answer": "nearfar.types.request",
    "Client": "nearfar.client.client",
    "Detections": "nearfar.types.detections",
    "Image": "nearfar.types.image",
    "Qos": "nearfar.types.request",
    "Request": "nearfar.types.request",
    "Tensor": "nearfar.types.tensor",
    "connect": "nearfar.client.connect",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'nearfar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
