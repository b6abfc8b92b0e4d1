"""Lines and zones: what is counted, what is not, and what is refused as text or as state."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import InputError, NearfarError, SettingsError
from nearfar.types.detections import Detections
from nearfar.vision.areas import Point, inside, parse_areas, parse_line, parse_zone
from nearfar.vision.tracking import state
from nearfar.vision.zones import FORGET, MOST_WALKERS, LineCounter, LineMemory, ZoneCounter, ZoneMemory
from tests.vision.tracking.scenes import box, found, tracked

LEVEL = ((0.0, 300.0), (600.0, 300.0))
YARD = ((100.0, 100.0), (500.0, 100.0), (500.0, 500.0), (100.0, 500.0))


def walk(
    counter: LineCounter | ZoneCounter, feet: Sequence[Point], track: int = 1, kind: int = 0, start: int = 0
) -> int:
    """One track over these feet, a frame each; the next frame."""
    for frame, foot in enumerate(feet, start):
        counter.update(tracked([box(*foot)], [track], [kind]), frame)
    return start + len(feet)


def down(start: float = 200, stop: float = 400, step: float = 10, x: float = 300) -> list[Point]:
    return [(x, start + step * k) for k in range(round((stop - start) / step) + 1)]


def test_down_across_a_line_from_left_to_right_is_in_and_up_is_out() -> None:
    line = LineCounter(LEVEL)
    at = walk(line, down())
    assert line.to_dict(("person",)) == {"in": 1, "out": 0, "by_class": {"person": {"in": 1, "out": 0}}}
    walk(line, down()[::-1], start=at)
    assert line.to_dict() == {"in": 1, "out": 1, "by_class": {"class 0": {"in": 1, "out": 1}}}
    other = LineCounter(LEVEL[::-1])
    walk(other, down())
    assert (other.to_dict()["in"], other.to_dict()["out"]) == (0, 1)


def test_every_track_and_class_counts_for_itself() -> None:
    line = LineCounter(LEVEL)
    for frame, (x, y) in enumerate(down()):
        boxes = [box(x, y), box(x + 100, y), box(x - 100, 600 - y)]
        line.update(tracked(boxes, [1, 2, 3], [0, 1, 1]), frame)
    assert line.inward == {0: 1, 1: 1} and line.outward == {1: 1}


def test_trembling_on_the_line_counts_nothing_and_crossing_it_counts_once() -> None:
    """The box is 80 pixels high: within 8 pixels of the line nothing can be said."""
    line = LineCounter(LEVEL, window=1)
    trembling = [(300.0, 300.0 + (7.9 if k % 2 else -7.9)) for k in range(50)]
    at = walk(line, trembling)
    assert line.to_dict()["in"] == line.to_dict()["out"] == 0
    at = walk(line, down(200, 290), start=at)
    at = walk(line, trembling, start=at)
    walk(line, down(310, 400), start=at)
    assert (line.to_dict()["in"], line.to_dict()["out"]) == (1, 0)


def test_the_window_smooths_a_single_outlier_away() -> None:
    jump = [*down(200, 280), (300.0, 330.0), *down(280, 200, -10)]
    rough, smooth = LineCounter(LEVEL, window=1), LineCounter(LEVEL, window=5)
    walk(rough, jump)
    walk(smooth, jump)
    assert (rough.to_dict()["in"], rough.to_dict()["out"]) == (1, 1)
    assert (smooth.to_dict()["in"], smooth.to_dict()["out"]) == (0, 0)


def test_passing_beyond_the_end_of_a_line_does_not_count() -> None:
    short = LineCounter(((0.0, 300.0), (250.0, 300.0)))
    at = walk(short, down(x=300))
    walk(short, down(x=200)[::-1], start=at, track=2)
    assert (short.to_dict()["in"], short.to_dict()["out"]) == (0, 1)


def test_a_track_that_was_hidden_while_it_crossed_counts_until_it_is_forgotten() -> None:
    def over(gap: int) -> int:
        line = LineCounter(LEVEL, window=1)
        line.update(tracked([box(300, 200)], [1]), 0)
        line.update(tracked([], []), gap - 1)  # others were seen; this one was not
        line.update(tracked([box(300, 400)], [1]), gap)
        return int(line.to_dict()["in"])

    assert over(FORGET) == 1
    assert over(FORGET + 2) == 0


@given(
    feet=st.lists(st.tuples(st.floats(10, 590), st.floats(150, 450)), min_size=2, max_size=40),
    window=st.integers(1, 5),
)
def test_in_and_out_of_one_track_take_turns_on_an_endless_line(feet: list[Point], window: int) -> None:
    line = LineCounter(((-1e5, 300.0), (1e5, 300.0)), window=window)
    walk(line, feet)
    told = line.to_dict()
    assert abs(told["in"] - told["out"]) <= 1
    ends = [(feet[0][1] > 308), (feet[-1][1] > 308)]
    sure = all(abs(y - 300) > 8 for _, y in (feet[0], feet[-1]))
    if window == 1 and sure:
        assert told["in"] - told["out"] == int(ends[1]) - int(ends[0])


# -- zones -------------------------------------------------------------------------------------------------------------


def test_entering_staying_and_leaving() -> None:
    zone = ZoneCounter(YARD, window=1)
    at = walk(zone, down(0, 90), kind=2)
    assert zone.to_dict()["entered"] == 0 and zone.present == {}
    at = walk(zone, down(110, 490), kind=2, start=at)
    assert zone.present == {2: 1} and zone.inside_ids == (1,) and zone.to_dict()["dwell_frames"]["stays"] == 0
    at = walk(zone, down(510, 600), kind=2, start=at)
    told = zone.to_dict(("a", "b", "person"))
    assert told == {
        "present": 0, "entered": 1, "left": 1, "vanished": 0,
        "dwell_frames": {"stays": 1, "mean": 39.0, "longest": 39},
        "by_class": {
            "person": {
                "present": 0, "entered": 1, "left": 1, "vanished": 0,
                "dwell_frames": {"stays": 1, "mean": 39.0, "longest": 39},
            }
        },
    }  # fmt: skip


def test_one_update_on_the_other_side_settles_nothing() -> None:
    zone = ZoneCounter(YARD, window=1, settle=2)
    edge = [(300.0, 101.0 if k % 2 else 99.0) for k in range(40)]
    walk(zone, edge)
    assert zone.to_dict()["entered"] == 0


def test_who_is_first_seen_inside_has_entered_and_who_is_not_seen_any_more_has_vanished() -> None:
    zone = ZoneCounter(YARD)
    at = walk(zone, [(300.0, 300.0)] * 10)
    assert zone.entered == {0: 1}
    zone.update(tracked([], []), at - 1 + FORGET)
    assert zone.present == {0: 1}, "hidden for a moment"
    zone.update(tracked([], []), at + FORGET)
    assert zone.present == {} and zone.vanished == {0: 1}
    assert zone.to_dict()["dwell_frames"]["longest"] == 8, "until it was last seen"


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(1, 5), st.floats(0, 600), st.floats(0, 600), st.integers(0, 2)),
            max_size=5,
            unique_by=lambda row: row[0],
        ),
        max_size=40,
    ),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_all_who_entered_are_inside_or_have_left_or_vanished_also_when_moved(
    frames: list[list[tuple[int, float, float, int]]], window: int, settle: int
) -> None:
    stays, moves = ZoneCounter(YARD, window=window, settle=settle, forget=5), ZoneCounter(YARD)
    moves.import_state(stays.export_state())
    line_stays, line_moves = LineCounter(LEVEL, window=window), LineCounter(LEVEL)
    line_moves.import_state(line_stays.export_state())
    for frame, rows in enumerate(frames):
        seen = tracked([box(x, y) for _, x, y, _ in rows], [r[0] for r in rows], [r[3] for r in rows])
        for counter in (stays, moves, line_stays, line_moves):
            counter.update(seen, frame * 2)
        for kind in range(3):
            parts = (stays.present, stays.left, stays.vanished)
            assert stays.entered.get(kind, 0) == sum(part.get(kind, 0) for part in parts)
        data, line_data = moves.export_state(), line_moves.export_state()
        moves, line_moves = ZoneCounter(YARD), LineCounter(LEVEL)
        moves.import_state(data)
        line_moves.import_state(line_data)
    assert stays.to_dict() == moves.to_dict() and stays.export_state() == moves.export_state()
    assert line_stays.to_dict() == line_moves.to_dict() and line_stays.export_state() == line_moves.export_state()


def test_a_picture_of_another_size_keeps_counts_and_forgets_places() -> None:
    line, zone = LineCounter(LEVEL), ZoneCounter(YARD)
    at = walk(line, down(200, 400))
    walk(zone, [(300.0, 300.0)] * 5)
    line.moved_to(((0.0, 600.0), (1200.0, 600.0)))
    zone.moved_to(tuple((2 * x, 2 * y) for x, y in YARD))
    walk(line, [(600.0, 400.0)], start=at)
    walk(zone, [(900.0, 900.0)] * 5, start=5)
    assert (line.to_dict()["in"], line.to_dict()["out"]) == (1, 0)
    assert (zone.to_dict()["entered"], zone.to_dict()["present"]) == (1, 1)


def test_the_memory_of_counters_is_bounded() -> None:
    line, zone = LineCounter(LEVEL, forget=1_000_000), ZoneCounter(YARD, forget=1_000_000)
    for frame in range(3):
        ids = range(1 + frame * 8000, 8001 + frame * 8000)
        seen = tracked([box(300, 300)] * 8000, list(ids))
        line.update(seen, frame)
        zone.update(seen, frame)
    assert len(line._walkers) == len(zone._walkers) == MOST_WALKERS
    assert len(zone.export_state()) < 200 * MOST_WALKERS < state.LARGEST


@pytest.mark.parametrize("make", [lambda: LineCounter(LEVEL), lambda: ZoneCounter(YARD)])
def test_counters_refuse_what_has_no_ids_or_is_out_of_order(make: Callable[[], LineCounter | ZoneCounter]) -> None:
    counter = make()
    with pytest.raises(InputError, match="tracker first"):
        counter.update(found([box(1, 100)]), 0)
    counter.update(tracked([], []), 3)
    with pytest.raises(InputError, match="after frame 3"):
        counter.update(tracked([], []), 3)


def test_options_out_of_range_are_refused() -> None:
    for options in ({"window": 0}, {"window": 101}, {"forget": 0}, {"margin": 0.0}):
        with pytest.raises(SettingsError):
            LineCounter(LEVEL, **options)
    with pytest.raises(SettingsError):
        ZoneCounter(YARD, settle=0)
    with pytest.raises(SettingsError):
        ZoneCounter(LEVEL)
    with pytest.raises(SettingsError):
        LineCounter((LEVEL[0], LEVEL[0]))


# -- states that are none ----------------------------------------------------------------------------------------------


def test_a_state_of_another_counter_cut_or_impossible_is_refused() -> None:
    line, zone = LineCounter(LEVEL), ZoneCounter(YARD)
    walk(line, down())
    walk(zone, down())
    before = (line.export_state(), zone.export_state())
    with pytest.raises(InputError, match="counter/zone"):
        line.import_state(before[1])
    for counter, data in ((line, before[0]), (zone, before[1])):
        for length in range(len(data)):
            with pytest.raises(InputError):
                counter.import_state(data[:length])
    lines = state.unpack(before[0], "counter/line", 1, LineMemory)
    zones = state.unpack(before[1], "counter/zone", 1, ZoneMemory)
    wrong: list[tuple[LineCounter | ZoneCounter, str, msgspec.Struct]] = [
        (line, "negative", msgspec.structs.replace(lines, inward={0: -1})),
        (line, "same point", msgspec.structs.replace(lines, points=(LEVEL[0], LEVEL[0]))),
        (line, "out of range", msgspec.structs.replace(lines, window=1_000_000)),
        (line, "too long", msgspec.structs.replace(lines, window=1)),
        (line, "yet to come", msgspec.structs.replace(lines, frame=0)),
        (zone, "everybody who entered", msgspec.structs.replace(zones, entered={0: 7})),
        (zone, "three points", msgspec.structs.replace(zones, points=LEVEL)),
    ]
    for target, why, memory in wrong:
        kind = "counter/line" if target is line else "counter/zone"
        with pytest.raises(InputError, match=why):
            target.import_state(state.pack(kind, 1, memory))
    assert (line.export_state(), zone.export_state()) == before


# -- as text -----------------------------------------------------------------------------------------------------------


def test_pixels_shares_and_names() -> None:
    assert parse_line("0,360,1280,360:gate").points == ((0, 360), (1280, 360))
    assert not parse_line("0,360,1280,360").shares
    half = parse_line(" 0, 0.5 ,1,0.5")
    assert half.shares and half.scaled(1280, 720) == ((0, 360), (1280, 360))
    zone = parse_zone("0,0,1,0,1,1,0,1: left yard ")
    assert zone.name == "left yard" and zone.scaled(100, 50) == ((0, 0), (100, 0), (100, 50), (0, 50))
    lines, zones = parse_areas(["0,0,9,9", "1,5,9,9:b"], ["0,0,9,0,9,9"])
    assert [a.name for a in (*lines, *zones)] == ["line-1", "b", "zone-1"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is no number"),
        ("1,2,3", "no pairs"),
        ("1,2,3,x", "'x' is no number"),
        ("1,2,3,4,5,6", "2 points, not 3"),
        ("5,5,5,5", "the same point"),
        ("0.5,0.5,0.5,0.5", "the same point"),
        ("0.5,10,20,30", "mixed"),
        ("-1,2,3,4", "-1 does not lie in a picture"),
        ("nan,2,3,4", "does not lie"),
        ("inf,2,3,4", "does not lie"),
        ("1,2,3,4:", "a name has"),
        ("1,2,3,4:" + "x" * 41, "a name has"),
        ("1,2,3,4:a\tb", "a name has"),
    ],
)
def test_a_wrong_line_is_told(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as told:
        parse_line(text)
    assert "--line" in str(told.value) and "x1,y1,x2,y2[:name]" in str(told.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1,2,3,4", "3 to 64 points, not 2"),
        (",".join(["1,2,3,4"] * 40), "3 to 64 points, not 80"),
        ("0,0,100,100,100,0,0,100", "cross or touch"),
        ("0,0,50,50,100,100", "cross or touch"),
        ("0,0,100,0,100,0,0,100", "cross or touch"),
        ("0,0,100,0,50,0,50,90", "cross or touch"),
        ("0,0,100,0,100,100,50,0,0,100", "cross or touch"),
    ],
)
def test_a_wrong_zone_is_told(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as told:
        parse_zone(text)
    assert "--zone" in str(told.value) and "x3,y3" in str(told.value)


def test_good_polygons_are_taken_also_dented_and_either_way_round() -> None:
    dented = "0,0,100,0,100,100,50,30,0,100"
    for numbers in (dented, "100,0,0,0,0,100,50,30,100,100", "0,0,50,0,100,0,100,100"):
        parse_zone(numbers)
    area = parse_zone(dented).points
    assert inside((20, 20), area) and inside((90, 80), area)
    assert not inside((50, 60), area) and not inside((150, 20), area)


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="'a'"):
        parse_areas(["0,0,9,9:a", "0,0,8,9:a"], [])
    with pytest.raises(InputError, match="'zone-2'"):
        parse_areas([], ["0,0,9,0,9,9:zone-2", "0,0,9,0,9,9"])


@given(st.text(max_size=60) | st.from_regex(r"[0-9.,:e\-]{0,40}", fullmatch=True))
def test_any_text_is_an_area_or_told(text: str) -> None:
    for parse in (parse_line, parse_zone):
        try:
            area = parse(text)
        except NearfarError:
            continue
        assert len(area.points) >= 2 and area.name


def test_no_detections_type_is_shared_between_frames() -> None:
    """Counters keep plain numbers: changing an array afterwards changes no count."""
    line = LineCounter(LEVEL, window=1)
    seen: Detections = tracked([box(300, 200)], [1])
    line.update(seen, 0)
    seen.boxes[:] = 0
    line.update(tracked([box(300, 400)], [1]), 1)
    assert line.to_dict()["in"] == 1
