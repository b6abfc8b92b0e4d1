"""How a program comes to run a stream: anew, by taking it over from its host, or by standing by until its host dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from nearfar.errors import DeadlineExceeded, DuplicateStream, InputError, MeshError, NearfarError, Unreachable
from nearfar.mesh.base import Call
from nearfar.types.ids import ModelName, ServiceId
from nearfar.types.request import Privacy
from nearfar.types.units import Milliseconds
from nearfar.vision.base import Movable, Source
from nearfar.vision.circle import Circle, ask, hello, read_ask, refuse, tell
from nearfar.vision.handover import (
    Ask,
    Op,
    StreamMemory,
    Told,
    checkpoint_key,
    frames_between,
    host_key,
    may_follow,
    standby_key,
    summary_from,
    taker_key,
    unpack_memory,
)
from nearfar.vision.hosting import Host
from nearfar.vision.results import HandOver, Kind, Summary
from nearfar.vision.sources.resumed import Resumed
from nearfar.vision.tracking.follow import Follow

log = logging.getLogger(__name__)
SEEN_WITHIN = 1.0
"""Seconds in which another host of a name is seen, when there is one."""
FOUND_WITHIN = 5.0
"""Seconds in which the host that is to be taken over from must be seen."""
TAKE_S = 20.0
"""Longest wait for the memory: the host first lets the frames in flight end."""
CONFIRM_S = 20.0
"""Longest time in which the host is told that this one runs: longer than it waits for that."""
RANK_S = 1.0
"""Of several standbys the first one takes over at once, each further one so much later, if still nobody did."""


class Wishes(NamedTuple):
    """What the user asked this program for; a stream's memory must fit it."""

    model: ModelName
    privacy: Privacy
    labels: Sequence[str] = ()
    follow: Follow | None = None


class Beginning(NamedTuple):
    """How a stream begins here. `host` is announced, and runs nothing yet."""

    host: Host
    first: int = 0
    incumbent: ServiceId | None = None
    summary: Summary | None = None
    follow: Follow | None = None
    extras: Mapping[str, bytes] = {}
    memory: StreamMemory | None = None
    source: Source | None = None

    def remember(self, parts: Mapping[str, Movable]) -> None:
        """Give each part what it knew. Parts that this program does not have are forgotten."""
        for name, part in parts.items():
            if name in self.extras:
                part.import_state(self.extras[name])


Say = Callable[[str], None]


async def begin(
    circle: Circle, me: str, wishes: Wishes, source: Source, role: str, *, named: bool, say: Say = log.info
) -> Beginning | str:
    """The stream's beginning in this program by its role: `takeover`, `standby`, or empty for anew.

    Why the stream ended, when it did while this program stood by. Raises as `anew`, `take_over`, `Standby.wait`.
    """
    if not role:
        return (await anew(circle, me, wishes, named=named, say=say))._replace(source=source)
    resumed = Resumed(source)
    try:
        if role == "takeover":
            return (await take_over(circle, me, wishes, resumed, say))._replace(source=resumed)
        standby = Standby(circle, me, wishes, resumed, say)
        try:
            begun = await standby.wait()
        finally:
            await standby.close()
        if begun is not None:
            return begun._replace(source=resumed)
    except BaseException:
        await asyncio.to_thread(resumed.shut)
        raise
    await asyncio.to_thread(resumed.shut)
    return standby.ended


async def anew(circle: Circle, me: str, wishes: Wishes, *, named: bool, say: Say = log.info) -> Beginning:
    """Begin as the only host. Raises `DuplicateStream` when the name was given by the user and another host has it."""
    if named and await circle.until(lambda: circle.hosts, SEEN_WITHIN):
        other = next(iter(circle.hosts))
        raise DuplicateStream(
            f"The stream {circle.stream!r} runs already, in {other}.",
            "Add --takeover to go on with it here, --standby to wait until that one dies, or give another --stream.",
        )
    host = Host(circle, me, 1, say)
    host.announce()
    return Beginning(host, follow=wishes.follow)


