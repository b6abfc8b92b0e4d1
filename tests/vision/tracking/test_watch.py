"""Tracking inside a stream: frames without an answer, what is drawn and shown, and the command itself."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from nearfar.cli import watch as cli
from nearfar.errors import InputError, NearfarError, Unreachable
from nearfar.models.manifest import Task
from nearfar.settings import load
from nearfar.types.image import Image
from nearfar.types.request import Qos
from nearfar.vision.areas import parse_areas
from nearfar.vision.draw import draw_result, shown
from nearfar.vision.results import FrameResult, Outcome, Summary
from nearfar.vision.sources import open_source
from nearfar.vision.stream import Watch
from nearfar.vision.terminal import Dashboard, line_of
from nearfar.vision.tracking.follow import Follow
from nearfar.vision.tracking.registry import tracker
from tests.cli.commands import nearfar
from tests.fleetlab import Lab, Node
from tests.vision.helpers import MODEL, answer, make_video, scene
from tests.vision.helpers import ScriptedSeer as Seer
from tests.vision.tracking.scenes import ids_of

pytest.importorskip("scipy", reason="scipy is not installed: pip install 'nearfar[track]'")

FRAMES = 20


def following(*lines: str, zones: tuple[str, ...] = ()) -> Follow:
    return Follow(tracker("sort"), *parse_areas(lines, zones), ("square",))


def run_stream(follow: Follow, clip: Path, reply: Any = None) -> tuple[list[FrameResult], Summary]:
    results: list[FrameResult] = []

    def on_result(result: FrameResult, image: NDArray[np.uint8] | None) -> None:
        results.append(follow.take(result, image))

    engine = Watch(open_source(str(clip)), Seer(reply), MODEL, on_result=on_result)
    engine.summary.tracking = follow
    return results, asyncio.run(engine.run())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES)


def test_one_square_is_one_track_and_crosses_the_line_once(clip: Path) -> None:
    """It walks four pixels a frame to the right, over the middle of the picture's first half."""
    follow = following("0.25,1,0.25,0:gate", zones=("0,0,1,0,1,1,0,1:all",))
    results, summary = run_stream(follow, clip, lambda _, image: answer(image))
    assert [ids_of(r.tracked) for r in results if r.tracked is not None] == [[1]] * FRAMES
    told = summary.to_dict()["tracking"]
    assert (told["tracker"], told["frames"], told["tracks"], told["now"]) == ("sort", FRAMES, 1, 1)
    assert told["lines"]["gate"] == {"in": 1, "out": 0, "by_class": {"square": {"in": 1, "out": 0}}}
    assert told["zones"]["all"]["present"] == 1


def test_frames_that_fail_are_predicted_through_and_look_as_they_are(clip: Path) -> None:
    def reply(number: int, image: Image) -> Any:
        if 8 <= number <= 11:
            raise Unreachable("pi/square vanished before it answered.")
        return answer(image)

    results, summary = run_stream(following("0.25,1,0.25,0"), clip, reply)
    failed = [r for r in results if r.outcome is Outcome.FAILED]
    assert failed and all(r.tracked is None for r in failed)
    assert {tuple(ids_of(r.tracked)) for r in results if r.tracked is not None} == {(1,)}
    told = summary.to_dict()
    assert told["tracking"]["frames"] == told["frames"]["answered"] < FRAMES
    assert told["tracking"]["lines"]["line-1"]["in"] == 1


def test_a_stream_without_a_tracker_tells_none(clip: Path) -> None:
    assert Summary().to_dict()["tracking"] is None
    dropped = FrameResult(0, Outcome.DROPPED, reason="back-pressure")
    assert following().take(dropped, None) is dropped


def test_what_is_drawn_and_shown_has_ids_and_counts() -> None:
    follow, summary = following("0.5,0,0.5,1:gate"), Summary()
    summary.tracking = follow
    panel = Dashboard("clip", summary, ("square",))
    before = follow.to_dict()
    assert before["lines"] == {"gate": {"in": 0, "out": 0, "by_class": {}}}, "also before the first answer"
    image = scene(0)[0]
    plain = FrameResult(0, Outcome.ANSWERED, answer=answer(Image.bgr(image)))
    result = follow.take(plain, image)
    assert result.tracked is not None and shown(result) is result.tracked
    assert len(shown(plain)) == 1 and shown(plain).track_ids is None
    assert (draw_result(image, result, ("square",)) != draw_result(image, plain, ("square",))).any()
    panel.update(result, image)
    console = Console(width=100, height=30, file=io.StringIO(), record=True)
    console.print(panel)
    assert "1 tracked, 1 so far; gate in 0 out 0" in console.export_text()
    assert "gate in 0 out 0" in line_of(summary)


