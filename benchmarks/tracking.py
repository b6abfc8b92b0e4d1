"""How well and how fast objects are followed, on public sequences with public detections.

What is measured: the detections of each sequence's det.txt, frame by frame, through `sort`, `bytetrack` and `nearest`,
the baseline below, which continues the box of the last frame that it overlaps most, without prediction or memory, as
one would write it in ten lines. Scored against gt.txt by TrackEval's own metrics (HOTA, IDF1, MOTA, id switches; the
rules of the MOT Challenge), unweighted mean over sequences. Then the tracker is moved into a new one after every frame:
ids and boxes must be bit-equal to not moving; the time of one move (median) and the largest state are stated.
Warm-up: one sequence. Repetitions: `--rounds` (3), the trackers in turn within each; the median updates/s is stated,
per second of processor time of the one thread that works, since the machine has other things to do.
Limit: what detections allow. A tracker cannot find what no detector found: `detector_recall` is the share of the truth
that some box overlaps by 0.5.
Needs the real data (NEARFAR_TEST_DATA) and TrackEval (pip install --no-deps trackeval).
Run: python -m benchmarks.tracking [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mot import MOT15, MOT17, Sequence15, read, score
from nearfar.models.accuracy import overlaps
from nearfar.types.detections import Detections
from nearfar.vision.tracking.base import Tracker, check
from nearfar.vision.tracking.registry import tracker

NAMES = ("nearest", "sort", "bytetrack")


class Nearest(Tracker):
    """The baseline: pairs by falling overlap with the last frame's boxes, at least 0.3; ids from 1."""

    name = "benchmarks.tracking:Nearest"
    stays = "it is a baseline of benchmarks"

    def __init__(self) -> None:
        self._frame: int | None = None
        self._last = Detections.empty()
        self._ids: list[int] = []
        self._next = 1

    def update(self, detections: Detections, frame: int) -> Detections:
        check(detections, frame, self._frame)
        alike = overlaps(self._last.boxes, detections.boxes)
        alike[self._last.class_ids[:, None] != detections.class_ids[None]] = 0.0
        ids = [0] * len(detections)
        while alike.size and alike.max() >= 0.3:
            row, column = np.unravel_index(int(alike.argmax()), alike.shape)
            ids[column] = self._ids[row]
            alike[row], alike[:, column] = 0.0, 0.0
        for i, given in enumerate(ids):
            if not given:
                ids[i], self._next = self._next, self._next + 1
        self._frame, self._last, self._ids = frame, detections, ids
        d = detections
        return Detections(d.boxes, d.scores, d.class_ids, np.array(ids, np.int64))


def make(name: str) -> Tracker:
    return tracker(Nearest.name if name == "nearest" else name)


def followed(sequence: Sequence15, name: str) -> tuple[list[Detections], float]:
    """The results of all frames, and the seconds of processor time they took."""
    one = make(name)
    start = time.thread_time()
    results = [one.update(found, frame) for frame, found in enumerate(sequence.detections)]
    return results, time.thread_time() - start


def moved(sequence: Sequence15, name: str, plain: list[Detections]) -> tuple[bool, float, int]:
    """Whether moving after every frame changes nothing, microseconds of one move, bytes of the largest state."""
    one, spent, largest, same = make(name), list[float](), 0, True
    for frame, found in enumerate(sequence.detections):
        got = one.update(found, frame)
        same &= got == plain[frame] and got.boxes.tobytes() == plain[frame].boxes.tobytes()
        start = time.thread_time()
        state = one.export_state()
        one = make(name)
        one.import_state(state)
        spent.append(time.thread_time() - start)
        largest = max(largest, len(state))
    return same, statistics.median(spent) * 1e6, largest


def recall(sequence: Sequence15) -> float:
    hit = total = 0
    for rows, found in zip(sequence.truth, sequence.detections, strict=True):
        rows = rows[(rows[:, 6] != 0) & ((rows[:, 7] == 1) | (not sequence.rated))]
        boxes = np.concatenate((rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]), axis=1)
        total += len(rows)
        hit += int((overlaps(boxes, found.boxes).max(axis=1, initial=0.0) >= 0.5).sum())
    return hit / total


def main() -> None:
    parser = argparse.ArgumentParser(description="HOTA, IDF1, MOTA and updates/s of the trackers.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="only the last line")
    given = parser.parse_args()
    stated = os.environ.get("NEARFAR_TEST_DATA")
    folder = (Path(stated) if stated else Path(__file__).parents[2] / "shared" / "data") / "mot"
    if not folder.is_dir():
        sys.exit("benchmarks/tracking.py needs the real data: set NEARFAR_TEST_DATA to its folder")
    sequences = [read(folder / "MOT15" / name) for name in MOT15] + [read(folder / "MOT17" / name) for name in MOT17]
    for name in NAMES:
        followed(sequences[0], name)
    told: dict[str, Any] = {}
    for sequence in sequences:
        told[sequence.name] = row = {"frames": len(sequence.detections), "detector_recall": round(recall(sequence), 3)}
        seconds: dict[str, list[float]] = {name: [] for name in NAMES}
        results: dict[str, list[Detections]] = {}
        for _ in range(given.rounds):
            for name in NAMES:
                results[name], spent = followed(sequence, name)
                seconds[name].append(spent)
        for name in NAMES:
            scores = score(sequence, results[name])
            row[name] = {  # type: ignore[assignment]
                "hota": round(scores.hota, 3),
                "idf1": round(scores.idf1, 3),
                "mota": round(scores.mota, 3),
                "switches": scores.switches,
                "updates_s": round(len(sequence.detections) / statistics.median(seconds[name])),
            }
            if name != "nearest":
                same, micro, size = moved(sequence, name, results[name])
                row[name] |= {"bit_equal": same, "move_us": round(micro), "state_bytes": size}  # type: ignore[operator]
        if not given.json:
            cells = "  ".join(
                f"{name} {r['hota']:.3f} {r['idf1']:.3f} {r['mota']:.3f} {r['switches']:>3} {r['updates_s']:>5}/s"
                for name, r in ((n, told[sequence.name][n]) for n in NAMES)
            )
            print(f"{sequence.name:<16} recall {row['detector_recall']:.3f}  {cells}", flush=True)
    mean = {
        part: {
            name: {
                key: round(statistics.mean(told[s][name][key] for s in names), 3)
                for key in ("hota", "idf1", "mota", "switches", "updates_s")
            }
            for name in NAMES
        }
        for part, names in (("MOT15", MOT15), ("MOT17", MOT17))
    }
    kept = all(told[s.name][name]["bit_equal"] for s in sequences for name in NAMES if name != "nearest")
    print(
        json.dumps(
            {
                "benchmark": "tracking",
                "python": platform.python_version(),
                "machine": platform.machine(),
                "rounds": given.rounds,
                "bit_equal": kept,
                "mean": mean,
                "sequences": told,
            }
        )
    )


if __name__ == "__main__":
    main()
