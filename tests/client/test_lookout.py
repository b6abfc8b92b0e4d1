"""One timer for many appointments: each is called once, in time, and nothing of a cancelled one is kept."""

from __future__ import annotations

import asyncio
import time
import weakref

from nearfar.client import lookout
from nearfar.client.lookout import Lookout
from tests.waiting import until


def test_appointments_are_called_in_their_order_and_never_early() -> None:
    async def body() -> None:
        watch, called = Lookout(), list[tuple[str, float]]()
        start = time.monotonic()
        for name, wait in (("late", 0.03), ("soon", 0.01), ("past", -1.0), ("middle", 0.02)):
            watch.at(start + wait, lambda name=name: called.append((name, time.monotonic())))  # type: ignore[misc]
        assert not called, "not from within"
        await until(lambda: len(called) == 4, "all are called")
        assert [name for name, _ in called] == ["past", "soon", "middle", "late"]
        assert all(at >= start + wait for (_, at), wait in zip(called, (-1.0, 0.01, 0.02, 0.03), strict=True))
        assert not len(watch)

    asyncio.run(body())


def test_a_cancelled_one_is_not_called_and_holds_nothing() -> None:
    class Held:
        def look(self) -> None:
            raise AssertionError("it was cancelled")

    async def body() -> None:
        watch, called = Lookout(), list[int]()
        held = Held()
        gone = weakref.ref(held)
        watch.at(time.monotonic() + 0.01, held.look).cancel()
        del held
        assert gone() is None
        watch.at(time.monotonic() + 0.02, lambda: called.append(1))
        await until(lambda: bool(called), "the other one is called")
        assert not len(watch)

    asyncio.run(body())


def test_what_was_cancelled_does_not_pile_up() -> None:
    async def body() -> None:
        watch = Lookout()
        kept = [watch.at(time.monotonic() + 600, lambda: None) for _ in range(10)]
        for _ in range(10 * lookout._FEW):
            watch.at(time.monotonic() + 600, lambda: None).cancel()
        assert len(kept) <= len(watch) <= 3 * lookout._FEW
        watch.close()
        assert not len(watch)

    asyncio.run(body())


def test_one_that_raises_keeps_no_other_from_being_called() -> None:
    async def body() -> None:
        told = list[str]()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(str(context["exception"])))
        watch, called = Lookout(), list[int]()

        def breaks() -> None:
            raise ValueError("broken")

        at = time.monotonic() + 0.005
        watch.at(at, breaks)
        watch.at(at, lambda: called.append(1))
        await until(lambda: bool(called), "the second one is called")
        assert told == ["broken"]

    asyncio.run(body())
