"""The trail of one running stream: hears what is decided and what fails, keeps it, writes it down, tells who asks.

The stream never waits for it. A decision that repeats the one before costs a comparison; entries are encoded and
written on a thread of their own. A disk that is full or read-only ends the writing with one warning, not the stream.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec

from nearfar.client.listening import Listener
from nearfar.client.trailfile import LIMIT, TrailFile, Writer, prune
from nearfar.errors import InputError, MeshError, NearfarError
from nearfar.fleet.snapshot import Snapshot
from nearfar.mesh.base import Call, Handle, Mesh
from nearfar.node import keys
from nearfar.placement import trail as entries
from nearfar.placement.decide import Decision
from nearfar.placement.folding import Fold
from nearfar.placement.trail import AnyEntry, Moved, Started, Status
from nearfar.types.ids import ModelName, ServiceId, StreamId, is_name
from nearfar.types.request import Request
from nearfar.types.units import Milliseconds, Seconds

KEPT = 1000
"""Entries kept in memory, and so told over the mesh."""
FLUSH = 1.0
"""Seconds within which repetitions reach the file; everything else is on its way at once."""
MOST_TOLD = 1000
OPENING = 5.0
"""Seconds that the disk may take to open the file, before the stream goes on without."""


RETRY = 0.05
"""Seconds between two looks whether another process has let go of the file."""


class Ask(msgspec.Struct, frozen=True):
    """What is asked at `keys.trail_key`."""

    since: int | None = None
    limit: int = 100


def _warn(message: str) -> None:
    print(f"nearfar: {message}", file=sys.stderr)


class Trail(Listener):
    """Make it, `await start()`, add it to the client's listeners, and `await close()`. Used on one event loop.

    Only requests of its stream are heard. Without `home` nothing is written; without `mesh` nobody can ask.
    """

    def __init__(
        self,
        stream: StreamId,
        model: ModelName,
        *,
        source: str = "",
        by: str = "",
        home: Path | None = None,
        mesh: Mesh | None = None,
        keep: int = 50,
        kept: int = KEPT,
        limit: int = LIMIT,
        writer: Writer | None = None,
        warn: Callable[[str], None] = _warn,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`keep`: trails in the home folder, this one included. `limit`: bytes of one file. `writer`: shared with other
        trails, and closed by its owner. `source` must hold no password. Raises `InputError` for an id that is none.
        """
        if not is_name(stream):
            raise InputError(
                f"{stream!r} cannot name a stream.", "Use lower-case letters, digits, '.', '_' and '-', at most 64."
            )
        self.stream = stream
        self.warning = ""
        """Why nothing is written any more; empty when all is well."""
        self._model, self._source, self._by = model, source, by
        self._home, self._mesh, self._keep, self._limit = home, mesh, keep, limit
        self._entries: deque[AnyEntry] = deque(maxlen=kept)
        self._fold: Fold | None = None
        self._number = 0
        self._started: Started | None = None
        self._since = ""
        self._file: TrailFile | None = None
        self._own_writer = writer is None
        self._writer = writer or Writer()
        self._warn, self._clock = warn, clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._handle: Handle | None = None
        self._counts: Counter[str] = Counter()
        self._served: ServiceId | None = None
        self._failed_since: set[ServiceId] = set()
        self._free: deque[int] = deque(maxlen=64)
        """Frames for which a free choice was told last."""
        self._moved = 0
        self._level = "kept"
        self._ended = ""

    # -- its life -------------------------------------------------------------------------------------------------

    async def start(self, patience: float = 0.0) -> None:
        """Open the file, write the first line, and answer on the mesh. A disk that will not do is warned of.

        `patience`: seconds in which another process may let go of the file, as one does that hands its stream over.
        What is heard meanwhile is kept, and stands after the first line.
        """
        self._loop = asyncio.get_running_loop()
        self._since = self._now()
        trouble = ""
        if self._home is not None:
            try:
                self._number, self._file = await self._opened(self._home, patience)
            except BlockingIOError:
                trouble = f"another process writes the trail of {self.stream} in {self._home}"
            except TimeoutError:
                trouble = f"{self._home} did not answer within {OPENING:.0f} s"
            except OSError as error:
                trouble = f"{self._home} cannot be written: {error.strerror or error}"
        early = self.entries()
        self._entries.clear()
        self._fold = None
        self._number = self._number if self._file is not None else 0
        self._started = Started(self._next(), self._since, self.stream, self._model, self._source, self._by)
        self._put(self._started)
        for entry in early:
            self._put(msgspec.structs.replace(entry, number=self._next()))
        if trouble:
            self._give_up(trouble)
        if self._mesh is not None:
            try:
                self._handle = self._mesh.serve(keys.trail_key(self.stream), self._on_call)
            except MeshError as error:  # the stream itself may still find its way
                self._warn(f"The trail of {self.stream} cannot be asked for: {error.message}")

    async def _opened(self, home: Path, patience: float) -> tuple[int, TrailFile]:
        """The number of the next entry, and the open file."""
        assert self._loop is not None
        end = time.monotonic() + patience
        while True:
            file = TrailFile(home, self.stream, self._limit)
            opened: asyncio.Future[int] = self._loop.create_future()
            self._writer.post(partial(self._open, self._loop, file, opened))
            try:
                return await asyncio.wait_for(opened, OPENING) + 1, file
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise
            await asyncio.sleep(RETRY)

    def _open(self, loop: asyncio.AbstractEventLoop, file: TrailFile, opened: asyncio.Future[int]) -> None:
        """On the writer's thread."""
        result: int | OSError
        try:
            result = file.open()
            assert self._home is not None
            prune(self._home, self._keep)
        except OSError as error:
            file.close()
            result = error

        def tell() -> None:
            if opened.done():  # it took too long, and nobody waits any more
                self._writer.post(file.close)
            elif isinstance(result, OSError):
                opened.set_exception(result)
            else:
                opened.set_result(result)

        _call(loop, tell)

    async def close(self) -> None:
        """Write what is left, and let go of the file. Without `ended` before it, the trail says that it was cut off."""
        if not self._ended:
            self.ended("the process ended it")
        self._flush()
        if self._handle is not None:
            self._handle.close()
        if self._file is not None:
            self._writer.post(self._file.close)
            self._file = None
        if self._own_writer:
            await asyncio.get_running_loop().run_in_executor(None, self._writer.close)

    # -- what is heard ----------------------------------------------------------------------------------------------

    def decided(self, request: Request, decision: Decision, snapshot: Snapshot, now: Seconds) -> None:
        if request.stream != self.stream:
            return
        if request.frame is not None:
            if request.qos.node is None:
                self._free.append(request.frame)
            elif request.frame in self._free:
                return  # decided among all already; this one only holds the frame where it belongs during a move
        at = self._clock()
        fold = self._fold
        if fold is not None and fold.take(request, decision, snapshot, now, at):
            if self._timer is None and self._file is not None and self._loop is not None:
                self._timer = self._loop.call_later(FLUSH, self._flush)
            return
        entry = entries.decided(request, decision, snapshot, now, self._next(), at)
        self._put(entry)
        self._fold = Fold(entry, at)

    def failed(self, request: Request, service: ServiceId, error: NearfarError, waited: Milliseconds) -> None:
        if request.stream == self.stream:
            self._failed_since.add(service)
            message = error.message[: entries.WORDS]
            entry = entries.Failed(
                self._next(), self._now(), service, error.code, message, round(waited, 3), request.frame
            )
            self._put(entry)

    def hedged(self, request: Request, service: ServiceId, first: ServiceId, waited: Milliseconds) -> None:
        if request.stream == self.stream:
            self._put(entries.Hedged(self._next(), self._now(), service, first, round(waited, 3), request.frame))

    # -- what is told by others -------------------------------------------------------------------------------------

    def outcome(self, name: str, served_by: ServiceId | None = None, frame: int | None = None) -> None:
        """Count one frame or request that came to its end (`answered`, `late`, `dropped`, `failed`), in their order.

        An answer of another service than before is a move; it is written down unless `moved` told of it already. It
        counts as planned when the old one had not failed since it last answered.
        """
        self._counts[name] += 1
        if served_by is None:
            return
        before, self._served = self._served, served_by
        if before is not None and before != served_by:
            fold = self._fold
            why = fold.first.reason if fold is not None and fold.first.chosen == served_by else ""
            planned = before not in self._failed_since
            self._move(before, served_by, frame, planned, why or f"{served_by} answered.")
        self._failed_since.discard(served_by)

    def moved(
        self, source: ServiceId, target: ServiceId, frame: int | None = None, *, planned: bool = True, reason: str = ""
    ) -> None:
        """The stream goes over to another service, from this frame on."""
        self._served = target
        self._move(source, target, frame, planned, reason)

    def serves(self, service: ServiceId) -> None:
        """The stream is at this service. Whoever says so tells of its moves with `moved`."""
        self._served = service

    def _move(self, source: ServiceId, target: ServiceId, frame: int | None, planned: bool, reason: str) -> None:
        self._moved += 1
        self._put(Moved(self._next(), self._now(), source, target, reason[: entries.WORDS], planned, frame))

    def level(self, level: str, reason: str, frame: int | None = None) -> None:
        """The promise is now `kept`, `threatened` or `broken`. The same again is not written down."""
        before, self._level = self._level, level
        if level != before:
            self._put(entries.Level(self._next(), self._now(), level, before, reason[: entries.WORDS], frame))

    def degraded(self, step: str, reason: str, frame: int | None = None, *, restored: bool = False) -> None:
        """Something was given up (`rate`, `input`, `model`, `far`, `refuse`), or taken back."""
        self._put(entries.Degraded(self._next(), self._now(), step, reason[: entries.WORDS], restored, frame))

    def handed_over(self, source: str, target: str, frame: int | None = None, reason: str = "") -> None:
        """Another node or process carries the stream from here on."""
        self._put(entries.HandedOver(self._next(), self._now(), source, target, reason[: entries.WORDS], frame))

    def ended(self, reason: str, counts: Mapping[str, int] | None = None) -> None:
        """The stream is over. `counts` by outcome; without it, what `outcome` counted. The second call does nothing."""
        if not self._ended:
            self._ended = reason
            if counts is not None:
                self._counts = Counter(counts)
            told = {name: count for name, count in self._counts.items() if count}
            self._put(entries.Ended(self._next(), self._now(), reason[: entries.WORDS], told))

    # -- what is asked ------------------------------------------------------------------------------------------------

    def entries(self) -> list[AnyEntry]:
        """Everything that is kept, oldest first."""
        known = list(self._entries)
        if self._fold is not None:  # nothing stands after it: whatever comes closes it
            known[-1] = self._fold.entry()
        return known

    def status(self) -> Status:
        """The stream in one line."""
        last = entries.stamp(self._fold.last) if self._fold is not None else self._since
        if self._entries:
            last = max(last, self._entries[-1].at)
        return Status(
            self.stream,
            self._model,
            self._since,
            not self._ended,
            self._source,
            self._by,
            self._served or (self._fold.first.chosen if self._fold is not None else None),
            dict(self._counts),
            self._moved,
            self._level,
            self._ended,
            last,
            lost_its_file=bool(self.warning),
        )

    def _on_call(self, call: Call) -> None:
        """On a thread of the mesh."""
        if self._loop is not None:
            _call(self._loop, lambda: self._answer(call))

    def _answer(self, call: Call) -> None:
        try:
            ask = msgspec.json.decode(call.head, type=Ask)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            ask = Ask()
        made = entries.page(self.status(), self.entries(), ask.since, min(max(ask.limit, 1), MOST_TOLD))
        assert self._loop is not None

        def reply() -> None:  # a caller that does not read may hold this thread up, and encoding takes its time
            call.reply(b"", [msgspec.json.encode(made)])

        self._loop.run_in_executor(None, reply)

    # -- writing down -------------------------------------------------------------------------------------------------

    def _now(self) -> str:
        return entries.stamp(self._clock())

    def _next(self) -> int:
        number, self._number = self._number, self._number + 1
        return number

    def _put(self, entry: AnyEntry) -> None:
        """Keep an entry that is no plain repetition, and send it to the disk with the repetitions before it."""
        fold, self._fold = self._fold, None
        more = None
        if fold is not None:
            more = fold.untold()
            self._entries[-1] = fold.entry()
        self._entries.append(entry)
        self._write([entry] if more is None else [more, entry], fold)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fold is not None and (more := self._fold.untold()) is not None:
            self._write([more], self._fold)

    def _write(self, batch: list[AnyEntry], fold: Fold | None) -> None:
        if self._file is None or self._loop is None:
            return
        # A new file says again what its first repetitions repeat: one steady decision may outlive both files.
        head: list[AnyEntry] = [] if self._started is None else [self._started]
        if fold is not None:
            head.append(fold.first)
        if not self._writer.post(partial(_append, self._loop, self._file, batch, head, self._broken)):
            self._broken(f"the disk of {self._home} is too far behind")

    def _broken(self, trouble: str) -> None:
        if self._file is not None:
            self._give_up(trouble)

    def _give_up(self, trouble: str) -> None:
        if self._file is not None:
            self._writer.post(self._file.close)
            self._file = None
        self.warning = f"The trail of {self.stream} is kept in memory only from here on: {trouble}."
        self._put(entries.Warned(self._next(), self._now(), self.warning))
        self._warn(self.warning)


def _append(
    loop: asyncio.AbstractEventLoop,
    file: TrailFile,
    batch: list[AnyEntry],
    head: list[AnyEntry],
    broken: Callable[[str], None],
) -> None:
    """On the writer's thread."""
    try:
        file.append(entries.encode(batch), entries.encode(head))
    except OSError as error:
        file.close()  # what comes later must not be written after a gap
        trouble = f"its file cannot be written: {error.strerror or error}"
        _call(loop, lambda: broken(trouble))


def _call(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(work)
    except RuntimeError:  # the loop is closed: nobody is there to hear it
        return
