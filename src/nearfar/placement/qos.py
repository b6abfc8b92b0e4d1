"""Is a stream's promise kept, and will it be? A sliding window of what became of its frames, and a robust forecast.

The promise: so many of a hundred answers come within the deadline. A lost answer counts as one that takes for ever, so
the promise is kept exactly when that percentile of the window is within the deadline.

The forecast is a line through the medians of quarter seconds (Theil-Sen: H. Theil, 1950; P. K. Sen, J. Am. Stat. Assoc.
63, 1968), a second further on, plus what the percentile lies above the running median. It takes no notice of one bad
second: that is a quarter of its line, and Theil-Sen bears 29 %. A slope counts only where Kendall's test finds one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import islice
from statistics import median
from typing import Annotated

import msgspec

from nearfar.errors import InputError
from nearfar.types.request import STAGE_NAMES, Degrade, Qos, Stages
from nearfar.types.units import Milliseconds, Seconds

WINDOW = Seconds(30.0)
"""A bad second of it is 3 %: a promise of 95 % bears that."""
MOST = 4096
"""Ends of frames that a window keeps at most; of faster streams it is shorter."""
HORIZON = Seconds(1.0)
"""How far the forecast looks ahead: choosing, warming and moving take less."""
BIN = Seconds(0.25)
BINS = 16
"""The line goes through so many bins at most: four seconds at four frames/s and more."""
LEAST_BINS = 10
"""With fewer there is no forecast: one bad second at the start would be most of it."""
HOLD = Seconds(0.5)
"""The forecast must break the deadline for so long before the promise is threatened; doubled by every restart within
the window, so that a stream whose moves do not help moves ever less."""
MOST_DOUBLED = 4
CALM = Seconds(3.0)
"""Threatened and broken end when nothing was wrong for so long."""
EASE = 0.95
"""Nothing is wrong when the forecast is within this share of the deadline; between that and the deadline all stays."""
LEAST_LATE = 3
"""Fewer late or lost answers break no promise, however slow the stream."""
CLIENT = "client"
"""The stage before an answer's own stages: decoding, waiting and encoding here, and failed attempts."""
STAGES = (CLIENT, *STAGE_NAMES)
VERSION = 1
_RUN = 5
_SECOND = 4
_NEVER = Seconds(-math.inf)


class Level(StrEnum):
    KEPT = "kept"
    THREATENED = "threatened"
    """The forecast breaks the deadline: the move should start now."""
    BROKEN = "broken"
    """More answers were late or lost than the promise allows in a window."""


class Promise(msgspec.Struct, frozen=True):
    """`percentile` of a hundred answers come within `deadline`, 50 to 99.9."""

    deadline: Milliseconds
    percentile: float = 95.0

    @property
    def allowed(self) -> float:
        """Share of answers that may be late."""
        return 1.0 - self.percentile / 100.0


class Assessment(msgspec.Struct, frozen=True, gc=False):
    """How a promise stands. Times in milliseconds; infinite where answers were lost, NaN where there were none."""

    level: Level
    since: Seconds
    """When the level began, by the clock of the one who assessed."""
    promise: Promise
    ends: int
    """Answers, late ones and losses in the window."""
    late: int
    """How many of them were late or lost."""
    quantile: Milliseconds
    """The promise's percentile of the time from frame to answer."""
    stages: Mapping[str, float]
    """The same percentile of each stage by itself (answers only)."""
    forecast: Milliseconds | None
    """The percentile to be expected a second from now; None while too little is known."""
    slope: float
    """Milliseconds per second by which the forecast's line rises or falls; 0 where no trend is beyond doubt."""
    blame: str
    """The stage that grew most, or else the longest; empty without answers."""
    waits: Milliseconds
    """What the fleet's telemetry adds to the forecast: a queue at the incumbent that answers do not show yet."""

    @property
    def share(self) -> float:
        """Share of late and lost answers in the window, 0 to 1."""
        return self.late / self.ends if self.ends else 0.0

    @property
    def reason(self) -> str:
        """One sentence with the figures, worded only when somebody looks."""
        promise = self.promise
        asked = f"{promise.percentile:g} % within {promise.deadline:g} ms"
        if not self.ends:
            return f"{asked}: no answer has come yet"
        told = f"{self.late} of {self.ends} answers late or lost, p{promise.percentile:g} {_ms(self.quantile)}"
        if self.forecast is not None:
            ahead = "none" if self.forecast == math.inf else _ms(self.forecast)
            told += f", {ahead} expected in {HORIZON:g} s"
        if self.slope:
            told += f" ({self.slope:+.1f} ms/s)"
        if self.waits >= 1:
            told += f", {self.waits:.0f} ms of it by a queue that grows"
        if self.blame and self.level is not Level.KEPT:
            told += f"; most by {self.blame} (p{promise.percentile:g} {_ms(self.stages.get(self.blame, math.nan))})"
        return f"{asked} is {self.level.value}: {told}"


