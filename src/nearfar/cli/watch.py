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
    asking,
    console,
    escape,
    in_loop,
    print_json,
)
from nearfar.cli.run import qos_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nearfar.settings import Settings
    from nearfar.types.request import Qos
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
    stream: Annotated[
        str | None, typer.Option("--stream", help="Name of this stream in the fleet, for --takeover and --standby.")
    ] = None,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Go on with the stream that runs elsewhere; that program then ends.")
    ] = False,
    standby: Annotated[
        bool, typer.Option("--standby", help="Wait, and go on with the stream when the program that runs it dies.")
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
    role = _role(stream, takeover, standby)
    chosen = asking(home, fleet, join, config)
    qos = qos_of(deadline, privacy, node, max_cost, degrade, percentile, stream=True)
    follow = _follow(track, line or [], zone or [])
    opened = open_source(source, loop=loop, realtime=realtime)
    shown = display or ("terminal" if sys.stderr.isatty() and not json else "none")
    summary = in_loop(_watch(chosen, opened, model, qos, output, shown, in_flight, follow, stream, role, not no_trail))
    if json:
        print_json(summary.to_dict())
    else:
        tell(summary, trailed=not no_trail)
    raise typer.Exit(summary.exit_code)


def _role(stream: str | None, takeover: bool, standby: bool) -> str:
    """`takeover`, `standby` or empty. Raises `InputError` for a name that cannot be one and flags that contradict."""
    from nearfar.errors import InputError
    from nearfar.types.ids import is_name

    if stream is not None and not is_name(stream):
        raise InputError(f"--stream {stream!r} is no name.", "Use small letters, digits, '-', '_' and '.'.")
    if takeover and standby:
        raise InputError("--takeover takes the stream now, --standby when its host dies.", "Give one of them.")
    role = "takeover" if takeover else "standby" if standby else ""
    if role and stream is None:
        raise InputError(f"--{role} needs to know which stream.", "Add --stream NAME.")
    return role


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
    stream: str | None = None,
    role: str = "",
    trailed: bool = True,
) -> Summary:
    import asyncio
    import signal
    import uuid

    from nearfar.cli.starting import connected, until_service
    from nearfar.client.trail import Trail
    from nearfar.errors import InputError, NearfarError
    from nearfar.gateway.answers import labels_in, manifest_of
    from nearfar.models.manifest import Task
    from nearfar.types.ids import ModelName, StreamId
    from nearfar.vision.circle import Circle
    from nearfar.vision.notes import Notes
    from nearfar.vision.record import AnnotatedRecording
    from nearfar.vision.results import Summary
    from nearfar.vision.story import Story
    from nearfar.vision.stream import Watch
    from nearfar.vision.succession import Wishes, begin
    from nearfar.vision.terminal import Dashboard, LineDisplay, TerminalDisplay

    async with connected(chosen, reachable=stream is not None) as client:
        name = ModelName(model)
        await until_service(client, model, qos)
        described = (await client.describe(name)).manifest
        labels = labels_in(described)
        if follow is not None:
            if (task := manifest_of(described).task) is not Task.OBJECT_DETECTION:
                raise InputError(
                    f"{model} finds no boxes that could be tracked; its task is {task.value}.",
                    "Choose a detector with --model, or leave --track, --line and --zone away.",
                )
            follow.labels = labels
        circle = Circle(client.mesh, stream or uuid.uuid4().hex[:8])
        me = f"{client.me}-{uuid.uuid4().hex[:6]}"
        wishes = Wishes(name, qos.privacy, labels, follow)
        begun = await begin(circle, me, wishes, source, role, named=stream is not None, say=_say)
        if isinstance(begun, str):  # the stream ended while this program stood by
            over = Summary()
            over.stream = circle.stream
            over.stop(begun)
            return over
        source, follow, host = begun.source, begun.follow, begun.host
        recording = AnnotatedRecording(output, labels) if output is not None else None

        async def on_result(result: FrameResult, image: NDArray[Any] | None) -> None:
            if follow is not None:
                result = follow.take(result, image)
            view.update(result, image)
            if story is not None:
                story.after(result)
            if recording is not None:
                await recording(result, image)
            host.after(result)

        engine = Watch(
            source,
            client,
            name,
            qos,
            on_result=on_result,
            stream=StreamId(circle.stream),
            in_flight=in_flight,
            first=begun.first,
            incumbent=begun.incumbent,
            summary=begun.summary,
        )
        engine.summary.tracking, engine.summary.stream = follow, circle.stream
        view: TerminalDisplay | LineDisplay
        if display == "terminal":
            view = TerminalDisplay(Dashboard(f"{source.uri} · {model}", engine.summary, labels), console(error=True))
        else:
            view = LineDisplay(engine.summary, sys.stderr)

        client.listeners.add(Notes(StreamId(circle.stream), qos.node, lambda _, decision: view.note(decision.reason)))
        story: Story | None = None
        if trailed:
            trail = Trail(StreamId(circle.stream), name, source=source.uri, by=client.me, home=chosen.home,
                          mesh=client.mesh, keep=chosen.streams.keep, warn=view.note)  # fmt: skip
            story = Story(trail, engine)
            await story.begin(client.listeners, patient=not role)
            _say(f"stream {circle.stream}; what is decided and why: nearfar explain {circle.stream}")
        # What `timeout`, systemd and containers send: as Ctrl-C, a stream ends with its summary and a whole recording.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, engine.stop, "stopped by SIGTERM")
        begun.remember(engine.parts)
        host.run(engine, source=source.uri, live=source.live, model=model, privacy=qos.privacy, follow=follow,
                 before=begun.memory)  # fmt: skip
        ended = ""
        try:
            with view:
                summary = await engine.run()
            ended = "" if summary.handed_over or summary.error is not None else summary.ended
        finally:
            if story is not None:
                await story.close()
                if story.warning and display == "terminal":  # the panel that showed it is gone
                    _say(f"nearfar: {story.warning}")
            await host.close(ended)
            circle.close()
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


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _tell_moves(told: dict[str, Any]) -> None:
    out = console()
    shown = 10
    for move in told["moves"][-shown:]:
        out.print(f"  frame {move['frame']}: {move['kind']} move to {move['target']}: {escape(move['reason'])}")
    for one in told["given_up"][-shown:]:
        out.print(f"[yellow]  frame {one['frame']}: not moved to {one['target']}[/]: {escape(one['reason'])}")
    if told["shadows"]:
        out.print(f"  {told['shadows']} frames were sent twice, to warm and compare a service before a move")
    for one in told["hosts"][-shown:]:
        why = f": {escape(one['reason'])}" if one["reason"] else ""
        out.print(f"  frame {one['frame']}: {one['kind']} hand-over from {one['source']} to {one['target']}{why}")


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


