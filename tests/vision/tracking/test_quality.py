"""HOTA, IDF1 and MOTA on public sequences with public detections, by TrackEval's own metrics.

The floors lie 0.02 below what `python -m benchmarks.tracking` measured; the arithmetic is the same on every machine,
so a figure that moves at all means that the trackers changed.
"""

from __future__ import annotations

import pytest

from benchmarks.mot import MOT15, MOT17, read, score
from nearfar.vision.areas import parse_areas
from nearfar.vision.tracking.follow import Follow
from nearfar.vision.tracking.registry import tracker
from tests.realdata import need_data
from tests.vision.tracking.scenes import NAMES, same

pytest.importorskip("scipy", reason="scipy is not installed: pip install 'nearfar[track]'")

FLOORS = {
    "TUD-Campus": ((0.432, 0.564, 0.562), (0.494, 0.689, 0.615)),
    "TUD-Stadtmitte": ((0.515, 0.714, 0.702), (0.521, 0.714, 0.701)),
    "PETS09-S2L1": ((0.296, 0.34, 0.61), (0.416, 0.563, 0.642)),
    "ETH-Bahnhof": ((0.44, 0.589, 0.387), (0.404, 0.546, 0.369)),
    "KITTI-17": ((0.445, 0.681, 0.572), (0.454, 0.703, 0.528)),
    "ADL-Rundle-6": ((0.317, 0.412, 0.357), (0.314, 0.445, 0.36)),
    "MOT17-02-FRCNN": ((0.289, 0.343, 0.303), (0.311, 0.372, 0.305)),
    "MOT17-05-FRCNN": ((0.409, 0.52, 0.444), (0.406, 0.527, 0.458)),
    "MOT17-09-FRCNN": ((0.416, 0.482, 0.519), (0.436, 0.531, 0.527)),
    "MOT17-13-FRCNN": ((0.422, 0.491, 0.434), (0.45, 0.554, 0.463)),
}
"""(HOTA, IDF1, MOTA) of sort and of bytetrack."""


def need_trackeval() -> None:
    pytest.importorskip("trackeval", reason="trackeval is not installed: pip install --no-deps trackeval")


@pytest.mark.parametrize("sequence", FLOORS)
def test_floors_on_public_sequences(sequence: str) -> None:
    need_trackeval()
    mot = read(need_data("mot", "MOT17" if sequence in MOT17 else "MOT15", sequence))
    for name, floor in zip(NAMES, FLOORS[sequence], strict=True):
        one = tracker(name)
        scores = score(mot, [one.update(found, frame) for frame, found in enumerate(mot.detections)])
        reached = (scores.hota, scores.idf1, scores.mota)
        assert all(got >= least for got, least in zip(reached, floor, strict=True)), (name, reached, floor)


def test_the_truth_itself_scores_one_and_swapped_ids_do_not() -> None:
    """Else the scoring, and with it every floor, could mean nothing."""
    import numpy as np

    from nearfar.types.detections import Detections

    need_trackeval()
    mot = read(need_data("mot", "MOT15", "TUD-Campus"))

    def as_found(shift: int) -> list[Detections]:
        out = []
        for frame, rows in enumerate(mot.truth):
            boxes = np.concatenate((rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]), axis=1).astype(np.float32)
            ids = rows[:, 1].astype(np.int64) + (100 if shift and frame % 20 >= 10 else 0)
            out.append(Detections(boxes, np.ones(len(rows), np.float32), np.zeros(len(rows), np.int32), ids))
        return out

    perfect, cut = score(mot, as_found(0)), score(mot, as_found(1))
    assert (perfect.hota, perfect.idf1, perfect.mota, perfect.switches) == pytest.approx((1, 1, 1, 0))
    assert cut.hota < 0.85 and cut.idf1 < 0.85 and cut.switches > 10


@pytest.mark.parametrize("sequence", ["PETS09-S2L1", "MOT17-13-FRCNN"])
@pytest.mark.parametrize("name", NAMES)
def test_moving_every_ten_frames_changes_no_id_and_no_count(sequence: str, name: str) -> None:
    mot = read(need_data("mot", "MOT15" if sequence in MOT15 else "MOT17", sequence))
    areas = parse_areas(["0.5,0,0.5,1:middle", "0,0.6,1,0.6"], ["0.2,0.2,0.8,0.2,0.8,1,0.2,1:yard"])
    stays, moves = Follow(tracker(name), *areas), Follow(tracker(name), *areas)
    for frame, found in enumerate(mot.detections):
        assert same(stays.update(found, frame, mot.size), moves.update(found, frame, mot.size))
        if frame % 10 == 9:
            moves = Follow.from_state(moves.export_state())
            assert moves.to_dict() == stays.to_dict()
    assert stays.export_state() == moves.export_state()
    told = stays.to_dict()
    assert told["lines"]["middle"]["in"] >= 10 and told["zones"]["yard"]["left"] >= 10
