"""Frames per second of `watch` against a plain loop over the same runtime.

What is measured: a video file is decoded and every frame is looked at, in turn by
- `loop`: one process that decodes, preprocesses, infers and decodes the boxes, one frame after the other: what a user
  would write without nearfar;
- `piped`: the same, but the next frame is decoded in a thread while this one is inferred: the fair limit on this
  machine for anything that overlaps decoding and inference;
- `engine`: the engine of `vision` (hand-over, requests in flight, ordering, accounts) over the same pipeline in a
  thread: what the engine itself costs, without any fleet;
- `watch`: the whole way: a node in processes of its own, the model in its service process, frames over the mesh.
Same model, same threads per engine (`--threads`, 1), same frames, nothing drawn or recorded, nothing dropped.
Warm-up: 10 frames in each. Repetitions: `--rounds` (3) rounds of `--frames` (150) frames, the four in turn within each
round, so that a noisy neighbour hurts all; the median of the rounds is stated.
Paired limits in the same run: `loop` and `piped`. The ratio is watch / loop; aim: at least 0.95. Frames per second
suffer from whatever else the machine does (one thread more than several), so the processor time per frame of the three
that run in this process stands beside them.
Needs the real data (NEARFAR_TEST_DATA). Run: python benchmarks/stream.py [--model FILE] [--video FILE] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nearfar.models.adding import AddOptions, add_file
from nearfar.models.process import Pipeline
from nearfar.models.store import Store
from nearfar.runtimes.base import LoadedVariant, LoadOptions
from nearfar.runtimes.modelfile import format_of
from nearfar.runtimes.registry import inspect_file, runtime
from nearfar.types.ids import ModelName, ServiceId, StreamId
from nearfar.types.image import Image
from nearfar.types.request import Answer, Qos, Stages
from nearfar.vision.base import Frame, Source
from nearfar.vision.results import Outcome, Summary
from nearfar.vision.sources import open_source
from nearfar.vision.stream import Watch

MODEL = ModelName("bench")
FLEET = f"bench-{os.getpid()}"
WARM_UP = 10
NODE = """
import asyncio, sys
from nearfar.cli.common import settings
from nearfar.cli.up import run_node
flags = {"home": sys.argv[1], "mesh.fleet": sys.argv[4], "gateway.port": 0, "node.threads": int(sys.argv[2]),
         "mesh.discover": False}
asyncio.run(run_node(settings(flags), [sys.argv[3]]))
"""


class Limited(Source):
    """The first `count` frames of a source that starts over at its end."""

    live = False

    def __init__(self, video: Path, count: int) -> None:
        self._inner = open_source(str(video), loop=True)
        self._count = count
        self.uri = str(video)

    def read(self) -> Frame | None:
        if self._count == 0:
            self.close()
        self._count -= 1
        return self._inner.read()

    def close(self) -> None:
        self._inner.close()


class Here:
    """Pipeline and runtime in this process."""

    def __init__(self, store: Store, threads: int) -> None:
        stored = store.get(MODEL)
        variant = stored.manifest.variants[0]
        name = {"onnx": "onnx", "tflite": "litert"}[variant.format]
        self.loaded: LoadedVariant = runtime(name).load(stored.open(variant.id), LoadOptions(threads=threads))
        self.pipeline = Pipeline(stored.manifest, variant, self.loaded.inputs, self.loaded.outputs)
        self.variant = variant.id

    def see(self, image: Image) -> Answer:
        times = [time.perf_counter()]
        inputs, geometry = self.pipeline.prepare(image)
        times.append(time.perf_counter())
        outputs = self.loaded.infer(inputs)
        times.append(time.perf_counter())
        tensors = self.pipeline.finish(outputs, geometry)
        times.append(time.perf_counter())
        before, inference, after = ((b - a) * 1e3 for a, b in itertools.pairwise(times))
        return Answer(tensors, ServiceId("here/bench"), self.variant, Stages(0.0, 0.0, before, inference, after))


class HereSeer:
    """`Here` as a seer: one worker thread, as a service has."""

    def __init__(self, here: Here) -> None:
        self._here = here
        self._lock = threading.Lock()

    async def see(
        self,
        model: ModelName,
        image: Image,
        qos: Qos,
        *,
        stream: StreamId | None = None,
        incumbent: ServiceId | None = None,
    ) -> Answer:
        return await asyncio.to_thread(self._locked, image)

    def _locked(self, image: Image) -> Answer:
        with self._lock:
            return self._here.see(image)

    def link_to(self, model: ModelName, incumbent: ServiceId | None) -> tuple[float, float | None]:
        return 0.0, None


def loop(here: Here, video: Path, frames: int) -> float:
    """Frames per second, one after the other."""
    source = Limited(video, frames + WARM_UP)
    started = time.perf_counter()
    seen = 0
    while (frame := source.read()) is not None:
        if seen == WARM_UP:
            started = time.perf_counter()
        here.see(Image.bgr(frame.image))
        seen += 1
    return (seen - WARM_UP) / (time.perf_counter() - started)


def piped(here: Here, video: Path, frames: int) -> float:
    """Frames per second with the decoder in a thread of its own."""
    source = Limited(video, frames + WARM_UP)
    ready: queue.Queue[Frame | None] = queue.Queue(2)

    def decode() -> None:
        while (frame := source.read()) is not None:
            ready.put(frame)
        ready.put(None)

    decoder = threading.Thread(target=decode)
    decoder.start()
    started = time.perf_counter()
    seen = 0
    while (frame := ready.get()) is not None:
        if seen == WARM_UP:
            started = time.perf_counter()
        here.see(Image.bgr(frame.image))
        seen += 1
    rate = (seen - WARM_UP) / (time.perf_counter() - started)
    decoder.join()
    return rate


async def watched(seer: Any, video: Path, frames: int) -> tuple[float, Summary]:
    """Frames per second from the first result after the warm-up to the last, and the stream's accounts."""
    at: list[float] = []
    watcher = Watch(
        Limited(video, frames + WARM_UP), seer, MODEL, on_result=lambda result, image: at.append(time.perf_counter())
    )
    summary = await watcher.run()
    if summary.counts[Outcome.ANSWERED] != frames + WARM_UP:
        raise SystemExit(f"not every frame was answered: {summary.to_dict()}")
    return frames / (at[-1] - at[WARM_UP - 1]), summary


