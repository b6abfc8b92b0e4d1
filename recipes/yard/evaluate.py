"""What the detector is worth: accuracy on unseen scenes, agreement of its variants, determinism, latency.

    python -m recipes.yard.evaluate [--models DIR] [--float DIR/float.pt] [--scenes N] [--write]

Average precision is COCO's (101 recall points, greedy matching, IoU 0.50 and 0.50:0.05:0.95), written out here in
numpy; truth visible below 0.3 is neither a hit nor a miss. Test seeds start at 3,000,000 (scenes) and
4,000,000 (clips coded as H.264): no other part of the recipe uses them. ``decode`` is the reference for the
decoder ``yolox`` with ``heads = "split"``.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.yard.scene import LABELS, Scene, Truth, render_clip

WIDTH, HEIGHT, STRIDES = 320, 240, (8, 16)
THRESHOLD = 0.45  # as in yard.toml
TEST_SEEDS = 3_000_000
CLIP_SEEDS = 4_000_000
FRAMES_A_SCENE = 4
EMBEDDED = Path(__file__).resolve().parents[2] / "src/nearfar/models/embedded/yard"
NAMES = tuple(f"{kind}{stride}" for stride in STRIDES for kind in ("box", "score"))

Floats = NDArray[np.float32]
Image = NDArray[np.uint8]
Raw = dict[str, Floats]  # box8, score8, box16, score16: [rows, columns, channels]
Detections = tuple[Floats, Floats, NDArray[np.int64]]  # boxes [n, 4] pixels, scores [n], labels [n]


# -- running a variant


def onnx_runner(path: Path, threads: int = 1) -> Callable[[Image], Raw]:
    """RGB uint8 [h, w, 3] -> raw outputs, through ONNX Runtime."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import, which would report home
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name

    def run(rgb: Image) -> Raw:
        outputs = session.run(list(NAMES), {source: np.ascontiguousarray(rgb.transpose(2, 0, 1)[None])})
        return {name: o[0].transpose(1, 2, 0) for name, o in zip(NAMES, outputs, strict=True)}

    return run


