"""A tracker that is moved after every k frames gives the same bits as one that stays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nearfar.errors import InputError
from nearfar.types.detections import Detections
from nearfar.vision.areas import parse_areas
from nearfar.vision.tracking import state
from nearfar.vision.tracking.follow import Follow
from nearfar.vision.tracking.registry import tracker, tracker_named_in
from nearfar.vision.tracking.tracks import STATE_BYTES, TRACK_BYTES, BoxTracker, Memory
from tests.vision.tracking.scenes import NAMES, box, found, ids_of, moved, same, streams, walkers

pytest.importorskip("scipy", reason="scipy is not installed: pip install 'nearfar[track]'")

each = pytest.mark.parametrize("name", NAMES)
LINES = ["0.5,0,0.5,1:middle", "0,300,1000,300"]
ZONES = ["100,100,700,100,700,700,100,700:yard"]
SIZE = (1000, 1000)


@given(stream=streams, name=st.sampled_from(NAMES), every=st.integers(1, 4))
def test_moving_changes_no_bit(stream: list[tuple[int, Detections]], name: str, every: int) -> None:
    stays, moves, frame = tracker(name), tracker(name), 0
    for n, (steps, detections) in enumerate(stream):
        frame += steps
        assert same(stays.update(detections, frame), moves.update(detections, frame))
        if n % every == 0:
            moves = moved(name, moves)
    assert stays.export_state() == moves.export_state()


@each
@pytest.mark.parametrize("every", [1, 3, 10])
def test_moving_a_whole_stream_changes_no_id_and_no_count(name: str, every: int) -> None:
    """The tracker, lines and zones with their windows; some frames are lost on the way."""
    stays = Follow(tracker(name), *parse_areas(LINES, ZONES), ("person", "car"))
    moves = Follow(tracker(name), *parse_areas(LINES, ZONES), ("person", "car"))
    for frame, detections in enumerate(walkers(150, 25)):
        if frame % 17 == 5:
            continue
        assert same(stays.update(detections, frame, SIZE), moves.update(detections, frame, SIZE))
        if frame % every == 0:
            moves = Follow.from_state(moves.export_state(), ("person", "car"))
    assert stays.to_dict() == moves.to_dict() and stays.words() == moves.words()
    assert stays.export_state() == moves.export_state()
    told = stays.to_dict()
    assert told["tracks"] > 10 and told["lines"]["middle"]["in"] and told["zones"]["yard"]["left"], (
        "there was much to lose"
    )


CHILD = """
import sys, msgspec
from tests.vision.tracking.scenes import walkers
from nearfar.vision.tracking.follow import Follow
start, stop = int(sys.argv[1]), int(sys.argv[2])
follow = Follow.from_state(sys.stdin.buffer.read())
out = []
for frame, detections in list(enumerate(walkers(90, 20)))[start:stop]:
    got = follow.update(detections, frame, (1000, 1000))
    out.append((got.track_ids.tobytes(), got.boxes.tobytes()))
