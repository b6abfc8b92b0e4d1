from __future__ import annotations

import asyncio
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nearfar.errors import DeadlineExceeded, InferenceError, NoCandidate, Overloaded, SourceError, Unreachable
from nearfar.types.image import Image, ImageKind
from nearfar.types.request import Answer, Qos, Stages
from nearfar.types.units import Milliseconds, Seconds
from nearfar.vision.results import EXPIRED, FrameResult, Outcome, Summary
from nearfar.vision.stream import BACK_PRESSURE, STOPPED, Watch, watch
from tests.vision.helpers import MODEL, ScriptedSeer, ScriptedSource, answer


class QuickWatch(Watch):
    """Pauses so short that a test need not wait for them."""

    first_pause = 0.001
    longest_pause = 0.004


def run(watcher: Watch) -> Summary:
    return asyncio.run(asyncio.wait_for(watcher.run(), 60))


def collect() -> tuple[list[FrameResult], Any]:
    results: list[FrameResult] = []

    def on_result(result: FrameResult, image: NDArray[np.uint8] | None) -> None:
        assert (image is None) == (result.outcome is Outcome.DROPPED)
        results.append(result)

    return results, on_result


def check_accounts(results: list[FrameResult], summary: Summary) -> None:
    assert [r.index for r in results] == list(range(summary.read))
    assert summary.accounted == summary.read
    for outcome in Outcome:
        assert summary.counts[outcome] == sum(r.outcome is outcome for r in results)
    for result in results:
        assert (result.outcome in (Outcome.ANSWERED, Outcome.LATE)) == (result.answer is not None)
        assert (result.outcome is Outcome.FAILED) == (result.error is not None)
        assert bool(result.reason) == (result.outcome is not Outcome.ANSWERED)


def test_a_file_is_answered_whole_and_in_order() -> None:
    results, on_result = collect()
    seer = ScriptedSeer()
    summary = run(Watch(ScriptedSource(30), seer, MODEL, on_result=on_result))
    check_accounts(results, summary)
    assert summary.counts[Outcome.ANSWERED] == 30
    assert summary.exit_code == 0
    assert summary.ended == "the script ended"
    assert seer.most <= 2
    assert seer.kinds == [ImageKind.BGR] * 30
    assert results[3].served_by == "pi/square"
    assert results[3].stages()["inference"] == 5.0
    assert set(results[3].stages()) == {
        "decode", "wait", "encode", "link", "queue", "preprocess", "inference", "postprocess", "total",
    }  # fmt: skip


def test_results_keep_their_order_when_answers_do_not() -> None:
    async def body() -> None:
        results, on_result = collect()
        gates = [asyncio.Event() for _ in range(3)]

        async def reply(number: int, image: Image) -> Answer:
            if number == 2:
                gates[1].set()
            elif number == 1:
                await gates[1].wait()
                gates[0].set()
            else:
                await gates[0].wait()
            return answer(image, boxes=[])

        seer = ScriptedSeer(reply)
        summary = await Watch(ScriptedSource(3), seer, MODEL, on_result=on_result, in_flight=3).run()
        assert seer.most == 3
        check_accounts(results, summary)

    asyncio.run(body())


def test_a_camera_drops_the_oldest_frames_and_says_so() -> None:
    """The seer holds the first frame until the camera has shown all of its frames."""

    async def body() -> None:
        results, on_result = collect()
        loop = asyncio.get_running_loop()
        first_asked = threading.Event()
        all_shown = asyncio.Event()

        def gate(index: int) -> None:
            if index == 1:
                first_asked.wait(10)

        class Camera(ScriptedSource):
            def read(self) -> Any:
                frame = super().read()
                if frame is None:
                    loop.call_soon_threadsafe(all_shown.set)
                return frame

        async def reply(number: int, image: Image) -> Answer:
            first_asked.set()
            await all_shown.wait()
            return answer(image, boxes=[])

        camera = Camera(10, live=True, gate=gate)
        summary = await Watch(camera, ScriptedSeer(reply), MODEL, on_result=on_result, in_flight=1).run()
        check_accounts(results, summary)
        assert summary.drops == {BACK_PRESSURE: 8}
        assert [r.index for r in results if r.outcome is Outcome.ANSWERED] == [0, 9]
        assert summary.exit_code == 0

    asyncio.run(body())


