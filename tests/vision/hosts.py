"""Programs that run one stream, in one process: each on a mesh of its own, with a scripted seer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nearfar.mesh.memory import Ether, MemoryMesh
from nearfar.types.ids import ModelName, StreamId
from nearfar.types.request import Privacy
from nearfar.vision.areas import parse_areas
from nearfar.vision.base import Source
from nearfar.vision.circle import Circle
from nearfar.vision.hosting import Host
from nearfar.vision.results import FrameResult, Summary
from nearfar.vision.stream import Watch
from nearfar.vision.succession import Beginning, Wishes, begin
from nearfar.vision.tracking.follow import Follow
from nearfar.vision.tracking.registry import tracker
from tests.vision.helpers import MODEL, ScriptedSeer, answer
from tests.waiting import until

LINES, ZONES = ["0.5,1,0.5,0:gate"], ["0,0,0.5,0,0.5,1,0,1:left"]


def follow(name: str = "sort") -> Follow:
    return Follow(tracker(name), *parse_areas(LINES, ZONES), ("square",))


class Monitor:
    """A part of a stream that remembers how many results it saw."""

    def __init__(self) -> None:
        self.seen = 0

    def export_state(self) -> bytes:
        return str(self.seen).encode()

    def import_state(self, data: bytes) -> None:
        self.seen = int(data)


class Program:
    """As `nearfar watch SOURCE --stream gate`; `role` as for `begin`."""

    def __init__(
        self,
        ether: Ether,
        me: str,
        source: Source,
        role: str = "",
        *,
        seer: Any = None,
        follow: Follow | None = None,
        model: ModelName = MODEL,
        privacy: Privacy = Privacy.ANY,
        on_frame: Callable[[int], Any] | None = None,
        stream: str = "gate",
    ) -> None:
        self.me, self.source, self.role = me, source, role
        self.mesh = MemoryMesh(ether)
        self.seer = seer or ScriptedSeer(lambda _, image: answer(image))
        self.follow = follow
        self.wishes = Wishes(model, privacy, ("square",), follow)
        self.results: list[FrameResult] = []
        self.said: list[str] = []
        self.monitor = Monitor()
        self.host: Host | None = None
        self.begun: Beginning | str | None = None
        self.engine: Watch | None = None
        self._on_frame = on_frame
        self._stream = stream
        self._dead = False
        self.circle = Circle(self.mesh, stream)
        self.task = asyncio.create_task(self._run(), name=me)

    async def _run(self) -> Summary | str:
        begun = self.begun = await begin(
            self.circle, self.me, self.wishes, self.source, self.role, named=True, say=self.said.append
        )
        if isinstance(begun, str):
            return begun
        host = self.host = begun.host
        self.follow = begun.follow
        source = begun.source
        assert source is not None

        async def on_result(result: FrameResult, image: Any) -> None:
            if self.follow is not None:
                result = self.follow.take(result, image)
            self.monitor.seen += 1
            self.results.append(result)
            host.after(result)
            if self._on_frame is not None:
                told = self._on_frame(result.index)
                if asyncio.iscoroutine(told):
                    await told

        engine = self.engine = Watch(
            source, self.seer, self.wishes.model, on_result=on_result, stream=StreamId(self._stream),
            first=begun.first, incumbent=begun.incumbent, summary=begun.summary,
        )  # fmt: skip
        engine.parts["monitor"] = self.monitor
        begun.remember(engine.parts)
        engine.summary.tracking = self.follow
        host.run(
            engine, source=source.uri, live=source.live, model=self.wishes.model, privacy=self.wishes.privacy,
            follow=self.follow, before=begun.memory,
        )  # fmt: skip
        summary = await engine.run()
        if not self._dead:
            await host.close("" if summary.handed_over or summary.error is not None else summary.ended)
        return summary

    @property
    def frames(self) -> list[int]:
        return [result.index for result in self.results]

    async def running(self, frame: int) -> None:
        """Wait until it delivered this frame, or its task ended."""
        await until(lambda: self.task.done() or (self.frames and self.frames[-1] >= frame), f"{self.me} is at {frame}")

    async def summary(self) -> Summary:
        told = await asyncio.wait_for(self.task, 60)
        assert isinstance(told, Summary)
        return told

    async def die(self) -> None:
        """As by kill -9: its tokens vanish, and nobody hears from it again."""
        self._dead = True
        await self.mesh.close()
        if self.engine is not None:
            self.engine.stop("killed")

    async def close(self) -> None:
        if self.engine is not None:
            self.engine.stop()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.circle.close()
        await self.mesh.close()


class Stage:
    """An ether and the programs on it; an async context manager that ends them all."""

    def __init__(self) -> None:
        self.ether = Ether()
        self.programs: list[Program] = []

    def program(self, me: str, source: Source, role: str = "", **options: Any) -> Program:
        made = Program(self.ether, me, source, role, **options)
        self.programs.append(made)
        return made

    async def __aenter__(self) -> Stage:
        return self

    async def __aexit__(self, *_: object) -> None:
        for program in self.programs:
            await program.close()
        self.ether.close()