def test_a_model_that_finds_no_boxes_is_refused(clip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Client:
        async def describe(self, _: str) -> Any:
            return SimpleNamespace(manifest="")

    @asynccontextmanager
    async def connect(_: Any, **__: Any) -> Any:
        yield Client()

    async def at_once(*_: Any) -> None:
        return

    monkeypatch.setattr("nearfar.cli.starting.connected", connect)
    monkeypatch.setattr("nearfar.cli.starting.until_service", at_once)
    monkeypatch.setattr("nearfar.gateway.answers.manifest_of", lambda _: SimpleNamespace(task=Task.CLASSIFICATION))
    monkeypatch.setattr("nearfar.gateway.answers.labels_in", lambda _: ("rose",))
    work = cli._watch(
        load({"home": str(tmp_path)}), open_source(str(clip)), "flowers", Qos(), None, "none", None, following()
    )
    with pytest.raises(InputError, match=r"its task is classification.*leave --track"):
        asyncio.run(work)


@pytest.mark.parametrize(
    ("track", "lines", "zones", "told"),
    [
        ("deepsort", [], [], "There is no tracker 'deepsort'"),
        (None, ["1,2,3"], [], "--line '1,2,3'"),
        (None, [], ["1,2,3,4"], "--zone '1,2,3,4'"),
        ("sort", ["1,2,3,4:a", "1,2,3,5:a"], [], "called 'a'"),
    ],
)
def test_wrong_flags_are_told_before_anything_is_opened(
    track: str | None, lines: list[str], zones: list[str], told: str
) -> None:
    with pytest.raises(NearfarError, match=told):
        cli._follow(track, lines, zones)


def test_the_tracker_is_chosen_by_its_flag_or_by_a_line() -> None:
    assert cli._follow(None, [], []) is None
    made = [cli._follow("sort", [], []), cli._follow(None, ["1,2,3,4"], []), cli._follow(None, [], ["0,0,9,0,9,9"])]
    assert [follow.tracker.name for follow in made if follow is not None] == ["sort", "bytetrack", "bytetrack"]


# -- the command, with a node ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Lab(tmp_path_factory.mktemp("fleet")) as lab:
        yield lab.node("yard-gate", ["yard"])


def test_a_clip_is_tracked_and_counted_by_the_command(node: Node, tmp_path: Path) -> None:
    from recipes.yard.scene import render_clip

    film = tmp_path / "yard.mp4"
    render_clip(film, 7, 3.0, 12)
    flags = ["--track", "sort", "--line", "0,0.5,1,0.5:across", "--zone", "0,0,1,0,1,1,0,1:everywhere"]
    env = {"NEARFAR_MESH_FLEET": node.fleet}
    said = nearfar("watch", film, *flags, "--json", "-o", tmp_path / "out.mp4", home=node.home, env=env)
    assert said.code == 0, said.err
    told = said.json
    assert told["tracking"]["frames"] == told["frames"]["answered"] == told["frames"]["read"]
    assert told["tracking"]["tracker"] == "sort" and told["tracking"]["tracks"] > 0
    everywhere = told["tracking"]["zones"]["everywhere"]
    assert everywhere["entered"] == sum(everywhere[k] for k in ("present", "left", "vanished")) > 0
    assert set(everywhere["by_class"]) <= {"person", "forklift", "box"}
    again = nearfar("watch", film, *flags, "--json", home=node.home, env=env)
    assert again.json["tracking"] == told["tracking"], "the same clip, the same counts"
    shown = nearfar("watch", film, *flags, home=node.home, env=env)
    assert "line across: in" in shown.out and "zone everywhere:" in shown.out
    wrong = nearfar("watch", film, "--line", "1,2,3", home=node.home, env=env)
    assert wrong.code == 2 and "--line" in wrong.sentence