def test_failures_are_stated_by_index_and_the_stream_goes_on() -> None:
    errors: dict[int, Exception] = {
        1: NoCandidate("nobody serves it"),
        2: Unreachable("gone"),
        3: Overloaded("full", retry_after=0.001),
        4: DeadlineExceeded("too late"),
        5: InferenceError("NaN"),
        6: RuntimeError("a defect"),
    }

    def reply(number: int, image: Image) -> Answer:
        if number in errors:
            raise errors[number]
        return answer(image, boxes=[])

    results, on_result = collect()
    summary = run(QuickWatch(ScriptedSource(12), ScriptedSeer(reply), MODEL, on_result=on_result, in_flight=1))
    check_accounts(results, summary)
    assert [r.index for r in results if r.outcome is Outcome.FAILED] == [1, 2, 3, 4, 5, 6]
    assert [r.error.code for r in results if r.error] == [
        "no-candidate", "unreachable", "overloaded", "deadline-exceeded", "inference", "error",
    ]  # fmt: skip
    assert "RuntimeError: a defect" in results[6].reason
    assert summary.counts[Outcome.ANSWERED] == 6
    assert summary.exit_code != 0


def test_a_move_is_seen_once_and_the_incumbent_is_passed_on() -> None:
    def reply(number: int, image: Image) -> Answer:
        return answer(image, "pi/square" if number < 4 else "cloud/square", boxes=[])

    seer = ScriptedSeer(reply)
    summary = run(Watch(ScriptedSource(8), seer, MODEL, in_flight=1))
    assert [(m.source, m.target, m.frame) for m in summary.moves] == [("pi/square", "cloud/square", 4)]
    assert seer.incumbents == [None, *["pi/square"] * 4, *["cloud/square"] * 3]
    assert summary.served == {"pi/square": 4, "cloud/square": 4}
    assert json.loads(json.dumps(summary.to_dict()))["moves"] == [
        {"source": "pi/square", "target": "cloud/square", "frame": 4, "kind": "unplanned", "reason": "answered there"}
    ]


def test_an_answer_after_the_deadline_is_late_not_lost() -> None:
    async def reply(number: int, image: Image) -> Answer:
        await asyncio.sleep(0.002)
        return answer(image, boxes=[])

    results, on_result = collect()
    qos = Qos(deadline=Milliseconds(0.5))
    summary = run(Watch(ScriptedSource(3), ScriptedSeer(reply), MODEL, qos, on_result=on_result))
    check_accounts(results, summary)
    assert summary.counts[Outcome.LATE] == 3
    assert "allowed" in results[0].reason
    assert summary.exit_code == 0


def test_what_is_left_of_the_deadline_is_asked_for_and_nothing_is_sent_without() -> None:
    class Old(ScriptedSource):
        """Frames that lay in the camera for 30 ms, or for 200 ms."""

        def read(self) -> Any:
            frame = super().read()
            age = 0.2 if frame is not None and frame.index % 2 else 0.03
            return frame and msgspec.structs.replace(frame, at=Seconds(frame.at - age))

    results, on_result = collect()
    seer = ScriptedSeer()
    watcher = Watch(Old(1, live=True), seer, MODEL, Qos(deadline=Milliseconds(100.0)), on_result=on_result)
    check_accounts(results, run(watcher))
    assert seer.calls <= 1  # a busy machine may expire this one too
    assert all(left is not None and left <= 70 for left in seer.deadlines)

    async def both() -> Summary:
        gate = threading.Event()
        source = Old(2, live=True, gate=lambda i: i == 0 or gate.wait(10))
        return await watch(
            source,
            seer,
            MODEL,
            Qos(deadline=Milliseconds(100.0)),
            on_result=lambda r, _: (gate.set(), None)[1],  # type: ignore[func-returns-value]
        )

    assert asyncio.run(both()).drops[EXPIRED] >= 1


def test_a_service_that_never_answers_costs_patience_not_the_stream() -> None:
    async def reply(number: int, image: Image) -> Answer:
        if number == 0:
            await asyncio.Event().wait()
        return answer(image, boxes=[])

    results, on_result = collect()
    watcher = Watch(ScriptedSource(4), ScriptedSeer(reply), MODEL, on_result=on_result, patience=Seconds(0.05))
    watcher._patience = 0.05
    summary = run(watcher)
    check_accounts(results, summary)
    assert results[0].error is not None and results[0].error.code == "deadline-exceeded"
    assert summary.counts[Outcome.ANSWERED] == 3


