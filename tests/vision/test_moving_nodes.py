"""A stream moves between two real nodes with the real detector `yard`: what it finds, follows and counts is equal."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nearfar.client.client import Client
from nearfar.client.connect import connect
from nearfar.fleet.snapshot import ServiceView, Snapshot
from nearfar.placement.decide import Decision
from nearfar.placement.policies.base import Ranked
from nearfar.settings import load
from nearfar.types.ids import ModelName, ServiceId, StreamId
from nearfar.types.image import Image, ImageKind
from nearfar.types.request import Request
from nearfar.types.units import Seconds
from nearfar.vision.areas import parse_areas
from nearfar.vision.results import FrameResult, Kind, Outcome, Summary
from nearfar.vision.sources import open_source
from nearfar.vision.stream import Watch
from nearfar.vision.tracking.follow import Follow
from nearfar.vision.tracking.registry import tracker
from tests.fleetlab import Lab
from tests.waiting import until

pytest.importorskip("scipy", reason="scipy is not installed: pip install 'nearfar[track]'")

YARD = ModelName("yard")
A, B = ServiceId("a/yard"), ServiceId("b/yard")
LINES, ZONES = ["0,0.5,1,0.5:across"], ["0,0,1,0,1,1,0,1:everywhere"]


class Wander:
    """A policy of a test: `want` first, whatever it costs."""

    name = "wander"
    sample: int | None = None

    def __init__(self) -> None:
        self.want = A

    def rank(
        self, snapshot: Snapshot, request: Request, candidates: Sequence[ServiceView], now: Seconds, rng: random.Random
    ) -> Sequence[Ranked]:
        services = sorted((view.report.service for view in candidates), key=lambda one: one != self.want)
        return [Ranked(service, float(place)) for place, service in enumerate(services)]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from recipes.yard.scene import render_clip

    path = tmp_path_factory.mktemp("film") / "yard.mp4"
    render_clip(path, 7, 10.0, 12)
    return path


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Two nodes that serve `yard`; the settings of a client of theirs."""
    folder = tmp_path_factory.mktemp("fleet")
    with Lab(folder) as lab:
        first = lab.node("a", ["yard"])
        lab.node("b", ["yard"], join=[first])
        yield {
            "home": str(folder / "client"),
            "mesh.fleet": lab.fleet,
            "mesh.discover": False,
            "mesh.join": first.endpoints,
        }


async def both_there(client: Client) -> None:
    await until(
        lambda: sum(v.alive and v.heard > 0 for v in client.snapshot().services.values()) == 2, "both are there"
    )


def watched(fleet: dict[str, Any], film: Path, every: int) -> tuple[list[FrameResult], Summary, Follow]:
    """The film, tracked; with `every`, the other service is wanted after so many frames, once the last move is done."""
    follow = Follow(tracker("bytetrack", high=0.4, begin=0.5), *parse_areas(LINES, ZONES))
    results: list[FrameResult] = []
    policy = Wander()
    engines: list[Watch] = []
    decisions = 0

    def on_result(result: FrameResult, image: Any) -> None:
        results.append(follow.take(result, image))

    async def main() -> Summary:
        async with connect(load(fleet)) as client:
            await both_there(client)
            client.policy = policy
            decide = client.decide

            def wander(request: Request) -> Decision:
                """Called once for each frame, when it is due."""
                nonlocal decisions
                decisions += 1
                last = max([0, *(move.frame for move in engines[0].summary.moves)])
                if every and decisions - last > every and engines[0].incumbent == policy.want:
                    policy.want = B if policy.want == A else A
                return decide(request)

            client.decide = wander  # type: ignore[method-assign]
            engine = Watch(
                open_source(str(film)), client, YARD, on_result=on_result, stream=StreamId("s"), always=ImageKind.BGR
            )
            engines.append(engine)
            return await asyncio.wait_for(engine.run(), 120)

    return results, asyncio.run(main()), follow


