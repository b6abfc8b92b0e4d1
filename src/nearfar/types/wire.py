"""What a client and a service say to each other: a small msgpack head, then the tensors' bytes one after the other.

Each buffer in a body starts at a multiple of `ALIGN` from the body's own start, so that a receiver can use it in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from nearfar.errors import Moved, NearfarError, by_code
from nearfar.types.request import Privacy, Stages
from nearfar.types.tensor import DType, Tensor

ALIGN = 64
_PADDING = bytes(ALIGN)


class Operation(StrEnum):
    INFER = "infer"
    """Tensors in, tensors out; no processing."""
    SEE = "see"
    """An image in; out come `boxes`, `scores`, `class_ids` (detector) or `scores`, `class_ids` (classifier)."""
    DESCRIBE = "describe"
    """Nothing in; out comes the manifest and the tensor specs as JSON."""
    CHAT = "chat"
    """The JSON of a chat completion in, that of its answer out; streamed: its chunks, a line each."""
    COMPLETE = "complete"
    """As CHAT, for a text that is continued."""
    EMBED = "embed"
    """The JSON of an embedding request in, that of its answer out."""
    STATE = "state"
    """Asked by a service, of another one: nothing in; out comes the state that `TextContext.state` names."""


TEXT = frozenset({Operation.CHAT, Operation.COMPLETE, Operation.EMBED})
"""Operations of language models: their body is the JSON that every engine and every far end speaks."""


class StateTicket(msgspec.Struct, frozen=True, array_like=True):
    """Where the state of an answer can be fetched, once: of one that was handed over for some moments, of one that was
    finished as long as its slot is not given to another call. It travels from the service that wrote the answer to the
    caller, and from there to the service that goes on, which fetches the state itself."""

    service: str
    secret: str
    """Known to who was handed the answer; without it the state is not given out."""
    build: str
    """Of model file and engine; another one cannot read the state."""
    digest: str
    """blake2b of the state, 32 bytes in hexadecimal; "" while it is not saved."""
    size: int
    """Bytes of the state; 0 while it is not saved."""
    written: int = 0
    """Characters of the answer that the caller has; below 0 when the call is another one with the same beginning."""


class TextContext(msgspec.Struct, frozen=True, array_like=True):
    """What a language engine must know of a call beside its body. Nothing in it is part of a prompt."""

    privacy: Privacy = Privacy.FLEET
    """How far the data may travel; whoever does not say so has not allowed a far end."""
    streamed: bool = False
    """Whether the body asks for chunks."""
    reason: str = ""
    """Why it goes where it goes, for the ledger of a far end."""
    conversation: str = ""
    """Calls of one conversation share the work that was done on its beginning."""
    caller: str = ""
    """Whose call it is: the name of a key, never the key."""
    request: str = ""
    """An id that all attempts of one request share."""
    state: StateTicket | None = None
    """What is known already of this call, at another service. To use it saves work; the answer is the same."""


class TensorHead(msgspec.Struct, frozen=True, array_like=True):
    name: str
    dtype: DType
    shape: tuple[int, ...]
    nbytes: int


class CallHead(msgspec.Struct, frozen=True, array_like=True):
    """A request. `budget_ms` is what is left of the deadline when it was sent; 0 means none. Of a streamed answer the
    deadline is that of its first token."""

    operation: Operation
    budget_ms: float = 0.0
    tensors: tuple[TensorHead, ...] = ()
    image: tuple[str, int, int] | None = None
    """(kind, width, height) when the body is an image."""
    wanted: tuple[str, ...] = ()
    """Names of outputs to send back; empty for all."""
    text: TextContext | None = None
    """Of a language model's call."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    code: str
    message: str
    hint: str = ""
    retry_after: float = 0.0
    state: StateTicket | None = None
    """With `moved`: where the state of the answer is."""

    def error(self) -> NearfarError:
        """The exception that the far side raised, as one of this side's."""
        cls = by_code(self.code)
        error = cls(self.message, self.hint)
        if hasattr(error, "retry_after"):
            error.retry_after = self.retry_after
        if isinstance(error, Moved):
            error.state = self.state
        return error

    @classmethod
    def of(cls, error: NearfarError) -> Failure:
        state = error.state if isinstance(error, Moved) else None
        return cls(error.code, error.message, error.hint, float(getattr(error, "retry_after", 0.0)), state)


class ReplyHead(msgspec.Struct, frozen=True, array_like=True):
    """An answer: tensors, or a failure; never both, never neither."""

    variant: str
    stages: Stages
    tensors: tuple[TensorHead, ...] = ()
    failure: Failure | None = None
    queued: int = 0
    """Requests that waited at the service when this was sent."""
    restored: int = 0
    """Tokens of prompt and answer that were not computed here, as their state was fetched from another service."""
    state: StateTicket | None = None
    """For the next turn: where the state of this answer is. Of a state itself: its digest and size."""


_encoder = msgspec.msgpack.Encoder()
_call = msgspec.msgpack.Decoder(CallHead)
_reply = msgspec.msgpack.Decoder(ReplyHead)


def encode(head: CallHead | ReplyHead) -> bytes:
    return _encoder.encode(head)


def decode_call(data: bytes) -> CallHead:
    """Raises `msgspec.DecodeError` on anything that is not a call."""
    try:
        return _call.decode(data)
    except UnicodeDecodeError as error:  # msgspec lets it pass
        raise msgspec.DecodeError(str(error)) from None


def decode_reply(data: bytes) -> ReplyHead:
    """Raises `msgspec.DecodeError` on anything that is not a reply."""
    try:
        return _reply.decode(data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from None


def heads_of(tensors: Sequence[Tensor]) -> tuple[TensorHead, ...]:
    return tuple(TensorHead(t.name, t.dtype, t.shape, t.nbytes) for t in tensors)


def body_of(tensors: Sequence[Tensor]) -> list[bytes | memoryview]:
    """The tensors' buffers with the padding between them. One tensor travels as it is, uncopied."""
    if len(tensors) == 1:
        return [tensors[0].buffer]
    parts: list[bytes | memoryview] = []
    for tensor in tensors:
        parts.append(tensor.buffer)
        if rest := -tensor.nbytes % ALIGN:
            parts.append(_PADDING[:rest])
    return parts


def tensors_of(heads: Sequence[TensorHead], body: bytes | memoryview) -> list[Tensor]:
    """Views into the body. Raises `InputError` when a head promises more than the body holds.

    >>> sent = [Tensor("a", DType.UINT8, (3,), b"abc"), Tensor("b", DType.INT16, (1,), b"xy")]
    >>> tensors_of(heads_of(sent), b"".join(body_of(sent))) == sent
    True
    """
    view = memoryview(body)
    tensors: list[Tensor] = []
    at = 0
    for head in heads:
        tensors.append(Tensor(head.name, head.dtype, head.shape, view[at : at + head.nbytes]).check())
        at += head.nbytes + (-head.nbytes % ALIGN)
    return tensors