def test_a_file_is_given_up_when_nobody_answers_for_too_long() -> None:
    def reply(number: int, image: Image) -> Answer:
        raise NoCandidate("nobody serves it", "Start one with: nearfar serve square")

    results, on_result = collect()
    watcher = QuickWatch(ScriptedSource(10**6), ScriptedSeer(reply), MODEL, on_result=on_result, give_up=Seconds(0.05))
    summary = run(watcher)
    check_accounts(results, summary)
    assert summary.ended.startswith("gave up")
    assert isinstance(summary.error, NoCandidate)
    assert summary.exit_code == NoCandidate.exit_code


def test_the_service_comes_back_and_so_does_the_stream() -> None:
    def reply(number: int, image: Image) -> Answer:
        if 3 <= number < 8:
            raise Unreachable("killed")
        return answer(image, boxes=[])

    results, on_result = collect()
    summary = run(QuickWatch(ScriptedSource(20), ScriptedSeer(reply), MODEL, on_result=on_result))
    check_accounts(results, summary)
    assert summary.counts[Outcome.FAILED] == 5
    assert results[-1].outcome is Outcome.ANSWERED
    assert summary.exit_code == Unreachable.exit_code


def test_frames_of_a_camera_that_come_during_a_pause_are_dropped_with_that_reason() -> None:
    async def body() -> None:
        failed = threading.Event()
        results, on_result = collect()

        def reply(number: int, image: Image) -> Answer:
            failed.set()
            raise NoCandidate("nobody")

        source = ScriptedSource(6, live=True, gate=lambda i: i < 2 or failed.wait(10))
        watcher = Watch(source, ScriptedSeer(reply), MODEL, on_result=on_result, in_flight=1)
        watcher._pause = 0.1
        summary = await watcher.run()
        check_accounts(results, summary)
        assert any(reason.startswith("paused: ") and "no-candidate" in reason for reason in summary.drops)

    asyncio.run(body())


def test_a_source_that_breaks_off_ends_the_stream_with_its_error() -> None:
    results, on_result = collect()
    source = ScriptedSource(5, error=SourceError("the cable is out", "Plug it in."))
    summary = run(Watch(source, ScriptedSeer(), MODEL, on_result=on_result))
    check_accounts(results, summary)
    assert summary.counts[Outcome.ANSWERED] == 5
    assert summary.exit_code == SourceError.exit_code
    assert "cable" in str(summary.to_dict()["error"])


def test_a_defective_source_of_a_third_party_ends_with_a_reason() -> None:
    summary = run(Watch(ScriptedSource(1, error=ZeroDivisionError("oops")), ScriptedSeer(), MODEL))
    assert isinstance(summary.error, SourceError)
    assert "ZeroDivisionError" in str(summary.error)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("how", ["stop", "cancel"])
def test_stopping_accounts_for_frames_on_their_way(how: str, live: bool) -> None:
    async def body() -> None:
        results, on_result = collect()
        asked = asyncio.Event()

        async def reply(number: int, image: Image) -> Answer:
            if number >= 4:
                asked.set()
                await asyncio.Event().wait()
            return answer(image, boxes=[])

        source = ScriptedSource(10**6, live=live)
        watcher = Watch(source, ScriptedSeer(reply), MODEL, on_result=on_result)
        running = asyncio.create_task(watcher.run())
        await asked.wait()
        if how == "stop":
            watcher.stop()
            watcher.stop()
        else:
            running.cancel()
        summary = await running
        check_accounts(results, summary)
        assert summary.drops[STOPPED] >= 1
        assert summary.counts[Outcome.FAILED] == 0
        assert summary.exit_code == 0
        assert source.closed.is_set()

    asyncio.run(body())


def test_control_c_gives_the_summary_so_far() -> None:
    async def body() -> Summary:
        def reply(number: int, image: Image) -> Answer:
            if number == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return answer(image, boxes=[])

        return await watch(ScriptedSource(10**6), ScriptedSeer(reply), MODEL)

    summary = asyncio.run(body())
    assert summary.seen >= 5
    assert summary.accounted == summary.read
    assert summary.ended == "stopped by the user"