def tflite_runner(path: Path, threads: int = 1) -> Callable[[Image], Raw]:
    """RGB uint8 [h, w, 3] -> raw outputs, through LiteRT; int8 outputs are dequantised by their own parameters."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    outputs = {o["name"]: o for o in interpreter.get_output_details()}

    def run(rgb: Image) -> Raw:
        interpreter.set_tensor(source, rgb[None])
        interpreter.invoke()
        raw = {}
        for name in NAMES:
            scale, zero = outputs[name]["quantization"]
            values = interpreter.get_tensor(outputs[name]["index"])[0].astype(np.float32)
            raw[name] = (values - np.float32(zero)) * np.float32(scale)
        return raw

    return run


def torch_runner(path: Path) -> Callable[[Image], Raw]:
    """RGB uint8 [h, w, 3] -> raw outputs of the float network."""
    import torch

    from recipes.yard.model import YardNet

    net = YardNet()
    net.load_state_dict(torch.load(path))
    net.eval()

    def run(rgb: Image) -> Raw:
        with torch.no_grad():
            outputs = net(torch.from_numpy(rgb.transpose(2, 0, 1)[None].astype(np.float32) / 255))
        return {name: o[0].permute(1, 2, 0).numpy() for name, o in outputs.items()}

    return run


# -- from raw outputs to boxes


def decode(raw: Raw, threshold: float = THRESHOLD, iou: float = 0.5, most: int = 100) -> Detections:
    """Centre = (cell + box[:2]) * stride, size = exp(box[2:]) * stride, score = sigmoid(logit); then NMS a class."""
    boxes, scores = [], []
    for stride in STRIDES:
        box, logit = raw[f"box{stride}"], raw[f"score{stride}"]
        rows, columns = box.shape[:2]
        y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
        centre = (np.stack([x, y], -1) + box[..., :2]) * stride
        half = np.exp(box[..., 2:]) * stride / 2
        boxes.append(np.concatenate([centre - half, centre + half], -1).reshape(-1, 4))
        scores.append((1 / (1 + np.exp(-logit))).reshape(-1, logit.shape[-1]))
    b, s = np.concatenate(boxes), np.concatenate(scores)
    cell, found = np.nonzero(s >= threshold)
    order = np.argsort(-s[cell, found], kind="stable")
    cell, label = cell[order], found[order].astype(np.int64)
    kept = nms(b[cell], label, iou, most)
    limit = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
    inside = np.clip(b[cell[kept]], 0, limit).astype(np.float32)
    return inside, s[cell[kept], label[kept]].astype(np.float32), label[kept]


def ious(a: Floats, b: Floats) -> Floats:
    """Overlap of every box of a [n, 4] with every box of b [m, 4]: [n, m]."""
    size = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    inter = np.prod(np.maximum(size, 0), -1)
    area_a, area_b = (np.prod(c[:, 2:] - c[:, :2], -1) for c in (a, b))
    return np.asarray(inter / np.maximum(area_a[:, None] + area_b[None] - inter, 1e-9), np.float32)


def nms(boxes: Floats, labels: NDArray[np.int64], iou: float, most: int) -> NDArray[np.int64]:
    """Indices of the first ``most`` kept boxes, which come sorted by falling score; class by class."""
    alive = np.ones(len(boxes), bool)
    kept: list[int] = []
    for i in range(len(boxes)):
        if alive[i]:
            kept.append(i)
            if len(kept) == most:
                break
            alive &= ~((ious(boxes[i : i + 1], boxes)[0] > iou) & (labels == labels[i]))
    return np.array(kept, np.int64)


# -- accuracy


def test_frames(scenes: int, first: int = TEST_SEEDS) -> list[tuple[Image, list[Truth]]]:
    """RGB frames and truth of unseen scenes, ``FRAMES_A_SCENE`` moments each, 7.3 s apart."""
    frames = []
    for seed in range(first, first + scenes):
        scene = Scene(seed, WIDTH, HEIGHT)
        for k in range(FRAMES_A_SCENE):
            image, truth = scene.frame(k * 7.3)
            frames.append((np.ascontiguousarray(image[:, :, ::-1]), truth))
    return frames


def clip_frames(clips: int, seconds: float = 3.0, first: int = CLIP_SEEDS) -> list[tuple[Image, list[Truth]]]:
    """As ``test_frames``, but every fifth frame of H.264 clips, as the demo sees them: rendered, coded, decoded."""
    import av

    frames = []
    for seed in range(first, first + clips):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            rows = [json.loads(line)["objects"] for line in render_clip(path, seed, seconds).read_text().splitlines()]
            with av.open(str(path)) as container:
                images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        for image, objects in list(zip(images, rows, strict=True))[::5]:
            truth = [Truth(o["label_id"], tuple(o["xyxy"]), o["visible"], o["track_id"]) for o in objects]
            frames.append((image, truth))
    return frames


def average_precision(found: Sequence[Detections], truth: Sequence[list[Truth]]) -> dict[str, Any]:
    """COCO-style figures: ``ap50``, ``map`` (0.50:0.95), both per class, and the number of objects."""
    levels = np.arange(0.5, 0.96, 0.05)
    table = np.full((len(LABELS), len(levels)), np.nan)
    count = np.zeros(len(LABELS), int)
    for c in range(len(LABELS)):
        scores: list[Floats] = []
        hits: list[NDArray[np.int8]] = []  # per detection and level: 1 hit, 0 miss, -1 not counted
        for (boxes, score, label), objects in zip(found, truth, strict=True):
            mine = [o for o in objects if o.label_id == c]
            mine.sort(key=lambda o: o.ignored)
            count[c] += sum(not o.ignored for o in mine)
            b, s = boxes[label == c], score[label == c]
            matrix = ious(b, np.array([o.xyxy for o in mine], np.float32).reshape(-1, 4))
            result = np.zeros((len(b), len(levels)), np.int8)
            closest = matrix.max(1, initial=0.0)
            for k, level in enumerate(levels):
                free = [True] * len(mine)
                for i in np.flatnonzero(closest >= level):  # the rest are misses whatever else happens
                    best, at = float(level), -1
                    for j, o in enumerate(mine):
                        if at >= 0 and o.ignored and not mine[at].ignored:
                            break
                        if (free[j] or o.ignored) and matrix[i, j] >= best:
                            best, at = float(matrix[i, j]), j
                    if at >= 0:
                        free[at] = False
                        result[i, k] = -1 if mine[at].ignored else 1
            scores.append(s)
            hits.append(result)
        order = np.argsort(-np.concatenate(scores), kind="stable")
        ranked = np.concatenate(hits)[order]
        for k in range(len(levels)):
            column = ranked[ranked[:, k] >= 0, k].astype(float)
            true = np.cumsum(column)
            recall = true / max(count[c], 1)
            precision = true / np.arange(1, len(true) + 1)
            envelope = np.maximum.accumulate(precision[::-1])[::-1] if len(true) else precision
            first = np.searchsorted(recall, np.linspace(0, 1, 101))
            table[c, k] = np.append(envelope, 0.0)[np.minimum(first, len(envelope))].mean() if count[c] else np.nan
    return {
        "ap50": float(np.nanmean(table[:, 0])),
        "map": float(np.nanmean(table)),
        "ap50_per_class": {n: float(v) for n, v in zip(LABELS, table[:, 0], strict=True)},
        "map_per_class": {n: float(v) for n, v in zip(LABELS, table.mean(1), strict=True)},
        "objects": {n: int(v) for n, v in zip(LABELS, count, strict=True)},
    }


def working_point(found: Sequence[Detections], truth: Sequence[list[Truth]], threshold: float) -> dict[str, float]:
    """Precision and recall at IoU 0.5 of what scores at least ``threshold``."""
    hit = false = wanted = 0
    for (boxes, scores, labels), objects in zip(found, truth, strict=True):
        wanted += sum(not o.ignored for o in objects)
        free = [True] * len(objects)
        matrix = ious(boxes, np.array([o.xyxy for o in objects], np.float32).reshape(-1, 4))
        for i in np.flatnonzero(scores >= threshold):
            ranked = [
                (o.ignored, -float(matrix[i, j]), j)
                for j, o in enumerate(objects)
                if free[j] and o.label_id == labels[i] and matrix[i, j] >= 0.5
            ]
            if not ranked:
                false += 1
                continue
            ignored, _, j = min(ranked)
            free[j] = False
            hit += not ignored
    return {"threshold": threshold, "precision": hit / max(hit + false, 1), "recall": hit / max(wanted, 1)}


def accuracy(run: Callable[[Image], Raw], frames: Sequence[tuple[Image, list[Truth]]]) -> dict[str, Any]:
    """Figures of one variant on these frames."""
    found = [decode(run(rgb), threshold=0.02) for rgb, _ in frames]
    truth = [t for _, t in frames]
    return {**average_precision(found, truth), "at_threshold": working_point(found, truth, THRESHOLD)}


# -- determinism and time


def digest(raw: Raw) -> str:
    """sha256 over the raw outputs."""
    joined = b"".join(np.ascontiguousarray(raw[name]).tobytes() for name in NAMES)
    return hashlib.sha256(joined).hexdigest()


def probe_frame() -> Image:
    """The frame determinism is tested on."""
    return np.ascontiguousarray(Scene(TEST_SEEDS, WIDTH, HEIGHT).frame(1.0)[0][:, :, ::-1])


def determinism(path: Path, times: int = 100) -> dict[str, Any]:
    """Distinct digests of one frame's outputs: repeated, with 1 and 2 threads, in other processes."""
    maker = tflite_runner if path.suffix == ".tflite" else onnx_runner
    frame = probe_frame()
    repeated = {digest(run(frame)) for run in [maker(path, 1)] for _ in range(times)}
    threads = {digest(maker(path, n)(frame)) for n in (1, 2)}
    code = (
        f"from pathlib import Path; from recipes.yard import evaluate as e; "
        f"print(e.digest(e.{maker.__name__}(Path({str(path)!r}), 1)(e.probe_frame())))"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code]
    processes = {
        subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip() for _ in range(3)
    }
    return {
        "repeats": times,
        "distinct_repeated": len(repeated),
        "distinct_1_and_2_threads": len(threads),
        "distinct_processes": len(processes),
        "all_equal": len(repeated | threads | processes) == 1,
        "digest": sorted(repeated)[0],
    }


