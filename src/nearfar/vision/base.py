"""The two seams of this room: where frames come from (`Source`) and who looks at them (`Seer`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

import msgspec

from nearfar.types.ids import ModelName, ServiceId, StreamId
from nearfar.types.image import Image
from nearfar.types.request import Answer, Qos
from nearfar.types.units import Milliseconds, Seconds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Frame(msgspec.Struct, frozen=True, eq=False):
    """One picture of a source. `index` counts from 0 without gaps over reconnects and loops."""

    index: int
    at: Seconds
    """`time.monotonic()` when the source had it: the arrival of its bytes, or the moment at which it was due."""
    image: NDArray[np.uint8]
    """uint8 [height, width, 3], blue-green-red, contiguous."""
    pts_ms: Milliseconds | None = None
    """Presentation time within the source, growing over loops; None when the source has no clock."""
    decode_ms: Milliseconds = Milliseconds(0.0)
    jpeg: bytes | None = None
    """The whole JPEG that the frame was decoded from, when the source sends such (MJPEG): no need to encode again."""


class Source(ABC):
    """A camera, a file, a folder. `read` blocks and is called from one thread; `close` may come from another."""

    uri: str
    """As the user wrote it, without a password."""
    live: bool
    """Frames come when they come: what nobody takes in time must be dropped, since the source does not wait."""
    reconnects: int = 0
    corrupt: int = 0
    """Pieces of a live stream that could not be decoded and were passed over."""
    ended: str = ""
    """Why there are no more frames, once `read` returned None or raised."""
    passed_ms: Milliseconds | None = None
    """Presentation time of the last frame that was passed over (`skip`); None when none was."""

    @abstractmethod
    def read(self) -> Frame | None:
        """The next frame, or None at the regular end. Opens the source when called for the first time.

        Raises `SourceError` when it cannot be opened or broke off; frames before the break were delivered.
        """

    def skip(self, first: int) -> bool:
        """Pass over frames below number `first`, without waiting for their time; on the thread that reads.

        False for a source without a past, such as a camera: what it did not give is gone. Frames keep their numbers.
        """
        return False

    def stood_still(self, seconds: float) -> None:
        """A source with a clock of its own (a file in real time) was not read for so long on purpose: it goes on where
        it was, as if no time had passed. On the thread that reads.
        """
        return

    @abstractmethod
    def close(self) -> None:
        """Stop; a `read` under way returns None soon, at the latest when its time-out ends. May be called twice.

        The next `read` returns None at once and shuts what was opened, on the thread that opened it.
        """

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Movable(Protocol):
    """A part of a stream that remembers, and travels with it: its tracker, its monitor."""

    def export_state(self) -> bytes:
        """The whole memory. Raises `InputError` with the reason when it cannot travel."""
        ...

    def import_state(self, data: bytes) -> None:
        """Become the one that exported this. Raises `InputError` when it is not such a state; then unchanged."""
        ...


class Seer(Protocol):
    """Whoever answers images; the fleet's client does, and tests bring their own."""

    async def see(
        self,
        model: ModelName,
        image: Image,
        qos: Qos,
        *,
        stream: StreamId | None = None,
        incumbent: ServiceId | None = None,
    ) -> Answer:
        """One answer. Raises `NoCandidate`, `Overloaded`, `DeadlineExceeded`, `Unreachable`, ... with reasons."""
        ...

    def link_to(self, model: ModelName, incumbent: ServiceId | None) -> tuple[float, float | None]:
        """(round trip in milliseconds, bytes per second) to whom the next image will likely go.

        No bandwidth (None) when the service is on this machine or nothing was measured yet.
        """
        ...
