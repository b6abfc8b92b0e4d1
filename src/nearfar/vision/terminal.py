"""What `watch` shows while it runs: a panel in the terminal, or one line per second."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from rich.color import Color
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Table
from rich.text import Text

from nearfar.types.detections import Detections
from nearfar.vision.draw import colour_of, shown
from nearfar.vision.results import FrameResult, Outcome, Summary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STAGES = {
    "decode": "grey62",
    "wait": "yellow",
    "encode": "cyan",
    "link": "blue",
    "queue": "magenta",
    "preprocess": "bright_cyan",
    "inference": "green",
    "postprocess": "bright_blue",
}
OUTCOMES = {Outcome.ANSWERED: "green", Outcome.LATE: "yellow", Outcome.DROPPED: "magenta", Outcome.FAILED: "red"}
ROLLING = 300
"""Answers over which the percentiles of the panel are taken."""
PICTURE_COLUMNS = 104
"""Terminals narrower than this show no picture."""
TALL = 20
"""Terminals lower than this leave out the reasons of drops."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"
EVENT_LINES = 3


class _Shown(NamedTuple):
    """What the panel shows at one moment."""

    recent: tuple[dict[str, float], ...]
    times: tuple[float, ...]
    notes: tuple[tuple[str, str], ...]
    last: FrameResult | None
    image: NDArray[np.uint8] | None


