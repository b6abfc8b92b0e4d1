from __future__ import annotations

import struct
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from nearfar.errors import SourceError
from nearfar.vision.base import Frame, Source
from nearfar.vision.sources import open_source, redact
from nearfar.vision.sources.container import upright
from nearfar.vision.sources.folder import FolderSource
from nearfar.vision.sources.http import HttpSource
from nearfar.vision.sources.live import LiveSource
from nearfar.vision.sources.resumed import Resumed
from nearfar.vision.sources.rtsp import RtspSource
from nearfar.vision.sources.webcam import WebcamSource
from tests.realdata import need_data
from tests.vision.cameras import Camera, serve_file, serve_mjpeg, serve_rtsp
from tests.vision.helpers import HEIGHT, WIDTH, find_square, make_video, scene


def read_all(source: Source, most: int = 1000) -> list[Frame]:
    frames: list[Frame] = []
    while len(frames) < most and (frame := source.read()) is not None:
        frames.append(frame)
    return frames


def until_error(source: Source) -> tuple[list[Frame], SourceError]:
    frames: list[Frame] = []
    with pytest.raises(SourceError) as caught:
        while (frame := source.read()) is not None:
            frames.append(frame)
    return frames, caught.value


def check_scene(frame: Frame, index: int, slack: int = 2) -> None:
    assert frame.image.shape == (HEIGHT, WIDTH, 3)
    assert frame.image.dtype == np.uint8
    assert frame.image.flags.c_contiguous
    assert np.abs(np.array(find_square(frame.image)) - scene(index)[1]).max() <= slack


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".gif"])
def test_every_frame_of_a_file_in_order_and_in_colour(tmp_path: Path, suffix: str) -> None:
    path = make_video(tmp_path / f"clip{suffix}", 12)
    source = open_source(str(path))
    frames = read_all(source)
    assert [f.index for f in frames] == list(range(12))
    for frame in frames:
        check_scene(frame, frame.index)
        blue, green, red = frame.image[find_square(frame.image)[1] + 8, find_square(frame.image)[0] + 8]
        assert blue < 60 < 180 < min(green, red)
    times = [f.pts_ms or 0.0 for f in frames]
    assert times == sorted(times)
    assert times[-1] - times[0] == pytest.approx(440, abs=10)
    assert source.ended == "the file ended"
    assert not source.live


def test_a_file_url_with_spaces(tmp_path: Path) -> None:
    path = make_video(tmp_path / "my clip.mp4", 3)
    assert len(read_all(open_source(path.as_uri()))) == 3


def test_a_loop_goes_on_with_index_and_time(tmp_path: Path) -> None:
    source = open_source(str(make_video(tmp_path / "clip.mp4", 5)), loop=True)
    frames = read_all(source, 12)
    assert [f.index for f in frames] == list(range(12))
    check_scene(frames[11], 1)
    times = [f.pts_ms for f in frames]
    assert times == pytest.approx([40.0 * i for i in range(12)], abs=1)
    source.close()
    assert source.read() is None
    assert source.ended == "stopped"


def test_real_time_frames_are_due_at_their_own_times(tmp_path: Path) -> None:
    source = open_source(str(make_video(tmp_path / "clip.mp4", 6)), realtime=True)
    assert source.live
    frames = read_all(source)
    assert len(frames) == 6
    for frame in frames[1:]:
        assert frame.at - frames[0].at >= 0.04 * frame.index - 1e-6


def test_closing_wakes_a_source_that_waits_for_its_time(tmp_path: Path) -> None:
    source = open_source(str(make_video(tmp_path / "slow.mp4", 2, rate=1)), realtime=True)
    assert source.read() is not None
    ended = threading.Thread(target=source.read)
    ended.start()
    source.close()
    ended.join(30)
    assert not ended.is_alive()
    assert source.ended == "stopped"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".gif"])
def test_a_truncated_file_gives_its_frames_and_says_where_it_broke_off(tmp_path: Path, suffix: str) -> None:
    path = make_video(tmp_path / f"clip{suffix}", 40)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    source = open_source(str(path))
    frames, error = until_error(source)
    assert 5 < len(frames) < 40
    assert f"broke off at frame {len(frames)}" in str(error)
    assert "broke off" in source.ended
    check_scene(frames[3], 3)


