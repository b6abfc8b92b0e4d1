"""GGUF models with llama.cpp, by way of xllamacpp: continuous batching, streaming, grammars, embeddings, adapters.

The engine opens a port on the loopback address whether one wants it or not; it is closed to everybody by a key that
only this process knows.

What `TextOptions.settings` may hold: `prompt_cache` (bytes kept of prompts that were answered), `draft` (a file of a
small model of the same vocabulary that guesses tokens ahead), `ngram` ("1": guess by repetition in the text itself),
`draft_tokens` (guessed at once) and `loras` (adapters that a request may ask for, "name=file" a line).
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from nearfar.errors import Cancelled, DeadlineExceeded, InferenceError, InputError, ModelFileError, NearfarError
from nearfar.limits import free_memory
from nearfar.runtimes import engine, gguf
from nearfar.runtimes.chunks import Whole
from nearfar.runtimes.engine import one_line
from nearfar.runtimes.llamacall import PROGRESS, prepare, raised, translate
from nearfar.runtimes.llamastate import Geometry, LlamaStates, private_folder
from nearfar.runtimes.scoring import echoed, tokenizer, wants_echo
from nearfar.runtimes.text import LoadedText, OnPiece, TextFacts, TextOptions, TextRuntime
from nearfar.types.telemetry import ComputeUnit, UnitKind
from nearfar.types.units import show_bytes
from nearfar.types.wire import Operation, TextContext

_MODULE = "xllamacpp"
_INSTALL = "pip install 'nearfar[language]'"
MIB = 1024 * 1024
PROMPT_CACHE = 64 * MIB
"""Bytes kept of prompts that were answered; the engine's own default is 8 GiB."""
DRAFT_TOKENS = 8


