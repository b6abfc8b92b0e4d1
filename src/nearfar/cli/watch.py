"""`nearfar watch`: objects in a video stream, detected on the best of several nodes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.common import (
    Config,
    Fleet,
    Home,
    Join,
    Json,
    console,
    escape,
    fleet_flags,
    in_loop,
    print_json,
    settings,
)
from nearfar.cli.run import qos_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nearfar.placement.decide import Decision
    from nearfar.settings import Settings
    from nearfar.types.ids import ServiceId
    from nearfar.types.request import Qos, Request
    from nearfar.vision.results import FrameResult, Summary
    from nearfar.vision.tracking.follow import Follow


def watch(
    source: Annotated[
        str, typer.Argument(help="Video file, folder of images, rtsp://, http:// (MJPEG), webcam:0 or /dev/video0.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Name of a model that the fleet serves.")] = "yard",
    deadline: Annotated[str | None, typer.Option("--deadline", help="Each answer within, such as 100ms.")] = None,
    privacy: Annotated[str, typer.Option("--privacy", help="local, fleet or any.")] = "any",
    node: Annotated[str | None, typer.Option("--node", help="Only this node may answer.")] = None,
    percentile: Annotated[
        float | None,
        typer.Option("--percentile", help="So many of 100 answers within it, 50 to 99.9; else 95."),
    ] = None,
    max_cost: Annotated[float | None, typer.Option("--max-cost", help="Most that one frame may cost.")] = None,
    degrade: Annotated[
        str | None,
        typer.Option("--degrade", help="Give up in this order when nobody is in time: rate,input,model,far,refuse."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Record an .mp4 with boxes drawn.")] = None,
    display: Annotated[
        str | None, typer.Option("--display", help="terminal or none; else terminal when there is one.")
    ] = None,
    in_flight: Annotated[
        int | None,
        typer.Option("--in-flight", min=1, max=64, help="Frames on their way at a time; else enough."),
    ] = None,
    realtime: Annotated[
        bool | None, typer.Option("--realtime/--fast", help="Play a file at its own pace, or as fast as answers come.")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Start a file again when it ends.")] = False,
    track: Annotated[
        str | None,
        typer.Option("--track", help="Give objects lasting ids: sort, bytetrack (the default with --line or --zone)."),
    ] = None,
    line: Annotated[
        list[str] | None,
        typer.Option("--line", help="Count crossings of x1,y1,x2,y2[:name], in pixels or in shares 0 to 1."),
    ] = None,
    zone: Annotated[
        list[str] | None,
        typer.Option("--zone", help="Count in the polygon x1,y1,x2,y2,x3,y3[,...][:name], in pixels or in shares."),
    ] = None,
    no_trail: Annotated[
        bool, typer.Option("--no-trail", help="Write nothing down of what was decided; 'nearfar explain' reads it.")
    ] = False,
    json: Json = False,
    home: Home = None,
    fleet: Fleet = None,
    join: Join = None,
    config: Config = None,
) -> None:
    """Watch a video stream: every frame to the node that can keep the deadline. Ctrl-C ends it with a summary."""
    from nearfar.errors import InputError
    from nearfar.vision.sources import open_source

    if display not in (None, "terminal", "none"):
        raise InputError(f"--display is {display!r}.", "Use terminal or none.")
    chosen = settings(fleet_flags(home, fleet, join, config))
    qos = qos_of(deadline, privacy, node, max_cost, degrade, percentile, stream=True)
    follow = _follow(track, line or [], zone or [])
    opened = open_source(source, loop=loop, realtime=realtime)
    shown = display or ("terminal" if sys.stderr.isatty() and not json else "none")
    summary = in_loop(_watch(chosen, opened, model, qos, output, shown, in_flight, follow, not no_trail))
    if json:
        print_json(summary.to_dict())
    else:
        tell(summary)
    raise typer.Exit(summary.exit_code)


def _follow(track: str | None, lines: list[str], zones: list[str]) -> Follow | None:
    """The tracker and counters of the flags; None when none is asked for. Raises before anything is opened."""
    if track is None and not lines and not zones:
        return None
    from nearfar.vision.areas import parse_areas
    from nearfar.vision.tracking.follow import Follow
    from nearfar.vision.tracking.registry import DEFAULT, tracker

    return Follow(tracker(track or DEFAULT), *parse_areas(lines, zones))


async def _watch(
    chosen: Settings,
    source: Any,
    model: str,
    qos: Qos,
    output: Path | None,
    display: str,
    in_flight: int | None,
    follow: Follow | None,
    trailed: bool = True,
) -> Summary:
    import asyncio
    import signal
    import uuid

    from nearfar.client.connect import connect
    from nearfar.client.listening import Choices
    from nearfar.client.trail import Trail
    from nearfar.errors import InputError, NearfarError
    from nearfar.gateway.answers import labels_in, manifest_of
    from nearfar.models.manifest import Task
    from nearfar.types.ids import ModelName, StreamId
    from nearfar.vision.record import AnnotatedRecording
    from nearfar.vision.stream import Watch
    from nearfar.vision.terminal import Dashboard, LineDisplay, TerminalDisplay

    async with connect(chosen) as client:
        name = ModelName(model)
        described = (await client.describe(name)).manifest
        labels = labels_in(described)
        if follow is not None:
            if (task := manifest_of(described).task) is not Task.OBJECT_DETECTION:
                raise InputError(
                    f"{model} finds no boxes that could be tracked; its task is {task.value}.",
                    "Choose a detector with --model, or leave --track, --line and --zone away.",
                )
            follow.labels = labels
        recording = AnnotatedRecording(output, labels) if output is not None else None
        stream = StreamId(uuid.uuid4().hex[:8])

        async def on_result(result: FrameResult, image: NDArray[Any] | None) -> None:
            if follow is not None:
                result = follow.take(result, image)
            view.update(result, image)
            if trail is not None:
                trail.outcome(result.outcome.value, result.served_by, result.index)
            if recording is not None:
                await recording(result, image)

        engine = Watch(source, client, name, qos, on_result=on_result, stream=stream, in_flight=in_flight)
        engine.summary.tracking = follow
        view: TerminalDisplay | LineDisplay
        if display == "terminal":
            view = TerminalDisplay(Dashboard(f"{source.uri} · {model}", engine.summary, labels), console(error=True))
        else:
            view = LineDisplay(engine.summary, sys.stderr)

        chosen_before: ServiceId | None = None

        def on_decision(_: Request, decision: Decision) -> None:
            nonlocal chosen_before
            if decision.chosen is not None and decision.chosen != chosen_before:
                chosen_before = decision.chosen
                view.note(decision.reason)

        client.listeners.add(Choices(on_decision))
        trail: Trail | None = None
        if trailed:
            trail = Trail(stream, name, source=source.uri, by=client.me, home=chosen.home, mesh=client.mesh,
                          keep=chosen.streams.keep, warn=view.note)  # fmt: skip
            await trail.start()
            client.listeners.add(trail)
            engine.summary.stream = stream
            print(f"stream {stream}; what is decided and why: nearfar explain {stream}", file=sys.stderr)
        # What `timeout`, systemd and containers send: as Ctrl-C, a stream ends with its summary and a whole recording.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, engine.stop, "stopped by SIGTERM")
        try:
            with view:
                summary = await engine.run()
        finally:
            if trail is not None:
                counts = engine.summary.counts
                trail.ended(engine.summary.ended or "the watch broke off", {o.value: n for o, n in counts.items()})
                await trail.close()
                if trail.warning and display == "terminal":  # the panel that showed it is gone
                    print(f"nearfar: {trail.warning}", file=sys.stderr)
        if recording is not None:
            try:
                recording.close()
            except NearfarError as error:  # such as a full disk: the summary is still worth printing
                summary.error = summary.error or error
        return summary


def _tell_promise(told: dict[str, Any]) -> None:
    out = console()
    if "reason" in told:
        style = "default" if told["level"] == "kept" else "yellow"
        out.print(f"[{style}]  {escape(told['reason'])}[/]")
    for change in told["changes"]:
        verb = "given up" if change["given_up"] else "taken back"
        text = f"  {change['time']} frame {change['frame']}: {verb}: {change['step']}, because {change['because']}"
        out.print(f"[dim]{escape(text)}[/]")


def _tell_tracking(told: dict[str, Any]) -> None:
    out = console()
    out.print(f"  {told['tracks']} objects tracked by {escape(told['tracker'])} over {told['frames']} frames")
    for name, counts in told["lines"].items():
        classes = ", ".join(f"{escape(c)} {n['in']}/{n['out']}" for c, n in counts["by_class"].items())
        out.print(
            f"  line {escape(name)}: in {counts['in']}, out {counts['out']}" + (f" ({classes})" if classes else "")
        )
    for name, counts in told["zones"].items():
        classes = ", ".join(f"{escape(c)} {n['entered']}" for c, n in counts["by_class"].items())
        out.print(
            f"  zone {escape(name)}: {counts['present']} present, {counts['entered']} entered, {counts['left']} left, "
            f"{counts['vanished']} vanished; stayed {counts['dwell_frames']['mean']:.0f} frames on average"
            + (f" ({classes} entered)" if classes else "")
        )


def times(count: int) -> str:
    """How often in words.

    >>> times(0), times(1), times(3)
    ('never', 'once', '3 times')
    """
    return {0: "never", 1: "once"}.get(count, f"{count} times")


def tell(summary: Summary) -> None:
    """The end of a stream for a person: what became of every frame, where the time went, who served."""
    from rich import box
    from rich.table import Table

    told = summary.to_dict()
    frames = told["frames"]
    out = console()
    counts = ", ".join(f"{count} {name}" for name, count in frames.items() if name != "read" and count)
    out.print(
        f"{frames['read']} frames read: {counts or 'none answered'}; {told['fps']:.1f} answers/s; {told['ended']}"
    )
    for code, failure in told["failures"].items():
        out.print(f"[red]  {failure['count']} × {code}[/]: {escape(failure['reason'])}")
    for reason, count in told["drops"].items():
        out.print(f"[yellow]  {count} dropped[/]: {escape(reason)}")
    if told["served_by"]:
        served = ", ".join(f"{service} {count}" for service, count in told["served_by"].items())
        out.print(f"  served by {served}; moved {times(told['moved'])}")
    if told["promise"]:
        _tell_promise(told["promise"])
    if told["tracking"]:
        _tell_tracking(told["tracking"])
    if told["stages_ms"]:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("stage", "p50 ms", "p95 ms", "p99 ms"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        for stage, quantiles in told["stages_ms"].items():
            table.add_row(stage, *(f"{quantiles[q]:.1f}" for q in ("p50", "p95", "p99")))
        out.print(table)
    if told["stream"]:
        out.print(f"  what was decided, and why: nearfar explain {told['stream']}")
    if told["error"]:
        out.print(f"[red]{escape(told['error']['message'])}[/]")
