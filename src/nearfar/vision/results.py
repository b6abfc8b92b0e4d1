"""What became of each frame, and of a whole stream."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from nearfar.errors import NearfarError, by_code
from nearfar.types.detections import Detections
from nearfar.types.histogram import Histogram
from nearfar.types.ids import ServiceId
from nearfar.types.image import ImageKind
from nearfar.types.request import STAGE_NAMES, Answer
from nearfar.types.units import Milliseconds

KEPT_RANGES = 1000
"""Of lost frames; the count is of all."""
EXPIRED = "expired: its deadline passed before it could be sent"
KEPT_MOVES = 1000
"""A stream of weeks keeps this many moves; the count is of all."""


class Outcome(StrEnum):
    """The one end that each frame comes to."""

    ANSWERED = "answered"
    LATE = "late"
    """Answered, but after its deadline."""
    DROPPED = "dropped"
    """Never sent, or given up when the stream was stopped; `reason` says which."""
    FAILED = "failed"
    """Sent, and an error came back; `error` says which."""


class FrameResult(msgspec.Struct, frozen=True):
    """One frame's end. All times in milliseconds."""

    index: int
    outcome: Outcome
    pts_ms: Milliseconds | None = None
    answer: Answer | None = None
    error: NearfarError | None = None
    reason: str = ""
    """Why it was dropped or failed; empty when it was answered in time."""
    decode_ms: float = 0.0
    wait_ms: float = 0.0
    """In the hand-over, between the decoder and the sender."""
    encode_ms: float = 0.0
    total_ms: float = 0.0
    """Until the answer was here: from the moment the source had the frame (live), else from when it was taken up."""
    sent: ImageKind | None = None
    tracked: Detections | None = None
    """What a tracker made of the answer, with ids; None when nothing tracks, or the frame has no answer."""

    @property
    def served_by(self) -> ServiceId | None:
        return self.answer.served_by if self.answer is not None else None

    def stages(self) -> dict[str, float]:
        """Milliseconds by stage in the order in which they happen; empty for a frame without an answer."""
        if self.answer is None:
            return {}
        remote = {name: float(getattr(self.answer.stages, name)) for name in STAGE_NAMES}
        own = {"decode": self.decode_ms, "wait": self.wait_ms, "encode": self.encode_ms}
        return own | remote | {"total": self.total_ms}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for one line of JSON; the detections are the caller's to add."""
        return {
            "frame": self.index,
            "outcome": self.outcome.value,
            "pts_ms": self.pts_ms,
            "served_by": self.served_by,
            "code": self.error.code if self.error is not None else None,
            "reason": self.reason or None,
            "stages_ms": {name: round(value, 3) for name, value in self.stages().items()},
        }


class Kind(StrEnum):
    PLANNED = "planned"
    """The service before still answered: its successor was warm, compared, and took over between two frames."""
    UNPLANNED = "unplanned"
    """The service before was gone, refused or failed."""


class Move(msgspec.Struct, frozen=True):
    """The stream went over to another service, from this frame on."""

    source: ServiceId
    target: ServiceId
    frame: int
    kind: Kind = Kind.UNPLANNED
    reason: str = ""


class GivenUp(msgspec.Struct, frozen=True):
    """A move that was begun and not made; the stream stayed where it was."""

    target: ServiceId
    frame: int
    reason: str


class HandOver(msgspec.Struct, frozen=True):
    """Another program went on with the stream, from this frame on."""

    source: str
    target: str
    frame: int
    kind: Kind
    reason: str = ""
    """What happened to the frames between, in words."""


