"""Wait for a condition, not for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], what: str, limit: float = 20.0) -> None:
    """Return once the condition holds; fail with what was waited for after `limit` seconds."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"still not so after {limit} s: {what}")
        await asyncio.sleep(0.005)


def until_now(condition: Callable[[], object], what: str, limit: float = 20.0) -> None:
    """As `until`, for tests without an event loop."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"still not so after {limit} s: {what}")
        time.sleep(0.005)