class LlamaCppRuntime(TextRuntime):
    """llama.cpp on the CPU."""

    name = "llamacpp"
    formats = ("gguf",)

    def available(self) -> str | None:
        return None if engine.installed(_MODULE) else f"{_MODULE} is not installed. Type: {_INSTALL}"

    def units(self) -> tuple[ComputeUnit, ...]:
        if not engine.installed(_MODULE):
            return ()
        return (ComputeUnit(UnitKind.CPU, "cpu", "llama.cpp runs on every CPU"),)

    def facts(self, path: Path) -> TextFacts:
        return gguf.facts(path)

    def load_text(self, path: Path, options: TextOptions) -> LoadedText:
        head = gguf.read(path)
        told = gguf.facts(path)
        trained = told.context or options.context
        # Never 0, which means all that the model was trained for; the engine itself rounds up to 256.
        context = -(-max(1, min(options.context, trained)) // 256) * 256
        loras = _loras(options.settings)
        draft = options.settings.get("draft", "")
        extras = [gguf.need_beside(Path(file)) for _, file in loras]
        if draft:
            extras.append(gguf.need(gguf.read(Path(draft)), context, options.slots, Path(draft).stat().st_size).total)
        cache = 0 if options.embedding else int(options.settings.get("prompt_cache", PROMPT_CACHE))
        batch = context if options.embedding else gguf.BATCH
        need = gguf.need(head, context, options.slots, path.stat().st_size, batch, sum(extras), cache)
        check_fits(need, options)
        module = engine.load_engine(_MODULE, _INSTALL)
        parameters = _parameters(module, path, options, context)
        _speculate(module, parameters, options)
        if loras:
            parameters.lora_adapters = [module.CommonAdapterLoraInfo(file, 0.0) for _, file in loras]
        if options.embedding and not head.values.get(f"{head.architecture}.pooling_type"):
            parameters.pooling_type = module.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        names = [name for name, _ in loras]
        return _Loaded(module, parameters, options, min(context, trained), names, head.vocabulary)


def check_fits(need: gguf.Need, options: TextOptions) -> None:
    """Raise `ModelFileError` with the sum when the model would not fit."""
    if options.memory:
        taken = _resident()
        have, why = options.memory - taken, f"[node] memory_limit less {show_bytes(taken)} of the process itself"
    else:
        have, why = free_memory()
        if have < 0:  # not told
            return
    if need.total > have:
        raise ModelFileError(
            f"{options.name} does not fit: {need}, and there are {show_bytes(max(0, have))} ({why}).",
            f"Set [language] context below {options.context} or slots below {options.slots}, or use a smaller variant.",
        )


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _loras(settings: Any) -> list[tuple[str, str]]:
    """(name, file) of each adapter."""
    found = [line.partition("=") for line in settings.get("loras", "").splitlines() if line]
    for name, _, file in found:
        if not Path(file).is_file():
            raise ModelFileError(f"The adapter {name} is not there: {file}.", "Correct [language] loras.")
    return [(name, file) for name, _, file in found]


def _parameters(module: Any, path: Path, options: TextOptions, context: int) -> Any:
    parameters = module.CommonParams()
    parameters.model.path = str(path)
    parameters.model_alias = {options.name}
    parameters.n_ctx = context * options.slots
    parameters.n_parallel = options.slots
    parameters.kv_unified = False
    parameters.ctx_shift = False  # what does not fit is refused; and `llamastate.py` relies on it
    parameters.fit_params = False  # else it makes the context smaller without a word
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options.threads
    # A prompt is read in parts of this size; between two of them others get their turn, and a stop is heard.
    parameters.n_batch = parameters.n_ubatch = context if options.embedding else gguf.BATCH
    parameters.cache_ram_mib = int(options.settings.get("prompt_cache", PROMPT_CACHE)) // MIB
    # Else each call makes the engine look at what every idle slot holds: a tenth of a millisecond and more, on the one
    # thread that all wait for. What a slot is about to lose is kept all the same; only a shared context gains by more.
    parameters.cache_idle_slots = False
    parameters.verbosity = -1
    parameters.api_keys = [secrets.token_urlsafe(32)]
    parameters.embedding = options.embedding
    parameters.endpoint_metrics = True
    return parameters


def _speculate(module: Any, parameters: Any, options: TextOptions) -> None:
    settings = options.settings
    kinds = module.common_speculative_type
    tokens = int(settings.get("draft_tokens", DRAFT_TOKENS))
    if draft := settings.get("draft", ""):
        guess = parameters.speculative.draft
        parameters.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        guess.mparams.path = draft
        guess.n_max = tokens
        guess.cpuparams.n_threads = guess.cpuparams_batch.n_threads = options.threads
    elif settings.get("ngram") == "1":
        parameters.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        parameters.speculative.ngram_simple.size_m = tokens


class _Loaded(LoadedText):
    def __init__(
        self, module: Any, parameters: Any, options: TextOptions, context: int, loras: list[str], vocabulary: int
    ) -> None:
        self.slots = options.slots
        self.context = context
        self._embedding = options.embedding
        self._loras = loras
        self._closing = threading.Lock()
        folder = private_folder()
        parameters.slot_save_path = f"{folder}{os.sep}"
        try:
            with _KeptSignals():
                self._server: Any = module.Server(parameters)
                # Its loop answers this; one that is told to end before it has begun never ends.
                self._server.handle_metrics()
        except (RuntimeError, ValueError) as error:
            raise ModelFileError(
                f"{options.name} cannot be loaded: {one_line(error)}.",
                "Fetch it again; a draft or an adapter in [language] must be made for this very model.",
            ) from error
        address, key = self._server.listening_address, parameters.api_keys[0]
        self._tokenize = tokenizer(address, key)
        if not options.embedding and "draft" not in options.settings:  # a draft model keeps a state of its own
            engine_told = f"{_MODULE} {module.__version__} {module.get_system_info()}"
            self.states = LlamaStates(address, key, folder, Geometry(engine_told, vocabulary, context, options.slots))

    def run(
        self, operation: Operation, body: bytes, on_piece: OnPiece, context: TextContext, budget_ms: float = 0.0
    ) -> None:
        server = self._server
        if server is None:
            raise InferenceError("The model is closed.", "Ask another service.")
        match operation:
            case Operation.CHAT | Operation.COMPLETE if not self._embedding:
                call = server.handle_chat_completions if operation is Operation.CHAT else server.handle_completions
            case Operation.EMBED if self._embedding:
                self._embed(server, body, on_piece)
                return
            case Operation.CHAT | Operation.COMPLETE:
                raise InputError("This model makes vectors, not text.", "Ask a chat model, or use /v1/embeddings.")
            case Operation.EMBED:
                raise InputError(
                    "This model makes text, not vectors.", "Serve an embedding model: nearfar up --model FILE.gguf."
                )
            case _:
                raise InputError(f"A language model cannot {operation.value}.", "Use /v1/chat/completions.")
        if operation is Operation.COMPLETE and wants_echo(body):
            on_piece(echoed(body, lambda fields: self._completed(fields, on_piece), self._tokenize))
            return
        asked = prepare(operation, body, self._loras)
        taker = _Taker(on_piece, Whole(operation is Operation.CHAT) if asked.whole else None, budget_ms, self.context)
        try:
            call(asked.body, taker)
        except (ValueError, RuntimeError) as error:
            raise raised(error) from None
        taker.end()

    def _completed(self, body: dict[str, Any], on_piece: OnPiece) -> dict[str, Any]:
        """A completion, whole, on behalf of a caller who may leave."""
        pieces: list[bytes] = []

        def take(piece: bytes) -> bool:
            if piece:
                pieces.append(piece)
            return on_piece(b"")

        self.run(Operation.COMPLETE, msgspec.json.encode(body), take, TextContext())
        if not pieces:
            raise Cancelled("Nobody waits for the scores any more.")
        answer: dict[str, Any] = msgspec.json.decode(pieces[-1])
        return answer

    def _embed(self, server: Any, body: bytes, on_piece: OnPiece) -> None:
        asked = prepare(Operation.EMBED, body, self._loras)
        try:
            piece = server.handle_embeddings(asked.body)
        except (ValueError, RuntimeError) as error:
            raise raised(error) from None
        if piece.startswith(b'{"error"'):
            raise translate(piece, self.context)
        on_piece(piece)

    def close(self) -> None:
        with self._closing:
            self._server = None


class _Taker:
    """The engine's callback. An exception in it would be swallowed there, so none leaves; `end` raises it."""

    def __init__(self, on_piece: OnPiece, whole: Whole | None, budget_ms: float, context: int) -> None:
        self._on_piece = on_piece
        self._whole = whole
        self._context = context
        self._end = time.monotonic() + budget_ms / 1000 if budget_ms else 0.0
        self._pieces = 0
        self._stopped = False
        self._failure: NearfarError | None = None

    def __call__(self, piece: bytes) -> bool:
        try:
            self._stopped = self._take(piece)
            return self._stopped
        except NearfarError as error:
            self._failure = error
        except Exception as error:
            self._failure = InferenceError(f"{type(error).__name__}: {error}", "Ask another service.")
        return True

    def _take(self, piece: bytes) -> bool:
        if piece.startswith(b'{"error"'):
            raise translate(piece, self._context)
        quiet = PROGRESS in piece
        # A deadline is that of the first token, or of the whole where it is wanted whole.
        if self._end and (quiet or self._whole is not None) and time.monotonic() > self._end:
            raise DeadlineExceeded("The deadline passed while the model worked on it.", "Allow more time.")
        if quiet:
            return self._on_piece(b"")
        self._pieces += 1
        if self._whole is None:
            return self._on_piece(piece)
        self._whole.add(piece)
        return self._on_piece(b"")

    def end(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._stopped:
            return
        if not self._pieces:
            raise InferenceError("llama.cpp ended without an answer.", "Ask another service.")
        if self._whole is not None:
            self._on_piece(self._whole.answer())


class _KeptSignals:
    """The engine takes SIGINT and SIGTERM for itself when it starts; here they stay whose they were."""

    def __enter__(self) -> None:
        mine = threading.current_thread() is threading.main_thread() and os.name == "posix"
        self._kept = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)} if mine else {}

    def __exit__(self, *exc: object) -> None:
        for sign, handler in self._kept.items():
            if handler is not None:
                signal.signal(sign, handler)