def test_a_full_disk_ends_the_stream_and_everything_is_still_counted() -> None:
    def on_result(result: FrameResult, image: object) -> None:
        if result.index == 3:
            raise SourceError("out.mp4: no space left after 4096 bytes")

    summary = run(Watch(ScriptedSource(1000), ScriptedSeer(), MODEL, on_result=on_result))
    assert summary.accounted == summary.read < 1000
    assert summary.exit_code == SourceError.exit_code


def test_a_defect_in_the_callback_is_raised_after_everything_is_closed() -> None:
    source = ScriptedSource(1000)

    def on_result(result: FrameResult, image: object) -> None:
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        run(Watch(source, ScriptedSeer(), MODEL, on_result=on_result))
    assert source.closed.is_set()


def test_a_slow_recorder_holds_a_file_back_instead_of_piling_up_frames() -> None:
    async def body() -> None:
        seer = ScriptedSeer()
        ahead = []

        async def on_result(result: FrameResult, image: object) -> None:
            for _ in range(20):
                await asyncio.sleep(0)
            ahead.append(seer.calls - result.index)

        summary = await Watch(ScriptedSource(60), seer, MODEL, on_result=on_result).run()
        assert summary.counts[Outcome.ANSWERED] == 60
        assert max(ahead) <= 7

    asyncio.run(body())


@pytest.mark.parametrize(("link", "most"), [(0.5, 1), (9.0, 2), (500.0, 4)])
def test_a_camera_has_as_many_requests_on_their_way_as_its_link_needs(link: float, most: int) -> None:
    """Each answer says that the service worked 10 ms and the link took `link`; all wait until enough are there."""

    async def body() -> None:
        full = asyncio.Event()
        shown = threading.Semaphore(1)

        async def reply(number: int, image: Image) -> Answer:
            shown.release()
            if number > 0 and seer.running >= most:
                full.set()
            if number > 0:
                await full.wait()
            if number == 12:
                watcher.stop()
            given = answer(image, boxes=[])
            return msgspec.structs.replace(given, stages=Stages(link=link, inference=10.0))

        seer = ScriptedSeer(reply)
        source = ScriptedSource(10**6, live=True, gate=lambda _: shown.acquire(timeout=0.01))
        watcher = Watch(source, seer, MODEL)
        summary = await watcher.run()
        assert seer.most == most
        assert summary.accounted == summary.read

    asyncio.run(asyncio.wait_for(body(), 60))


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 40),
    in_flight=st.integers(1, 5),
    depth=st.integers(1, 3),
    live=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    trouble=st.floats(0, 0.6),
    stop_after=st.one_of(st.none(), st.integers(0, 40)),
)
def test_every_frame_comes_to_exactly_one_end_in_order(
    count: int, in_flight: int, depth: int, live: bool, seed: int, trouble: float, stop_after: int | None
) -> None:
    rng = random.Random(seed)

    async def reply(number: int, image: Image) -> Answer:
        if number == stop_after:
            watcher.stop()
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)
        if rng.random() < trouble:
            raise rng.choice([NoCandidate, Unreachable, Overloaded, DeadlineExceeded, InferenceError])("trouble")
        return answer(image, rng.choice(["pi/square", "cloud/square"]), boxes=[])

    results, on_result = collect()
    seer = ScriptedSeer(reply)
    watcher = QuickWatch(
        ScriptedSource(count, live=live),
        seer,
        MODEL,
        Qos(deadline=Milliseconds(rng.choice([0.2, 1000.0]))),
        on_result=on_result,
        in_flight=in_flight,
        depth=depth,
        give_up=Seconds(math.inf),
    )
    summary = run(watcher)
    check_accounts(results, summary)
    assert seer.most <= in_flight
    assert seer.running == 0
    if stop_after is None:
        assert summary.read == count
    if not live:
        assert BACK_PRESSURE not in summary.drops


def test_importing_the_engine_loads_no_heavy_library() -> None:
    code = (
        "import sys; import nearfar.vision.stream, nearfar.vision.sources, nearfar.vision.terminal;"
        "import nearfar.vision.draw, nearfar.vision.record;"
        "print(sorted({'av', 'cv2', 'onnxruntime', 'zenoh'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
