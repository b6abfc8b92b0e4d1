"""The process of one gateway: a real client with a policy that sends its streams' frames when they are due.

Started by `play.py` as `python -m nearfar.lab.gateway` with a `GatewaySpec` as the first line of its standard input; a
second one, `Go`, lets it play. It prints `Said` lines: whom it sees, what became of each frame, how idle the machine
let it be. The input's end is its own: it never outlives the lab.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from nearfar.client.client import Client
from nearfar.client.listening import Choices
from nearfar.errors import Cancelled, NearfarError
from nearfar.lab.plan import Birth
from nearfar.mesh.impaired import ImpairedMesh, Impairment
from nearfar.mesh.zenoh_options import ZenohOptions
from nearfar.node import keys
from nearfar.placement.decide import Decision
from nearfar.simulate.compare import policy_of
from nearfar.types.ids import ModelName, ServiceId, StreamId, node_of
from nearfar.types.image import Image
from nearfar.types.request import Qos, Request
from nearfar.types.telemetry import StageSummary
from nearfar.types.units import Milliseconds

BEAT = 0.02
"""Seconds between two looks at how late this process is woken."""
HURRY = 0.25
"""Seconds between lines that say what became of frames."""
REPORTED = 0.7
"""Seconds after which services have said in their telemetry what they did until then."""
_SAYING = threading.Lock()
LAST_WORDS = 2.0
"""Seconds that frames without a deadline may still take at the end; the testbed plays no longer either."""


class StreamSpec(msgspec.Struct, frozen=True):
    """One camera: bytes of a frame and its deadline in milliseconds, 0 for none."""

    id: int
    size: int
    deadline_ms: float


class GatewaySpec(msgspec.Struct, frozen=True):
    """Who it is, how it asks, and what it sends."""

    name: str
    model: str
    mesh: ZenohOptions
    policy: str = "nearest"
    options: dict[str, float] = {}
    streams: tuple[StreamSpec, ...] = ()
    births: tuple[Birth, ...] = ()
    impairment: Impairment = Impairment()


class Go(msgspec.Struct, frozen=True):
    """The scenario begins at this moment of the monotonic clock, which all processes of a machine share."""

    begin: float


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """What became of one frame. Moments in seconds of the scenario."""

    stream: int
    number: int
    born: float
    """When it was really sent off: the deadline counts from there."""
    ended: float
    served_by: str
    """Empty without an answer in time."""
    code: str
    """Of the error; empty with an answer in time."""
    attempts: int


class Work(msgspec.Struct, frozen=True, array_like=True):
    """What one instance of a service said of itself last: requests answered and milliseconds spent on them."""

    service: str
    instance: str
    answered: int
    spent_ms: float


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line; only what there is to say."""

    node: str = ""
    """A node whose service appeared or vanished."""
    alive: bool = False
    at: float = 0.0
    """Moment of the monotonic clock."""
    ended: tuple[Ended, ...] = ()
    work: tuple[Work, ...] = ()
    woken_late_ms: float = 0.0
    """By how much 99 of 100 wake-ups of this process were late at most: how busy the machine was; at the end."""
    sent_late_ms: float = 0.0
    """By how much 99 of 100 frames were sent late at most; at the end."""
    done: bool = False
    error: str = ""