def undisturbed(fleet: dict[str, Any], film: Path, every: int) -> tuple[list[FrameResult], Summary, Follow]:
    """As `watched`; once more when the machine was so busy that a service fell silent and the stream moved in need."""
    for _ in range(3):
        made = watched(fleet, film, every)
        moves = made[1].moves
        if all(move.kind is Kind.PLANNED for move in moves) and (every or not moves):
            break
    return made


def test_moving_the_stream_every_ten_frames_changes_no_box_no_id_and_no_count(
    fleet: dict[str, Any], film: Path
) -> None:
    stayed, still, one = undisturbed(fleet, film, 0)
    moved, summary, other = undisturbed(fleet, film, 10)
    assert still.moved == 0 and set(still.served) == {A}
    assert summary.moved >= 3 and set(summary.served) == {A, B}, summary.to_dict()["given_up"]
    assert all(move.kind is Kind.PLANNED for move in summary.moves), summary.to_dict()["moves"]
    assert [r.index for r in moved] == list(range(120)) == [r.index for r in stayed]
    assert {r.outcome for r in moved} == {Outcome.ANSWERED} and summary.lost.count == 0
    for at_home, away in zip(stayed, moved, strict=True):
        assert at_home.answer is not None and away.answer is not None
        assert at_home.answer.array("boxes").tobytes() == away.answer.array("boxes").tobytes()
        assert at_home.answer.array("scores").tobytes() == away.answer.array("scores").tobytes()
        assert at_home.tracked is not None and away.tracked is not None and away.tracked.track_ids is not None
        assert at_home.tracked.track_ids is not None
        assert at_home.tracked.track_ids.tobytes() == away.tracked.track_ids.tobytes()
        assert at_home.tracked.boxes.tobytes() == away.tracked.boxes.tobytes()
    assert one.to_dict() == other.to_dict() and one.export_state() == other.export_state()
    assert one.tracks > 3 and one.to_dict()["zones"]["everywhere"]["entered"]
    for move in summary.moves:  # up to the switch the old one's, from its frame on the new one's
        assert moved[move.frame - 1].served_by == move.source and moved[move.frame].served_by == move.target


def test_a_stream_leaves_a_node_that_others_load_and_loses_nothing(fleet: dict[str, Any], film: Path) -> None:
    """With the real policy: its node's queue grows, so the stream is warmed up, compared and switched to the other."""

    async def main() -> tuple[Summary, list[FrameResult], str]:
        results: list[FrameResult] = []
        loading: list[asyncio.Task[None]] = []

        async with connect(load(fleet)) as client, connect(load(fleet)) as others:
            await both_there(client)
            await both_there(others)
            others.policy = crowd = Wander()

            async def load_it(image: Image) -> None:
                while True:
                    await others.see(YARD, image)

            def on_result(result: FrameResult, image: Any) -> None:
                results.append(result)
                if result.index == 30:
                    assert result.served_by is not None
                    crowd.want = result.served_by
                    loading.extend(asyncio.create_task(load_it(Image.bgr(image))) for _ in range(6))
                if engine.summary.moved and result.index > engine.summary.moves[0].frame + 10:
                    engine.stop()

            source = open_source(str(film), loop=True)
            engine = Watch(source, client, YARD, on_result=on_result, stream=StreamId("s"))
            try:
                summary = await asyncio.wait_for(engine.run(), 120)
            finally:
                for task in loading:
                    task.cancel()
                await asyncio.gather(*loading, return_exceptions=True)
            return summary, results, crowd.want

    summary, results, busy = asyncio.run(main())
    assert [r.index for r in results] == list(range(summary.read))
    assert summary.counts[Outcome.FAILED] == 0 and summary.lost.count == 0
    move = summary.moves[0]
    assert move.source == busy and move.kind is Kind.PLANNED and "expected in" in move.reason
    assert summary.shadows >= 4
