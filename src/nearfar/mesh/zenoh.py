"""The mesh over Eclipse Zenoh: peers that find each other, over TCP or TLS.

Requests are publish/subscribe with a correlation id, not Zenoh queries (three times the throughput); a reply goes to
the caller's own inbox key. Liveliness tokens tell who is there: a server that dies fails its callers at once.

Key space below `nearfar/<fleet>/`: `call/<key>` requests, `inbox/<identity>` replies, `say/<key>` what is published,
`alive/<key>` tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec

os.environ.setdefault("ZENOH_RUNTIME", "(rx: (worker_threads: 16))")
# Before the first zenoh call: with its two default receive workers, hosts that vanish together block all the others.

import zenoh

from nearfar.errors import MeshError, PortBusy, TooLarge, Unreachable
from nearfar.mesh.base import MAX_MESSAGE, Buffer, Handle, Mesh, Message, OnCall, OnChange, OnMessage
from nearfar.mesh.door import SUPPORTED, Door, Way, find
from nearfar.mesh.exchange import Exchange
from nearfar.mesh.patterns import matches
from nearfar.mesh.zenoh_options import ZenohOptions, loopback

_CALL, _CANCEL, _MORE, _LAST = range(4)
_TO_SERVER = struct.Struct("<BQ16s")  # kind, correlation, identity of the caller; the head follows
_TO_CALLER = struct.Struct("<BQ")  # kind, correlation; the head follows

_BLOCK = zenoh.CongestionControl.BLOCK
_DROP = zenoh.CongestionControl.DROP
_NOBODY: frozenset[str] = frozenset()


def _config(options: ZenohOptions) -> Any:
    config = zenoh.Config()
    inside = all(map(loopback, options.listen))
    settings: dict[str, Any] = {
        "mode": "peer",
        "listen/endpoints": list(options.listen),
        "connect/endpoints": list(options.join),
        "connect/timeout_ms": 0,  # a seed that is down is tried again in the background, it does not stop the start
        "connect/exit_on_failure": False,
        "listen/exit_on_failure": True,
        "scouting/multicast/enabled": options.discover,
        "scouting/gossip/enabled": True,
        "transport/link/tx/lease": options.lease_ms,
        # A stalled peer must not block the session for the default 5 s; less would cut links slower than 0.5 Mbit/s.
        "transport/link/tx/queue/congestion_control/block/wait_before_close": 1_000_000,
        "transport/shared_memory/enabled": False,  # slower than a socket for small messages
    }
    if inside and options.discover:
        settings["scouting/multicast/interface"] = "lo"
    if options.tls is not None:
        # Else whoever answers a multicast with a TCP endpoint, or gossips one, would be connected to in the clear.
        settings["transport/link/protocols"] = ["tls", "unixsock-stream"]
        settings["transport/link/tls/root_ca_certificate"] = options.tls.authority
        settings["transport/link/tls/listen_certificate"] = options.tls.certificate
        settings["transport/link/tls/listen_private_key"] = options.tls.key
        settings["transport/link/tls/connect_certificate"] = options.tls.certificate
        settings["transport/link/tls/connect_private_key"] = options.tls.key
        settings["transport/link/tls/enable_mtls"] = True
        settings["transport/link/tls/verify_name_on_connect"] = False  # nodes are known by the authority, not by name
    for path, value in settings.items():
        try:
            config.insert_json5(path, json.dumps(value))
        except zenoh.ZError as error:
            if path.endswith("/endpoints"):
                flag = "--join" if path.startswith("connect") else "--listen"
                wrong = [endpoint for endpoint in value if not _is_endpoint(path, endpoint)] or value
                raise MeshError(
                    f"{flag} {' '.join(wrong)} is no mesh endpoint.", f"Write it as in {flag} tcp/10.0.0.5:7447."
                ) from None
            raise MeshError(f"Zenoh refuses the setting {path} = {value!r}: {error}") from None
    return config


def _is_endpoint(path: str, endpoint: str) -> bool:
    """Whether zenoh takes it: of several endpoints it does not say which one it refuses."""
    try:
        zenoh.Config().insert_json5(path, json.dumps([endpoint]))
    except zenoh.ZError:
        return False
    return True


def _secured(options: ZenohOptions) -> ZenohOptions:
    """With TLS files nothing is spoken without TLS: `tcp/` endpoints become `tls/`, to listen at and to join."""
    if options.tls is None:
        return options
    listen, join = (
        tuple(f"tls/{endpoint[4:]}" if endpoint.startswith("tcp/") else endpoint for endpoint in endpoints)
        for endpoints in (options.listen, options.join)
    )
    return msgspec.structs.replace(options, listen=listen, join=join)


def _with_port(endpoint: str) -> str:
    """The endpoint with a free port in place of port 0: Zenoh does not tell which port it took."""
    head, colon, port = endpoint.rpartition(":")
    if port != "0" or not colon:
        return endpoint
    host = head.partition("/")[2].strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            return f"{head}:{probe.getsockname()[1]}"
    except OSError as error:
        raise MeshError(
            f"The mesh cannot listen at {endpoint}: {error.strerror}.", "Give an address of this machine to --listen."
        ) from None


def _open(options: ZenohOptions) -> tuple[Any, tuple[str, ...]]:
    """The session and the endpoints it listens on. A port that we chose and lost to somebody else is chosen anew."""
    options = _secured(options)
    chosen = any(endpoint.endswith(":0") for endpoint in options.listen)
    for attempt in range(5 if chosen else 1):
        listen = tuple(map(_with_port, options.listen))
        try:
            return zenoh.open(_config(msgspec.structs.replace(options, listen=listen))), listen
        except zenoh.ZError as error:
            text = str(error)
            if "in use" not in text and "EADDRINUSE" not in text:
                raise MeshError(f"The mesh cannot be opened: {text}", "Check --listen and --join.") from None
            if attempt == 4 or not chosen:
                break
    raise PortBusy(f"{', '.join(options.listen)} is taken.", "Choose another with --listen, or stop who has it.")


class _ZenohCall:
    __slots__ = ("_mesh", "_number", "body", "cancelled", "head", "received", "sender")

    patient = False  # it comes on a thread of Zenoh's, which serves every peer

    def __init__(self, mesh: ZenohMesh, sender: str, number: int, head: bytes, body: Buffer) -> None:
        self._mesh = mesh
        self._number = number
        self.sender = sender
        self.head = head
        self.body = body
        self.received = time.monotonic()
        self.cancelled = False

    def reply(self, head: bytes, body: Sequence[Buffer] = (), *, last: bool = True) -> None:
        self._mesh.send_reply(self.sender, self._number, head, body, last)


def _attachment(sample: Any) -> bytes:
    found = sample.attachment
    return found.to_bytes() if found is not None else b""


class _Declared:
    """What was declared. The mesh holds it too: Zenoh withdraws a token that is garbage-collected."""

    def __init__(self, held: set[_Declared], *things: Any) -> None:
        self._things = list(things)
        self._held = held
        held.add(self)

    def close(self) -> None:
        self._held.discard(self)
        while self._things:
            thing = self._things.pop()
            with contextlib.suppress(zenoh.ZError):  # the session may be closed already
                thing.undeclare() if hasattr(thing, "undeclare") else thing()


class ZenohMesh(Mesh):
    """One Zenoh session. Opening takes some hundred milliseconds and blocks: open it off the event loop."""

    def __init__(self, options: ZenohOptions) -> None:
        self.identity = uuid.uuid4().hex[:16]
        self._root = f"nearfar/{options.fleet}"
        self._calls: dict[tuple[str, int], _ZenohCall] = {}
        self._holders: dict[str, frozenset[str]] = {}
        """Keys that are alive, with the identities that hold a token there."""
        self._watchers: list[tuple[str, OnChange]] = []
        self._alive_lock = threading.RLock()
        self._held: set[_Declared] = set()
        self._closed = False
        self._session, self.endpoints = _open(options)
        self._fleet = options.fleet
        self._ways: dict[str, Way | None] = {}
        """Doors of servers on this machine; None while one is looked for, and when there is none."""
        self._looking: set[asyncio.Task[None]] = set()
        self._exchange = Exchange(self._send, self._cancel, self._holders_of, self._send_near)
        self._tokens: dict[str, Any] = {}
        self._subscribe_raw(f"inbox/{self.identity}", self._on_reply)
        self._watch_raw("alive/**", self._on_alive)

    def _direct(self, callback: Callable[[Any], None]) -> Any:
        return zenoh.handlers.Callback(callback, indirect=False)

    def _subscribe_raw(self, key: str, callback: Callable[[Any], None]) -> Any:
        return self._session.declare_subscriber(f"{self._root}/{key}", self._direct(callback))

    def _watch_raw(self, pattern: str, callback: Callable[[Any], None]) -> Any:
        return self._session.liveliness().declare_subscriber(
            f"{self._root}/{pattern}", self._direct(callback), history=True
        )

    def _put(self, key: str, attachment: bytes, body: Sequence[Buffer], congestion: Any = _BLOCK) -> None:
        payload = body[0] if len(body) == 1 else b"".join(body)
        if len(payload) > MAX_MESSAGE:
            raise TooLarge(f"A message of {len(payload)} bytes is over the limit of {MAX_MESSAGE}.")
        try:
            self._session.put(
                f"{self._root}/{key}",
                payload if isinstance(payload, bytes) else bytes(payload),
                attachment=attachment,
                congestion_control=congestion,
                express=True,
            )
        except zenoh.ZError as error:
            raise MeshError(f"Sending to {key} failed: {error}") from None

    # -- requests, the caller's side ------------------------------------------------------------------------------

    def _send(self, key: str, number: int, head: bytes, body: Sequence[Buffer]) -> None:
        self._put(f"call/{key}", _TO_SERVER.pack(_CALL, number, self.identity.encode()) + head, body)

    def _send_near(self, key: str, number: int, head: bytes, body: Sequence[Buffer]) -> bool:
        """Through the server's door when it is on this machine and found; on the event loop."""
        way = self._ways.get(key)
        if way is not None and way.open:
            way.send(number, head, body)
            return True
        if key not in self._ways:
            self._ways[key] = None
            task = asyncio.get_running_loop().create_task(self._find_way(key), name=f"door {key}")
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)
        return False

    async def _find_way(self, key: str) -> None:
        def lost() -> None:
            if self._ways.pop(key, None) is not None:
                self._exchange.lost(key)

        way = await find(self._fleet, key, self._exchange.deliver_now, lost)
        if way is not None and not way.open:  # lost again before we were told of it: its successor may have a door
            self._ways.pop(key, None)
        else:
            self._ways[key] = way

    def _holders_of(self, key: str) -> frozenset[str]:
        return self._holders.get(key, _NOBODY)  # replaced as a whole when one comes or goes: no lock, no copy

    def _cancel(self, key: str, number: int) -> None:
        way = self._ways.get(key)
        if way is not None:
            way.cancel(number)
        if not self._closed:  # over the mesh too: the door may have been found after the request was sent
            with contextlib.suppress(MeshError):  # the server is gone, so is the work
                # May be dropped, but never waits: this is the event loop, and the peer may have stopped reading.
                self._put(f"call/{key}", _TO_SERVER.pack(_CANCEL, number, self.identity.encode()), (b"",), _DROP)

    def _on_reply(self, sample: Any) -> None:
        attachment = _attachment(sample)
        if len(attachment) < _TO_CALLER.size:
            return  # not ours; its real owner gets a deadline, not a wrong answer
        kind, number = _TO_CALLER.unpack_from(attachment)
        self._exchange.deliver(number, kind == _LAST, attachment[_TO_CALLER.size :], sample.payload.to_bytes())

    def _on_alive(self, sample: Any) -> None:
        """A token came or went. Several sessions may hold one key for a while: a restarted service and its forerunner,
        whose token only goes when its lease has run out. A key is gone when its last holder is."""
        key, _, holder = str(sample.key_expr)[len(self._root) + 7 :].rpartition("/")
        appeared = sample.kind == zenoh.SampleKind.PUT
        with self._alive_lock:
            holders = self._holders.get(key, _NOBODY)
            before = bool(holders)
            holders = holders | {holder} if appeared else holders - {holder}
            after = bool(holders)
            if after:
                self._holders[key] = holders
            else:
                self._holders.pop(key, None)
            if before != after:
                for pattern, on_change in tuple(self._watchers):
                    if matches(pattern, key):
                        on_change(key, after)
        if not appeared:
            if self._ways.get(key) is None:
                self._ways.pop(key, None)  # its successor may be on this machine
            self._exchange.lost(key, holder)
            if key.startswith("caller/"):
                self._drop_calls_of(key[7:])

    async def request(
        self, key: str, head: bytes, body: Sequence[Buffer], timeout: float, *, private: bool = False
    ) -> Message:
        self._be_a_caller()
        if private and key in self._holders:
            await self._need_way(key)
        return await self._exchange.request(key, head, body, timeout)

    async def _need_way(self, key: str) -> None:
        """Return once there is a door to the key's server; raises `Unreachable` when it is not on this machine."""
        if key not in self._ways:
            self._ways[key] = None
            await self._find_way(key)
        else:
            await asyncio.gather(*(task for task in self._looking if task.get_name() == f"door {key}"))
        way = self._ways.get(key)
        if way is None or not way.open:
            self._ways.pop(key, None)  # looked for again at the next request
            raise Unreachable(
                f"{key} cannot be asked without the network, and the request may not leave this machine.",
                "Ask the node itself, or allow --privacy fleet.",
            )

    def stream(
        self, key: str, head: bytes, body: Sequence[Buffer], timeout: float, *, private: bool = False
    ) -> AsyncGenerator[Message, None]:
        self._be_a_caller()
        if private and key in self._holders:
            return self._private_stream(key, head, body, timeout)
        return self._exchange.stream(key, head, body, timeout)

    async def _private_stream(
        self, key: str, head: bytes, body: Sequence[Buffer], timeout: float
    ) -> AsyncGenerator[Message, None]:
        await self._need_way(key)
        messages = self._exchange.stream(key, head, body, timeout)
        async with contextlib.aclosing(messages):
            async for message in messages:
                yield message

    def _be_a_caller(self) -> None:
        """Announce the inbox, so that servers drop the work of a caller that dies."""
        if "caller" not in self._tokens:
            self._tokens["caller"] = self._token(f"caller/{self.identity}")

    def alive(self, key: str) -> bool:
        return key in self._holders

    # -- requests, the server's side ------------------------------------------------------------------------------

    def serve(self, key: str, on_call: OnCall) -> Handle:
        def on_sample(sample: Any) -> None:
            attachment = _attachment(sample)
            if len(attachment) < _TO_SERVER.size:
                return  # not a call of ours
            kind, number, identity = _TO_SERVER.unpack_from(attachment)
            sender = identity.decode("ascii", "replace")
            if kind == _CANCEL:
                call = self._calls.pop((sender, number), None)
                if call is not None:
                    call.cancelled = True
                return
            call = _ZenohCall(self, sender, number, attachment[_TO_SERVER.size :], sample.payload.to_bytes())
            self._calls[(sender, number)] = call
            on_call(call)

        things = [self._subscribe_raw(f"call/{key}", on_sample)]
        if SUPPORTED:
            with contextlib.suppress(OSError):  # the name is taken: this key is then served over the mesh alone
                things.append(Door(self._fleet, key, on_call).close)
        return _Declared(self._held, *things, self._token(key))

    def send_reply(self, sender: str, number: int, head: bytes, body: Sequence[Buffer], last: bool) -> None:
        """Called by a `Call`; any thread."""
        if last:
            self._calls.pop((sender, number), None)
        if not self._closed:
            kind = _LAST if last else _MORE
            self._put(f"inbox/{sender}", _TO_CALLER.pack(kind, number) + head, body or (b"",))

    def _drop_calls_of(self, sender: str) -> None:
        for (who, number), call in tuple(self._calls.items()):
            if who == sender:
                call.cancelled = True
                self._calls.pop((who, number), None)

    # -- the rest ---------------------------------------------------------------------------------------------------

    def publish(self, key: str, payload: bytes) -> None:
        if not self._closed:
            with contextlib.suppress(zenoh.ZError):  # soft state: the next report replaces it
                self._session.put(f"{self._root}/say/{key}", payload, congestion_control=_DROP, express=True)

    def subscribe(self, pattern: str, on_message: OnMessage) -> Handle:
        skip = len(self._root) + 5

        def on_sample(sample: Any) -> None:
            on_message(str(sample.key_expr)[skip:], sample.payload.to_bytes())

        return _Declared(self._held, self._subscribe_raw(f"say/{pattern}", on_sample))

    def _token(self, key: str) -> Any:
        try:
            return self._session.liveliness().declare_token(f"{self._root}/alive/{key}/{self.identity}")
        except zenoh.ZError as error:
            raise MeshError(f"Cannot announce {key}: {error}") from None

    def announce(self, key: str) -> Handle:
        return _Declared(self._held, self._token(key))

    def watch(self, pattern: str, on_change: OnChange) -> Handle:
        entry = (pattern, on_change)
        with self._alive_lock:  # so that no change falls between what is told now and what is told later
            self._watchers.append(entry)
            for key in tuple(self._holders):
                if matches(pattern, key):
                    on_change(key, True)

        def withdraw() -> None:
            with self._alive_lock:
                self._watchers.remove(entry)

        return _Declared(self._held, withdraw)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._exchange.close()
        self._shut()
        await asyncio.get_running_loop().run_in_executor(None, self._session.close)

    def _shut(self) -> None:
        for task in tuple(self._looking):
            task.cancel()
        for way in tuple(self._ways.values()):
            if way is not None:
                way.close()
        self._ways.clear()
        for declared in tuple(self._held):
            declared.close()

    def close_now(self) -> None:
        """As `close`, for a process without an event loop."""
        if not self._closed:
            self._closed = True
            self._shut()
            self._session.close()
