"""The memory of a stream as bytes: hostile ones are refused. Sources that go on in the middle give the same frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import InputError, MeshError
from nearfar.types.ids import ServiceId
from nearfar.types.image import Image
from nearfar.types.request import Privacy
from nearfar.types.units import Milliseconds
from nearfar.vision.circle import read_ask
from nearfar.vision.handover import (
    StreamMemory,
    SummaryMemory,
    frames_between,
    may_follow,
    memory_of,
    pack_memory,
    summary_from,
    unpack_memory,
)
from nearfar.vision.results import FrameResult, Kind, Lost, Move, Outcome, Summary
from nearfar.vision.sources import open_source
from nearfar.vision.sources.resumed import Resumed
from tests.vision.helpers import ScriptedSource, answer, make_video, scene


def memory(**fields: Any) -> StreamMemory:
    summary = Summary()
    for index in range(4):
        summary.read += 1
        summary.add(FrameResult(index, Outcome.ANSWERED, answer=answer(Image.bgr(scene(index)[0])), total_ms=9.0))
    summary.note(Move(ServiceId("a/square"), ServiceId("b/square"), 2, Kind.PLANNED, "b is better"))
    summary.lost.add(7, 9)
    given: dict[str, Any] = {
        "stream": "gate", "epoch": 2, "host": "pi-1", "model": "square", "source": "clip.mp4", "live": True,
        "privacy": Privacy.FLEET, "next_frame": 10, "pts_ms": 360.0, "period_ms": 40.0, "age_ms": 10.0,
        "incumbent": "b/square", "summary": memory_of(summary), "follow": None, "extras": {"monitor": b"7"},
    }  # fmt: skip
    return StreamMemory(**(given | fields))


def test_it_comes_back_as_it_was() -> None:
    one = memory()
    assert unpack_memory(pack_memory(one)) == one
    back = summary_from(memory().summary, 100.0)
    assert back.moves[0].reason == "b is better" and back.lost.ranges == [(7, 9)] and back.served == {"pi/square": 4}


WHOLE = pack_memory(memory())


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        unpack_memory(data)
    assert isinstance(read_ask(data), MeshError) or data


@given(place=st.integers(0, len(WHOLE) - 1), flip=st.integers(1, 255))
def test_a_changed_byte_is_noticed(place: int, flip: int) -> None:
    data = bytearray(WHOLE)
    data[place] ^= flip
    with pytest.raises(InputError):
        unpack_memory(bytes(data))


def test_a_cut_one_is_refused_at_every_length() -> None:
    for length in range(len(WHOLE)):
        with pytest.raises(InputError):
            unpack_memory(WHOLE[:length])


def summed(**fields: Any) -> Callable[[StreamMemory], StreamMemory]:
    def changed(one: StreamMemory) -> StreamMemory:
        return msgspec.structs.replace(one, summary=msgspec.structs.replace(one.summary, **fields))

    return changed


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: msgspec.structs.replace(m, next_frame=-1), "frame -1"),
        (lambda m: msgspec.structs.replace(m, epoch=0), "epoch 0"),
        (lambda m: msgspec.structs.replace(m, age_ms=-1.0), "a time"),
        (lambda m: msgspec.structs.replace(m, period_ms=float("nan")), "a time"),
        (summed(read=5), "came to its end"),
        (summed(read=-4), "a count"),
        (summed(lost=((9, 7),)), "range of lost"),
        (summed(stages={"total": ({3: -1}, 1.0)}), "histogram"),
    ],
)
def test_what_no_stream_can_know_is_refused(change: Callable[[StreamMemory], StreamMemory], why: str) -> None:
    with pytest.raises(InputError, match=why):
        unpack_memory(pack_memory(change(memory())))


def test_another_model_or_a_weaker_privacy_may_not_follow() -> None:
    may_follow(memory(), "square", Privacy.FLEET)
    may_follow(memory(), "square", Privacy.LOCAL)
    with pytest.raises(InputError, match="Say --privacy fleet"):
        may_follow(memory(), "square", Privacy.ANY)
    with pytest.raises(InputError, match="Say --model square"):
        may_follow(memory(), "round", Privacy.FLEET)


@given(
    age=st.floats(0, 1e6), waited=st.floats(0, 1e6), period=st.floats(1, 1e4)
)  # fmt: skip
def test_the_frames_between_are_those_that_fit(age: float, waited: float, period: float) -> None:
    between = frames_between(memory(age_ms=age, period_ms=period), waited)
    assert (between >= 0 and abs((between + 1) * period - (age + waited)) <= period * 0.51) or between == 0
    assert frames_between(memory(period_ms=0.0), waited) == 0


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), max_size=60))
def test_lost_frames_are_ranges_without_gaps_or_overlaps(steps: list[tuple[int, int]]) -> None:
    lost, at = Lost(), 0
    numbers: list[int] = []
    for step, length in steps:
        at += step
        lost.add(at, at + length)
        numbers += range(at, at + length + 1)
        at += length
    assert lost.count == len(numbers)
    assert [n for first, last in lost.ranges for n in range(first, last + 1)] == numbers
    assert all(a[1] + 1 < b[0] for a, b in zip(lost.ranges, lost.ranges[1:], strict=False))


def test_a_summary_memory_has_every_field_of_a_summary() -> None:
    """A count that is added to the summary and forgotten here would start anew with every hand-over."""
    stays = {"ended", "error", "tracking", "promise", "stream", "handed_over"}
    fields = {name for name in vars(Summary()) if not name.startswith("_")} - stays
    assert fields <= {field.name for field in msgspec.structs.fields(SummaryMemory)}


# -- sources ----------------------------------------------------------------------------------------------------------


def frames_of(source: Any) -> list[tuple[int, float | None, bytes]]:
    found: list[tuple[int, float | None, bytes]] = []
    while (frame := source.read()) is not None and len(found) < 60:
        found.append((frame.index, frame.pts_ms, frame.image.tobytes()))
    source.close()
    source.read()
    return found


@pytest.mark.parametrize("realtime", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".gif"])
def test_a_file_goes_on_at_the_very_frame(suffix: str, realtime: bool, tmp_path: Path) -> None:
    clip = make_video(tmp_path / f"clip{suffix}", 20)
    whole = frames_of(open_source(str(clip)))
    source = Resumed(open_source(str(clip), realtime=realtime))
    source.warm(0)
    source.warm(9)
    source.begin(13, Milliseconds(whole[12][1] or 0.0))
    assert frames_of(source) == whole[13:]


def test_it_goes_on_in_a_later_round_and_over_the_end(tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4", 10)
    whole = frames_of(open_source(str(clip), loop=True))
    source = Resumed(open_source(str(clip), loop=True))
    source.warm(23)
    source.begin(37, Milliseconds(whole[36][1] or 0.0))
    assert frames_of(source)[:20] == whole[37:57]
    over = Resumed(open_source(str(clip)))
    over.warm(4)
    over.begin(10, Milliseconds(whole[9][1] or 0.0))
    assert frames_of(over) == [] and over.ended == "the file ended"


def test_a_folder_goes_on_at_the_very_picture(tmp_path: Path) -> None:
    import cv2

    for index in range(8):
        cv2.imwrite(str(tmp_path / f"{index}.png"), scene(index)[0])
    whole = frames_of(open_source(str(tmp_path)))
    source = Resumed(open_source(str(tmp_path)))
    source.warm(2)
    source.begin(5, Milliseconds(160.0))
    assert frames_of(source) == whole[5:]


def test_another_file_is_not_gone_on_with(tmp_path: Path) -> None:
    source = Resumed(open_source(str(make_video(tmp_path / "clip.mp4", 20, rate=10))))
    source.warm(3)
    with pytest.raises(InputError, match="is another video: frame 4 is at 400"):
        source.begin(5, Milliseconds(160.0))
    source.shut()


def test_a_camera_is_drained_and_counts_on() -> None:
    source = Resumed(ScriptedSource(10**6, live=True))
    assert not source.has_past
    source.warm(0)
    source.begin(1000)
    found = source.read()
    assert found is not None and found.index == 1000
    source.shut()