async def take_over(circle: Circle, me: str, wishes: Wishes, source: Resumed, say: Say = log.info) -> Beginning:
    """Go on with the stream of a running host, which then ends. When anything fails before, it goes on untouched.

    Raises `Unreachable` when no host is seen, what the host refuses with, `InputError` when its memory does not fit the
    wishes or the source, `SourceError` when there is no picture.
    """
    mesh, stream = circle.mesh, circle.stream
    await circle.until(lambda: circle.hosts, FOUND_WITHIN)
    found = circle.newest()
    if found is None:
        raise Unreachable(
            f"Nobody runs the stream {stream!r}: no host of it was seen in {FOUND_WITHIN:.0f} s.",
            "Start it without --takeover, or check the name and --fleet.",
        )
    other, epoch = found
    key = host_key(stream, epoch, other)
    token = mesh.announce(taker_key(stream, me))
    host: Host | None = None
    try:
        told, _ = await ask(mesh, key, hello(me), 5.0)
        await asyncio.to_thread(source.warm, told.next_frame)
        say(f"{other} runs the stream {stream!r}, at frame {told.next_frame}; asking it to hand over")
        _, body = await ask(mesh, key, Ask(Op.TAKE, me), TAKE_S)
        came = time.monotonic()
        try:
            memory = unpack_memory(bytes(body))
            beginning = await _begin(memory, came, wishes, source, Kind.PLANNED, me)
            host = Host(circle, me, memory.epoch + 1, say)
            host.announce()
            await _confirm(circle, key, me)
        except BaseException as error:
            with contextlib.suppress(NearfarError):
                await ask(mesh, key, Ask(Op.CANCEL, me, str(error) or type(error).__name__), 2.0)
            raise
    except BaseException:
        if host is not None:
            await host.close()
        raise
    finally:
        token.close()
    return beginning._replace(host=host)


async def _confirm(circle: Circle, key: str, me: str) -> None:
    """Return once the host has ended, or is gone. Raises when it says, or must be taken to say, that it went on."""
    end = time.monotonic() + CONFIRM_S
    while True:
        try:
            await ask(circle.mesh, key, Ask(Op.CONFIRM, me), 3.0)
            return
        except DeadlineExceeded:
            if not circle.mesh.alive(key):
                return
            if time.monotonic() > end:
                raise MeshError(
                    f"The host of {circle.stream!r} does not say whether it ended.", "See who runs it, and try again."
                ) from None
        except Unreachable:
            return  # it has ended, or died: either way nobody else runs the stream


async def _begin(memory: StreamMemory, came: float, wishes: Wishes, source: Resumed, kind: Kind, me: str) -> Beginning:
    """The memory made alive, and the source at the next frame. `came`: when the memory came, monotonic."""
    may_follow(memory, wishes.model, wishes.privacy)
    follow = _followed(memory, wishes)
    summary = summary_from(memory.summary)
    summary.stream = memory.stream
    waited = Milliseconds(max(0.0, (time.monotonic() - came) * 1e3))
    first = memory.next_frame
    if source.has_past and not (source.live and kind is Kind.UNPLANNED):
        before = None if memory.pts_ms is None else Milliseconds(memory.pts_ms)
        await asyncio.to_thread(source.begin, first, before)
        reason = "no frame is missing between"
        if kind is Kind.UNPLANNED:
            reason = f"went on from its last checkpoint: frames from {first} on may be in its output too"
    else:
        # A camera gives what it sees now. Its frames go on being counted at its own rate, so that a tracker knows how
        # long it did not look; which of them nobody saw is told.
        first += frames_between(memory, waited)
        await asyncio.to_thread(source.begin, first, None)
        if first > memory.next_frame:
            summary.lost.add(memory.next_frame, first - 1)
        gap = memory.age_ms + waited
        reason = (
            f"{first - memory.next_frame} frames are missing between, {gap:.0f} ms at {memory.period_ms:.1f} ms each"
        )
    summary.hosts.append(HandOver(memory.host, me, first, kind, reason))
    incumbent = ServiceId(memory.incumbent) if memory.incumbent else None
    return Beginning(None, first, incumbent, summary, follow, memory.extras, memory)  # type: ignore[arg-type]


def _followed(memory: StreamMemory, wishes: Wishes) -> Follow | None:
    """The tracker and counters that the stream has. Flags may leave them out; what they state must be the same."""
    wanted = wishes.follow
    if memory.follow is None:
        if wanted is not None:
            raise InputError(
                f"The stream {memory.stream!r} is not tracked.",
                "Leave --track, --line and --zone away, or start it anew.",
            )
        return None
    made = Follow.from_state(memory.follow, wishes.labels, wanted.tracker if wanted is not None else None)
    for flag, has, given in (
        ("--line", made.lines, wanted and wanted.lines),
        ("--zone", made.zones, wanted and wanted.zones),
    ):
        if given and given != has:
            raise InputError(
                f"The stream {memory.stream!r} counts at another {flag[2:]} than {flag} says.",
                f"Leave {flag} away: it travels with the stream.",
            )
    return made


