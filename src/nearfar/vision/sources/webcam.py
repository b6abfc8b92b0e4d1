"""A camera on this machine, through Video4Linux2."""

from __future__ import annotations

from pathlib import Path

from nearfar.errors import SourceError
from nearfar.vision.sources.live import LiveSource


class WebcamSource(LiveSource):
    """`webcam:0`, `webcam:/dev/video2` or `/dev/video0`. Raises `SourceError` when there is no such device."""

    def __init__(self, uri: str, *, read_timeout: float = 5.0, give_up: float = 60.0) -> None:
        name = uri.partition(":")[2] if uri.startswith("webcam:") else uri
        device = Path(f"/dev/video{name or 0}" if (name or "0").isdigit() else name)
        if not device.exists():
            there = sorted(str(path) for path in Path("/dev").glob("video*"))
            what = f"There are: {', '.join(there)}." if there else "This machine has none; plug one in, or give a file."
            raise SourceError(f"There is no camera {str(device)!r}.", what)
        super().__init__(
            str(device), str(device), format_name="v4l2", open_timeout=5.0, read_timeout=read_timeout, give_up=give_up
        )
