"""Sequences of the MOT Challenge as nearfar's values, and their scores by TrackEval's metrics.

Used by `benchmarks/tracking.py` and the tests. What is demanded and what is passed over follows the challenge's rules:
MOT15 counts the rows of the truth with a mark of 1; MOT17 the pedestrians (class 1) with a mark of 1, after taking away
what a tracker matched with people on vehicles, standing-still figures, distractors and reflections.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nearfar.models.accuracy import overlaps
from nearfar.types.detections import Detections

MOT15 = ("TUD-Campus", "TUD-Stadtmitte", "PETS09-S2L1", "ETH-Bahnhof", "KITTI-17", "ADL-Rundle-6")
MOT17 = ("MOT17-02-FRCNN", "MOT17-05-FRCNN", "MOT17-09-FRCNN", "MOT17-13-FRCNN")
DISTRACTORS = (2, 7, 8, 12)
"""MOT17 classes: person on vehicle, static person, distractor, reflection."""


class Sequence15(NamedTuple):
    name: str
    detections: list[Detections]
    """One for each frame; those of frame 1 first."""
    truth: list[NDArray[np.float64]]
    """Rows of gt.txt for each frame: frame, id, left, top, width, height, mark, class or -1, ..."""
    rated: bool
    """MOT17: the truth has classes, and some rows are only there to be passed over."""
    size: tuple[int, int]


class Scores(NamedTuple):
    """From 0 to 1 (MOTA: up to 1)."""

    hota: float
    idf1: float
    mota: float
    switches: int


def read(folder: Path) -> Sequence15:
    """A sequence of `MOT15/` or `MOT17/` with det/det.txt, gt/gt.txt and seqinfo.ini."""
    info = dict(line.split("=", 1) for line in (folder / "seqinfo.ini").read_text().splitlines() if "=" in line)
    length = int(info["seqLength"])
    det = _by_frame(folder / "det" / "det.txt", length)
    found = []
    for rows in det:
        boxes = np.concatenate((rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]), axis=1).astype(np.float32)
        scores = np.clip(rows[:, 6], 0, 1).astype(np.float32)
        found.append(Detections(boxes, scores, np.zeros(len(rows), np.int32)))
    size = int(info["imWidth"]), int(info["imHeight"])
    return Sequence15(
        folder.name, found, _by_frame(folder / "gt" / "gt.txt", length), folder.parent.name == "MOT17", size
    )


def score(sequence: Sequence15, tracked: Sequence[Detections]) -> Scores:
    """Score one result per frame. Raises `ImportError` without trackeval (`pip install --no-deps trackeval`)."""
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of data sets that it could not load
        from trackeval.metrics import CLEAR, HOTA, Identity
    data = _for_trackeval(sequence, tracked)
    quiet = {"PRINT_CONFIG": False, "THRESHOLD": 0.5}
    hota = HOTA().eval_sequence(data)
    clear, identity = CLEAR(quiet).eval_sequence(data), Identity(quiet).eval_sequence(data)
    return Scores(float(np.mean(hota["HOTA"])), float(identity["IDF1"]), float(clear["MOTA"]), int(clear["IDSW"]))


def _by_frame(path: Path, length: int) -> list[NDArray[np.float64]]:
    rows = np.loadtxt(path, delimiter=",", ndmin=2)
    return [rows[rows[:, 0] == frame + 1] for frame in range(length)]


def _for_trackeval(sequence: Sequence15, tracked: Sequence[Detections]) -> dict[str, Any]:
    from scipy.optimize import linear_sum_assignment

    truth_ids: list[NDArray[Any]] = []
    found_ids: list[NDArray[Any]] = []
    alike: list[NDArray[np.float64]] = []
    for rows, found in zip(sequence.truth, tracked, strict=True):
        assert found.track_ids is not None
        overlap = overlaps(np.concatenate((rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]), axis=1), found.boxes)
        keep = np.ones(len(found), bool)
        wanted = rows[:, 6] != 0
        if sequence.rated:
            wanted &= rows[:, 7] == 1
            close = np.where(overlap >= 0.5 - np.finfo(float).eps, overlap, 0.0)
            r, c = linear_sum_assignment(close, maximize=True)
            hit = (close[r, c] > 0) & np.isin(rows[r, 7], DISTRACTORS)
            keep[c[hit]] = False
        truth_ids.append(rows[wanted, 1].astype(int))
        found_ids.append(found.track_ids[keep])
        alike.append(overlap[wanted][:, keep])
    truth_names, found_names = np.unique(np.concatenate(truth_ids)), np.unique(np.concatenate(found_ids))
    return {
        "num_timesteps": len(truth_ids),
        "num_gt_dets": sum(map(len, truth_ids)),
        "num_tracker_dets": sum(map(len, found_ids)),
        "num_gt_ids": len(truth_names),
        "num_tracker_ids": len(found_names),
        "gt_ids": [np.searchsorted(truth_names, ids) for ids in truth_ids],
        "tracker_ids": [np.searchsorted(found_names, ids) for ids in found_ids],
        "similarity_scores": alike,
    }
