"""What every built-in tracker must do, and what tells them apart."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import InputError, RuntimeUnavailable, SettingsError
from nearfar.types.detections import Detections
from nearfar.vision.tracking import registry
from nearfar.vision.tracking.base import Tracker
from nearfar.vision.tracking.registry import tracker
from nearfar.vision.tracking.tracks import BoxTracker
from tests.vision.tracking.scenes import NAMES, box, found, ids_of, same, streams, walkers

pytest.importorskip("scipy", reason="scipy is not installed: pip install 'nearfar[track]'")

each = pytest.mark.parametrize("name", NAMES)


@each
def test_two_that_pass_each_other_keep_their_ids(name: str) -> None:
    one = tracker(name)
    rightward = 0
    for frame in range(40):
        right, left = box(100 + 8 * frame, 200), box(420 - 8 * frame, 230)
        boxes = [right, left] if frame % 2 else [left, right]  # the order of detections means nothing
        out = one.update(found(boxes), frame)
        place = dict(zip(ids_of(out), out.boxes, strict=True))
        assert set(place) == {1, 2}
        rightward = rightward or min(place, key=lambda i: float(place[i][0]))
        assert np.abs(place[rightward] - np.array(right)).max() < 12


@each
def test_scores_and_classes_are_the_detections_in_their_order(name: str) -> None:
    given_first = found([box(100, 100), box(300, 100)], [0.9, 0.95], [2, 5])
    out = tracker(name).update(given_first, 0)
    assert out.scores.tolist() == given_first.scores.tolist()
    assert out.class_ids.tolist() == [2, 5]
    assert np.abs(out.boxes - given_first.boxes).max() < 1e-3


@each
def test_frames_without_objects_and_objects_without_area(name: str) -> None:
    one = tracker(name)
    assert len(one.update(Detections.empty(), 0)) == 0
    assert ids_of(one.update(Detections.empty(), 1)) == []
    flat = found([(10, 10, 10, 50), (10, 50, 40, 10), (5, 5, 5, 5)])
    for frame in range(2, 8):
        assert len(one.update(flat, frame)) == 0
    again = tracker(name)
    out = again.update(found([(10, 10, 10, 50), box(100, 100)], [0.8, 0.9]), 0)
    assert out.scores.tolist() == pytest.approx([0.9])


@each
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e6])
def test_what_cannot_be_a_box_is_refused_and_changes_nothing(name: str, value: float) -> None:
    one = tracker(name)
    one.update(found([box(100, 100)]), 0)
    before = one.export_state()
    with pytest.raises(InputError, match=r"decoder"):
        one.update(found([box(100, 100), (0, 0, value, 10)]), 1)
    assert one.export_state() == before
    if not np.isfinite(value):
        with pytest.raises(InputError, match="NaN"):
            one.update(found([box(100, 100)], [value]), 1)


@each
def test_frames_must_come_in_order(name: str) -> None:
    one = tracker(name)
    one.update(found([box(100, 100)]), 5)
    for frame in (5, 4, -1, (1 << 53) + 1):
        with pytest.raises(InputError, match=r"[Ff]rame"):
            one.update(found([box(100, 100)]), frame)
    assert ids_of(one.update(found([box(100, 100)]), 6)) == [1]


@each
def test_frames_that_nobody_answered_are_predicted_through(name: str) -> None:
    """Six frames are lost while it walks 90 pixels, more than twice its width: only the prediction overlaps it."""
    one = tracker(name)
    for frame in range(20):
        one.update(found([box(100 + 15 * frame, 200)]), frame)
    out = one.update(found([box(100 + 15 * 26, 200)]), 26)
    assert ids_of(out) == [1]


@each
def test_after_a_huge_gap_nothing_is_known_and_no_id_comes_back(name: str) -> None:
    one = tracker(name)
    for frame in range(5):
        one.update(found([box(100, 200)]), frame)
    gap = 1 << 50
    assert ids_of(one.update(found([box(100, 200)]), gap)) == []
    later = [ids_of(one.update(found([box(100, 200)]), gap + 1 + k)) for k in range(5)]
    assert later[-1] == [2]


@given(stream=streams, name=st.sampled_from(NAMES))
def test_ids_grow_are_unique_and_never_used_again(stream: list[tuple[int, Detections]], name: str) -> None:
    one, frame, gone, before, highest = tracker(name), 0, set[int](), set[int](), 0
    for steps, detections in stream:
        frame += steps
        out = one.update(detections, frame)
        ids = ids_of(out)
        assert len(set(ids)) == len(ids)
        assert np.isfinite(out.boxes).all() and (out.boxes[:, 2:] > out.boxes[:, :2]).all()
        fresh = [i for i in ids if i > highest]
        assert sorted(fresh) == list(range(highest + 1, highest + 1 + len(fresh)))
        highest += len(fresh)
        if steps == 500:
            gone |= before
        before |= set(ids)
        assert not gone & set(ids)


@given(stream=streams, name=st.sampled_from(NAMES))
def test_classes_are_kept_apart(stream: list[tuple[int, Detections]], name: str) -> None:
    one, frame, class_of = tracker(name), 0, dict[int, int]()
    for steps, detections in stream:
        frame += steps
        out = one.update(detections, frame)
        for track, kind in zip(ids_of(out), out.class_ids.tolist(), strict=True):
            assert class_of.setdefault(track, kind) == kind


@each
def test_a_detector_that_changes_its_mind_about_the_class(name: str) -> None:
    def run(class_aware: bool) -> list[list[int]]:
        one = tracker(name, class_aware=class_aware)
        return [
            ids_of(one.update(found([box(100 + frame, 200)], (), [7 if frame < 5 else 3]), frame)) for frame in range(9)
        ]

    assert run(class_aware=False) == [[1]] * 9
    apart = run(class_aware=True)
    assert apart[:5] == [[1]] * 5 and apart[5] == [] and apart[-1] == [2]


@each
def test_thousands_of_detections(name: str) -> None:
    grid = [box(50 + 50 * (i % 60), 90 + 90 * (i // 60)) for i in range(3000)]
    one = tracker(name)
    first = ids_of(one.update(found(grid), 0))
    assert first == list(range(1, 3001))
    assert ids_of(one.update(found([(a + 3, b + 2, c + 3, d + 2) for a, b, c, d in grid]), 1)) == first


@each
def test_the_number_of_tracks_has_a_bound_and_the_best_come_first(name: str) -> None:
    one = tracker(name, most_tracks=2)
    assert isinstance(one, BoxTracker)
    boxes = [box(100, 100), box(300, 100), box(500, 100)]
    out = one.update(found(boxes, [0.8, 0.9, 0.95]), 0)
    assert out.scores.tolist() == pytest.approx([0.9, 0.95])
    assert one.not_begun == 1 and len(one.tracks) == 2


@each
def test_same_input_same_output(name: str) -> None:
    scene = walkers(40, 12)
    a, b = tracker(name), tracker(name)
    assert all(same(a.update(d, i), b.update(d, i)) for i, d in enumerate(scene))


# -- what tells them apart ---------------------------------------------------------------------------------------------


def test_sort_confirms_after_three_and_forgets_soon() -> None:
    one = tracker("sort")
    one.update(Detections.empty(), 0)
    seen = [ids_of(one.update(found([box(100, 100)]), frame)) for frame in range(1, 5)]
    assert seen == [[], [], [1], [1]]
    one.update(Detections.empty(), 5)
    assert ids_of(one.update(found([box(100, 100)]), 6)) == [1], "one miss is forgiven"
    one.update(Detections.empty(), 7)
    one.update(Detections.empty(), 8)
    assert [ids_of(one.update(found([box(100, 100)]), 9 + k)) for k in range(3)] == [[], [], [2]]


def test_sort_on_probation_ends_with_the_first_miss() -> None:
    one = tracker("sort")
    one.update(Detections.empty(), 0)
    for frame in (1, 2):
        one.update(found([box(100, 100)]), frame)
    one.update(Detections.empty(), 3)
    assert ids_of(one.update(found([box(100, 100)]), 4)) == []


def test_bytetrack_follows_through_low_scores_but_begins_none_with_them() -> None:
    one = tracker("bytetrack")
    scores = [0.9, 0.9, 0.3, 0.2, 0.3, 0.9]
    assert [ids_of(one.update(found([box(100, 100)], [s]), k)) for k, s in enumerate(scores)] == [[1]] * 6
    shy = tracker("bytetrack")
    assert all(ids_of(shy.update(found([box(100, 100)], [0.5]), k)) == [] for k in range(5))
    assert all(ids_of(shy.update(found([box(100, 100)], [0.65]), 5 + k)) == [] for k in range(3)), "below `begin`"


def test_bytetrack_brings_a_lost_one_back_with_its_id_within_its_buffer() -> None:
    def after(frames: int) -> list[int]:
        one = tracker("bytetrack")
        for frame in range(5):
            one.update(found([box(100, 100)]), frame)
        for frame in range(5, 5 + frames):
            one.update(Detections.empty(), frame)
        one.update(found([box(100, 100)]), 5 + frames)
        return ids_of(one.update(found([box(100, 100)]), 6 + frames))

    assert after(20) == [1]
    assert after(31) == [2]


def test_bytetrack_gives_an_id_when_it_was_seen_twice() -> None:
    one = tracker("bytetrack")
    one.update(Detections.empty(), 0)
    assert [ids_of(one.update(found([box(100, 100)]), 1 + k)) for k in range(2)] == [[], [1]]


# -- by name -----------------------------------------------------------------------------------------------------------


class Mine(Tracker):
    name = "mine"
    stays = "it holds pictures of people"

    def update(self, detections: Detections, frame: int) -> Detections:
        return detections


def test_by_name_and_by_place() -> None:
    assert {"sort", "bytetrack"} <= set(registry.known())
    mine = tracker(f"{__name__}:Mine")
    assert (type(mine).__name__, mine.name) == ("Mine", "mine")  # its class may have been imported under another name


def test_an_entry_point_is_a_name_but_takes_no_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    points = metadata.EntryPoints(
        metadata.EntryPoint(name, f"{__name__}:Mine", registry.GROUP) for name in ("mine", "sort")
    )
    monkeypatch.setattr(metadata, "entry_points", lambda group: points.select(group=group))
    assert tracker("mine").name == "mine"
    assert tracker("sort").name == "sort"


def test_what_cannot_travel_says_why() -> None:
    mine = Mine()
    for act in (mine.export_state, lambda: mine.import_state(b"")):
        with pytest.raises(InputError, match="it holds pictures of people"):
            act()


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("bytetrak", {}, "Did you mean 'bytetrack'"),
        ("nosuch.module:Thing", {}, "cannot be made"),
        ("nearfar.errors:InputError", {"message": "x"}, "no tracker"),
        ("sort", {"max_age": 3}, "max_misses"),
        ("sort", {"overlap": 0.0}, "overlap"),
        ("bytetrack", {"high": "much"}, "high"),
        ("bytetrack", {"most_tracks": 0}, "most_tracks"),
    ],
)
def test_wrong_names_and_options_are_told(name: str, options: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        tracker(name, **options)


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'nearfar\[track\]'"):
        tracker("sort")
