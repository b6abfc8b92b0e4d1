"""How to open a Zenoh mesh; apart from `zenoh.py` so that settings can be read without loading Zenoh."""

from __future__ import annotations

import ipaddress

import msgspec


class TlsFiles(msgspec.Struct, frozen=True):
    """Mutual TLS: PEM files of the fleet's authority, of this node's certificate and of its key."""

    authority: str
    certificate: str
    key: str


class ZenohOptions(msgspec.Struct, frozen=True):
    """How to open. Endpoints are Zenoh's: `tcp/127.0.0.1:0`, `tls/0.0.0.0:7447`, `unixsock-stream//path`."""

    fleet: str = "default"
    """Only nodes of the same fleet name see each other."""
    listen: tuple[str, ...] = ("tcp/127.0.0.1:0",)
    join: tuple[str, ...] = ()
    discover: bool = True
    """Find peers by multicast, on the loopback interface only when nothing listens beyond it."""
    lease_ms: int = 2000
    """A peer that is silent for so long is gone; each side announces its own."""
    tls: TlsFiles | None = None


def loopback(endpoint: str) -> bool:
    """Whether an endpoint can be reached from this machine alone. A name may be anybody's, but for `localhost`.

    >>> loopback("tcp/127.0.0.1:0"), loopback("tcp/0.0.0.0:7447"), loopback("tcp/127.example.org:1")
    (True, False, False)
    """
    protocol, _, address = endpoint.partition("/")
    if protocol in ("unixsock-stream", "unixpipe"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
