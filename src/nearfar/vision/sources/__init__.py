"""Where frames come from. `open_source` picks the file beside this one by what the user wrote."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nearfar.errors import SourceError
from nearfar.vision.base import Source

SCHEMES = {
    "file": "a video or an image: file:///tmp/clip.mp4, or just its path",
    "rtsp": "a network camera: rtsp://user:password@host:554/path (rtsps for TLS)",
    "rtsps": "",
    "http": "MJPEG or a video over HTTP: http://host/stream.mjpg (https for TLS)",
    "https": "",
    "webcam": "a camera on this machine: webcam:0 or /dev/video0",
}
IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):")
_DEVICE = re.compile(r"/dev/video\d+")


def open_source(uri: str, *, loop: bool = False, realtime: bool | None = None) -> Source:
    """The source that a user means by `uri`; its device, file or connection is opened by the first `read`.

    `loop` starts a file or folder over at its end. `realtime` delivers a file's frames at the times of its own clock
    (a folder's at 25 per second) and drops what nobody takes, as a camera would; without it a file is read as fast as
    frames are taken and nothing is dropped. Cameras are always real time: `realtime=False` and `loop` are refused.

    Raises `SourceError` for an unknown scheme (the message lists those that there are) or a path that does not exist.
    """
    found = _SCHEME.match(uri)
    scheme = found[1].lower() if found else ""
    if scheme and scheme not in SCHEMES:
        known = "; ".join(text for text in SCHEMES.values() if text)
        raise SourceError(f"{redact(uri)!r} has the unknown scheme {scheme!r}.", f"Sources are: {known}.")
    if scheme in ("rtsp", "rtsps", "http", "https", "webcam") or _DEVICE.fullmatch(uri):
        if loop or realtime is False:
            raise SourceError(f"{redact(uri)!r} is live.", "Leave out the options to loop or to read it faster.")
        return _live(uri, scheme)
    path = Path(unquote(urlsplit(uri).path)) if scheme == "file" else Path(uri).expanduser()
    if not path.exists():
        raise SourceError(f"There is no file or folder {str(path)!r}.", "Check the path.")
    if path.is_dir() or path.suffix.lower() in IMAGES:
        from nearfar.vision.sources.folder import FolderSource

        return FolderSource(path, loop=loop, realtime=bool(realtime))
    from nearfar.vision.sources.file import FileSource

    return FileSource(path, loop=loop, realtime=bool(realtime))


def _live(uri: str, scheme: str) -> Source:
    if scheme in ("rtsp", "rtsps"):
        from nearfar.vision.sources.rtsp import RtspSource

        return RtspSource(uri)
    if scheme in ("http", "https"):
        from nearfar.vision.sources.http import HttpSource

        return HttpSource(uri)
    from nearfar.vision.sources.webcam import WebcamSource

    return WebcamSource(uri)


def redact(uri: str) -> str:
    """The URI without its password, for messages and records.

    >>> redact("rtsp://admin:secret@cam/1"), redact("clip.mp4")
    ('rtsp://admin:***@cam/1', 'clip.mp4')
    """
    return re.sub(r"(//[^/:@]*):[^/]*@", r"\1:***@", uri)
