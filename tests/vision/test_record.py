from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from nearfar.errors import SourceError
from nearfar.vision.draw import colour_of
from nearfar.vision.record import AnnotatedRecording, Recorder, write_image
from nearfar.vision.results import Outcome
from nearfar.vision.sources import open_source
from nearfar.vision.stream import Watch
from tests.vision.helpers import MODEL, ScriptedSeer, answer, find_square, make_video, scene


def frames_of(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        return [(f.time or 0.0, f.to_ndarray(format="bgr24")) for f in container.decode(video=0)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_frames_come_back_with_their_own_times(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    recorder = Recorder(path)
    times = [0.0, 40.0, 200.0, 213.0, 1000.0]
    for index, at in enumerate(times):
        recorder.write(scene(index)[0], at)
    recorder.close()
    recorder.close()
    frames = frames_of(path)
    assert [t * 1e3 for t, _ in frames] == pytest.approx(times, abs=1)
    for index, (_, image) in enumerate(frames):
        assert find_square(image) == pytest.approx(scene(index)[1], abs=2)


def test_without_times_the_rate_is_kept_and_time_never_runs_back(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "out.mp4", rate=10)
    for index in range(5):
        recorder.write(scene(index)[0])
    recorder.write(scene(5)[0], 0.0)
    recorder.close()
    times = [t for t, _ in frames_of(tmp_path / "out.mp4")]
    assert times[:5] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=1e-3)
    assert times == sorted(set(times)) and len(times) == 6


def test_odd_sizes_and_sizes_that_change(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "out.mp4")
    recorder.write(scene(0)[0][:101, :151], 0)
    recorder.write(np.full((300, 100, 3), 200, np.uint8), 40)
    recorder.write(scene(0)[0], 80)
    recorder.close()
    images = [image for _, image in frames_of(tmp_path / "out.mp4")]
    assert {image.shape for image in images} == {(102, 152, 3)}
    assert images[1][50, 76].min() > 180 and images[1][50, 5].max() < 40  # bars beside the tall one


def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"Use \.mkv, \.mov, \.mp4|Use \.mp4|Use"):
        Recorder(tmp_path / "out.txt")
    with pytest.raises(SourceError, match="no folder"):
        Recorder(tmp_path / "nowhere" / "out.mp4")
    recorder = Recorder(tmp_path / "never.mp4")
    recorder.close()
    assert not (tmp_path / "never.mp4").exists()
    with pytest.raises(SourceError, match="closed"):
        recorder.write(scene(0)[0])


def test_images(tmp_path: Path) -> None:
    write_image(tmp_path / "out.png", scene(0)[0])
    again = cv2.imread(str(tmp_path / "out.png"))
    assert again is not None and (again == scene(0)[0]).all()
    for bad in ("out.mp3", "out"):
        with pytest.raises(SourceError, match=r"\.jpg"):
            write_image(tmp_path / bad, scene(0)[0])
    with pytest.raises(SourceError, match="cannot be written"):
        write_image(tmp_path / "nowhere" / "out.png", scene(0)[0])


FULL = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    from nearfar.errors import SourceError
    from nearfar.vision.record import Recorder
    path = Path(sys.argv[1])
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    recorder = Recorder(path)
    try:
        for index in range(400):
            recorder.write(np.roll(noise, index * 7, 0), index * 40.0)
        recorder.close()
    except SourceError as error:
        print(error)
        recorder.close()
        sys.exit(5)
"""


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_full_disk_says_how_many_bytes_were_written(tmp_path: Path, suffix: str) -> None:
    """The size limit of a process stands for the full disk: the same write fails."""
    path = tmp_path / f"out{suffix}"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 5, done.stderr
    assert f"after {path.stat().st_size} bytes" in done.stdout
    assert "Make room" in done.stdout


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from nearfar.vision.record import Recorder
    from tests.vision.helpers import scene
    recorder = Recorder(Path(sys.argv[1]))
    for index in range(700):
        recorder.write(scene(index)[0], index * 40.0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_most_of_a_recording_survives_the_kill_of_its_program(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(path)], cwd=root, timeout=120)
    assert done.returncode == -9
    frames = 0
    with av.open(str(path)) as container:
        try:
            for _ in container.decode(video=0):
                frames += 1
        except av.FFmpegError:
            pass
    assert frames >= 250  # whole fragments, one for each key frame


def test_a_watched_file_is_recorded_with_boxes_at_the_right_frames(tmp_path: Path) -> None:
    """A video whose truth is known, through the engine, to a file: the drawn box lies where the square is."""
    clip = make_video(tmp_path / "clip.mp4", 20)
    recording = AnnotatedRecording(tmp_path / "out.mp4", ("square",))
    seer = ScriptedSeer(lambda _, image: answer(image))
    summary = asyncio.run(Watch(open_source(str(clip)), seer, MODEL, on_result=recording).run())
    recording.close()
    assert summary.counts[Outcome.ANSWERED] == 20
    frames = frames_of(tmp_path / "out.mp4")
    assert [t for t, _ in frames] == pytest.approx([0.04 * i for i in range(20)], abs=1e-3)
    red = np.array(colour_of(0), int)
    for index, (_, image) in enumerate(frames):
        x1, _, x2, y2 = scene(index)[1]
        edge = image[min(y2, 119), x1 + 3 : x2 - 3].astype(int)
        assert np.abs(edge - red).mean() < 70, index
