"""GGUF models with llama.cpp, by way of xllamacpp: continuous batching, streaming, grammars, embeddings.

The engine opens a port on the loopback address whether one wants it or not; it is closed to everybody by a key that
only this process knows.
"""

from __future__ import annotations

import secrets
import threading
from pathlib import Path
from typing import Any

import msgspec

from nearfar.errors import InferenceError, InputError, ModelFileError, NearfarError, Overloaded
from nearfar.limits import free_memory
from nearfar.runtimes import gguf
from nearfar.runtimes.engine import installed, load_engine, one_line
from nearfar.runtimes.text import LoadedText, OnPiece, TextFacts, TextOptions, TextRuntime
from nearfar.types.telemetry import ComputeUnit, UnitKind
from nearfar.types.units import show_bytes
from nearfar.types.wire import Operation, TextContext

_MODULE = "xllamacpp"
_INSTALL = "pip install 'nearfar[language]'"
PROMPT_CACHE_MIB = 64
"""Kept of prompts that were answered; the engine's own default is 8 GiB."""


class LlamaCppRuntime(TextRuntime):
    """llama.cpp on the CPU."""

    name = "llamacpp"
    formats = ("gguf",)

    def available(self) -> str | None:
        return None if installed(_MODULE) else f"{_MODULE} is not installed. Type: {_INSTALL}"

    def units(self) -> tuple[ComputeUnit, ...]:
        if not installed(_MODULE):
            return ()
        return (ComputeUnit(UnitKind.CPU, "cpu", "llama.cpp runs on every CPU"),)

    def facts(self, path: Path) -> TextFacts:
        return gguf.facts(path)

    def load_text(self, path: Path, options: TextOptions) -> LoadedText:
        head = gguf.read(path)
        told = gguf.facts(path)
        trained = told.context or options.context
        context = -(-min(options.context, trained) // 256) * 256  # the engine rounds up to this
        _check_fits(path, gguf.need(head, context, options.slots, path.stat().st_size), options)
        engine = load_engine(_MODULE, _INSTALL)
        return _Loaded(engine, path, options, context, min(context, trained))


def _check_fits(path: Path, need: gguf.Need, options: TextOptions) -> None:
    """Raise `ModelFileError` with the sum when the model would not fit."""
    free = free_memory()
    have, why = (options.memory, "allowed by [node] memory_limit") if options.memory else (free.value, free.reason)
    if have and need.total > have:
        raise ModelFileError(
            f"{path.name} does not fit: {need}, and {show_bytes(have)} are free ({why}).",
            f"Set [language] context below {options.context} or slots below {options.slots}, or use a smaller variant.",
        )


class _Failure(msgspec.Struct):
    message: str = ""
    type: str = ""
    code: int = 500


class _MaybeFailed(msgspec.Struct):
    error: _Failure | str | None = None


_failed = msgspec.json.Decoder(_MaybeFailed)


class _Loaded(LoadedText):
    def __init__(self, engine: Any, path: Path, options: TextOptions, per_slot: int, context: int) -> None:
        self.slots = options.slots
        self.context = context
        parameters = engine.CommonParams()
        parameters.model.path = str(path)
        parameters.model_alias = {options.name}
        parameters.n_ctx = per_slot * options.slots
        parameters.n_parallel = options.slots
        parameters.kv_unified = False
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options.threads
        parameters.cache_ram_mib = PROMPT_CACHE_MIB
        parameters.verbosity = -1
        parameters.api_keys = [secrets.token_urlsafe(32)]
        parameters.embedding = options.embedding
        try:
            self._server: Any = engine.Server(parameters)
        except (RuntimeError, ValueError) as error:
            raise ModelFileError(f"{path.name} cannot be loaded: {one_line(error)}.", "Fetch it again.") from error
        self._closing = threading.Lock()

    def run(
        self, operation: Operation, body: bytes, on_piece: OnPiece, context: TextContext, budget_ms: float = 0.0
    ) -> None:
        server = self._server
        if server is None:
            raise InferenceError("The model is closed.", "Ask another service.")
        match operation:
            case Operation.CHAT:
                handle = server.handle_chat_completions
            case Operation.COMPLETE:
                handle = server.handle_completions
            case Operation.EMBED:
                handle = server.handle_embeddings
            case _:
                raise InputError(f"A language model cannot {operation.value}.", "Use /v1/chat/completions.")
        failure: NearfarError | None = None
        pieces = 0
        stopped = False

        def take(piece: bytes) -> bool:
            # An exception in here would be swallowed by the engine, so none may leave.
            nonlocal failure, pieces, stopped
            try:
                if piece.startswith(b'{"error"'):
                    failure = _translate(piece)
                    return True
                pieces += 1
                stopped = on_piece(piece)
                return stopped
            except NearfarError as error:
                failure = error
            except Exception as error:
                failure = InferenceError(f"{type(error).__name__}: {error}", "Ask another service.")
            return True

        try:
            handle(body, take)
        except ValueError as error:
            raise InputError(f"The model does not take this request: {one_line(error)}.", "Correct it.") from None
        except RuntimeError as error:
            raise InferenceError(f"llama.cpp failed: {one_line(error)}.", "Ask another service.") from None
        if failure is not None:
            raise failure
        if not pieces and not stopped:
            raise InferenceError("llama.cpp ended without an answer.", "Ask another service.")

    def close(self) -> None:
        with self._closing:
            self._server = None


def _translate(piece: bytes) -> NearfarError:
    """The engine's own error as one of ours."""
    try:
        error = _failed.decode(piece).error
    except msgspec.MsgspecError:
        error = None
    if not isinstance(error, _Failure):
        return InferenceError(f"llama.cpp failed: {error or 'it does not say why'}.", "Ask another service.")
    told = error.message.rstrip(". ") or error.type
    if error.code == 503:
        return Overloaded(f"llama.cpp is busy: {told}.", "Try again.", 0.5)
    if 400 <= error.code < 500:
        return InputError(f"The model does not take this request: {told}.", "Correct it.")
    return InferenceError(f"llama.cpp failed: {told}.", "Ask another service.")
