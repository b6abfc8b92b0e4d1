"""Network cameras over RTSP, over TCP: a lost UDP packet would smear the picture until the next key frame."""

from __future__ import annotations

from nearfar.vision.sources import redact
from nearfar.vision.sources.live import LiveSource

OPTIONS = {
    "rtsp_transport": "tcp",
    "flags": "low_delay",
    # Look only shortly for what the stream is. What was read by then is kept (no `nobuffer`): it holds the key frame,
    # without which the picture would start with the next one, seconds later.
    "analyzeduration": "1000000",
}


class RtspSource(LiveSource):
    """`rtsp://user:password@host:port/path`, also rtsps. Time-outs and `give_up` in seconds."""

    def __init__(
        self, uri: str, *, open_timeout: float = 10.0, read_timeout: float = 5.0, give_up: float = 60.0
    ) -> None:
        super().__init__(
            uri, redact(uri), options=OPTIONS, open_timeout=open_timeout, read_timeout=read_timeout, give_up=give_up
        )
