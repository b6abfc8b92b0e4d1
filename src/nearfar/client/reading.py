"""What a client reads out of an answer or a failure, and how it asks again; shared by every way of asking."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nearfar.errors import DeadlineExceeded, InferenceError, InputError, MeshError, NearfarError, Overloaded
from nearfar.mesh.base import Message
from nearfar.node.worker import Description
from nearfar.types.ids import ServiceId
from nearfar.types.request import Answer, Request
from nearfar.types.tensor import Tensor
from nearfar.types.units import Milliseconds
from nearfar.types.wire import Failure, Operation, ReplyHead, decode_reply, tensors_of

ELSEWHERE = (MeshError, Overloaded, InferenceError)
"""Failures after which another service may do better. An inference has no side effect, so repeating one is safe."""
MOST_DEATHS = 2
"""Services that may vanish over one request; then the request itself is what kills them."""
MOST_ATTEMPTS = 8


def read(message: Message, service: ServiceId, operation: Operation) -> tuple[ReplyHead, list[Tensor]]:
    """The answer in a message, or the failure. Raises `MeshError` when it makes no sense."""
    try:
        reply = decode_reply(message.head)
        if reply.failure is None:
            if operation is Operation.DESCRIBE:
                return reply, [Tensor.raw("description", message.body)]
            return reply, tensors_of(reply.tensors, message.body)
    except (msgspec.MsgspecError, InputError) as error:  # its fault, not the caller's input
        raise unreadable(service, error) from None
    return reply, []


def failure(said: Failure) -> NearfarError:
    """What the service said. That it cannot keep the deadline leaves time to ask another, unlike our own timer."""
    error = said.error()
    if isinstance(error, DeadlineExceeded):
        error.foreseen = True
    return error


def refused_as_doomed(error: NearfarError) -> bool:
    return isinstance(error, DeadlineExceeded) and error.foreseen


def again(
    request: Request,
    left: Milliseconds,
    attempts: Sequence[tuple[ServiceId, NearfarError]],
    excluded: tuple[ServiceId, ...] = (),
) -> Request:
    """The request for another service than those that failed or were asked, with what is left of its deadline."""
    qos = request.qos
    if qos.deadline is not None:
        qos = msgspec.structs.replace(qos, deadline=left)
    without = dict.fromkeys((*request.excluded, *(service for service, _ in attempts), *excluded))
    return msgspec.structs.replace(request, qos=qos, excluded=tuple(without))


def description(answer: Answer) -> Description:
    try:
        return msgspec.json.decode(answer.outputs[0].buffer, type=Description)
    except ValueError as error:  # not JSON, not UTF-8
        raise unreadable(answer.served_by, error) from None


def unreadable(service: ServiceId, error: Exception) -> MeshError:
    return MeshError(f"{service} answered what cannot be read: {error}.", "Does it run another version?")


def tell(attempts: Sequence[tuple[ServiceId, NearfarError]]) -> str:
    return "; ".join(f"{service}: {error.message}" for service, error in attempts)
