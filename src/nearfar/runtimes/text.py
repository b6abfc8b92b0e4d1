"""The seam between nearfar and an engine of language.

A call is the JSON of a chat completion, a completion or an embedding request, and so is its answer: every engine and
every far end speaks this, and translating twice would cost time and lose fields. As with every runtime, an engine is
imported only in `available()` or when it loads, and its own exceptions never leave it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from nearfar.errors import ModelFileError
from nearfar.runtimes.base import LoadedVariant, LoadOptions, Runtime
from nearfar.runtimes.states import States
from nearfar.types.units import Bytes
from nearfar.types.wire import Operation, TextContext

OnPiece = Callable[[bytes], bool]
"""Takes one JSON object; True asks the engine to stop, as nobody waits for more. Nothing (`b""`) says that the engine
is still at work, and asks the same."""


class TextFacts(msgspec.Struct, frozen=True):
    """What a file says of its model, read without an engine."""

    architecture: str
    parameters: int
    context: int
    """Tokens the model was trained for."""
    quantisation: str
    """As its file type says: `f16`, `q8_0`, `q4_k_m`, ..."""
    embedding: bool = False
    """Made for vectors, not for text."""
    chat: bool = False
    """Has a template for conversations."""
    licence: str = ""


class TextOptions(msgspec.Struct, frozen=True):
    """How to load a language model."""

    name: str
    """What answers say their model is."""
    threads: int = 1
    unit: str = "cpu"
    context: int = 4096
    """Tokens for one conversation; fewer when the model was trained for fewer."""
    slots: int = 4
    """Conversations answered at the same time."""
    memory: Bytes = Bytes(0)
    """Most bytes it may take; 0 for what the machine has free."""
    embedding: bool = False
    """Load it for vectors instead of text."""
    settings: Mapping[str, str] = {}
    """An engine's own, by name."""


class LoadedText(ABC):
    """A language model in memory. `run` may be called by as many threads at once as it has `slots`."""

    slots: int
    context: int
    """Tokens of prompt and answer together that one conversation may have."""
    free: bool = True
    """Whether a call costs nothing, as the work is done here: then the service asks itself a question now and then. Of
    what somebody else does for money none is made to try it, and it ends by itself, however long it takes."""

    alternatives: int = 20
    """Most tokens that can be told beside each token of an answer, with their log-probabilities (`top_logprobs`)."""
    prices: tuple[float, float, str] = (0.0, 0.0, "")
    """For a million tokens of prompt, a million of answer, and the currency."""

    states: States | None = None
    """By what conversations move to another process; None where they do not."""

    def expected_cost(self) -> float:
        """Price of the next call, in the currency of the fleet; 0 on hardware of one's own."""
        return 0.0

    def expected_ms(self) -> float:
        """Milliseconds of the next call, where none may be made to measure it."""
        return 0.0

    @abstractmethod
    def run(
        self, operation: Operation, body: bytes, on_piece: OnPiece, context: TextContext, budget_ms: float = 0.0
    ) -> None:
        """Answer one call: one piece, or with `context.streamed` its chunks, each one JSON object without line breaks.

        `budget_ms` is what is left until the deadline, 0 for none. Returns when the last piece was given, or soon
        after `on_piece` said that nobody waits. Raises `InputError` for what the model does not take, `Overloaded`,
        `DeadlineExceeded`, `InferenceError`; never returns without a piece.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the memory back; may be called twice."""


class TextRuntime(Runtime):
    """An engine of language on this machine."""

    @abstractmethod
    def facts(self, path: Path) -> TextFacts:
        """What the file says of its model. Raises `ModelFileError`."""

    @abstractmethod
    def load_text(self, path: Path, options: TextOptions) -> LoadedText:
        """Load a file. Raises `ModelFileError`, also when it does not fit, and `RuntimeUnavailable`."""

    def load(self, path: Path, options: LoadOptions = LoadOptions()) -> LoadedVariant:  # noqa: B008 - frozen
        raise ModelFileError(f"{path.name} takes text, not tensors.", "Use /v1/chat/completions.")
