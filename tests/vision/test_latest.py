from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import SourceError
from nearfar.types.units import Seconds
from nearfar.vision.base import Frame
from nearfar.vision.latest import Latest


def frame(index: int) -> Frame:
    return Frame(index, Seconds(time.monotonic()), np.zeros((1, 1, 3), np.uint8))


def test_the_oldest_undelivered_frame_gives_way_and_is_named() -> None:
    async def body() -> None:
        dropped: list[int] = []
        latest = Latest(2, dropping=True, on_drop=lambda f: dropped.append(f.index))
        for index in range(5):
            assert latest.put(frame(index))
        latest.finish()
        got = [f.index for f in (await latest.get(), await latest.get()) if f is not None]
        assert got == [3, 4]
        assert dropped == [0, 1, 2]
        assert await latest.get() is None

    asyncio.run(body())


def test_without_dropping_the_producer_waits_for_the_consumer() -> None:
    async def body() -> None:
        dropped: list[int] = []
        latest = Latest(1, dropping=False, on_drop=lambda f: dropped.append(f.index))
        ahead: list[int] = []
        taken = 0

        def produce() -> None:
            for index in range(50):
                latest.put(frame(index))
                ahead.append(index + 1 - taken)
            latest.finish()

        producer = threading.Thread(target=produce)
        producer.start()
        got = []
        while (item := await latest.get()) is not None:
            taken += 1
            got.append(item.index)
        producer.join()
        assert got == list(range(50))
        assert dropped == []
        assert max(ahead) <= 2  # one waits, one may be taken but not yet counted

    asyncio.run(body())


def test_the_reason_why_the_producer_broke_off_is_kept() -> None:
    async def body() -> None:
        latest = Latest(dropping=False, on_drop=lambda _: None)
        latest.put(frame(0))
        latest.finish(SourceError("unplugged"))
        assert await latest.get() is not None
        assert await latest.get() is None
        assert str(latest.error) == "unplugged"

    asyncio.run(body())


def test_abandoning_frees_a_blocked_producer_and_reports_what_waited() -> None:
    async def body() -> None:
        dropped: list[int] = []
        latest = Latest(1, dropping=False, on_drop=lambda f: dropped.append(f.index))
        latest.put(frame(0))
        accepted: list[bool] = []
        producer = threading.Thread(target=lambda: accepted.append(latest.put(frame(1))))
        producer.start()
        latest.abandon()
        await asyncio.to_thread(producer.join)
        assert accepted == [False]
        assert dropped == [0]
        assert await latest.get() is None
        assert latest.accepted == 1

    asyncio.run(body())


def test_a_producer_that_outlives_the_loop_is_told_to_stop() -> None:
    async def body() -> Latest:
        return Latest(1, dropping=True, on_drop=lambda _: None)

    latest = asyncio.run(body())
    assert latest.put(frame(0)) is False
    latest.finish()


def test_a_depth_below_one_is_refused() -> None:
    async def body() -> None:
        Latest(0, dropping=True, on_drop=lambda _: None)

    with pytest.raises(ValueError, match="at least one"):
        asyncio.run(body())


@settings(max_examples=60, deadline=None)
@given(depth=st.integers(1, 4), steps=st.lists(st.booleans(), max_size=40))
def test_every_frame_is_delivered_or_dropped_once_and_in_order(depth: int, steps: list[bool]) -> None:
    """True puts a frame, False takes one when one waits."""

    async def body() -> None:
        dropped: list[int] = []
        got: list[int] = []
        latest = Latest(depth, dropping=True, on_drop=lambda f: dropped.append(f.index))
        put = 0
        waiting = 0
        for step in steps:
            if step:
                latest.put(frame(put))
                put += 1
                waiting = min(waiting + 1, depth)
            elif waiting:
                item = await latest.get()
                assert item is not None
                got.append(item.index)
                waiting -= 1
        latest.finish()
        while (item := await latest.get()) is not None:
            got.append(item.index)
        assert sorted(got + dropped) == list(range(put))
        assert got == sorted(got)
        assert dropped == sorted(dropped)
        assert latest.accepted == put

    asyncio.run(body())
