"""What is given up, in which order, when it comes back, and that it does not flap."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.types.ids import ModelName, ServiceId
from nearfar.types.image import Image
from nearfar.types.request import Answer, Degrade, Stages
from nearfar.types.tensor import Tensor
from nearfar.types.units import Milliseconds, Seconds
from nearfar.vision.base import Frame
from nearfar.vision.degrade import (
    DOWN_AFTER,
    MOST_RELAPSES,
    SETTLE,
    UP_AFTER,
    Change,
    Effect,
    Ladder,
    Smaller,
    steps_of,
)
from nearfar.vision.shrink import INLINE_PIXELS, enlarged, shrunk
from tests.vision.helpers import answer

RATE, INPUT, MODEL, FAR, REFUSE = Degrade
SMALLER = (Smaller(ModelName("mid"), Milliseconds(20.0)), Smaller(ModelName("tiny"), Milliseconds(60.0)))
EVERY = tuple(Degrade)


def climb(ladder: Ladder, states: list[str], step: float = 0.25, start: float = 0.0) -> list[Change]:
    """Each state (`trouble`, `room` or ``) holds for one `step`."""
    found = []
    for number, state in enumerate(states):
        now = Seconds(start + number * step)
        change = ladder.update("t" in state, "r" in state, now, f"state {number}")
        if change is not None:
            found.append(change)
    return found


def test_lasting_trouble_leads_down_the_users_list_in_its_order() -> None:
    ladder = Ladder(steps_of((INPUT, RATE, MODEL, FAR, REFUSE), SMALLER), Seconds(0.0))
    changes = climb(ladder, ["t"] * 400)
    assert [change.step.words for change in changes] == [
        "input 3/4", "input 1/2", "rate 1/2", "rate 1/4", "rate 1/8", "model mid", "model tiny", "far", "refuse",
    ]  # fmt: skip
    assert all(change.down for change in changes) and changes[0].because.startswith("state ")
    assert changes[0].at >= DOWN_AFTER
    assert all(b.at - a.at >= SETTLE for a, b in itertools.pairwise(changes))
    assert ladder.effect() == Effect(8, 0.5, ModelName("tiny"), (FAR, REFUSE))
    assert [step.words for step in ladder.taken] == ["input 1/2", "rate 1/8", "model tiny", "far", "refuse"]


def test_what_may_be_given_up_next_waits_for_its_turn() -> None:
    ladder = Ladder(steps_of((RATE, FAR, REFUSE)), Seconds(0.0))
    told = []
    for position in range(6):
        ladder.position = position
        told.append([kind.value for kind in ladder.effect().degrade])
    assert told == [["rate", "far", "refuse"]] * 3 + [["far", "refuse"]] * 3
    # Models are looked for later: what follows them may not be given up before that is known.
    assert Ladder((), Seconds(0.0), (MODEL, REFUSE)).effect().degrade == (MODEL, REFUSE)


def test_a_moment_of_trouble_gives_nothing_up_and_a_moment_of_room_takes_nothing_back() -> None:
    ladder = Ladder(steps_of(EVERY), Seconds(0.0))
    assert climb(ladder, ["t", "t", "t", ""] * 100) == []
    ladder.position = 2
    assert climb(ladder, (["r"] * 39 + [""]) * 20) == []


def test_lasting_room_leads_all_the_way_back() -> None:
    ladder = Ladder(steps_of((RATE, REFUSE)), Seconds(0.0))
    down = climb(ladder, ["t"] * 100)
    up = climb(ladder, ["r"] * 400, start=25.0)
    assert [change.step for change in up] == [change.step for change in reversed(down)]
    assert not any(change.down for change in up) and ladder.position == 0
    assert all(b.at - a.at >= UP_AFTER for a, b in itertools.pairwise(up))


def test_each_relapse_doubles_the_wait() -> None:
    """A fleet that keeps the promise only while something is given up: taking it back fails again and again."""
    ladder = Ladder(steps_of((RATE,)), Seconds(0.0))
    moments = []
    for number in range(4 * 2000):
        change = ladder.update(ladder.position == 0, ladder.position > 0, Seconds(number / 4), "")
        if change is not None and not change.down:
            moments.append(change.at)
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    assert gaps == sorted(gaps) and gaps[-1] > UP_AFTER * 2**MOST_RELAPSES


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["t", "r", "tr", ""]), st.integers(1, 60)), max_size=40), st.permutations(EVERY)
)
def test_whatever_comes_changes_are_bounded_and_one_step_at_a_time(
    phases: list[tuple[str, int]], order: list[Degrade]
) -> None:
    ladder = Ladder(steps_of(order, SMALLER), Seconds(0.0))
    states = [state for state, length in phases for _ in range(length)]
    position, changes = 0, []
    for number, state in enumerate(states):
        change = ladder.update("t" in state, "r" in state, Seconds(number / 4), "")
        assert ladder.position - position == (0 if change is None else 1 if change.down else -1)
        position = ladder.position
        if change is not None:
            assert change.down is ("t" in state)
            changes.append(change)
    assert 0 <= position <= len(ladder.steps)
    for a, b in itertools.pairwise(changes):
        assert b.at - a.at >= (SETTLE if b.down else UP_AFTER)
    ups = [change for change in changes if not change.down]
    assert len(changes) <= 2 * len(ups) + len(ladder.steps) and len(ups) <= len(states) / 4 / UP_AFTER


def test_models_that_are_found_late_extend_the_list_below_what_was_taken() -> None:
    ladder = Ladder(steps_of((RATE,)), Seconds(0.0), (MODEL, REFUSE))
    ladder.position = 2
    ladder.extend(steps_of((RATE, MODEL, REFUSE), SMALLER))
    assert [step.words for step in ladder.steps[2:]] == ["rate 1/8", "model mid", "model tiny", "refuse"]
    ladder.position = 4
    ladder.extend(steps_of((RATE, MODEL, REFUSE)))  # the one in use is not found any more: nothing is pulled away
    assert ladder.top is not None and ladder.top.model == "mid"
    assert ladder.effect().degrade == (MODEL, REFUSE)


# Smaller pictures


def frame_of(width: int, height: int) -> Frame:
    return Frame(0, Seconds(0.0), np.full((height, width, 3), 60, np.uint8), jpeg=b"the whole picture")


@pytest.mark.parametrize(("width", "height"), [(160, 120), (33, 57), (1, 1), (1200, 800)])
@pytest.mark.parametrize("scale", [0.75, 0.5])
def test_a_picture_is_shrunk_and_its_boxes_come_back_in_its_own_pixels(width: int, height: int, scale: float) -> None:
    assert INLINE_PIXELS < 1200 * 800
    frame = frame_of(width, height)
    small, _ = asyncio.run(shrunk(frame, scale))
    small_height, small_width = small.image.shape[:2]
    assert (small_width, small_height) == (max(1, round(width * scale)), max(1, round(height * scale)))
    assert small.jpeg is None and small.index == frame.index and small.image.flags.c_contiguous
    whole = [0, 0, small_width, small_height]
    beyond = [-5, -5, small_width + 9, small_height + 9]
    given = answer(Image.bgr(small.image), boxes=[whole, beyond])
    back = enlarged(given, small, frame)
    assert back.detections().boxes.tolist() == [[0, 0, width, height]] * 2
    assert back.detections().scores.tolist() == given.detections().scores.tolist()
    assert back.stages == given.stages and back.served_by == given.served_by


def test_a_whole_picture_and_answers_without_boxes_are_left_as_they_are() -> None:
    frame = frame_of(8, 8)
    assert asyncio.run(shrunk(frame, 1.0))[0] is frame
    given = answer(Image.bgr(frame.image), boxes=[[1, 2, 3, 4]])
    assert enlarged(given, frame, frame) is given
    small = asyncio.run(shrunk(frame, 0.5))[0]
    classes = Answer([Tensor.of("scores", np.ones(1, np.float32))], ServiceId("pi/cls"), "v", Stages())
    assert enlarged(classes, small, frame) is classes
