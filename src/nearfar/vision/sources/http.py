"""MJPEG over HTTP (`multipart/x-mixed-replace`), and whatever video a web server sends."""

from __future__ import annotations

from nearfar.vision.sources import redact
from nearfar.vision.sources.live import LiveSource

# With its default, FFmpeg reads up to five seconds of MJPEG before it hands out the first frame.
OPTIONS = {"flags": "low_delay", "analyzeduration": "500000", "probesize": "1000000"}


class HttpSource(LiveSource):
    """`http://user:password@host/path`, also https. The JPEGs travel on as they came. Times in seconds."""

    def __init__(
        self, uri: str, *, open_timeout: float = 10.0, read_timeout: float = 5.0, give_up: float = 60.0
    ) -> None:
        super().__init__(
            uri,
            redact(uri),
            options=OPTIONS,
            open_timeout=open_timeout,
            read_timeout=read_timeout,
            give_up=give_up,
            keep_jpeg=True,
        )
