"""A request, what it asks for, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from nearfar.errors import InputError
from nearfar.types.detections import Detections
from nearfar.types.ids import ModelName, ServiceId, StreamId
from nearfar.types.tensor import Tensor
from nearfar.types.units import Bytes, Milliseconds

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Privacy(StrEnum):
    """How far the data may travel. A filter before every policy, never a weight in one."""

    LOCAL = "local"
    """Never leaves the node where it entered."""
    FLEET = "fleet"
    """Any node of this fleet."""
    ANY = "any"
    """Also a far end behind somebody's API."""


class Degrade(StrEnum):
    """What a caller would rather give up than the promise, when nothing can keep it."""

    RATE = "rate"
    """Look at fewer frames."""
    INPUT = "input"
    """Send smaller pictures."""
    MODEL = "model"
    """Ask a smaller model of the same task and labels."""
    FAR = "far"
    """Ask a far end, where privacy and cost allow it."""
    REFUSE = "refuse"
    """Say no at once instead of answering late."""


FOR_ONE = (Degrade.FAR, Degrade.REFUSE)
"""What a single request can give up; the others need a stream of them."""


def parse_degrade(text: str, among: Sequence[Degrade] = tuple(Degrade)) -> tuple[Degrade, ...]:
    """An ordered list such as `rate,input,refuse`. Raises `InputError` for a word not `among`, or one that is repeated.

    >>> [step.value for step in parse_degrade("rate, refuse")]
    ['rate', 'refuse']
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    known = ", ".join(step.value for step in among)
    for word in words:
        if word not in [step.value for step in among]:
            raise InputError(f"{word[:40]!r} cannot be given up here.", f"Use some of {known}, in your order.")
    if len(set(words)) < len(words):
        raise InputError(f"{text[:80]!r} names something twice.", f"Use some of {known}, each once.")
    return tuple(Degrade(word) for word in words)


class Qos(msgspec.Struct, frozen=True):
    """What the caller needs. Without a deadline, sooner is better and nothing is refused for being late."""

    deadline: Milliseconds | None = None
    privacy: Privacy = Privacy.ANY
    node: str | None = None
    """Only this node may answer (to pin a request, to measure a node)."""
    percentile: float = 95.0
    """Of a stream: so many of a hundred answers must keep the deadline; 50 to 99.9."""
    max_cost: float | None = None
    """Most that one request may cost, in the currency in which the fleet's services state theirs; None for any."""
    degrade: tuple[Degrade, ...] = ()
    """What to give up, in this order, when nothing keeps the promise; none: answers come late and are counted so."""


class Request(msgspec.Struct, frozen=True):
    """What placement needs to know of one inference; the data itself travels beside it."""

    model: ModelName
    origin: str
    """The node id where the data is, or the client's own id when it runs on no node."""
    size: Bytes = Bytes(0)
    """Bytes that must be moved to another node."""
    answer_size: Bytes = Bytes(1024)
    qos: Qos = Qos()
    stream: StreamId | None = None
    incumbent: ServiceId | None = None
    """Who served this stream last: hysteresis keeps it unless another is clearly better."""
    excluded: tuple[ServiceId, ...] = ()
    """Services that already failed this very request."""
    frame: int | None = None
    """Number of the stream's frame that it carries, for its trail; None when it is no frame."""
    first_token: bool = False
    """Whether the deadline is that of an answer's first token, and not of the whole answer."""
    forecast: Milliseconds | None = None
    """What the stream's monitor expects of the incumbent soon, when it sees the promise threatened or broken there:
    then no hysteresis holds the stream to it. None while the promise is kept."""


FRAME: ContextVar[int | None] = ContextVar("frame", default=None)
"""The frame that this task asks for. A seer's signature need not know of frames; whoever asks the fleet reads it."""


class Stages(msgspec.Struct, frozen=True, array_like=True):
    """Where the time of one answer went, in milliseconds. `link` is what is left of the total: network and wake-ups."""

    link: float = 0.0
    queue: float = 0.0
    preprocess: float = 0.0
    inference: float = 0.0
    postprocess: float = 0.0

    @property
    def service(self) -> float:
        """Time the service worked on this request, without waiting."""
        return self.preprocess + self.inference + self.postprocess

    @property
    def total(self) -> float:
        return self.link + self.queue + self.service


STAGE_NAMES = ("link", "queue", "preprocess", "inference", "postprocess")


class Answer(msgspec.Struct, frozen=True):
    """The outputs and who made them, how long each stage took and what was tried before."""

    outputs: Sequence[Tensor]
    served_by: ServiceId
    variant: str
    stages: Stages
    attempts: tuple[str, ...] = ()
    """Failed attempts before this answer, each as `service: reason`."""
    aside: bool = False
    """Served for this request alone (a hedge, a retry, a queue that was too long): its stream stays where it is."""

    def array(self, name: str) -> NDArray[Any]:
        """The output of that name as an array; raises `KeyError` with the names there are."""
        for tensor in self.outputs:
            if tensor.name == name:
                return tensor.array()
        raise KeyError(f"no output {name!r}; there are {[t.name for t in self.outputs]}")

    def detections(self) -> Detections:
        """What a detector found, in pixels of the image that was sent."""
        return Detections(self.array("boxes"), self.array("scores"), self.array("class_ids"))
