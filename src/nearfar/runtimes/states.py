"""The seam by which what an engine has computed of a conversation moves to another process with the same engine.

A state is bytes that only the same build of the same engine, with the same model file, can read: tokens, and what was
computed of each. It holds the conversation, so it is as private as that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from nearfar.types.wire import Operation


class Marked(NamedTuple):
    """A call whose state can be found later."""

    body: bytes
    mark: int


class Resumed(NamedTuple):
    """What is to be run in place of a call whose state was restored."""

    operation: Operation
    body: bytes
    first: bytes
    """A chunk with the text that the state holds already; b"" for none."""
    tokens: int
    """Of prompt and answer, that need not be computed again."""
    chunks: Callable[[bytes], Sequence[bytes]]
    """Makes a chunk of the engine those of the call that was asked."""


class States(ABC):
    """States of one loaded model. Used by all threads of a service."""

    build: str = ""
    """Names model file, engine, machine and geometry: states move where it is equal. "" while none can be moved."""

    @abstractmethod
    def learn(self, model: str) -> None:
        """Called once, after the engine has answered its first call: find out whether states can be moved, and set
        `build`. `model` is the digest of the model's file. Raises nothing."""

    @abstractmethod
    def marked(self, body: bytes) -> Marked | None:
        """The call as it must be run so that its state is found; None when its state cannot be moved."""

    @abstractmethod
    def save(self, mark: int, most: int) -> bytes:
        """The state of a marked call that has ended, of `most` bytes at most. Raises `InferenceError`: also when its
        slot is another call's now."""

    @abstractmethod
    def resume(self, operation: Operation, body: bytes, state: bytes, written: int) -> Resumed:
        """Check a state and restore it, to go on with this very call after `written` characters of its answer at most;
        below 0: as a known beginning of its prompt. Raises `InputError` for a state that is not sound or not of this
        call, `InferenceError` when the engine does not take it; nothing is changed then."""