def tell(summary: Summary, *, trailed: bool = True) -> None:
    """The end of a stream for a person: what became of every frame, where the time went, who served.

    `trailed`: `nearfar explain` knows of it.
    """
    from rich import box
    from rich.table import Table

    told = summary.to_dict()
    frames = told["frames"]
    out = console()
    counts = ", ".join(f"{count} {name}" for name, count in frames.items() if name != "read" and count)
    out.print(
        f"stream {told['stream']}: {frames['read']} frames read: {counts or 'none answered'}; "
        f"{told['fps']:.1f} answers/s; {told['ended']}"
    )
    for code, failure in told["failures"].items():
        out.print(f"[red]  {failure['count']} × {code}[/]: {escape(failure['reason'])}")
    for reason, count in told["drops"].items():
        out.print(f"[yellow]  {count} dropped[/]: {escape(reason)}")
    if told["served_by"]:
        served = ", ".join(f"{service} {count}" for service, count in told["served_by"].items())
        alone = len(told["served_by"]) > 1 and not told["moved"] and not told["hosts"]
        out.print(
            f"  served by {served}; moved {times(told['moved'])}"
            + (" (single frames were answered elsewhere, as a second copy or after a failure)" if alone else "")
        )
    _tell_moves(told)
    if told["lost"]["count"]:
        out.print(f"[red]  {told['lost']['count']} frames lost[/]: {summary.lost.words()}")
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
    if told["stream"] and trailed:
        out.print(f"  what was decided, and why: nearfar explain {told['stream']}")
    if told["error"]:
        out.print(f"[red]{escape(told['error']['message'])}[/]")
