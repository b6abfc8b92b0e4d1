"""What the commands share."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from nearfar.cli.common import stop_once


def test_a_stop_is_not_lost_when_a_timeout_ends_in_the_same_moment() -> None:
    """A node waits with a timeout all the time; SIGTERM comes when it likes."""

    async def body() -> None:
        loop = asyncio.get_running_loop()
        cleaned = False

        async def waits() -> None:
            nonlocal cleaned
            try:
                for _ in range(3):
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.02) as limit:
                            loop.call_at(limit.when() or 0.0, stop)  # behind the timeout, before the task runs again
                            await asyncio.Event().wait()
            finally:
                stop()
                await asyncio.sleep(0)
                cleaned = True

        task = asyncio.create_task(waits())
        stop = stop_once(task)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned, "a second one does not disturb what cleans up"

    asyncio.run(body())
