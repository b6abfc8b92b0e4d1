"""What a stream knows, as bytes that another program can go on from; and what its host and its successor say.

Key space: `stream/<name>/host/<epoch>/<host>` is served by whoever runs the stream, `stream/<name>/standby/<host>` by
whoever waits to, `stream/<name>/taker/<host>` is a token of who is about to, `stream/<name>/checkpoint` carries memory.
Each time the stream goes over to another program its epoch grows by one; of two hosts that of the lower epoch ends.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from nearfar.errors import InputError
from nearfar.types.histogram import Histogram
from nearfar.types.ids import ServiceId
from nearfar.types.request import Privacy
from nearfar.types.units import Milliseconds
from nearfar.types.wire import Failure
from nearfar.vision.results import GivenUp, HandOver, Lost, Move, Outcome, Summary
from nearfar.vision.tracking.base import LAST_FRAME
from nearfar.vision.tracking.state import LARGEST, damaged, pack, unpack

KIND, VERSION = "stream", 1
MOST = 1 << 53


class Op(StrEnum):
    HELLO = "hello"
    """How is the stream, and can it travel at all?"""
    TAKE = "take"
    """Stop between two frames and hand over the memory."""
    CONFIRM = "confirm"
    """I have it and run: end."""
    CANCEL = "cancel"
    """I cannot go on with it: do so yourself."""
    ENDED = "ended"
    """To a standby: the stream is over, there is nothing to take over."""


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """The head of every request. `host` is who asks."""

    op: Op
    host: str
    text: str = ""
    version: int = VERSION


class Told(msgspec.Struct, frozen=True, array_like=True):
    """The head of every answer; the memory is the body of the answer to `take`."""

    failure: Failure | None = None
    next_frame: int = 0
    running_s: float = 0.0
    """How long this program has run the stream."""


class SummaryMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counts so far (`Summary`)."""

    read: int
    counts: Mapping[Outcome, int]
    drops: Mapping[str, int]
    failures: Mapping[str, int]
    reasons: Mapping[str, str]
    served: Mapping[str, int]
    sent: Mapping[str, int]
    moves: tuple[Move, ...]
    moved: int
    given_up: tuple[GivenUp, ...]
    shadows: int
    lost: tuple[tuple[int, int], ...]
    lost_count: int
    hosts: tuple[HandOver, ...]
    stages: Mapping[str, tuple[Mapping[int, int], float]]
    reconnects: int
    corrupt: int
    wall_s: float


class StreamMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a stream knows between two frames."""

    stream: str
    epoch: int
    host: str
    """Who exported it."""
    model: str
    source: str
    """Without its password."""
    live: bool
    privacy: Privacy
    next_frame: int
    """The first frame that was not delivered."""
    pts_ms: float | None
    """Presentation time of the frame before it."""
    period_ms: float
    """Mean time between frames as they were delivered; 0 when it is not known."""
    age_ms: float
    """How old the last delivered frame was when this was exported."""
    incumbent: str | None
    summary: SummaryMemory
    follow: bytes | None
    """Tracker, lines and zones (`tracking.follow`); None when nothing tracks."""
    extras: Mapping[str, bytes] = {}
    """What else travels with the stream, by name: such as the window of its QoS monitor."""


def pack_memory(memory: StreamMemory) -> bytes:
    """Raises `InputError` when it is larger than any state may be."""
    data = pack(KIND, VERSION, memory)
    if len(data) > LARGEST:
        raise InputError(
            f"The stream's memory has {len(data)} bytes; at most {LARGEST} travel.", "Track fewer objects."
        )
    return data


def unpack_memory(data: bytes) -> StreamMemory:
    """Raises `InputError` for what is no memory of a stream, cut, changed, of another version or impossible."""
    memory = unpack(data, KIND, VERSION, StreamMemory)
    told = memory.summary
    numbers = [told.read, told.moved, told.shadows, told.lost_count, told.reconnects, told.corrupt]
    for counts in (told.counts, told.drops, told.failures, told.served, told.sent):
        numbers += counts.values()
    if not all(0 <= number <= MOST for number in numbers):
        raise damaged(KIND, "a count is out of range")
    if not (0 <= memory.next_frame <= LAST_FRAME and 1 <= memory.epoch <= MOST):
        raise damaged(KIND, f"frame {memory.next_frame} or epoch {memory.epoch} is out of range")
    if not (0 <= memory.period_ms < 1e7 and 0 <= memory.age_ms < 1e9 and 0 <= told.wall_s < 1e12):
        raise damaged(KIND, "a time is out of range")
    if any(not 0 <= first <= last <= LAST_FRAME for first, last in told.lost):
        raise damaged(KIND, "a range of lost frames is none")
    if any(n < 0 for counts, _ in told.stages.values() for n in counts.values()):
        raise damaged(KIND, "a histogram has a negative count")
    if sum(told.counts.values()) != told.read:
        raise damaged(KIND, "not every frame that was read came to its end")
    return memory


def memory_of(summary: Summary) -> SummaryMemory:
    """The counts of a summary between two frames: frames that were read and have not ended are not counted."""
    return SummaryMemory(
        summary.accounted,
        dict(summary.counts),
        dict(summary.drops),
        dict(summary.failures),
        dict(summary.reasons),
        {str(service): n for service, n in summary.served.items()},
        dict(summary.sent),
        tuple(summary.moves),
        summary.moved,
        tuple(summary.given_up),
        summary.shadows,
        tuple(summary.lost.ranges),
        summary.lost.count,
        tuple(summary.hosts),
        {name: (histogram.counts, histogram.sum) for name, histogram in summary.stages.items()},
        summary.reconnects,
        summary.corrupt,
        summary.wall_s,
    )


def summary_from(memory: SummaryMemory, now: float | None = None) -> Summary:
    """A running summary that goes on from these counts. `now`: of the monotonic clock."""
    summary = Summary()
    summary.read = memory.read
    summary.counts.update(memory.counts)
    summary.drops.update(memory.drops)
    summary.failures.update(memory.failures)
    summary.reasons.update(memory.reasons)
    summary.served.update({ServiceId(service): n for service, n in memory.served.items()})
    summary.sent.update(memory.sent)
    summary.moves.extend(memory.moves)
    summary.moved = memory.moved
    summary.given_up.extend(memory.given_up)
    summary.shadows = memory.shadows
    summary.lost = Lost(memory.lost, memory.lost_count)
    summary.hosts.extend(memory.hosts)
    summary.stages = {name: Histogram(counts, total) for name, (counts, total) in memory.stages.items()}
    summary.reconnects, summary.corrupt = memory.reconnects, memory.corrupt
    summary.started_before(memory.wall_s, time.monotonic() if now is None else now)
    return summary


def frames_between(memory: StreamMemory, waited_ms: float) -> int:
    """How many frames of a source without a past went by between the last delivered one and now, at its mean rate.

    `waited_ms`: since the memory came. The frame that is read next is the one after them.

    >>> summary = memory_of(Summary())
    >>> one = StreamMemory("gate", 1, "a", "yard", "rtsp://cam", True, Privacy.ANY, 100, None, 40.0, 15.0, None,
    ...     summary, None)
    >>> frames_between(one, 20.0), frames_between(one, 30.0), frames_between(one, 1000.0)
    (0, 0, 24)
    """
    if memory.period_ms <= 0:
        return 0
    passed = (memory.age_ms + waited_ms) / memory.period_ms
    return max(0, int(passed + 0.5) - 1)


def may_follow(memory: StreamMemory, model: str, privacy: Privacy) -> None:
    """Raise `InputError` when a program with these flags may not go on with the stream."""
    if memory.model != model:
        raise InputError(
            f"The stream {memory.stream!r} is looked at by {memory.model}, not {model}.", f"Say --model {memory.model}."
        )
    order = [Privacy.ANY, Privacy.FLEET, Privacy.LOCAL]
    if order.index(privacy) < order.index(memory.privacy):
        raise InputError(
            f"The stream {memory.stream!r} is marked {memory.privacy.value}; its pictures may not go further.",
            f"Say --privacy {memory.privacy.value}.",
        )


# -- keys -------------------------------------------------------------------------------------------------------------


def everybody(stream: str) -> str:
    """The pattern of all tokens of a stream."""
    return f"stream/{stream}/**"


def host_key(stream: str, epoch: int, host: str) -> str:
    """
    >>> host_key("gate", 2, "pi-1a2b3c")
    'stream/gate/host/2/pi-1a2b3c'
    """
    return f"stream/{stream}/host/{epoch}/{host}"


def standby_key(stream: str, host: str) -> str:
    return f"stream/{stream}/standby/{host}"


def taker_key(stream: str, host: str) -> str:
    return f"stream/{stream}/taker/{host}"


def checkpoint_key(stream: str) -> str:
    return f"stream/{stream}/checkpoint"


def waited(since: float, now: float) -> Milliseconds:
    """Milliseconds between two moments of the monotonic clock."""
    return Milliseconds(max(0.0, (now - since) * 1e3))
