"""`nearfar streams` and `nearfar explain`: which streams there are, and what was decided for one of them, and why."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.common import (
    Config,
    Fleet,
    Home,
    Join,
    Json,
    asking,
    console,
    escape,
    in_loop,
    print_json,
)

if TYPE_CHECKING:
    from nearfar.client.trails import Trails
    from nearfar.placement.trail import AnyEntry, Decided, Page, Status
    from nearfar.settings import Settings

SETTLE = 1.0
"""Seconds in which the fleet is found; what ended long ago needs none, and must not wait for one."""
EVERY = 0.5
"""Seconds between two looks with --follow."""
EVERYTHING = 1_000_000


@asynccontextmanager
async def _trails(chosen: Settings, *, mesh: bool = True) -> AsyncIterator[Trails]:
    """Where to look. A fleet that cannot be reached leaves the files."""
    from contextlib import AsyncExitStack

    from nearfar.client.connect import connect
    from nearfar.client.trails import Trails

    async with AsyncExitStack() as stack:
        client = None
        if mesh:
            client = await stack.enter_async_context(connect(chosen, wait=SETTLE))
        trails = Trails(client.mesh if client is not None else None, chosen.home)
        stack.callback(trails.close)
        yield trails


def streams(
    json: Json = False, home: Home = None, fleet: Fleet = None, join: Join = None, config: Config = None
) -> None:
    """List the streams that run in the fleet, and those that left a trail in this home folder."""
    from nearfar.cli.fleet import show
    from nearfar.cli.story import moment

    rows = [_row(status) for status in in_loop(_list(asking(home, fleet, join, config)))]
    if json:
        print_json(rows)
        return
    if not rows:
        console().print("No stream runs or left a trail here. Start one with [bold]nearfar watch SOURCE[/].")
        return
    show(
        rows,
        "",
        {
            "stream": lambda r: escape(r["stream"]),
            "state": lambda r: "[green]running[/]" if r["running"] else "ended" if r["ended"] else "[red]broke off[/]",
            "model": lambda r: escape(r["model"]),
            "source": lambda r: escape(r["source"]),
            "since": lambda r: moment(r["since"])[:19],
            "served by": lambda r: escape(r["served_by"] or "-"),
            "answered": lambda r: "-" if r["answered"] is None else str(r["answered"]),
            "lost": lambda r: "-" if r["lost"] is None else str(r["lost"]),
            "promise": lambda r: escape(r["level"]),
        },
        spare=("promise", "model", "since", "lost", "answered"),
        wraps="source",
    )


def _row(status: Status) -> dict[str, Any]:
    from nearfar.placement.trail import status_as_json

    return status_as_json(status)


async def _list(chosen: Settings) -> list[Status]:
    async with _trails(chosen) as trails:
        return await trails.list()


def explain(
    stream: Annotated[str, typer.Argument(help="Id of the stream: 'nearfar streams' lists them.")],
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="Show so many of the newest entries.")] = 30,
    frame: Annotated[int | None, typer.Option("--frame", min=0, help="Explain this one frame.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on while the stream runs.")] = False,
    json: Json = False,
    home: Home = None,
    fleet: Fleet = None,
    join: Join = None,
    config: Config = None,
) -> None:
    """Tell what was decided for a stream and why: figures, refusals, failures, moves."""
    from nearfar.cli import story

    chosen = asking(home, fleet, join, config)
    if follow:
        in_loop(_follow(chosen, stream, last, json))
        return
    page = in_loop(_page(chosen, stream, last if frame is None else None))
    if frame is not None:
        _tell_frame(page, frame, json)
    elif json:
        print_json(_plain(page))
    else:
        out = console()
        for line in story.heading(page.stream):
            out.print(line)
        for entry in page.entries:
            _tell(entry)


def _tell(entry: AnyEntry, *, whole: bool = False) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from nearfar.cli import story

    out = console()
    for line in story.lines(entry, whole=whole):
        text = line.lstrip()
        out.print(Padding(Text.from_markup(text), (0, 0, 0, len(line) - len(text))))


def _plain(page: Page) -> dict[str, Any]:
    from nearfar.placement.trail import page_as_json

    return page_as_json(page)


def _tell_frame(page: Page, frame: int, json: bool) -> None:
    from nearfar.cli import story
    from nearfar.errors import InputError

    found = story.of_frame(page.entries, frame)
    if not found:
        span = story.known_frames(page.entries)
        known = f"It knows decisions for frames {span[0]} to {span[1]}." if span else "It knows of no frame."
        raise InputError(
            f"The trail of {page.stream.stream} says nothing of frame {frame}: it was dropped before anybody was "
            "asked, or is not there.",
            f"{known} See all: nearfar explain {page.stream.stream}.",
        )
    if json:
        plain = _plain(page)
        numbers = {entry.number for entry in found}
        print_json(plain | {"entries": [entry for entry in plain["entries"] if entry["number"] in numbers]})
        return
    console().print(f"[bold]{escape(page.stream.stream)}[/], frame {frame}")
    for entry in found:
        _tell(entry, whole=True)


async def _page(chosen: Settings, stream: str, last: int | None) -> Page:
    """The newest entries (all: None). Files that can say it all are read without looking for a fleet."""
    since, limit = (None, last) if last is not None else (-1, EVERYTHING)
    async with _trails(chosen, mesh=not _told_by_file(chosen, stream)) as trails:
        return await trails.page(stream, since, limit)


def _told_by_file(chosen: Settings, stream: str) -> bool:
    """Whether this home folder holds a trail that is being written, or that is over and went nowhere else."""
    from nearfar.client import trailfile
    from nearfar.types.ids import StreamId, is_name

    if not is_name(stream):
        return True  # it is nowhere
    status = trailfile.glance(chosen.home, StreamId(stream))
    return status is not None and (status.running or (bool(status.ended) and not status.handed_to))


async def _follow(chosen: Settings, stream: str, last: int, json: bool) -> None:
    """Print what is there, then what comes, until the stream ends."""
    import asyncio

    from nearfar.cli import story
    from nearfar.errors import UnknownStream

    out = console()
    async with _trails(chosen, mesh=not _told_by_file(chosen, stream)) as trails:
        page = await trails.page(stream, None, last)
        if not json:
            for line in story.heading(page.stream):
                out.print(line)
        teller = _Teller(json)
        since = page.next
        while True:
            for entry in page.entries:
                teller.take(entry)
            since = max(since, page.next)
            if not page.stream.running and not page.more:
                break
            await asyncio.sleep(EVERY)
            try:
                page = await trails.page(stream, since - 1, 1000)  # the newest one may have grown
            except UnknownStream:
                break  # it ran on another machine, and its process is gone
        teller.finish()


class _Teller:
    """Prints entries as they come. The newest decision grows: it is shown at once, and again when it is complete
    (with JSON only then)."""

    def __init__(self, json: bool) -> None:
        self._json = json
        self._open: Decided | None = None
        self._shown = 0

    def take(self, entry: AnyEntry) -> None:
        from nearfar.placement.trail import Decided

        if self._open is not None and self._open.number == entry.number:
            assert isinstance(entry, Decided)
            self._open = entry
            return
        self.finish()
        if isinstance(entry, Decided):
            self._open, self._shown = entry, entry.count
        if not self._json:
            _tell(entry)
        elif self._open is None:
            self._print(entry)

    def finish(self) -> None:
        from nearfar.cli import story

        done, self._open = self._open, None
        if done is not None and self._json:
            self._print(done)
        elif done is not None and done.count > self._shown:
            console().print(f"{story.INDENT}[dim]and the same on[/], {story.spans(done)}")

    def _print(self, entry: AnyEntry) -> None:
        import msgspec

        print(msgspec.json.encode(entry).decode(), flush=True)
