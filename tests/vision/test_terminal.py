from __future__ import annotations

import io
import math
import threading

import numpy as np
import pytest
from rich.console import Console
from rich.segment import Segment

from nearfar.errors import Unreachable
from nearfar.types.ids import ServiceId
from nearfar.types.image import Image
from nearfar.vision.results import FrameResult, Kind, Move, Outcome, Summary
from nearfar.vision.terminal import (
    PICTURE_COLUMNS,
    Dashboard,
    LineDisplay,
    TerminalDisplay,
    bar,
    half_blocks,
    line_of,
    quantile,
    thumbnail,
)
from tests.vision.helpers import answer, scene


def filled(*, picture: bool = True) -> tuple[Dashboard, Summary]:
    summary = Summary()
    dashboard = Dashboard("watch clip.mp4", summary, ("square",), picture=picture)
    image = scene(0)[0]
    for index in range(30):
        summary.read += 1
        if index % 10 == 3:
            result = FrameResult(index, Outcome.DROPPED, reason="back-pressure: newer frames came")
        elif index == 15:
            error = Unreachable("pi4/square vanished before it answered.")
            result = FrameResult(index, Outcome.FAILED, error=error, reason=str(error))
        else:
            reply = answer(Image.bgr(image), "pi4/square" if index < 15 else "gateway/square")
            result = FrameResult(index, Outcome.ANSWERED, answer=reply, decode_ms=1.0, total_ms=9.0)
        summary.add(result)
        if index == 16:
            summary.note(Move(ServiceId("pi4/square"), ServiceId("gateway/square"), 16))
        dashboard.update(result, None if result.outcome is Outcome.DROPPED else image)
    return dashboard, summary


def rendered(dashboard: Dashboard, width: int, height: int, colours: str = "truecolor") -> list[str]:
    console = Console(
        width=width,
        height=height,
        file=io.StringIO(),
        force_terminal=True,
        color_system=colours,  # type: ignore[arg-type]
        record=True,
        legacy_windows=False,
    )
    console.print(dashboard)
    return console.export_text().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 16), (200, 60)])
def test_the_panel_fits_the_terminal_and_says_what_matters(width: int, height: int) -> None:
    lines = rendered(filled()[0], width, height)
    assert len(lines) <= height
    assert all(len(line) == width for line in lines)
    text = "\n".join(lines)
    assert "gateway/square (fake)" in text
    assert "read 30  answered 26  late 0  dropped 3  failed 1" in text
    assert "sees 1 square" in text
    for stage in ("decode", "link", "queue", "preprocess", "inference", "postprocess", "total"):
        assert stage in text
    if height >= 24:
        assert "dropped by back-pressure 3" in text
        assert "frame 16: moved from pi4/square to gateway/square" in text
        assert "frame 15 failed: pi4/square vanished" in text


def test_the_longest_stage_has_the_longest_bar() -> None:
    lines = rendered(filled()[0], 80, 24)
    bars = {line.split()[1]: line.count("█") for line in lines if len(line.split()) > 4}
    assert bars["inference"] > bars["preprocess"] > bars["queue"]


def test_a_picture_only_where_it_can_be_seen() -> None:
    dashboard = filled()[0]
    assert "▀" in "".join(rendered(dashboard, PICTURE_COLUMNS, 30))
    assert "▀" not in "".join(rendered(dashboard, PICTURE_COLUMNS - 1, 30))
    assert "▀" not in "".join(rendered(dashboard, 160, 30, "256"))
    assert "▀" not in "".join(rendered(filled(picture=False)[0], 160, 30))


def test_before_anything_came() -> None:
    text = "\n".join(rendered(Dashboard("watch", Summary()), 80, 24))
    assert "nobody answered yet" in text