class Lost:
    """Numbers of frames that were to be answered and were not, as ranges; added in growing order.

    >>> lost = Lost(); lost.add(3); lost.add(4); lost.add(9, 12); lost.ranges, lost.count
    ([(3, 4), (9, 12)], 6)
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = (), count: int | None = None) -> None:
        self.ranges: list[tuple[int, int]] = list(ranges)
        """(first, last) of each; the newest `KEPT_RANGES`."""
        self.count = sum(b - a + 1 for a, b in self.ranges) if count is None else count

    def add(self, first: int, last: int | None = None) -> None:
        last = first if last is None else last
        self.count += last - first + 1
        if self.ranges and self.ranges[-1][1] == first - 1:
            self.ranges[-1] = (self.ranges[-1][0], last)
        else:
            self.ranges.append((first, last))
            del self.ranges[:-KEPT_RANGES]

    def words(self, most: int = 8) -> str:
        """`3-4, 9` and how many ranges more there are."""
        shown = [str(a) if a == b else f"{a}-{b}" for a, b in self.ranges[:most]]
        more = len(self.ranges) - most
        return ", ".join(shown) + (f" and {more} more ranges" if more > 0 else "")


class Counts(Protocol):
    """What tells of a stream beside its frames: `tracking.follow.Follow`, `promise.Keeper`."""

    def to_dict(self) -> dict[str, Any] | None: ...

    def words(self) -> str: ...


class Summary:
    """Counts and times so far; read it at any moment, also while the stream runs. `add` is the engine's."""

    def __init__(self) -> None:
        self.counts: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self.drops: Counter[str] = Counter()
        """Dropped frames by reason."""
        self.failures: Counter[str] = Counter()
        """Failed frames by error code."""
        self.reasons: dict[str, str] = {}
        """The last message of each error code."""
        self.served: Counter[ServiceId] = Counter()
        self.sent: Counter[str] = Counter()
        """Answered frames by how they travelled: `bgr`, `encoded`."""
        self.moves: deque[Move] = deque(maxlen=KEPT_MOVES)
        self.moved = 0
        self.given_up: deque[GivenUp] = deque(maxlen=KEPT_MOVES)
        """Moves that were begun and not made."""
        self.shadows = 0
        """Copies of frames that were sent to warm a service and to compare it, before a move; no results."""
        self.lost = Lost()
        """Frames that got no answer although they were to get one: failed, expired, or between two hosts."""
        self.hosts: deque[HandOver] = deque(maxlen=KEPT_MOVES)
        """Programs that this stream went over to."""
        self.stream = ""
        """Its name in the fleet; empty when it has none."""
        self.handed_over = False
        """Another program goes on with the stream: this one ended well."""
        self.stages: dict[str, Histogram] = {}
        self.read = 0
        """Frames that the source gave, including those that are on their way."""
        self.reconnects = 0
        self.corrupt = 0
        self.ended = ""
        """Why the stream is over; empty while it runs."""
        self.error: NearfarError | None = None
        """Set when the stream broke off: the source, the recorder, or nobody answered for too long."""
        self.tracking: Counts | None = None
        """Tracks, lines and zones; None when nothing tracks."""
        self.promise: Counts | None = None
        """How the promise stands and what was given up for it; its `words` are empty when nothing was promised."""
        self._started = time.monotonic()
        self._stopped: float | None = None

    def add(self, result: FrameResult) -> None:
        """Count one result; results come in the order of their frames."""
        self.counts[result.outcome] += 1
        if result.outcome is Outcome.DROPPED:
            self.drops[result.reason] += 1
        if result.outcome is Outcome.FAILED or result.reason == EXPIRED:
            self.lost.add(result.index)
        if result.error is not None:
            self.failures[result.error.code] += 1
            self.reasons[result.error.code] = str(result.error)
        for name, value in result.stages().items():
            self.stages.setdefault(name, Histogram()).add(value)
        if result.sent is not None and result.answer is not None:
            self.sent[result.sent.value] += 1
        if result.served_by is not None:
            self.served[result.served_by] += 1

    def note(self, move: Move) -> None:
        """The stream went over to another service."""
        self.moves.append(move)
        self.moved += 1

    def give_up(self, what: GivenUp) -> None:
        """A move was begun and not made."""
        self.given_up.append(what)

    def started_before(self, wall_s: float, now: float) -> None:
        """The stream had run for so long when it came here, at `now` of the monotonic clock."""
        self._started = now - wall_s

    def stop(self, reason: str) -> None:
        """The stream is over; the clock stands."""
        self._stopped = time.monotonic()
        self.ended = reason

    @property
    def wall_s(self) -> float:
        return (self._stopped or time.monotonic()) - self._started

    @property
    def seen(self) -> int:
        """Frames with an answer, in time or late."""
        return self.counts[Outcome.ANSWERED] + self.counts[Outcome.LATE]

    @property
    def accounted(self) -> int:
        """Frames that came to their end. Equals `read` once the stream is over."""
        return sum(self.counts.values())

    @property
    def fps(self) -> float:
        """Answers per second over the whole stream."""
        return self.seen / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def exit_code(self) -> int:
        """0 only when the stream did not break off and no frame failed; else that of the (most frequent) error.

        A stream that was handed over did not break off; what failed of it is told by the program that ends it.
        """
        if self.error is not None:
            return self.error.exit_code
        if self.failures and not self.handed_over:
            return by_code(self.failures.most_common(1)[0][0]).exit_code
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `--json`; times in milliseconds, rounded to a microsecond."""
        return {
            "stream": self.stream,
            "frames": {"read": self.read} | {outcome.value: n for outcome, n in self.counts.items()},
            "drops": dict(self.drops),
            "failures": {code: {"count": n, "reason": self.reasons[code]} for code, n in self.failures.items()},
            "served_by": dict(self.served),
            "sent_as": dict(self.sent),
            "moved": self.moved,
            "moves": [msgspec.to_builtins(move) for move in self.moves],
            "given_up": [msgspec.to_builtins(move) for move in self.given_up],
            "shadows": self.shadows,
            "lost": {"count": self.lost.count, "ranges": [list(one) for one in self.lost.ranges]},
            "hosts": [msgspec.to_builtins(one) for one in self.hosts],
            "handed_over": self.handed_over,
            "stages_ms": {name: _quantiles(histogram) for name, histogram in self.stages.items()},
            "tracking": None if self.tracking is None else self.tracking.to_dict(),
            "promise": None if self.promise is None else self.promise.to_dict(),
            "reconnects": self.reconnects,
            "corrupt": self.corrupt,
            "wall_s": round(self.wall_s, 3),
            "fps": round(self.fps, 3),
            "ended": self.ended,
            "error": None if self.error is None else {"code": self.error.code, "message": str(self.error)},
            "exit_code": self.exit_code,
        }


def _quantiles(histogram: Histogram) -> dict[str, float]:
    points = {f"p{int(q * 100)}": round(histogram.quantile(q), 3) for q in (0.5, 0.95, 0.99)}
    return points | {"mean": round(histogram.mean(), 3), "count": histogram.total}
