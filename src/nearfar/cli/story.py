"""A trail as a story for people: what was decided at what time, why, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from nearfar.cli.common import escape
from nearfar.placement.trail import (
    AnyEntry,
    Candidate,
    Decided,
    Degraded,
    Ended,
    Failed,
    HandedOver,
    Hedged,
    Level,
    Moved,
    Repeated,
    Run,
    Started,
    Status,
    Warned,
)

REFUSED_SHOWN = 8
"""Refusals told of one decision, when all entries are shown; --frame tells all."""
_LEVELS = {"kept": "green", "threatened": "yellow", "broken": "bold red"}
INDENT = " " * 14


def heading(status: Status) -> Iterator[str]:
    """The stream itself, in two or three lines of rich markup."""
    state = "[green]running[/]" if status.running else f"ended: {escape(status.ended)}" if status.ended else (
        "[red]broke off: its process ended without a word[/]"
    )  # fmt: skip
    what = " · ".join(escape(part) for part in (status.model, status.source) if part)
    asked = f", asked by {escape(status.by)}" if status.by else ""
    yield f"[bold]{escape(status.stream)}[/] · {what}{asked}"
    yield f"  since {moment(status.since)}, {state}; the promise is [{_LEVELS.get(status.level, '')}]{status.level}[/]"
    told = ", ".join(f"{count} {escape(name)}" for name, count in status.counts.items() if count)
    served = f"served by {escape(status.served_by)}" if status.served_by else "served by nobody yet"
    yield f"  {served}{f'; frames: {told}' if told else ''}"


def lines(entry: AnyEntry, *, whole: bool = False) -> Iterator[str]:
    """One entry, in lines of rich markup. `whole` tells every refusal."""
    yield f"[dim]{moment(entry.at)[11:]}[/]  {_line(entry)}"
    if isinstance(entry, Decided):
        yield f"{INDENT}{escape(entry.reason)}"
        yield from _request(entry)
        for at, candidate in enumerate(entry.candidates):
            yield f"{INDENT}[dim]{at + 1}.[/] {_candidate(candidate)}"
        shown = entry.refusals if whole else entry.refusals[:REFUSED_SHOWN]
        for refusal in shown:
            yield f"{INDENT}[yellow]x[/] {escape(refusal.subject)}: {escape(refusal.reason)} [dim]{refusal.code}[/]"
        if entry.refused > len(shown):
            yield f"{INDENT}[dim]and {entry.refused - len(shown)} more were refused[/]"


def _line(entry: AnyEntry) -> str:
    match entry:
        case Started():
            return f"[bold]started[/] {escape(entry.model)} from {escape(entry.source or 'somewhere')}"
        case Decided(chosen=None):
            return f"[bold red]nobody[/] {spans(entry)}"
        case Decided():
            late = "  [yellow]expected late[/]" if entry.late else ""
            stays = entry.chosen == entry.incumbent
            word = "stays" if stays else "aside" if entry.aside or entry.excluded else "decided"
            return f"[cyan]{word}[/] → [bold]{escape(str(entry.chosen))}[/] {spans(entry)}{late}"
        case Repeated():
            return f"[dim]… the same {entry.count} times more[/]"
        case Failed():
            return (
                f"[red]failed[/]{_at(entry.frame)} {escape(entry.service)} after {entry.waited_ms:.1f} ms: "
                f"{escape(entry.message)} [dim]{escape(entry.code)}[/]"
            )
        case Hedged():
            return (
                f"[yellow]hedged[/]{_at(entry.frame)} {escape(entry.service)} is asked too, as {escape(entry.first)} "
                f"was silent for {entry.waited_ms:.1f} ms{_why(entry.reason)}"
            )
        case Moved():
            how = "moved" if entry.planned else "moved in need"
            return (
                f"[bold magenta]{how}[/]{_at(entry.frame)} {escape(entry.source)} → [bold]{escape(entry.target)}[/]"
                f"{_why(entry.reason)}"
            )
        case Level():
            colour = _LEVELS.get(entry.level, "")
            return f"[{colour}]promise {entry.level}[/]{_at(entry.frame)} (was {entry.before}){_why(entry.reason)}"
        case Degraded():
            how = "restored" if entry.restored else "gave up"
            return f"[yellow]{how}[/]{_at(entry.frame)} {escape(entry.step)}{_why(entry.reason)}"
        case HandedOver():
            return (
                f"[bold magenta]handed over[/]{_at(entry.frame)} {escape(entry.source)} → {escape(entry.target)}"
                f"{_why(entry.reason)}"
            )
        case Warned():
            return f"[bold red]trail[/] {escape(entry.message)}"
        case Ended():
            told = ", ".join(f"{count} {escape(name)}" for name, count in entry.counts.items())
            return f"[bold]ended[/] {escape(entry.reason)}{f' ({told})' if told else ''}"


def _at(frame: int | None) -> str:
    return "" if frame is None else f" at frame {frame}:"


def _why(reason: str) -> str:
    return f": {escape(reason)}" if reason else ""


def _request(entry: Decided) -> Iterator[str]:
    told = []
    if entry.deadline_ms is not None:
        told.append(f"{entry.deadline_ms:.0f} ms left")
    if entry.privacy != "any":
        told.append(f"privacy {entry.privacy}")
    if entry.node:
        told.append(f"pinned to {escape(entry.node)}")
    if entry.excluded:
        told.append(f"asked before: {escape(', '.join(entry.excluded))}")
    if entry.count > 1 and entry.least_ms is not None and entry.most_ms is not None:
        told.append(f"expected in {entry.least_ms:.1f} to {entry.most_ms:.1f} ms, until {moment(entry.until)[11:]}")
    if told:
        yield f"{INDENT}[dim]{'; '.join(told)}[/]"


def _candidate(one: Candidate) -> str:
    told = []
    if one.expected is not None:
        e = one.expected
        told.append(
            f"{e.total:.1f} ms: link {e.link:.1f} ({escape(e.basis)}), transfer {e.transfer:.1f}, wait {e.wait:.1f}, "
            f"service {e.service:.1f}, margin {e.margin:.1f}"
        )
    elif one.cost is not None:
        told.append(f"cost {one.cost:.3g}")
    told.append(f"queue {one.queued}+{one.in_flight}, ours {one.pending}")
    if one.service_ms:
        told.append(f"reports {one.service_ms:.1f} ms")
    if one.rtt_ms is not None:
        lost = f", loss {one.loss:.1%}" if one.loss else ""
        told.append(f"ping {one.rtt_ms:.2f} ± {one.jitter_ms or 0.0:.2f} ms{lost}")
    if one.age_s is not None:
        told.append(f"heard {one.age_s:.1f} s ago")
    late = " [yellow]late[/]" if one.late else ""
    return f"{escape(one.service)}{late} [dim]{'; '.join(told)}[/]"


def spans(entry: Decided) -> str:
    """Which frames a decision stands for, and how many decisions it is."""
    many = f"{entry.count} decisions" if entry.count > 1 else "one decision"
    if not entry.frames:
        return f"[dim]{many}[/]" if entry.count > 1 else ""
    shown = ", ".join(_run(run) for run in entry.frames[:6]) + (", ..." if len(entry.frames) > 6 else "")
    what = "frames" if entry.count > 1 else "frame"
    return f"[dim]{what}[/] {shown}" + (f" [dim]({many})[/]" if entry.count > 1 else "")


def _run(run: Run) -> str:
    if run.count == 1:
        return str(run.first)
    last = run.first + run.step * (run.count - 1)
    if run.step == 1:
        return f"{run.first}–{last}"
    if run.step == 0:
        return f"{run.first} ({run.count} times)"
    return f"{run.first}–{last} each {run.step}."


def of_frame(known: Sequence[AnyEntry], frame: int) -> list[AnyEntry]:
    """The entries that speak of one frame, in their order."""
    found: list[AnyEntry] = []
    for entry in known:
        if isinstance(entry, Decided):
            if any(frame in run for run in entry.frames):
                found.append(entry)
        elif getattr(entry, "frame", None) == frame:
            found.append(entry)
    return found


def known_frames(known: Sequence[AnyEntry]) -> tuple[int, int] | None:
    """The lowest and the highest frame that decisions speak of."""
    numbers = [
        number
        for entry in known
        if isinstance(entry, Decided)
        for run in entry.frames
        for number in (run.first, run.first + run.step * (run.count - 1))
    ]
    return (min(numbers), max(numbers)) if numbers else None


def moment(at: str) -> str:
    """A time stamp in local time, as `2026-11-25 14:03:05.123`; as it stands when it is none.

    >>> moment("yesterday")
    'yesterday'
    """
    try:
        return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    except ValueError:
        return escape(at)