class Dashboard:
    """State of the panel; a rich renderable that fits itself into the console. Safe between two threads."""

    def __init__(self, title: str, summary: Summary, labels: Sequence[str] = (), *, picture: bool = True) -> None:
        self.title = title
        self._summary = summary
        self._labels = tuple(labels)
        self._picture = picture
        self._lock = threading.Lock()
        self._recent: deque[dict[str, float]] = deque(maxlen=ROLLING)
        self._times: deque[float] = deque(maxlen=ROLLING)
        self._notes: deque[tuple[str, str]] = deque(maxlen=40)
        self._last: FrameResult | None = None
        self._image: NDArray[np.uint8] | None = None
        self._moved = summary.moved
        """Moves that were told, or made in another program before."""

    def update(self, result: FrameResult, image: NDArray[np.uint8] | None = None) -> None:
        """Take in one result; for `on_result`."""
        with self._lock:
            if result.answer is not None:
                self._recent.append(result.stages())
                self._times.append(time.monotonic())
                self._last = result
            if image is not None:
                self._image = image
            if new := min(self._summary.moved - self._moved, len(self._summary.moves)):
                self._moved = self._summary.moved
                for move in list(self._summary.moves)[-new:]:
                    why = f": {move.reason}" if move.reason else ""
                    told = f"frame {move.frame}: moved from {move.source} to {move.target} ({move.kind}){why}"
                    self._add(told, "bold")
            if result.outcome is Outcome.FAILED:
                self._add(f"frame {result.index} failed: {result.reason}", "red")

    def note(self, text: str, style: str = "") -> None:
        """Add a line to the events, such as a decision and its reason."""
        with self._lock:
            self._add(text, style)

    def _add(self, text: str, style: str) -> None:
        self._notes.append((f"{time.strftime('%H:%M:%S')} {text}", style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, (options.height or console.size.height) - 1
        # Copied, then drawn: a stream must never wait until the panel is painted.
        with self._lock:
            now = _Shown(tuple(self._recent), tuple(self._times), tuple(self._notes), self._last, self._image)
        with_picture = (
            self._picture and now.image is not None and width >= PICTURE_COLUMNS and console.color_system == "truecolor"
        )
        inner = width - 4
        left = inner // 2 if with_picture else inner
        top: Any = Group(self._head(now, height >= TALL), "", self._table(now, left))
        if with_picture:
            grid = Table.grid(padding=(0, 2, 0, 0))
            grid.add_column(width=left)
            grid.add_column()
            grid.add_row(top, self._thumbnail(now, inner - left - 2, max(10, height - 2 - 5)))
            top = grid
        used = len(console.render_lines(top, options.update(width=inner, height=None), pad=False))
        room = max(0, height - 2 - used - 1)
        events = self._events(now, console, inner, room)
        body = Group(top, "", *events) if events else Group(top)
        yield Panel(body, title=Text(self.title, no_wrap=True, overflow="ellipsis"), border_style="grey50")

    def _events(self, now: _Shown, console: Console, width: int, room: int) -> list[Text]:
        """The newest events that fit, each on a few lines at most: a decision's reasons are worth more than one."""
        shown: list[Text] = []
        for text, style in reversed(now.notes):
            lines = list(Text(text, style=style).wrap(console, width))
            if room > 0 and len(lines) > (most := min(EVENT_LINES, room)):
                lines = lines[:most]
                lines[-1].append(" …")
                lines[-1].truncate(width, overflow="ellipsis")
            if len(lines) > room:
                break
            room -= len(lines)
            shown[:0] = lines
        return shown

    def _head(self, now: _Shown, tall: bool) -> Group:
        summary, last = self._summary, now.last
        who = Text(no_wrap=True, overflow="ellipsis")
        if last is None or last.answer is None:
            who.append("nobody answered yet", style="yellow")
        else:
            who.append("● ", style="green" if last.outcome is Outcome.ANSWERED else "yellow")
            who.append(str(last.answer.served_by), style="bold")
            who.append(f" ({last.answer.variant})", style="grey62")
        speed = Text(f"{self._fps(now.times):.1f}/s  {clock(summary.wall_s)}", style="bold", no_wrap=True)
        line = Table.grid(expand=True)
        line.add_column(ratio=1)
        line.add_column(justify="right")
        line.add_row(who, speed)
        counts = Text(f"read {summary.read}", no_wrap=True, overflow="ellipsis")
        for outcome, style in OUTCOMES.items():
            n = summary.counts[outcome]
            counts.append("  ")
            counts.append(f"{outcome.value} {n}", style=style if n else "grey50")
        counts.append(f"  moved {summary.moved}", style="" if summary.moved else "grey50")
        if summary.reconnects:
            counts.append(f"  reconnects {summary.reconnects}", style="yellow")
        lines: list[Any] = [line, counts, self._sees(last)]
        if summary.tracking is not None:
            lines.append(Text(summary.tracking.words(), style="cyan", no_wrap=True, overflow="ellipsis"))
        if summary.promise is not None and (told := summary.promise.words()):
            style = "grey62" if " is kept: " in told else "yellow"
            lines.append(Text(told, style=style, no_wrap=True, overflow="ellipsis"))
        if summary.drops and tall:
            reasons = ", ".join(f"{reason.partition(':')[0]} {n}" for reason, n in summary.drops.most_common())
            lines.insert(2, Text(f"dropped by {reasons}", style="grey62", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)

    def _sees(self, last: FrameResult | None) -> Text:
        text = Text("sees ", style="grey62", no_wrap=True, overflow="ellipsis")
        found = Counter[str]()
        if last is not None and last.answer is not None:
            for class_id in shown(last).class_ids.tolist():
                found[self._labels[class_id] if class_id < len(self._labels) else f"class {class_id}"] += 1
        return text.append(", ".join(f"{n} {name}" for name, n in found.most_common()) or "nothing", style="default")

    def _table(self, now: _Shown, width: int) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_column(width=11)
        for _ in range(3):
            table.add_column(justify="right", width=7)
        table.add_column()
        table.add_row(*(Text(h, style="grey62") for h in ("ms", "p50", "p95", "p99", "")))
        longest = max(8, width - 11 - 3 * 7 - 5)
        stages = {name: sorted(s[name] for s in now.recent) for name in (*STAGES, "total")}
        scale = max((quantile(values, 0.5) for name, values in stages.items() if name != "total" and values), default=0)
        for name, values in stages.items():
            style = STAGES.get(name, "bold")
            figures = [milliseconds(quantile(values, q)) for q in (0.5, 0.95, 0.99)]
            drawn = bar(quantile(values, 0.5) / scale * longest if values and scale > 0 else 0.0)
            table.add_row(
                Text(name, style=style),
                *(Text(f, style="bold" if name == "total" else "") for f in figures),
                Text("" if name == "total" else drawn, style=style, no_wrap=True),
            )
        return table

    def _fps(self, times: Sequence[float]) -> float:
        """Answers per second over the last ones, so that a stall shows: the clock runs on."""
        if len(times) < 2:
            return 0.0
        until = times[-1] if self._summary.ended else time.monotonic()
        return (len(times) - 1) / max(1e-9, until - times[0])

    def _thumbnail(self, now: _Shown, columns: int, rows: int) -> Segments:
        assert now.image is not None
        boxes = None
        if now.last is not None and now.last.answer is not None:
            boxes = shown(now.last)
        return half_blocks(thumbnail(now.image, columns, rows, boxes))


def thumbnail(image: NDArray[np.uint8], columns: int, rows: int, boxes: Detections | None = None) -> NDArray[np.uint8]:
    """The picture shrunk to at most `columns` by 2 * `rows` pixels, an even number of rows, boxes one pixel thin."""
    import cv2
    import numpy as np

    height, width = image.shape[:2]
    scale = min(columns / width, 2 * rows / height)
    size = (max(1, int(width * scale)), max(2, int(height * scale) // 2 * 2))
    small: NDArray[np.uint8] = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    for box, class_id in zip(boxes.boxes, boxes.class_ids, strict=True) if boxes is not None else ():
        x1, y1, x2, y2 = (round(float(v) * scale) for v in box)
        cv2.rectangle(small, (x1, y1), (x2, y2), colour_of(int(class_id)), 1)
    return small


def half_blocks(image: NDArray[np.uint8]) -> Segments:
    """A picture with an even number of rows, two pixels in each cell: the upper half block in one colour on another."""
    pixels = image[:, :, ::-1].tolist()
    segments: list[Segment] = []
    for upper, lower in zip(pixels[0::2], pixels[1::2], strict=True):
        for (r, g, b), (r2, g2, b2) in zip(upper, lower, strict=True):
            style = Style(color=Color.from_rgb(r, g, b), bgcolor=Color.from_rgb(r2, g2, b2))
            segments.append(Segment("▀", style))
        segments.append(Segment.line())
    return Segments(segments)


class TerminalDisplay:
    """The panel on a terminal, redrawn four times a second by a thread of its own; a context manager."""

    def __init__(self, dashboard: Dashboard, console: Console | None = None) -> None:
        self.dashboard = dashboard
        self._live = Live(dashboard, console=console or Console(stderr=True), refresh_per_second=4, transient=False)

    def __enter__(self) -> TerminalDisplay:
        self._live.start(refresh=True)  # the first picture costs the most: before the first frame, not beside it
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, result: FrameResult, image: NDArray[np.uint8] | None = None) -> None:
        self.dashboard.update(result, image)

    def note(self, text: str) -> None:
        self.dashboard.note(text)


class LineDisplay:
    """For `--display none`: one line per second to a stream (stderr), also when nothing moves; a context manager."""

    def __init__(self, summary: Summary, stream: IO[str], *, every: float = 1.0) -> None:
        self._summary = summary
        self._stream = stream
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lines of watch", daemon=True)

    def __enter__(self) -> LineDisplay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def update(self, result: FrameResult, image: NDArray[np.uint8] | None = None) -> None:
        """Nothing: the line reads the summary."""

    def note(self, text: str) -> None:
        self._print(text)

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            self._print(line_of(self._summary))

    def _print(self, text: str) -> None:
        self._stream.write(f"{text}\n")  # at once: two threads print here
        self._stream.flush()


def line_of(summary: Summary) -> str:
    """The state of a stream in one line, percentiles over all of it."""
    counts = " ".join(f"{outcome.value} {n}" for outcome, n in summary.counts.items())
    servers = ", ".join(f"{name} {n}" for name, n in sorted(summary.served.items())) or "nobody"
    total = summary.stages.get("total")
    counted = f"; {summary.tracking.words()}" if summary.tracking is not None else ""
    promised = summary.promise.words() if summary.promise is not None else ""
    counted += f"; {promised}" if promised else ""
    times = "/".join(milliseconds(total.quantile(q)) for q in (0.5, 0.95, 0.99)) if total else "-"
    return (
        f"{clock(summary.wall_s)} read {summary.read} {counts}; {summary.fps:.1f}/s; "
        f"p50/p95/p99 {times} ms; moved {summary.moved}; served by {servers}{counted}"
    )


def clock(seconds: float) -> str:
    """
    >>> clock(3725.4)
    '1:02:05'
    """
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def quantile(ordered: Sequence[float], q: float) -> float:
    """The value below which a share q of the sorted values lies (nearest rank); NaN of none."""
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else math.nan


def milliseconds(value: float) -> str:
    """
    >>> milliseconds(0.1234), milliseconds(12.34), milliseconds(1234.5), milliseconds(math.nan)
    ('0.12', '12.3', '1234', '-')
    """
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def bar(cells: float) -> str:
    """A bar of that many cells, to an eighth of one.

    >>> bar(2.5)
    '██▌'
    """
    whole, part = divmod(round(max(0.0, cells) * 8), 8)
    return "█" * whole + (_EIGHTHS[part] if part else "")
