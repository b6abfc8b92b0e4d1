"""What is written down of a stream: values that say afterwards what was decided, why, and what became of it.

No pixel, tensor or prompt ever stands here: names, numbers, codes and sentences only.

A decision that repeats the one before is folded into it: `placement/folding.py` says by which rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from nearfar.fleet.snapshot import Snapshot
from nearfar.placement.decide import Decision
from nearfar.placement.expectation import Expectation
from nearfar.placement.refusal import Refusal
from nearfar.types.ids import ModelName, NodeId, ServiceId, StreamId, node_of
from nearfar.types.request import Request
from nearfar.types.units import Milliseconds, Seconds

VERSION = 1
"""Of the entries' form; stands in every `Started`. A reader passes over kinds of entries that it does not know."""
WORDS = 600
"""Longest message that is kept of somebody's error, in characters."""


class Run(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The frames `first`, `first + step`, ..., `count` of them."""

    first: int
    count: int = 1
    step: int = 0

    def __iter__(self) -> Iterator[int]:
        return (self.first + at * self.step for at in range(self.count))


class Candidate(msgspec.Struct, frozen=True, omit_defaults=True):
    """A service that could have taken the request, with what the snapshot said of it at that moment. None: unknown."""

    service: ServiceId
    late: bool = False
    cost: float | None = None
    """What the policy ordered by, in its own unit; lower is better."""
    expected: Expectation | None = None
    note: str = ""
    queued: int = 0
    in_flight: int = 0
    pending: int = 0
    """Requests of this very client that were under way there."""
    service_ms: float | None = None
    rtt_ms: float | None = None
    jitter_ms: float | None = None
    loss: float | None = None
    age_s: float | None = None
    """Of its telemetry."""


class Entry(msgspec.Struct, frozen=True, tag_field="kind"):
    """One line of a trail. `number` grows by one from 0; `at` is UTC in ISO 8601, by the clock of who wrote it."""

    number: int
    at: str


class Started(Entry, frozen=True, tag="started", omit_defaults=True):
    """The first line of a file, and written again when the stream is taken up once more."""

    stream: StreamId
    model: ModelName
    source: str = ""
    """Where its frames come from, without a password; `HTTP` for requests to a gateway."""
    by: str = ""
    """The node or client that asks."""
    version: int = VERSION


class Decided(Entry, frozen=True, tag="decided", omit_defaults=True):
    """One decision, and those after it that were the same: see `placement/folding.py`. Times in milliseconds."""

    until: str
    """When the last one was made."""
    model: ModelName
    chosen: ServiceId | None
    reason: str
    policy: str
    count: int = 1
    frames: tuple[Run, ...] = ()
    """Empty for requests that are no frames."""
    deadline_ms: float | None = None
    """What was left of it."""
    privacy: str = "any"
    node: str | None = None
    incumbent: ServiceId | None = None
    excluded: tuple[ServiceId, ...] = ()
    """Services that had failed this request already."""
    expected: Expectation | None = None
    least_ms: float | None = None
    """Expected total of the fold's quickest decision; `most_ms` of its slowest."""
    most_ms: float | None = None
    late: bool = False
    candidates: tuple[Candidate, ...] = ()
    """Best first."""
    refusals: tuple[Refusal, ...] = ()
    refused: int = 0
    """How many there were; `refusals` holds those that the decision carried."""
    considered: int = 0
    eligible: int = 0
    known: int = 0
    """Services of the model in the snapshot; more than `considered` when some were drawn."""
    aside: bool = False
    """For these frames alone: the stream stays with its incumbent."""

    @property
    def sampled(self) -> bool:
        return self.considered < self.known


class Repeated(Entry, frozen=True, tag="repeated", omit_defaults=True):
    """In files only: so many more decisions as `number` tells. Read back, it is added to that entry."""

    count: int
    frames: tuple[Run, ...] = ()
    least_ms: float | None = None
    most_ms: float | None = None


class Failed(Entry, frozen=True, tag="failed", omit_defaults=True):
    """An attempt brought no answer."""

    service: ServiceId
    code: str
    message: str
    waited_ms: float
    frame: int | None = None


class Hedged(Entry, frozen=True, tag="hedged", omit_defaults=True):
    """A second service was asked while the first one was still silent."""

    service: ServiceId
    first: ServiceId
    waited_ms: float
    frame: int | None = None
    reason: str = ""


class Moved(Entry, frozen=True, tag="moved", omit_defaults=True):
    """The stream went over to another service, from `frame` on."""

    source: ServiceId
    target: ServiceId
    reason: str
    planned: bool = True
    frame: int | None = None


class Level(Entry, frozen=True, tag="level", omit_defaults=True):
    """The promise is `kept`, `threatened` or `broken`, and was `before`."""

    level: str
    before: str
    reason: str
    frame: int | None = None


class Degraded(Entry, frozen=True, tag="degraded", omit_defaults=True):
    """Something was given up to keep the promise, or taken back (`step` as the caller stated it, such as `rate`)."""

    step: str
    reason: str
    restored: bool = False
    frame: int | None = None


class HandedOver(Entry, frozen=True, tag="handed-over", omit_defaults=True):
    """Another process carries the stream from here on, or this one took it from another."""

    source: str
    target: str
    reason: str = ""
    frame: int | None = None


class Warned(Entry, frozen=True, tag="warned"):
    """The trail itself is in trouble, such as a full disk."""

    message: str


class Ended(Entry, frozen=True, tag="ended", omit_defaults=True):
    """The stream is over."""

    reason: str
    counts: Mapping[str, int] = {}
    """What became of its frames, by outcome."""


AnyEntry = (
    Started | Decided | Repeated | Failed | Hedged | Moved | Level | Degraded | HandedOver | Warned | Ended
)  # fmt: skip


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stream in one line."""

    stream: StreamId
    model: ModelName
    since: str
    running: bool
    source: str = ""
    by: str = ""
    served_by: ServiceId | None = None
    counts: Mapping[str, int] = {}
    """Frames by outcome; empty when the process ended without a word."""
    moved: int | None = None
    """How often it went over to another service; None when nobody counted."""
    level: str = "kept"
    ended: str = ""
    """Why it is over; empty while it runs, and when its process was killed."""
    last: str = ""
    """When something was last written down."""
    handed_to: str = ""
    """Who carries it now, when it was handed over."""
    lost_its_file: bool = False
    """Nothing is written any more; only the running process knows."""

    @property
    def answered(self) -> int:
        return self.counts.get("answered", 0) + self.counts.get("late", 0)

    @property
    def lost(self) -> int:
        return sum(self.counts.values()) - self.answered


class Page(msgspec.Struct, frozen=True):
    """A part of a trail, oldest first. Ask on with `since=next`."""

    stream: Status
    entries: tuple[AnyEntry, ...]
    next: int
    """The highest number that was given, or that `since` was."""
    more: bool = False
    """There are newer ones already."""


def page(status: Status, entries: Sequence[AnyEntry], since: int | None, limit: int) -> Page:
    """The `limit` newest entries, or the oldest `limit` of those with a number above `since`."""
    if since is None:
        chosen = entries[-limit:]
        more = False
    else:
        newer = [entry for entry in entries if entry.number > since]
        chosen, more = newer[:limit], len(newer) > limit
    last = chosen[-1].number if chosen else -1 if since is None else since
    return Page(status, tuple(chosen), last, more)


def decided(request: Request, decision: Decision, snapshot: Snapshot, now: Seconds, number: int, at: float) -> Decided:
    """The entry of one decision, made from `snapshot` at the moment `now` of its clock, `at` seconds since 1970."""
    when = stamp(at)
    expected = None if decision.expected is None else _rounded(decision.expected)
    total = None if expected is None else expected.total
    qos = request.qos
    return Decided(
        number,
        when,
        when,
        request.model,
        decision.chosen,
        decision.reason,
        decision.policy,
        frames=() if request.frame is None else (Run(request.frame),),
        deadline_ms=finite(qos.deadline),
        privacy=qos.privacy.value,
        node=qos.node,
        incumbent=request.incumbent,
        excluded=request.excluded,
        expected=expected,
        least_ms=total,
        most_ms=total,
        late=decision.late,
        candidates=tuple(
            _candidate(r.service, r.late, r.cost, r.expected, r.note, request, snapshot, now) for r in decision.ranking
        ),
        refusals=decision.refusals,
        refused=decision.refused,
        considered=decision.considered,
        eligible=decision.eligible,
        known=len(snapshot.by_model.get(request.model, ())),
        aside=decision.aside,
    )


def _candidate(
    service: ServiceId,
    late: bool,
    cost: float,
    expected: Expectation | None,
    note: str,
    request: Request,
    snapshot: Snapshot,
    now: Seconds,
) -> Candidate:
    expected = None if expected is None else _rounded(expected)
    view = snapshot.services.get(service)
    if view is None:
        return Candidate(service, late, finite(cost), expected, note)
    report = view.report
    links, there = snapshot.links, node_of(service)
    origin = NodeId(request.origin)
    link = links.get((origin, there)) or links.get((there, origin)) or links.get((NodeId(snapshot.me), there))
    return Candidate(
        service,
        late,
        finite(cost),
        expected,
        note,
        report.queued,
        report.in_flight,
        snapshot.pending.get(service, 0),
        finite(report.service_ms),
        None if link is None else finite(link.rtt),
        None if link is None else finite(link.jitter),
        None if link is None else finite(link.loss),
        finite(now - view.heard),
    )


def _rounded(e: Expectation) -> Expectation:
    link, transfer, wait, service, margin, total = (
        Milliseconds(round(figure, 3)) for figure in (e.link, e.transfer, e.wait, e.service, e.margin, e.total)
    )
    return Expectation(link, transfer, wait, service, margin, total, e.basis)


def finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity; a broken node may send them."""
    return round(value, 3) if value is not None and math.isfinite(value) else None


def unfold(entry: Decided) -> Iterator[tuple[int | None, ServiceId | None, frozenset[tuple[str, str]]]]:
    """(frame number, chosen, refusals as (subject, code)) of every decision that the entry stands for."""
    codes = frozenset((refusal.subject, refusal.code) for refusal in entry.refusals)
    if entry.frames:
        for run in entry.frames:
            for frame in run:
                yield frame, entry.chosen, codes
    else:
        for _ in range(entry.count):
            yield None, entry.chosen, codes


def extended(runs: tuple[Run, ...], more: Iterable[int]) -> tuple[Run, ...]:
    """The runs with more frames at their end, in as few runs as a greedy look finds.

    >>> extended((), [1, 2, 3, 5, 7, 9, 9])
    (Run(first=1, count=3, step=1), Run(first=5, count=3, step=2), Run(first=9, count=1, step=0))
    """
    made = list(runs)
    for frame in more:
        last = made[-1] if made else None
        if last is not None and last.count == 1:
            made[-1] = Run(last.first, 2, frame - last.first)
        elif last is not None and frame == last.first + last.count * last.step:
            made[-1] = Run(last.first, last.count + 1, last.step)
        else:
            made.append(Run(frame))
    return tuple(made)


def stamp(at: float) -> str:
    """Seconds since 1970 as UTC in ISO 8601, to a millisecond.

    >>> stamp(0.25)
    '1970-01-01T00:00:00.250+00:00'
    """
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def repeated(entry: Decided, more: Repeated) -> Decided:
    """The entry with repetitions that were written later; the inverse of `Fold.untold`."""
    frames = entry.frames
    for run in more.frames:
        frames = extended(frames, run)
    return msgspec.structs.replace(
        entry,
        until=more.at,
        count=entry.count + more.count,
        frames=frames,
        least_ms=more.least_ms,
        most_ms=more.most_ms,
    )


def read(lines: Iterable[bytes | str], since: int = -1) -> list[AnyEntry]:
    """The entries in a file's lines with a number above `since`, repetitions folded back in.

    A last line that was cut off, a line of a newer version and one that is none are passed over: a trail that a killed
    process left must be readable as far as it goes.
    """
    found: dict[int, AnyEntry] = {}
    for line in lines:
        try:
            entry = _decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if isinstance(entry, Repeated):
            known = found.get(entry.number)
            if isinstance(known, Decided):
                found[entry.number] = repeated(known, entry)
        elif entry.number > since:
            found.setdefault(entry.number, entry)
    return [found[number] for number in sorted(found)]


_decoder = msgspec.json.Decoder(AnyEntry)
_encoder = msgspec.json.Encoder(decimal_format="number")


def encode(entries: Iterable[AnyEntry]) -> bytes:
    """Entries as lines of JSON."""
    return b"".join(_encoder.encode(entry) + b"\n" for entry in entries)


def page_as_json(made: Page) -> dict[str, Any]:
    """A page as plain values; fields at their default are left out of its entries."""
    return {
        "stream": status_as_json(made.stream),
        "entries": [msgspec.to_builtins(entry) for entry in made.entries],
        "next": made.next,
        "more": made.more,
    }


def status_as_json(status: Status) -> dict[str, Any]:
    """Every field of a status; `answered` and `lost` are null when nobody counted."""
    counted = bool(status.counts) or status.running
    return {
        "stream": status.stream,
        "model": status.model,
        "source": status.source,
        "by": status.by,
        "since": status.since,
        "last": status.last or None,
        "running": status.running,
        "ended": status.ended or None,
        "served_by": status.served_by,
        "answered": status.answered if counted else None,
        "lost": status.lost if counted else None,
        "counts": dict(status.counts),
        "moved": status.moved,
        "level": status.level,
    }
