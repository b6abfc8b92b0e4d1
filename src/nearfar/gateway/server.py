"""The HTTP server of a gateway, inside an event loop that belongs to somebody else."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import uvicorn

from nearfar.errors import NearfarError, PortBusy, SettingsError
from nearfar.gateway.app import make_app
from nearfar.gateway.state import State

SWEEP_EVERY = 1.0
"""Seconds between two looks for silent connections."""


log = logging.getLogger(__name__)


def _protocol() -> Any:
    """The bounded protocol; uvicorn's choice where httptools is not installed (h11 has bounds of its own)."""
    try:
        from nearfar.gateway.protocol import BoundedProtocol
    except ImportError:
        return "auto"
    return BoundedProtocol


class Address(msgspec.Struct, frozen=True):
    """Where to listen. Beyond loopback, TLS files and an API key are required."""

    host: str = "127.0.0.1"
    port: int = 8080
    tls_certificate: str = ""
    tls_key: str = ""

    @property
    def loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name, which may be anybody's: also 127.example.org
            return False

    def check(self, *, keyed: bool) -> None:
        """Raise `SettingsError` for an address beyond this machine without a key or without TLS."""
        if not self.loopback and not (keyed and self.tls_certificate and self.tls_key):
            raise SettingsError(
                f"The gateway would listen on {self.host}, beyond this machine, without a key and TLS.",
                "Set [gateway] api_key_file, tls_cert and tls_key, or listen on 127.0.0.1.",
            )


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has one owner, and that is not the server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Gateway:
    """Listens from `start` to `close`; `url` is where."""

    def __init__(self, state: State, address: Address, *, keyed: bool = False) -> None:
        address.check(keyed=keyed)
        self._address = address
        self._state = state
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self.url = ""

    async def start(self) -> None:
        """Raises `PortBusy` when somebody else has the port."""
        address = self._address
        bound = _bind(address.host, address.port)
        config = uvicorn.Config(
            make_app(self._state),
            http=_protocol(),
            ws="none",
            lifespan="off",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            ssl_certfile=address.tls_certificate or None,
            ssl_keyfile=address.tls_key or None,
        )
        self._server = _Server(config)
        scheme = "https" if address.tls_certificate else "http"
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.url = f"{scheme}://{host}:{bound.getsockname()[1]}"
        self._task = asyncio.create_task(self._server.serve(sockets=[bound]), name="gateway")
        while not self._server.started:
            if self._task.done():
                await self._task
                raise NearfarError("The gateway ended while it started.")
            await asyncio.sleep(0.005)
        self._sweeper = asyncio.create_task(self._sweep(self._server), name="gateway sweep")

    async def _sweep(self, server: _Server) -> None:
        """Close connections that are silent in the middle of a request: one look at all costs less than many timers."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_EVERY)
            try:
                self._state.client.snapshot()  # folds what has come: an idle gateway must not let it pile up
                for connection in tuple(server.server_state.connections):
                    if (expire := getattr(connection, "expire", None)) is not None:
                        expire(loop.time())
            except Exception:
                log.exception("the sweep of connections failed")

    async def close(self) -> None:
        """Finish what is in flight, a few seconds at most."""
        if self._server is None or self._task is None:
            return
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._server.should_exit = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._task), 3)
        self._server.force_exit = True
        await asyncio.gather(self._task, return_exceptions=True)
        await self._state.streams.close()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, so that asyncio sets NODELAY
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise PortBusy(
            f"Port {port} on {host} cannot be used: {error.strerror}.", "Choose another: nearfar up --port 8081."
        ) from None
    bound.setblocking(False)
    return bound