class Sample(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The end of one frame. `at` is a moment in a monitor, and an age in an exported state."""

    at: float
    total: Annotated[float, msgspec.Meta(ge=0)]
    """Infinite for a lost one."""
    stages: tuple[float, ...]
    """In the order of `STAGES`; empty for a lost one."""
    rest: float
    """By how much it was longer than the median of those just before it."""


class MonitorState(msgspec.Struct, frozen=True):
    """All that a monitor knows. Moments are ages in seconds, since no two machines share a clock."""

    samples: tuple[Sample, ...]
    level: Level
    since: float
    began: float
    over: float
    """Since when the forecast has been beyond the deadline; infinite when it is not."""
    wrong: float
    """When something was last wrong."""
    restarts: tuple[float, ...]
    version: int = VERSION


class Monitor:
    """Watches one stream. Not thread-safe; moments are those of one monotonic clock and do not go back."""

    def __init__(self, now: Seconds) -> None:
        self.level = Level.KEPT
        self.since = now
        self._began = now
        self._over = math.inf
        self._wrong: float = _NEVER
        self._restarts: deque[float] = deque(maxlen=32)
        self._samples: deque[Sample] = deque()
        self._totals: list[float] = []
        self._fresh: list[float] = []
        """Totals since the last restart: the level speaks of them alone."""
        self._rests: list[float] = []
        self._stages: tuple[list[float], ...] = tuple([] for _ in STAGES)
        self._run: deque[float] = deque(maxlen=_RUN)
        self._bins: deque[tuple[int, list[float]]] = deque(maxlen=BINS + 1)
        self._line: tuple[int, float | None, float] = (-1, None, 0.0)
        self._waits: deque[tuple[int, float]] = deque(maxlen=BINS + 2 * _SECOND)
        """Expected waits by quarter second. They do not travel: they are of the client that asks, and begin anew."""

    # -- what is told ---------------------------------------------------------------------------------------------

    def observe(self, stages: Stages, total_ms: float, at: Seconds) -> None:
        """An answer came, `total_ms` after its frame; what its stages do not account for was spent in the client."""
        own = (max(0.0, total_ms - stages.total), *(max(0.0, getattr(stages, name)) for name in STAGE_NAMES))
        self._take(max(0.0, total_ms), own, at)

    def took(self, total_ms: float, at: Seconds) -> None:
        """An answer of another service than the stream's came, for this frame alone: only its time is of the stream."""
        self._put(Sample(at, max(0.0, total_ms), (), 0.0))
        self._drop(at)

    def missed(self, at: Seconds) -> None:
        """A frame was sent, or should have been, and no answer came."""
        self._take(math.inf, (), at)

    def restart(self, at: Seconds) -> None:
        """Conditions were changed on purpose (the stream moved, its rate or its pictures were made smaller): what was
        before counts for the window's figures, and no longer for level and forecast."""
        self._restarts.append(at)
        self._began = at
        self._fresh.clear()
        self._run.clear()
        self._bins.clear()
        self._waits.clear()
        self._line = (-1, None, 0.0)
        self._over, self._wrong = math.inf, _NEVER
        self._become(Level.KEPT, at)

    def _take(self, total: float, stages: tuple[float, ...], at: float) -> None:
        rest = 0.0
        run = self._run
        if total < math.inf and at > self._began:
            if run:
                rest = total - sorted(run)[len(run) // 2]
            run.append(total)
        self._put(Sample(at, total, stages, rest))
        self._drop(at)

    def _put(self, sample: Sample) -> None:
        self._samples.append(sample)
        insort(self._totals, sample.total)
        if sample.at > self._began:  # one of the very moment of a restart was before it
            insort(self._fresh, sample.total)
            place = int((sample.at - self._began) / BIN)
            if self._bins and self._bins[-1][0] == place:
                self._bins[-1][1].append(sample.total)
            else:
                self._bins.append((place, [sample.total]))
        if sample.stages:
            insort(self._rests, sample.rest)
            for kept, value in zip(self._stages, sample.stages, strict=True):
                insort(kept, value)

    def _drop(self, now: float) -> None:
        samples = self._samples
        while samples and (samples[0].at < now - WINDOW or len(samples) > MOST):
            old = samples.popleft()
            _remove(self._totals, old.total)
            if old.at > self._began:
                _remove(self._fresh, old.total)
            if old.stages:
                _remove(self._rests, old.rest)
                for kept, value in zip(self._stages, old.stages, strict=True):
                    _remove(kept, value)

    # -- how it stands --------------------------------------------------------------------------------------------

    def assess(self, promise: Promise, now: Seconds, wait: Milliseconds | None = None) -> Assessment:
        """How the promise stands at this moment. `wait`: how long the next request would wait at the incumbent by the
        fleet's snapshot (`Expectation.wait`). By how much that has grown is added to the forecast, where answers do not
        show it yet: the growth counts, since a wait that was always expected is in the answers already, or never came.
        """
        self._drop(now)
        share = promise.percentile / 100.0
        waits = 0.0
        forecast: float | None = None
        line, slope = self._line_at(now)
        if wait is not None:
            waits = self._growth(wait, now)
        if line is not None:
            forecast = max(0.0, line + self._spread(share) + waits)
        late = len(self._fresh) - bisect_right(self._fresh, promise.deadline)
        # Against what the whole window allows at this rate, so that a young stream is judged no more harshly.
        span = min(max(now - self._began, 1.0), WINDOW)
        broken = late >= LEAST_LATE and late > promise.allowed * len(self._fresh) / span * WINDOW * (1 + 1e-9)
        self._step(promise, now, forecast, broken)
        near = self.level is not Level.KEPT or (forecast is not None and forecast > promise.deadline)
        return Assessment(
            self.level,
            self.since,
            promise,
            len(self._totals),
            len(self._totals) - bisect_right(self._totals, promise.deadline),
            Milliseconds(quantile(self._totals, share)),
            {name: quantile(kept, share) for name, kept in zip(STAGES, self._stages, strict=True) if kept},
            None if forecast is None else Milliseconds(forecast),
            slope,
            self._blame() if near else "",
            Milliseconds(waits),
        )

    def _step(self, promise: Promise, now: Seconds, forecast: float | None, broken: bool) -> None:
        beyond = forecast is not None and forecast > promise.deadline
        if not beyond:
            self._over = math.inf
        elif self._over == math.inf:
            self._over = now
        if broken or (forecast is not None and forecast > EASE * promise.deadline):
            self._wrong = now
        recent = sum(now - at <= WINDOW for at in self._restarts)
        hold = HOLD * 2.0 ** min(recent, MOST_DOUBLED)
        if broken:
            self._become(Level.BROKEN, now)
        elif self.level is Level.KEPT:
            if beyond and now - self._over >= hold:
                self._become(Level.THREATENED, now)
        elif now - max(self._wrong, self.since) >= CALM:
            self._become(Level.KEPT, now)

    def _become(self, level: Level, now: Seconds) -> None:
        if level is not self.level:
            self.level, self.since = level, now

    def _line_at(self, now: float) -> tuple[float | None, float]:
        """The line's value a horizon from now, and its slope in ms per second; worked out once for each bin."""
        place = int((now - self._began) / BIN)
        if self._line[0] != place:
            oldest = place - int(WINDOW / BIN)
            points = [(at + 0.5, median(values)) for at, values in self._bins if oldest <= at < place][-BINS:]
            finite = [point for point in points if point[1] < math.inf]
            if len(points) < LEAST_BINS:
                self._line = (place, None, 0.0)
            elif 2 * len(finite) <= len(points):  # most are lost: no line goes through that
                self._line = (place, math.inf, 0.0)
            else:
                level, slope = theil_sen(finite)
                self._line = (place, level, slope)
        _, level_at_0, slope = self._line
        if level_at_0 is None:
            return None, 0.0
        return level_at_0 + slope * ((now - self._began + HORIZON) / BIN), slope / BIN

    def _spread(self, share: float) -> float:
        """What the percentile lies above the running median. Of few samples the worst stay out: they break nothing."""
        count = len(self._rests)
        return max(0.0, quantile(self._rests, min(share, 1 - LEAST_LATE / count))) if count > LEAST_LATE else 0.0

    def _recent(self, stage: int) -> float:
        """Median of a stage over the last answers; 0 without any."""
        values = [s.stages[stage] for s in islice(reversed(self._samples), 2 * _RUN) if s.stages]
        return median(values) if values else 0.0

    def _growth(self, wait: float, now: float) -> float:
        """By how much the expected wait of the last second, at its least, is above what was usual before."""
        place = int((now - self._began) / BIN)
        if 0 <= wait < math.inf:
            if self._waits and self._waits[-1][0] == place:
                self._waits.pop()
            self._waits.append((place, wait))
        values = [value for _, value in self._waits]
        if len(values) < LEAST_BINS:
            return 0.0
        usual = max(median(values[:-_SECOND]), self._recent(STAGES.index("queue")))
        return max(0.0, min(values[-_SECOND:]) - usual)

    def _blame(self) -> str:
        """The stage whose median grew most from the older half of the window to the last answers."""
        answered = [s.stages for s in self._samples if s.stages]
        if not answered:
            return ""
        old, new = answered[: max(1, len(answered) // 2)], answered[-2 * _RUN :]
        now = [median(s[i] for s in new) for i in range(len(STAGES))]
        grown = [value - median(s[i] for s in old) for i, value in enumerate(now)]
        most = max(range(len(STAGES)), key=grown.__getitem__)
        if grown[most] < max(1.0, 0.05 * sum(now)):
            most = max(range(len(STAGES)), key=now.__getitem__)
        return STAGES[most]

    # -- on the move ----------------------------------------------------------------------------------------------

    def state(self, now: Seconds) -> MonitorState:
        """All that it knows, as a frozen value that means the same on another machine."""
        samples = tuple(Sample(now - s.at, s.total, s.stages, s.rest) for s in self._samples)
        ages = tuple(now - at for at in self._restarts)
        return MonitorState(
            samples, self.level, now - self.since, now - self._began, now - self._over, now - self._wrong, ages
        )

    @classmethod
    def of(cls, state: MonitorState, now: Seconds) -> Monitor:
        """A monitor that goes on where another stopped. Raises `InputError` for a state that makes no sense."""
        if state.version != VERSION:
            raise InputError(
                f"The state of the monitor is of version {state.version}; this program reads version {VERSION}.",
                "Use the same version of nearfar on both nodes.",
            )
        ages = [sample.at for sample in state.samples]
        shapes = {len(sample.stages) for sample in state.samples}
        odd = any(not math.isfinite(age) for age in (*ages, state.since, state.began, *state.restarts))
        odd |= any(not all(map(math.isfinite, (*s.stages, s.rest))) or math.isnan(s.total) for s in state.samples)
        if odd or not shapes <= {0, len(STAGES)} or ages != sorted(ages, reverse=True) or len(ages) > MOST:
            raise InputError("This is no state of a monitor.", "Export it again.")
        made = cls(now)
        made.level, made.since, made._began = state.level, Seconds(now - state.since), Seconds(now - state.began)
        # An infinite age is of what never was; `_over` is infinite while nothing is.
        made._over = now - state.over if math.isfinite(state.over) else math.inf
        made._wrong = now - state.wrong if math.isfinite(state.wrong) else _NEVER
        made._restarts.extend(now - age for age in state.restarts)
        for sample in state.samples:
            at = now - sample.at
            made._put(Sample(at, sample.total, sample.stages, sample.rest))
            if at > made._began and sample.total < math.inf:
                made._run.append(sample.total)
        return made

    def export_state(self, now: Seconds) -> bytes:
        """`state` as MessagePack."""
        return msgspec.msgpack.encode(self.state(now))

    @classmethod
    def import_state(cls, data: bytes, now: Seconds) -> Monitor:
        """From what `export_state` gave. Raises `InputError` for other bytes."""
        try:
            state = msgspec.msgpack.decode(data, type=MonitorState)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"These bytes are no state of a monitor: {error}.", "Export it again.") from None
        return cls.of(state, now)


def theil_sen(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(value at x = 0, slope) of a line through the points; slope 0 unless Kendall's tau is beyond two of its standard
    deviations under no trend, sqrt(2 (2n + 5) / (9 n (n - 1))).

    >>> theil_sen([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (3.0, 7.0), (4.0, 900.0), (5.0, 11.0)])
    (1.0, 2.0)
    """
    n = len(points)
    slopes = [(y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(points) for x2, y2 in points[i + 1 :]]
    slope = 0.0
    if slopes:
        tau = sum((s > 0) - (s < 0) for s in slopes) / len(slopes)
        if abs(tau) > 2 * math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1))):
            slope = median(slopes)
    return median(y - slope * x for x, y in points), slope


def quantile(ordered: Sequence[float], share: float) -> float:
    """The least of the sorted values that at least this share of them do not exceed; NaN of none.

    >>> quantile([1.0, 2.0, 3.0, 4.0], 0.5), quantile([1.0, 2.0, 3.0, 4.0], 0.51)
    (2.0, 3.0)
    """
    if not ordered:
        return math.nan
    # A share of 0.95 is a little more than 95/100 as a float: 19 of 20 must stay 19.
    return ordered[min(len(ordered), max(1, math.ceil(share * len(ordered) - 1e-9))) - 1]


def gives_up(qos: Qos, what: Degrade) -> bool:
    """Whether that may be given up now: it heads the list, or only `far` and `refuse` stand before it.

    The other entries take a stream to be carried out; who leads it takes them from the list when they are used up.

    >>> one = Qos(degrade=(Degrade.FAR, Degrade.REFUSE)); two = Qos(degrade=(Degrade.RATE, Degrade.REFUSE))
    >>> gives_up(one, Degrade.REFUSE), gives_up(two, Degrade.REFUSE)
    (True, False)
    """
    for entry in qos.degrade:
        if entry is what:
            return True
        if entry not in (Degrade.FAR, Degrade.REFUSE):
            return False
    return False


def _remove(ordered: list[float], value: float) -> None:
    place = bisect_left(ordered, value)
    if place < len(ordered) and ordered[place] == value:
        del ordered[place]


def _ms(value: float) -> str:
    return "lost" if value == math.inf else f"{value:.1f} ms"