sys.stdout.buffer.write(msgspec.msgpack.encode((out, follow.export_state())))
"""


@each
def test_moving_to_other_processes_changes_no_bit(name: str) -> None:
    stays = Follow(tracker(name), *parse_areas(LINES, ZONES))
    wanted = []
    for frame, detections in enumerate(walkers(90, 20)):
        got = stays.update(detections, frame, SIZE)
        assert got.track_ids is not None
        wanted.append([got.track_ids.tobytes(), got.boxes.tobytes()])
        if frame == 29:
            memory = stays.export_state()
    for start, stop in ((30, 60), (60, 90)):
        command = [sys.executable, "-c", CHILD, str(start), str(stop)]
        done = subprocess.run(command, input=memory, capture_output=True, timeout=120, cwd=Path(__file__).parents[3])
        assert done.returncode == 0, done.stderr.decode()
        out, memory = msgspec.msgpack.decode(done.stdout)
        assert out == wanted[start:stop]
    assert memory == stays.export_state()


@each
def test_options_travel_too(name: str) -> None:
    one = tracker(name, class_aware=False)
    other = moved(name, one)
    assert isinstance(one, BoxTracker) and isinstance(other, BoxTracker)
    assert other.options == one.options and not other.options.class_aware


@each
def test_the_size_of_a_state_is_bounded_as_stated(name: str) -> None:
    one = tracker(name)
    assert isinstance(one, BoxTracker)
    assert len(one.export_state()) <= STATE_BYTES
    grid = [box(50 + 50 * (i % 40), 90 + 90 * (i // 40)) for i in range(300)]
    for frame in range(12):
        one.update(found([(a + 0.5 * frame, b, c + 0.5 * frame, d) for a, b, c, d in grid]), frame)
    assert len(one.tracks) == 300
    assert 300 * TRACK_BYTES < len(one.export_state()) <= STATE_BYTES + 300 * TRACK_BYTES
    assert STATE_BYTES + TRACK_BYTES * 50_000 < state.LARGEST, "the largest that can be asked for can travel"


# -- what is no such state ---------------------------------------------------------------------------------------------


def running(name: str) -> BoxTracker:
    one = tracker(name)
    assert isinstance(one, BoxTracker)
    for frame, detections in enumerate(walkers(12, 6)):
        one.update(detections, frame)
    return one


@each
def test_another_trackers_state_is_refused_by_name(name: str) -> None:
    other = next(n for n in NAMES if n != name)
    with pytest.raises(InputError, match=f"'tracker/{other}', not of 'tracker/{name}'"):
        tracker(name).import_state(running(other).export_state())
    with pytest.raises(InputError, match="follow"):
        tracker(name).import_state(Follow(tracker(name)).export_state())


@each
def test_another_version_is_refused_with_both(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoxTracker, "version", 2)
    later = running(name).export_state()
    monkeypatch.undo()
    with pytest.raises(InputError, match="version 2; this program reads version 1"):
        tracker(name).import_state(later)


@each
def test_a_cut_state_is_refused_at_every_length_and_changes_nothing(name: str) -> None:
    data, one = running(name).export_state(), running(name)
    before = one.export_state()
    for length in [*range(200), *range(200, len(data), 7)]:
        with pytest.raises(InputError):
            one.import_state(data[:length])
    with pytest.raises(InputError):
        one.import_state(data + b"\0")
    assert one.export_state() == before


@given(place=st.integers(0, 10_000), flip=st.integers(1, 255), name=st.sampled_from(NAMES))
def test_a_changed_byte_is_noticed(place: int, flip: int, name: str) -> None:
    data = bytearray(STATES[name])
    data[place % len(data)] ^= flip
    with pytest.raises(InputError):
        tracker(name).import_state(bytes(data))


@given(data=st.binary(max_size=300))
@example(data=b"\xc1")
@example(data=b"\xdd\xff\xff\xff\xff")
@example(data=b"\x91" * 5000)
def test_any_bytes_are_refused(data: bytes) -> None:
    for name in NAMES:
        with pytest.raises(InputError):
            tracker(name).import_state(data)
    with pytest.raises(InputError):
        Follow.from_state(data)
    with pytest.raises(InputError):
        tracker_named_in(data)


def test_what_is_too_large_is_refused_unread() -> None:
    with pytest.raises(InputError, match="too many"):
        tracker("sort").import_state(bytes(state.LARGEST + 1))


def column(memory: Memory, name: str, kind: str, value: float) -> Memory:
    """With the first entry of this column changed."""
    changed = np.frombuffer(memory.columns[name], kind).copy()
    changed[0] = value
    return msgspec.structs.replace(memory, columns={**memory.columns, name: changed.tobytes()})


HOSTILE: dict[str, Callable[[Memory], Memory]] = {
    "an id that was never given": lambda m: column(m, "ids", "<i8", 1 << 40),
    "two tracks have one id": lambda m: column(m, "ids", "<i8", int(np.frombuffer(m.columns["ids"], "<i8")[1])),
    "never given ": lambda m: column(m, "ids", "<i8", -3),
    "yet to come": lambda m: column(m, "seen", "<i8", 1 << 40),
    "NaN": lambda m: column(m, "bank", "<f8", float("nan")),
    "hits or misses": lambda m: column(m, "misses", "<i4", -1),
    "no area": lambda m: msgspec.structs.replace(
        m, columns={**m.columns, "bank": bytes(len(m.columns["bank"]))}
    ),
    "length": lambda m: msgspec.structs.replace(m, tracks=-1),
    "bytes, not": lambda m: msgspec.structs.replace(m, tracks=m.tracks + 1),
    "columns": lambda m: msgspec.structs.replace(m, columns={}),
    "out of range": lambda m: msgspec.structs.replace(m, next_id=0),
    "options|field": lambda m: msgspec.structs.replace(m, options={"evil": 1}),
    "Expected": lambda m: msgspec.structs.replace(m, options={**m.options, "class_aware": 7}),
}  # fmt: skip


@each
@pytest.mark.parametrize("why", sorted(HOSTILE))
def test_values_that_no_tracker_has_are_refused(name: str, why: str) -> None:
    one = running(name)
    memory = state.unpack(one.export_state(), f"tracker/{name}", 1, Memory)
    assert memory.tracks >= 2 and np.frombuffer(memory.columns["ids"], "<i8")[1] > 0
    bad = state.pack(f"tracker/{name}", 1, HOSTILE[why](memory))
    target = running(name)
    before = target.export_state()
    with pytest.raises(InputError, match=why.strip()):
        target.import_state(bad)
    assert target.export_state() == before
    target.import_state(state.pack(f"tracker/{name}", 1, memory))


def test_a_state_chooses_no_code() -> None:
    nothing: Any = msgspec.defstruct("Empty", [])
    inner = state.pack("tracker/os:system", 1, nothing())
    whole = msgspec.msgpack.decode(Follow(tracker("sort")).export_state(), type=state.Envelope)
    body = msgspec.msgpack.decode(whole.body)
    body["tracker"] = inner
    kind: Any = msgspec.defstruct("Any", [(name, object) for name in body])
    with pytest.raises(InputError, match="names the code"):
        Follow.from_state(state.pack("follow", 1, kind(**body)))


def test_a_stream_with_a_tracker_that_stays_does_not_move() -> None:
    from tests.vision.tracking.test_trackers import Mine

    with pytest.raises(InputError, match="it holds pictures of people"):
        Follow(Mine()).export_state()


def test_ids_go_on_after_a_move() -> None:
    one = running("sort")
    highest = int(one.tracks.ids.max())
    other = moved("sort", one)
    seen = [i for k in range(5) for i in ids_of(other.update(found([box(5000, 5000)]), 12 + k))]
    assert seen and min(seen) > highest


STATES = {name: running(name).export_state() for name in NAMES}