def test_a_file_cut_before_its_index_cannot_be_opened(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", 10, faststart=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "ffprobe" in str(until_error(open_source(str(path)))[1])


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("nowhere.mp4", "Check the path"),
        ("ftp://host/clip.mp4", "rtsp://"),
        ("gopher:x", "webcam:0"),
        ("file:///nowhere/at/all.mp4", "/nowhere/at/all.mp4"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_can(uri: str, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        open_source(uri)


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    text = tmp_path / "clip.mp4"
    text.write_text("this is no video")
    assert "cannot be opened" in str(until_error(open_source(str(text)))[1])
    empty = tmp_path / "empty.mkv"
    empty.touch()
    assert "cannot be opened" in str(until_error(open_source(str(empty)))[1])


def test_a_sound_has_no_pictures(tmp_path: Path) -> None:
    import wave

    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    assert "no pictures" in str(until_error(open_source(str(tmp_path / "sound.wav")))[1])


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    def refuse(*_: object, **__: object) -> None:
        raise av.error.PermissionError(13, "Permission denied", "clip.mp4")

    path = make_video(tmp_path / "clip.mp4", 2)
    monkeypatch.setattr(av, "open", refuse)
    assert "rights" in str(until_error(open_source(str(path)))[1])


def test_a_folder_in_natural_order_and_one_image(tmp_path: Path) -> None:
    for index in (10, 2, 1):
        cv2.imwrite(str(tmp_path / f"frame{index}.png"), scene(index)[0])
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(str(tmp_path))
    frames = read_all(source)
    for frame, index in zip(frames, (1, 2, 10), strict=True):
        check_scene(frame, index, slack=0)
    assert source.ended == "the last image was read"
    assert len(read_all(open_source(str(tmp_path / "frame2.png")))) == 1
    assert len(read_all(open_source(str(tmp_path), loop=True), 7)) == 7
    live = open_source(str(tmp_path), realtime=True)
    assert live.live and len(read_all(live)) == 3


def test_a_broken_image_in_a_folder_is_named(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), scene(0)[0])
    (tmp_path / "b.png").write_bytes(b"\x89PNG but not really")
    frames, error = until_error(FolderSource(tmp_path))
    assert len(frames) == 1
    assert "b.png" in str(error) and "frame 1" in str(error)
    (tmp_path / "c").mkdir()
    assert "no images" in str(until_error(FolderSource(tmp_path / "c"))[1])


def test_mjpeg_over_http_with_its_own_jpegs() -> None:
    with Camera(serve_mjpeg(30)) as camera:
        source = HttpSource(f"http://127.0.0.1:{camera.port}/stream")
        frames = read_all(source, 30)
        source.close()
        assert source.read() is None
    assert [f.index for f in frames] == list(range(30))
    for frame in frames:
        check_scene(frame, frame.index)
        assert frame.jpeg is not None
        again = cv2.imdecode(np.frombuffer(frame.jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert again is not None and again.shape == frame.image.shape
        assert np.abs(again.astype(int) - frame.image).mean() < 3


def test_a_camera_that_breaks_off_is_taken_up_again_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveSource, "first_pause", 0.001)
    with Camera(serve_mjpeg(8, cut=True)) as camera:
        source = HttpSource(f"http://127.0.0.1:{camera.port}/stream")
        frames = read_all(source, 20)
        source.close()
        assert source.read() is None
        assert camera.connections >= 3
    assert [f.index for f in frames] == list(range(20))
    assert source.reconnects >= 2


def test_a_camera_that_stays_away_is_given_up_with_the_last_frame_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveSource, "first_pause", 0.001)
    with Camera(serve_mjpeg(8)) as camera:
        source = HttpSource(f"http://127.0.0.1:{camera.port}/", give_up=0.05)
        assert source.read() is not None
    frames, error = until_error(source)
    assert f"after frame {len(frames)}" in str(error)
    assert "start again" in str(error)


def test_a_video_file_on_a_web_server_plays_once_at_its_own_speed(tmp_path: Path) -> None:
    data = make_video(tmp_path / "clip.mp4", 8).read_bytes()
    with Camera(serve_file(data)) as camera:
        source = HttpSource(f"http://127.0.0.1:{camera.port}/clip.mp4")
        frames = read_all(source, 20)
        assert camera.connections == 1
    assert len(frames) == 8 and source.ended == "the video ended"
    for frame in frames:
        check_scene(frame, frame.index)
        assert frame.pts_ms == pytest.approx(40 * frame.index, abs=1)
        assert frame.at - frames[0].at >= 0.04 * frame.index - 1e-3


def test_a_video_file_that_a_web_server_cuts_off(tmp_path: Path) -> None:
    data = make_video(tmp_path / "clip.mp4", 40).read_bytes()
    with Camera(serve_file(data, cut=len(data) * 7 // 10)) as camera:
        frames, error = until_error(HttpSource(f"http://127.0.0.1:{camera.port}/clip.mp4"))
    assert 0 < len(frames) < 40
    assert f"broke off at frame {len(frames)}" in str(error)


def test_http_errors_say_what_to_do() -> None:
    with Camera(serve_mjpeg(0, status="401 Unauthorized")) as camera:
        assert "user:password" in str(until_error(HttpSource(f"http://127.0.0.1:{camera.port}/"))[1])
    with Camera(serve_mjpeg(0, status="404 Not Found")) as camera:
        assert "Check the path" in str(until_error(HttpSource(f"http://127.0.0.1:{camera.port}/"))[1])
    assert "switched on" in str(until_error(HttpSource(f"http://127.0.0.1:{camera.port}/"))[1])


def test_a_camera_that_says_nothing_runs_into_the_time_out() -> None:
    hold = threading.Event()
    with Camera(lambda *_: hold.wait(30)) as camera:
        error = until_error(HttpSource(f"http://127.0.0.1:{camera.port}/", open_timeout=0.1))[1]
        hold.set()
    assert "no answer in time" in str(error)


def test_rtsp_over_tcp() -> None:
    with Camera(serve_rtsp(40, user="admin")) as camera:
        source = RtspSource(f"rtsp://admin:secret@127.0.0.1:{camera.port}/live")
        frames = read_all(source, 20)
        source.close()
        assert source.read() is None
    assert "secret" not in source.uri
    assert [f.index for f in frames] == list(range(20))
    found = [find_square(f.image) for f in frames]
    truth = [scene(i)[1] for i in range(40)]
    first = min(range(40), key=lambda i: abs(truth[i][0] - found[0][0]) + abs(truth[i][1] - found[0][1]))
    for frame, at in zip(frames, range(first, first + 20), strict=True):
        check_scene(frame, at)


def test_rtsp_comes_back_after_the_camera_was_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveSource, "first_pause", 0.001)
    with Camera(serve_rtsp(15)) as camera:
        source = RtspSource(f"rtsp://127.0.0.1:{camera.port}/live")
        frames = read_all(source, 25)
        source.close()
        assert source.read() is None
    assert len(frames) == 25
    assert source.reconnects >= 1


def test_no_password_in_any_message() -> None:
    error = until_error(RtspSource("rtsp://admin:secret@127.0.0.1:1/live"))[1]
    assert "secret" not in str(error) and "admin" in str(error)
    assert redact("http://u:p%40x@h/p?a=b@c:d@") == "http://u:***@h/p?a=b@c:d@"
    with pytest.raises(SourceError) as caught:
        open_source("sftp://admin:secret@host/clip.mp4")
    assert "secret" not in str(caught.value)


def test_a_webcam_that_is_not_there() -> None:
    with pytest.raises(SourceError, match="no camera '/dev/video97'"):
        WebcamSource("webcam:97")
    with pytest.raises(SourceError, match="/dev/video98"):
        open_source("/dev/video98")


def test_cameras_neither_loop_nor_hurry() -> None:
    with pytest.raises(SourceError, match="live"):
        open_source("rtsp://host/1", loop=True)
    with pytest.raises(SourceError, match="live"):
        open_source("webcam:0", realtime=False)
    assert isinstance(open_source("https://host/clip.mjpg"), HttpSource)


def test_upright_turns_counter_clockwise() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 2] = 255  # top right
    turned = upright(image, 90)
    assert turned.shape == (3, 2, 3) and turned[0, 0, 0] == 255  # top left
    assert upright(image, 0) is image
    assert upright(image, -90)[2, 1, 0] == 255  # bottom right


@pytest.mark.parametrize("name", ["bottle-detection.mp4", "people-detection.gif"])
def test_real_videos(name: str) -> None:
    source = open_source(str(need_data("video", name)))
    frames = read_all(source, 20)
    assert len(frames) == 20
    assert all(f.image.shape == frames[0].image.shape for f in frames)


def test_a_video_of_a_phone_held_upright_is_turned(tmp_path: Path) -> None:
    """The track's matrix says: turn a quarter clockwise (ISO/IEC 14496-12, 8.3.2)."""
    path = make_video(tmp_path / "phone.mp4", 3)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", data[at : at + 36]) == (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    data[at : at + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    for frame in read_all(open_source(str(path))):
        assert frame.image.shape == (WIDTH, HEIGHT, 3)
        x1, y1, x2, y2 = scene(frame.index)[1]
        assert find_square(frame.image) == pytest.approx((HEIGHT - y2, x1, HEIGHT - y1, x2), abs=2)


def test_a_film_that_is_taken_over_stands_still_until_it_is_read(tmp_path: Path) -> None:
    """Its frame is decoded before the other program is asked to stop; what passes meanwhile makes no frame late."""
    path = make_video(tmp_path / "clip.mp4", 20, rate=25)
    source = Resumed(open_source(str(path), realtime=True))
    source.warm(5)
    held = source._held
    assert held is not None
    while time.monotonic() < held.at + 0.3:  # as long as seven frames
        time.sleep(0.01)
    source.begin(5)
    before = time.monotonic()
    frames = list(iter(source.read, None))
    assert [frame.index for frame in frames] == list(range(5, 20)) and frames[0].at >= before
    for later, frame in enumerate(frames):
        assert frame.at >= frames[0].at + later * 0.04 - 1e-3, "its clock stood still, too: none is overdue"
    source.close()
