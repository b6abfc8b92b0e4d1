"""The main job in one minute: three nodes that differ, one video stream, one of them overloaded half-way; then a few
questions to a language model, near and far.

    make demo                # or: python -m examples.demo [--seconds 40] [--plain] [--out out/demo]

Everything is real: three `nearfar up` processes with their service processes, a clip rendered with exact truth, a
stream that decides for every frame, and a crowd of other clients that overloads whoever serves it. Only the speed of
the three nodes is emulated (they share this machine), by making inference slower and the way to one of them longer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from examples.fleet import QUEUE_LIMIT, DemoNode, Overload, node_flags
from examples.talk import talk
from nearfar.cli.watch import times
from nearfar.client.client import Client
from nearfar.client.connect import connect
from nearfar.client.trail import Trail
from nearfar.errors import NearfarError
from nearfar.models.accuracy import Accuracy, Truths, average_precision
from nearfar.placement.decide import Decision
from nearfar.types.detections import Detections
from nearfar.types.ids import ModelName, ServiceId, StreamId, node_of
from nearfar.types.request import Qos, Request
from nearfar.types.units import Milliseconds
from nearfar.vision.notes import Notes
from nearfar.vision.results import FrameResult, Outcome, Summary
from nearfar.vision.sources import open_source
from nearfar.vision.story import Story
from nearfar.vision.stream import Watch
from nearfar.vision.terminal import Dashboard, LineDisplay, TerminalDisplay
from recipes.yard.scene import IGNORE_BELOW, LABELS, render_clip

MODEL = ModelName("yard")
STREAM = StreamId("demo")
FPS = 15
SEED = 20_26
LEAST_CLIENTS, MOST_CLIENTS = 24, QUEUE_LIMIT - 16
DEADLINE_MS = 100.0
NODES = (
    DemoNode("fast", slowdown=1.0),
    DemoNode("middling", slowdown=4.0),
    DemoNode("far", slowdown=10.0, delay_ms=25.0),
)


class Happened:
    """Every result, and the decisions at which another node was chosen for the stream."""

    def __init__(self) -> None:
        self.predictions: dict[int, Detections] = {}
        self.decisions: list[str] = []
        self.note: Any = print

    def on_decision(self, request: Request, decision: Decision) -> None:
        others = "; ".join(f"{r.service}: {r.why}" for r in decision.ranking[1:3])
        refused = "; ".join(f"{r.subject} refused: {r.reason}" for r in decision.refusals[:2])
        told = "  ".join(part for part in (decision.reason, others, refused) if part)
        self.decisions.append(told)
        self.note(told)

    def on_result(self, result: FrameResult) -> None:
        if result.answer is not None:
            self.predictions[result.index] = result.answer.detections()


def accuracy_of(predictions: dict[int, Detections], truth_file: Path) -> Accuracy:
    """AP50 of the frames that were answered, against what the renderer knows to be there."""
    truths: list[Truths] = []
    found: list[Detections] = []
    for line in truth_file.read_text().splitlines():
        frame = json.loads(line)
        if frame["frame"] in predictions:
            things = frame["objects"]
            boxes = np.array([t["xyxy"] for t in things], np.float32).reshape(-1, 4)
            classes = np.array([t["label_id"] for t in things], np.int32)
            ignored = np.array([t["visible"] < IGNORE_BELOW for t in things], bool)
            truths.append(Truths(boxes, classes, ignored))
            found.append(predictions[frame["frame"]])
    return average_precision(found, truths)


async def stream(
    client: Client, clip: Path, happened: Happened, overload: Overload, seconds: float, plain: bool, home: Path
) -> Summary:
    """Watch the clip at its own pace; between 40 % and 70 % of it, overload whoever serves. Its trail is in `home`."""
    client.listeners.add(Notes(STREAM, None, happened.on_decision))

    async def on_result(result: FrameResult, image: Any) -> None:
        happened.on_result(result)
        view.update(result, image)
        story.after(result)

    source = open_source(str(clip), realtime=True)
    watch = Watch(source, client, MODEL, Qos(Milliseconds(DEADLINE_MS)), on_result=on_result, stream=STREAM)
    story = Story(Trail(STREAM, MODEL, source=clip.name, by=client.me, home=home), watch)
    await story.begin(client.listeners)
    view: TerminalDisplay | LineDisplay
    if plain:
        view = LineDisplay(watch.summary, sys.stderr, every=2.0)
    else:
        view = TerminalDisplay(Dashboard("yard.mp4 → three nodes", watch.summary, LABELS))
    happened.note = view.note

    async def trouble() -> None:
        await asyncio.sleep(seconds * 0.4)
        victim = node_of(watch.incumbent) if watch.incumbent else "fast"
        view.note(f"── now other clients overload {victim} ──")
        service = client.snapshot().services[watch.incumbent or ServiceId(f"fast/{MODEL}")]
        # So many that who comes behind them waits for one and a half deadlines, however fast this machine is.
        crowd = math.ceil(1.5 * DEADLINE_MS / max(0.5, service.report.service_ms))
        await overload.start(victim, min(MOST_CLIENTS, max(LEAST_CLIENTS, crowd)))
        await asyncio.sleep(seconds * 0.3)
        await overload.stop()
        view.note(f"── the overload of {victim} is over ──")

    with view:
        task = asyncio.create_task(trouble())
        try:
            return await watch.run()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await overload.stop()
            await story.close()


def summarize(summary: Summary, happened: Happened, accuracy: Accuracy, out: Console) -> dict[str, Any]:
    """Print the end of the story; the same as a value."""
    told = summary.to_dict()
    frames = told["frames"]
    lost = frames[Outcome.DROPPED.value] + frames[Outcome.FAILED.value]
    answered = frames[Outcome.ANSWERED.value]
    out.rule("[bold]what happened")
    out.print(
        f"frames sent {frames['read']}, answered in time {answered}, late {frames[Outcome.LATE.value]}, "
        f"lost {lost}  (deadline {DEADLINE_MS:.0f} ms)"
    )
    for reason, count in {**told["drops"], **{c: f["count"] for c, f in told["failures"].items()}}.items():
        out.print(f"  [yellow]{count} lost[/]: {reason}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, q in told["stages_ms"].items():
        table.add_row(stage, *(f"{q[p]:.1f}" for p in ("p50", "p95", "p99")))
    out.print(table)
    for node, count in told["served_by"].items():
        out.print(f"  {node:<16} served {count} frames")
    per_class = ", ".join(f"{LABELS[c]} {ap:.3f}" for c, ap in accuracy.per_class.items())
    out.print(f"accuracy against the clip's known truth: AP50 [bold]{accuracy.ap50:.3f}[/] ({per_class})")
    out.print(f"promise: {summary.promise.words() if summary.promise is not None else ''}")
    out.print(f"the stream moved {times(told['moved'])}" + (":" if told["moved"] else ""))
    for move in told["moves"][-8:]:
        out.print(
            f"  frame {move['frame']}: [bold]{move['kind']}[/] move from {move['source']} to {move['target']}, as"
        )
        out.print(f"  [dim]  {move['reason']}[/]")
    if told["shadows"]:
        out.print(f"  {told['shadows']} frames were sent twice, to warm and compare a service before a move")
    return {
        **told,
        "lost": lost,
        "ap50": accuracy.ap50,
        "ap50_per_class": {LABELS[c]: ap for c, ap in accuracy.per_class.items()},
        "decisions": happened.decisions,
        "deadline_ms": DEADLINE_MS,
    }


async def main(seconds: float, plain: bool, folder: Path) -> int:
    out = Console(stderr=False, highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    clip = folder / f"yard-{SEED}-{seconds:g}s.mp4"
    truth = clip.with_suffix(".truth.jsonl")
    if not (clip.exists() and truth.exists()):
        out.print(f"rendering a clip of {seconds:g} s with exact truth …")
        partial = clip.with_name(f"partial-{clip.name}")
        written = await asyncio.to_thread(render_clip, partial, SEED, seconds, FPS)
        written.replace(truth)
        partial.replace(clip)
    happened = Happened()
    async with contextlib.AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nearfar-demo-")))
        fleet = f"demo-{time.time_ns() % 10**9}"
        out.print("starting three nodes: " + ", ".join(str(node) for node in NODES))
        join: tuple[str, ...] = ()
        for node in NODES:
            started = await stack.enter_async_context(node.running(home, fleet, join))
            join = join or started.endpoints
        flags = node_flags(home / "camera", fleet, join)
        client = await stack.enter_async_context(connect(wait=10, flags=flags))
        for node in NODES:
            await client.wait_for(MODEL, 30, node=node.name)
        client.probe_links()
        out.print(f"streaming {clip.name} ({FPS} frames/s, deadline {DEADLINE_MS:.0f} ms); Ctrl-C ends it early")
        overload = Overload(home / "crowd", fleet, join, MODEL)
        stack.push_async_callback(overload.stop)
        summary = await stream(client, clip, happened, overload, seconds, plain, folder / "home")
    told = summarize(summary, happened, accuracy_of(happened.predictions, truth), out)
    told["talk"] = await talk(out)
    (folder / "summary.json").write_text(json.dumps(told, indent=2))
    out.print(f"[dim]the same as JSON: {folder / 'summary.json'}[/]")
    out.print(f"every decision with its figures: [bold]nearfar explain {STREAM} --home {folder / 'home'}[/]")
    return 0 if summary.read and summary.error is None else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the clip (default 30)")
    parser.add_argument("--plain", action="store_true", help="lines instead of the live panel")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of clip and summary")
    chosen = parser.parse_args()
    try:
        import uvloop

        sys.exit(uvloop.run(main(chosen.seconds, chosen.plain or not sys.stderr.isatty(), chosen.out)))
    except NearfarError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
