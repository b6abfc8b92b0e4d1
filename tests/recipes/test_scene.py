"""The renderer is a pure function of its seed, and its truth is what its pixels show."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from recipes.yard.scene import LABELS, Scene, Truth, render_clip

ROOT = Path(__file__).resolve().parents[2]


def digest(seed: int) -> str:
    scene = Scene(seed)
    image, truth = scene.frame(2.5)
    return hashlib.sha256(image.tobytes() + repr(truth).encode()).hexdigest()


def test_same_seed_gives_same_bytes_in_any_order() -> None:
    first, second = Scene(11), Scene(11)
    times = [0.0, 4.2, 1.0 / 15, 300.0]
    forward = {t: first.frame(t) for t in times}
    for t in reversed(times):
        image, truth = second.frame(t)
        assert image.tobytes() == forward[t][0].tobytes()
        assert truth == forward[t][1]


def test_another_process_renders_the_same_bytes() -> None:
    code = (
        "import hashlib; from recipes.yard.scene import Scene; i, t = Scene(11).frame(2.5); "
        "print(hashlib.sha256(i.tobytes() + repr(t).encode()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(11)


def test_seeds_differ_and_images_have_the_promised_shape() -> None:
    assert len({digest(seed) for seed in range(6)}) == 6
    image, _ = Scene(3, width=640, height=480).frame(1.0)
    assert image.shape == (480, 640, 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize("seed", range(20, 44))
def test_truth_agrees_with_the_id_buffer(seed: int) -> None:
    scene = Scene(seed)
    for t in (0.0, 9.5):
        _, truth, ids = scene.frame_with_ids(t)
        assert set(np.unique(ids)) - {0} <= {o.track_id for o in truth}
        assert len({o.track_id for o in truth}) == len(truth)
        for o in truth:
            assert 0.0 <= o.visible <= 1.0
            x0, y0, x1, y1 = o.xyxy
            assert 0 <= x0 < x1 <= 320 and 0 <= y0 < y1 <= 240
            rows, columns = np.nonzero(ids == o.track_id)
            assert (len(rows) == 0) == (o.visible == 0.0)
            if not len(rows):
                continue
            seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert seen[0] >= x0 and seen[1] >= y0 and seen[2] <= x1 and seen[3] <= y1
            if o.visible == 1.0:
                assert seen == o.xyxy
            # nobody shows more pixels than the box has, and the silhouette is what was seen over what is visible
            assert len(rows) / o.visible <= (x1 - x0 + 200) * (y1 - y0 + 200)


def test_every_label_occurs_and_some_objects_hide() -> None:
    truth = [o for seed in range(100, 120) for o in Scene(seed).frame(5.0)[1]]
    assert {o.label_id for o in truth} == set(range(len(LABELS)))
    assert any(o.ignored for o in truth)
    assert any(0.3 <= o.visible < 0.9 for o in truth)
    assert sum(o.visible > 0.9 for o in truth) > len(truth) / 2


def test_motion_is_smooth_and_tracks_keep_their_ids() -> None:
    for seed in range(5):
        frames = [{o.track_id: o for o in truth} for _, truth in Scene(seed).frames(seconds=4.0, fps=15)]
        moved = 0.0
        for before, after in pairwise(frames):
            for track in before.keys() & after.keys():
                a, b = before[track], after[track]
                assert a.label_id == b.label_id
                if inner(a) and inner(b):
                    step = max(abs(p - q) for p, q in zip(centre(a), centre(b), strict=True))
                    assert step < 12.0
                    moved += step
        assert moved > 5.0


def inner(o: Truth) -> bool:
    return o.xyxy[0] > 0 and o.xyxy[1] > 0 and o.xyxy[2] < 320 and o.xyxy[3] < 240


def centre(o: Truth) -> tuple[float, float]:
    return (o.xyxy[0] + o.xyxy[2]) / 2, (o.xyxy[1] + o.xyxy[3]) / 2


def test_light_changes_over_time() -> None:
    spread = [np.ptp([Scene(seed).frame(t)[0].mean() for t in (0.0, 5.0, 10.0, 20.0)]) for seed in range(6)]
    assert max(spread) > 5.0


def test_a_clip_is_the_frames_and_its_truth(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    beside = render_clip(tmp_path / "clip.mp4", seed=5, seconds=0.6, fps=15)
    assert beside == tmp_path / "clip.truth.jsonl"
    rows = [json.loads(line) for line in beside.read_text().splitlines()]
    scene = Scene(5)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        images = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    assert len(images) == len(rows) == 9
    for i, (image, row) in enumerate(zip(images, rows, strict=True)):
        expected, truth = scene.frame(i / 15)
        assert row["frame"] == i
        assert [o["xyxy"] for o in row["objects"]] == [list(o.xyxy) for o in truth]
        assert [o["label"] for o in row["objects"]] == [LABELS[o.label_id] for o in truth]
        assert np.abs(image.astype(int) - expected).mean() < 12