class Player:
    """Plays the births of one gateway through one client."""

    def __init__(self, spec: GatewaySpec, client: Client) -> None:
        self._spec = spec
        self._client = client
        self._streams = {stream.id: stream for stream in spec.streams}
        self._pictures = {stream.id: picture(stream.size) for stream in spec.streams}
        self._incumbents: dict[int, tuple[int, ServiceId]] = {}
        self._ended: list[Ended] = []
        self._lags: list[float] = []
        self._late: list[float] = []
        self._attempts: dict[asyncio.Task[None], int] = {}
        self._begin = 0.0
        client.listeners.add(Choices(self._decided))

    def _decided(self, request: Request, decision: Decision) -> None:
        task = asyncio.current_task()
        if task in self._attempts and decision.chosen is not None:
            self._attempts[task] += 1

    async def play(self, begin: float) -> None:
        """Until every frame has come to its end."""
        self._begin = begin
        beating = asyncio.create_task(self._beat())
        telling = asyncio.create_task(self._tell())
        running: set[asyncio.Task[None]] = set()
        try:
            for birth in self._spec.births:
                await sleep_until(begin + birth.at)
                self._late.append(max(0.0, time.monotonic() - begin - birth.at))
                task = asyncio.create_task(self._send(birth))
                self._attempts[task] = 0
                running.add(task)
                task.add_done_callback(running.discard)
                task.add_done_callback(self._attempts.pop)
            if running:
                await asyncio.wait(running, timeout=self._patience())
            for task in tuple(running):
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await asyncio.sleep(REPORTED)
        finally:
            beating.cancel()
            telling.cancel()
            await asyncio.gather(beating, telling, return_exceptions=True)
        self._flush()
        say(Said(woken_late_ms=most(self._lags), sent_late_ms=most(self._late), done=True))

    def _patience(self) -> float:
        return max((stream.deadline_ms / 1000 for stream in self._spec.streams), default=0.0) + LAST_WORDS

    async def _send(self, birth: Birth) -> None:
        stream = self._streams[birth.stream]
        born = time.monotonic()
        newest, incumbent = self._incumbents.get(stream.id, (-1, None))
        qos = Qos(Milliseconds(stream.deadline_ms) if stream.deadline_ms else None)
        code, served_by = Cancelled.code, ""
        try:
            answer = await self._client.see(
                ModelName(self._spec.model), self._pictures[stream.id], qos,
                stream=StreamId(f"{self._spec.name}-{stream.id}"), incumbent=incumbent,
            )  # fmt: skip
            code, served_by = "", answer.served_by
            newest, _ = self._incumbents.get(stream.id, (-1, None))
            if birth.number > newest:
                self._incumbents[stream.id] = (birth.number, answer.served_by)
        except NearfarError as error:
            code = error.code
        finally:
            task = asyncio.current_task()
            attempts = self._attempts.get(task, 0) if task is not None else 0
            now = time.monotonic()
            self._ended.append(
                Ended(birth.stream, birth.number, born - self._begin, now - self._begin, served_by, code, attempts)
            )

    async def _beat(self) -> None:
        while True:
            due = time.monotonic() + BEAT
            await asyncio.sleep(BEAT)
            self._lags.append(max(0.0, time.monotonic() - due))

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(HURRY)
            self._flush()

    def _flush(self) -> None:
        ended, self._ended = self._ended, []
        work = tuple(
            Work(service, view.report.instance, view.report.answered, _spent(view.report.stages))
            for service, view in self._client.snapshot().services.items()
            if view.report.instance
        )
        say(Said(ended=tuple(ended), work=work))


def _spent(stages: Mapping[str, StageSummary]) -> float:
    """Milliseconds of work, without waiting."""
    return sum(summary.sum for stage, summary in stages.items() if stage != "queue")


def picture(size: int) -> Image:
    """Raw pixels of nearly `size` bytes, at least one pixel, nearly square."""
    import numpy as np

    pixels = max(1, round(size / 3))
    width = math.isqrt(pixels)
    return Image.bgr(np.zeros((max(1, round(pixels / width)), width, 3), np.uint8))


def most(seconds: list[float], share: float = 0.99) -> float:
    """What a share of the values is below, in milliseconds; 0 without any.

    >>> most([0.001] * 100 + [0.5])
    1.0
    """
    ordered = sorted(seconds)
    return round(1000 * ordered[int(share * (len(ordered) - 1))], 3) if ordered else 0.0


def say(said: Said) -> None:
    """Print a line; any thread."""
    with _SAYING:
        sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
        sys.stdout.buffer.flush()


async def sleep_until(moment: float) -> None:
    """Until a moment of the monotonic clock; at once when it has passed."""
    if (rest := moment - time.monotonic()) > 0:
        await asyncio.sleep(rest)


async def run(spec: GatewaySpec, lines: asyncio.Queue[bytes]) -> None:
    """Join the mesh, say whom it sees, and play when told."""
    from nearfar.mesh.zenoh import ZenohMesh

    zenoh = await asyncio.to_thread(ZenohMesh, spec.mesh)
    mesh: Any = ImpairedMesh(zenoh, spec.impairment) if spec.impairment else zenoh
    client = Client(mesh, spec.name, policy_of(spec.policy, **spec.options))  # type: ignore[arg-type]
    client.probe_links()

    def changed(key: str, alive: bool) -> None:
        say(Said(node=node_of(keys.service_of(key)), alive=alive, at=time.monotonic()))

    mesh.watch(keys.SERVICES, changed)
    try:
        if line := await lines.get():
            await Player(spec, client).play(msgspec.json.decode(line, type=Go).begin)
            await lines.get()  # the end of the input
    finally:
        await client.close()
        await mesh.close()


async def _main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    spec = msgspec.json.decode(await reader.readline(), type=GatewaySpec)
    lines: asyncio.Queue[bytes] = asyncio.Queue()
    running = asyncio.create_task(run(spec, lines))
    while line := await reader.readline():
        lines.put_nowait(line)
    lines.put_nowait(b"")
    done, _ = await asyncio.wait({running}, timeout=LAST_WORDS)
    if not done:  # the lab is gone in the middle of it
        running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def main() -> None:
    try:
        asyncio.run(_main())
    except NearfarError as error:
        say(Said(error=str(error)))
    os._exit(0)  # Zenoh's threads do not all end; nothing is left to write


if __name__ == "__main__":
    main()