def latency(run: Callable[[Image], Raw], times: int = 200) -> dict[str, float]:
    """Milliseconds a call, inference alone with its copies; the best is the machine's, the median the day's."""
    frame = probe_frame()
    for _ in range(20):
        run(frame)
    spent = []
    for _ in range(times):
        started = time.perf_counter()
        run(frame)
        spent.append((time.perf_counter() - started) * 1e3)
    return {"best_ms": float(np.min(spent)), "median_ms": float(np.median(spent))}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the yard detector.")
    parser.add_argument("--models", type=Path, default=EMBEDDED)
    parser.add_argument("--float", type=Path, dest="float_weights", help="float.pt of the training, to compare")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--clips", type=int, default=60, help="H.264 clips of 3 s")
    parser.add_argument("--seed", type=int, default=7, help="seed of the training, for the record")
    parser.add_argument("--write", action="store_true", help="write figures.json beside the models")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    frames, coded = test_frames(args.scenes), clip_frames(args.clips)
    paths = {"onnx-int8": args.models / "yard-int8.onnx", "tflite-int8": args.models / "yard-int8.tflite"}
    runners = {"onnx-int8": onnx_runner(paths["onnx-int8"]), "tflite-int8": tflite_runner(paths["tflite-int8"])}
    if args.float_weights:
        runners = {"torch-fp32": torch_runner(args.float_weights), **runners}
    figures: dict[str, Any] = {}
    for name, run in runners.items():
        figures[name] = accuracy(run, frames)
        print(name, json.dumps(figures[name]), file=sys.stderr)
        if name in paths:
            after = accuracy(run, coded)
            figures[name]["h264"] = {key: after[key] for key in ("ap50", "map", "at_threshold")}
            figures[name] |= {
                "bytes": paths[name].stat().st_size,
                "determinism": determinism(paths[name]),
                "latency_1_thread": latency(run),
            }
    differing = [
        np.mean([float(np.mean(a[n] != b[n])) for n in NAMES])
        for a, b in ((runners["onnx-int8"](f), runners["tflite-int8"](f)) for f, _ in frames[:50])
    ]
    packages = ["numpy", "opencv-python-headless", "onnx", "onnxruntime", "ai-edge-litert", "torch"]
    record = {
        "model": "yard",
        "date": datetime.date.today().isoformat(),
        "seed": args.seed,
        "commit": "unset",
        "test": {
            "first_seed": TEST_SEEDS,
            "scenes": args.scenes,
            "frames": len(frames),
            "first_clip_seed": CLIP_SEEDS,
            "clips": args.clips,
            "clip_frames": len(coded),
        },
        "variants": figures,
        "onnx_tflite_share_of_differing_outputs": float(np.mean(differing)),
        "machine": f"{platform.machine()}, 1 thread, shared host",
        "versions": {"python": platform.python_version()} | {p: metadata.version(p) for p in packages},
    }
    if args.float_weights:
        from recipes.yard import train

        record["training"] = {
            "steps": train.STEPS,
            "batch": train.BATCH,
            "scenes": train.SCENES,
            "frames_a_scene": train.FRAMES_A_SCENE,
        }
    if args.write:
        (args.models / "figures.json").write_text(json.dumps(rounded(record), indent=2) + "\n")
    print(json.dumps(rounded(record)))


def rounded(value: Any) -> Any:
    """Floats to four places, at any depth."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