class Standby:
    """Waits until the host of a stream dies without a goodbye, with its last checkpoint. `wait` once, then `close`."""

    def __init__(self, circle: Circle, me: str, wishes: Wishes, source: Resumed, say: Say = log.info) -> None:
        self.ended = ""
        """Why the stream ended at its host, once it did: there is nothing to take over."""
        self.checkpoints = 0
        self._circle, self._me, self._wishes, self._source, self._say = circle, me, wishes, source, say
        self._memory: StreamMemory | None = None
        self._came = 0.0
        self._warming: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        circle.listeners.append(self._news.set)
        self._handles = [
            circle.mesh.subscribe(checkpoint_key(circle.stream), self._on_checkpoint),
            circle.mesh.serve(standby_key(circle.stream, me), self._on_call),
        ]

    def _on_checkpoint(self, key: str, payload: bytes) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take_in, payload)

    def _take_in(self, payload: bytes) -> None:
        try:
            memory = unpack_memory(payload)
        except InputError as error:
            self._say(f"a checkpoint cannot be used: {error}")
            return
        had = self._memory
        if had is None or (memory.epoch, memory.next_frame) > (had.epoch, had.next_frame):
            self._memory, self._came = memory, time.monotonic()
            self.checkpoints += 1
            if self.checkpoints == 1:
                self._say(f"holding a checkpoint of {memory.host}, before frame {memory.next_frame}")
            self._news.set()

    def _on_call(self, call: Call) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._answer, call)

    def _answer(self, call: Call) -> None:
        asked = read_ask(call.head)
        if isinstance(asked, NearfarError):
            call.reply(refuse(asked))
        elif asked.op is Op.ENDED:
            self.ended = asked.text or "the stream ended"
            self._news.set()
            call.reply(tell(Told()))
        else:
            call.reply(refuse(MeshError(f"{self._me} only stands by.", "Ask the host of the stream.")))

    async def wait(self) -> Beginning | None:
        """The stream to go on with, or None when it ended at its host.

        Raises what a host says that cannot hand over at all, and as `take_over` for what does not fit.
        """
        seen: tuple[str, int] | None = None
        await asyncio.to_thread(self._source.warm, 0)
        self._say(f"standing by for the stream {self._circle.stream!r}")
        while True:
            self._news.clear()
            if self.ended:
                return None
            now = self._circle.newest()
            if now is not None and now != seen:
                seen = now
                await self._greet(*now)
            elif now is None and seen is not None and await self._mine(seen[1]):
                return await self._go_on(seen)
            if self._memory is not None and (self._warming is None or self._warming.done()):
                self._warming = asyncio.create_task(self._keep_up(self._memory.next_frame))
            await self._news.wait()

    async def _greet(self, host: str, epoch: int) -> None:
        key = host_key(self._circle.stream, epoch, host)
        with contextlib.suppress(MeshError, DeadlineExceeded):  # it may be gone again; the loop sees that
            await ask(self._circle.mesh, key, hello(self._me), 5.0)
        self._say(f"{host} runs the stream {self._circle.stream!r}")

    async def _keep_up(self, frame: int) -> None:
        """Be where the host is, so that a file need not be read from its beginning when it dies."""
        with contextlib.suppress(NearfarError):  # told when it matters
            await asyncio.to_thread(self._source.warm, frame)

    async def _mine(self, epoch: int) -> bool:
        """The host is gone without a word: whether it is for this standby, and not for one before it, to go on."""
        rank = sorted(self._circle.standbys | {self._me}).index(self._me)
        if rank and await self._circle.until(lambda: self._circle.hosts or self.ended, rank * RANK_S):
            return False
        return not self.ended and not self._circle.hosts

    async def _go_on(self, seen: tuple[str, int]) -> Beginning:
        other, epoch = seen
        circle, memory = self._circle, self._memory
        host = Host(circle, self._me, epoch + 1, self._say)
        host.announce()
        try:
            if self._warming is not None:
                await self._warming
            if memory is None:
                self._say(f"{other} is gone, and no checkpoint of it had come: beginning anew")
                await asyncio.to_thread(self._source.begin, 0)
                return Beginning(host, follow=self._wishes.follow)
            self._say(f"{other} is gone: going on from its checkpoint before frame {memory.next_frame}")
            beginning = await _begin(memory, self._came, self._wishes, self._source, Kind.UNPLANNED, self._me)
            return beginning._replace(host=host)
        except BaseException:
            await host.close()
            raise

    async def close(self) -> None:
        with contextlib.suppress(ValueError):
            self._circle.listeners.remove(self._news.set)
        for handle in self._handles:
            handle.close()
        if self._warming is not None:
            await asyncio.gather(self._warming, return_exceptions=True)