@contextmanager
def node(home: Path, threads: int) -> Iterator[None]:
    """A node in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", NODE, str(home), str(threads), MODEL, FLEET],
        stdout=subprocess.DEVNULL,
        stderr=None if os.environ.get("NEARFAR_BENCH_VERBOSE") else subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


async def over_the_fleet(home: Path, video: Path, frames: int, others: Callable[[], None], rounds: int) -> list[Any]:
    """`rounds` runs of `watch` on the local node, `others()` before each; (frames per second, summary) of each."""
    from nearfar.client.connect import connect
    from nearfar.settings import load

    run_files = home / "run"
    end = time.monotonic() + 60
    while not any(file.stat().st_size for file in run_files.glob("*.json")):
        if time.monotonic() > end:
            raise SystemExit("the node did not start; see why with NEARFAR_BENCH_VERBOSE=1")
        await asyncio.sleep(0.1)
    results = []
    async with connect(load({"home": str(home), "mesh.fleet": FLEET, "mesh.discover": False})) as client:
        await client.wait_for(MODEL, 60.0)
        for _ in range(rounds):
            await asyncio.to_thread(others)
            results.append(await watched(client, video, frames))
    return results


def main() -> None:
    data = Path(os.environ.get("NEARFAR_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=data / "detection_models" / "yolox_nano_416.onnx")
    parser.add_argument("--video", type=Path, default=data / "video" / "bottle-detection.mp4")
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-fleet", action="store_true", help="without `watch`: what the engine itself costs")
    chosen = parser.parse_args()
    for path in (chosen.model, chosen.video):
        if not path.exists():
            raise SystemExit(f"{path.name} is absent; give --model and --video, or set NEARFAR_TEST_DATA.")
    rates: dict[str, list[float]] = {"loop": [], "piped": [], "engine": [], "watch": []}
    spent: dict[str, list[float]] = {"loop": [], "piped": [], "engine": []}
    stages: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        store = Store(home / "models")
        add_file(store, chosen.model, _inspect, AddOptions(name=MODEL))
        here = Here(store, chosen.threads)

        def others() -> None:
            runs: dict[str, Callable[[], float]] = {
                "loop": lambda: loop(here, chosen.video, chosen.frames),
                "piped": lambda: piped(here, chosen.video, chosen.frames),
                "engine": lambda: asyncio.run(watched(HereSeer(here), chosen.video, chosen.frames))[0],
            }
            for name, run in runs.items():
                before = time.process_time()
                rates[name].append(run())
                spent[name].append((time.process_time() - before) * 1e3 / (chosen.frames + WARM_UP))

        if chosen.no_fleet:
            for _ in range(chosen.rounds):
                others()
        else:
            with node(home, chosen.threads):
                for rate, summary in asyncio.run(
                    over_the_fleet(home, chosen.video, chosen.frames, others, chosen.rounds)
                ):
                    rates["watch"].append(rate)
                    stages = summary.to_dict()["stages_ms"]
    medians = {name: round(statistics.median(values), 2) for name, values in rates.items() if values}
    cpu_ms = {name: round(statistics.median(values), 3) for name, values in spent.items()}
    for name, rate in medians.items():
        every = ", ".join(f"{value:.1f}" for value in rates[name])
        cpu = f"{cpu_ms[name]:6.2f} ms of processor a frame" if name in cpu_ms else ""
        print(f"{name:8} {rate:8.2f} frames/s   {rate / medians['loop']:.3f} of loop   ({every}) {cpu}")
    for name, figures in stages.items():
        print(f"  {name:12} p50 {figures['p50']:8.3f} ms   p99 {figures['p99']:8.3f} ms")
    print(
        json.dumps(
            {
                "benchmark": "stream",
                "fps": medians,
                "cpu_ms_per_frame": cpu_ms,
                "ratio": round(medians.get("watch", medians["engine"]) / medians["loop"], 4),
                "ratio_of": "watch/loop" if "watch" in medians else "engine/loop",
                "aim": 0.95,
                "model": chosen.model.name,
                "video": chosen.video.name,
                "frames": chosen.frames,
                "rounds": chosen.rounds,
                "threads": chosen.threads,
                "cpus": os.cpu_count(),
                "machine": platform.machine(),
            }
        )
    )


def _inspect(path: Path) -> Any:
    found = inspect_file(path)
    return format_of(path), found.inputs, found.outputs


if __name__ == "__main__":
    main()
