"""Every exception that nearfar raises, in one tree.

Foreign exceptions (onnxruntime, zenoh, PyAV, ...) are translated where they enter; what leaves a room is one of these.
Each message ends with what to do next. `code` is the stable, machine-readable name that the API and `--json` show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class NearfarError(Exception):
    """Base of all. `hint` says what to type or change next; it is part of `str(error)`."""

    code = "error"
    exit_code = 1
    http_status = 500

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class SettingsError(NearfarError):
    """A setting has a wrong name, type or value, or a file of settings cannot be read."""

    code = "settings"
    exit_code = 2
    http_status = 500


class InputError(NearfarError):
    """What the caller sent is not what the model takes: shape, dtype, NaN, not an image, too large."""

    code = "invalid-input"
    exit_code = 2
    http_status = 400


class TooLarge(InputError):
    """The body or tensor is larger than the limit."""

    code = "too-large"
    http_status = 413


class PersonalDataRefused(InputError):
    """Personal data was found in a prompt, and the policy of its key refuses that; or a prompt that is private was
    about to leave the fleet. The message holds kinds and numbers, never the data."""

    code = "personal-data"
    http_status = 403


class ModelError(NearfarError):
    """Something about a model: its manifest, its file, its loading."""

    code = "model"
    exit_code = 3


class ManifestError(ModelError):
    """A manifest field is missing, unknown or out of range; the message names the field."""

    code = "manifest"
    http_status = 422


class ModelFileError(ModelError):
    """A model file is truncated, hostile, of another format, or does not match its sha256."""

    code = "model-file"
    http_status = 422


class UnknownModel(ModelError):
    """No such model here or in the fleet; the message offers the nearest name."""

    code = "unknown-model"
    http_status = 404


class StoreError(ModelError):
    """The model store could not be read or written: full disk, permissions."""

    code = "store"
    http_status = 507


class PullError(ModelError):
    """A model could not be pulled: offline, not found, checksum differs."""

    code = "pull"
    http_status = 502


class RuntimeUnavailable(NearfarError):
    """The engine that a variant needs is not installed or cannot use this machine."""

    code = "runtime-unavailable"
    exit_code = 3


class InferenceError(NearfarError):
    """The engine failed while it ran a variant on valid input."""

    code = "inference"
    exit_code = 4


class SelfTestFailed(InferenceError):
    """A service answered a question wrongly whose answer is known; what else it would answer is worth nothing."""

    code = "self-test"


class LedgerError(InferenceError):
    """What a call to a far end costs could not be written down, so it was not made; or the ledger cannot be read."""

    code = "ledger"
    http_status = 507


class PrivateRefused(NearfarError):
    """The data may not leave the fleet, and this would have sent it to a far end. Nothing was sent or written down."""

    code = "private"
    exit_code = 7
    http_status = 403


class SourceError(NearfarError):
    """A video source cannot be opened or broke off."""

    code = "source"
    exit_code = 5


class MeshError(NearfarError):
    """The mesh cannot do what was asked."""

    code = "mesh"
    exit_code = 6
    http_status = 503


class Unreachable(MeshError):
    """The destination is not there, or vanished before it answered. Nothing is known of the effect."""

    code = "unreachable"
    vanished = False
    """It was asked, and went away over it: asking another the same thing may have the same effect."""


class StreamCut(MeshError):
    """A streamed answer ended in the middle: some of it was delivered, so it cannot simply be asked for again."""

    code = "stream-cut"
    service = ""
    """Who gave the answer until then."""
    cause: NearfarError | None = None

    @classmethod
    def of(cls, error: NearfarError, service: str) -> StreamCut:
        """What befell a service in the middle of its answer."""
        made = cls(f"The answer of {service} was cut in the middle: {error.message}", error.hint)
        made.service, made.cause = service, error
        return made


class Moved(MeshError):
    """A service that is asked to end hands a streamed answer over: another one is to go on with it."""

    code = "moved"
    state: Any = None
    """A `types.wire.StateTicket` when what was computed of the answer can be fetched; else None."""


class PortBusy(MeshError):
    """A port that was asked for is taken by somebody else."""

    code = "port-busy"
    exit_code = 2


class DuplicateNode(MeshError):
    """Another living agent has this node id."""

    code = "duplicate-node"
    exit_code = 2


class DuplicateStream(MeshError):
    """Another program runs a stream of this name."""

    code = "duplicate-stream"
    exit_code = 2


class DeadlineExceeded(NearfarError):
    """The deadline passed before the answer was there."""

    code = "deadline-exceeded"
    exit_code = 7
    http_status = 503
    foreseen = False
    """The service refused what it could not have answered in time; another may."""


class Cancelled(NearfarError):
    """The caller went away; the work was dropped."""

    code = "cancelled"
    exit_code = 8
    http_status = 499


class UnknownStream(NearfarError):
    """No stream of that name runs in the fleet or left a trail in this home folder."""

    code = "unknown-stream"
    exit_code = 2
    http_status = 404


class Overloaded(NearfarError):
    """A queue is full. `retry_after` in seconds says when it is worth asking again."""

    code = "overloaded"
    exit_code = 7
    http_status = 503

    def __init__(self, message: str, hint: str = "", retry_after: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class NoCandidate(NearfarError):
    """No service may take the request; `refusals` holds (service or node, code, reason) of every candidate."""

    code = "no-candidate"
    exit_code = 7
    http_status = 503

    def __init__(
        self,
        message: str,
        hint: str = "",
        refusals: Sequence[Mapping[str, str]] = (),
        retry_after: float = 1.0,
    ) -> None:
        super().__init__(message, hint)
        self.refusals = tuple(refusals)
        self.retry_after = retry_after


def by_code(code: str) -> type[NearfarError]:
    """The class whose `code` this is; `NearfarError` for a code of a newer version.

    >>> by_code("unknown-model").__name__
    'UnknownModel'
    """
    pending: list[type[NearfarError]] = [NearfarError]
    while pending:
        cls = pending.pop()
        if cls.code == code:
            return cls
        pending.extend(cls.__subclasses__())
    return NearfarError