def test_the_picture_keeps_shape_colours_and_boxes() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[:50] = (255, 0, 0)
    small = thumbnail(image, 40, 30)
    assert small.shape == (20, 40, 3)
    segments = [s for s in half_blocks(small).segments if s.text == "▀"]
    assert len(segments) == 10 * 40
    first, last = segments[0].style, segments[-1].style
    assert first is not None and first.color is not None and first.color.triplet == (0, 0, 255)
    assert last is not None and last.bgcolor is not None and last.bgcolor.triplet == (0, 0, 0)
    boxed = thumbnail(image, 40, 30, answer(Image.bgr(image), boxes=[(0, 60, 100, 90)]).detections())
    assert boxed[15, 0].any() and not small[15, 0].any()
    assert thumbnail(image, 1, 1).shape == (2, 1, 3)


def test_a_line_for_those_who_want_no_panel() -> None:
    summary = filled()[1]
    line = line_of(summary)
    assert "read 30 answered 26 late 0 dropped 3 failed 1" in line
    assert "moved 1" in line
    assert "gateway/square 13, pi4/square 13" in line
    assert "served by nobody" in line_of(Summary())


def test_lines_are_printed_also_when_nothing_moves() -> None:
    printed = threading.Event()

    class Sink(io.StringIO):
        def write(self, text: str) -> int:
            if "served by nobody" in text:
                printed.set()
            return super().write(text)

    sink = Sink()
    with LineDisplay(Summary(), sink, every=0.001) as display:
        assert printed.wait(30)
        display.note("a decision")
    assert "a decision" in sink.getvalue()


def test_the_live_panel_takes_results_and_ends_cleanly() -> None:
    dashboard, _ = filled()
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    with TerminalDisplay(dashboard, console) as display:
        display.update(FrameResult(31, Outcome.DROPPED, reason="x"))
        display.note("kept gateway/square: 8 ms predicted")
    assert isinstance(console.file, io.StringIO)
    assert "kept gateway/square" in console.file.getvalue()


def test_quantiles_and_bars() -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert quantile([7.0], 0.99) == 7.0
    assert math.isnan(quantile([], 0.5))
    assert bar(0) == "" and bar(1) == "█" and bar(-3) == ""


def test_every_move_is_an_event_and_those_of_a_program_before_are_none() -> None:
    a, b = ServiceId("a/square"), ServiceId("b/square")
    summary = Summary()
    summary.note(Move(a, b, 3, reason="before the stream came here"))
    dashboard = Dashboard("watch", summary, picture=False)
    image = scene(0)[0]
    summary.note(Move(b, a, 7, Kind.PLANNED, "it is faster"))
    summary.note(Move(a, b, 8, reason="it is gone"))
    result = FrameResult(8, Outcome.ANSWERED, answer=answer(Image.bgr(image)))
    summary.add(result)
    dashboard.update(result, image)
    text = " ".join("\n".join(rendered(dashboard, 120, 40)).replace("│", "").split())
    assert "frame 7: moved from b/square to a/square (planned): it is faster" in text
    assert "frame 8: moved from a/square to b/square (unplanned): it is gone" in text
    assert "frame 3" not in text and "moved 3" in text


def test_a_stream_does_not_wait_while_the_panel_is_painted() -> None:
    """Painting takes tens of milliseconds at first; a result that waits for it breaks its deadline."""
    dashboard, _ = filled()
    painting, painted = threading.Event(), threading.Event()

    class Slow(Console):
        def render_lines(self, *args: object, **options: object) -> list[list[Segment]]:
            painting.set()
            assert painted.wait(30)
            return super().render_lines(*args, **options)  # type: ignore[arg-type]

    console = Slow(width=80, height=24, file=io.StringIO(), force_terminal=True)
    thread = threading.Thread(target=console.print, args=(dashboard,))
    thread.start()
    try:
        assert painting.wait(30)
        free = dashboard._lock.acquire(timeout=10)
        assert free, "the panel holds the lock while it paints"
        dashboard._lock.release()
    finally:
        painted.set()
        thread.join()
