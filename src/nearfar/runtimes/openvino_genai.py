"""Language models with OpenVINO GenAI: folders that were exported to OpenVINO, and the GGUF files that it reads.

Continuous batching, streaming, stopping, seeds, JSON schemas, prefix reuse. It has no grammars of the caller's own, no
adapters, no functions to call, no vectors, and of log-probabilities only those of the tokens that it chose.

What `TextOptions.settings` may hold: `prompt_cache` (bytes kept of prompts that were answered); `draft` and `loras` are
refused.
"""

from __future__ import annotations

import random
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nearfar.errors import (
    DeadlineExceeded,
    InferenceError,
    InputError,
    ModelFileError,
    NearfarError,
    RuntimeUnavailable,
)
from nearfar.runtimes import engine, gguf, irfolder
from nearfar.runtimes.chunks import Whole
from nearfar.runtimes.genaicall import Answer, Asked, Writing, grammar_for, logprobs_of, read
from nearfar.runtimes.genaipump import Job, Pump
from nearfar.runtimes.llamacall import refused, too_long
from nearfar.runtimes.llamacpp import PROMPT_CACHE, check_fits
from nearfar.runtimes.modelfile import format_of
from nearfar.runtimes.text import LoadedText, OnPiece, TextFacts, TextOptions, TextRuntime
from nearfar.types.telemetry import ComputeUnit, UnitKind
from nearfar.types.wire import Operation, TextContext

_MODULE = "openvino_genai"
_INSTALL = "pip install 'nearfar[openvino-genai]'"
_LLAMA = "Serve it with llama.cpp: pip install 'nearfar[language]'."
BLOCK = 32
"""Tokens of a block of keys and values on a CPU."""
ENGINE = 224 << 20
"""Bytes that the engine takes beside weights, keys and values: measured, 52 to 100 MiB when it is loaded, and up to 210
after thousands of calls with prompts of every length."""
TIMES = {32: 3.2, 16: 4.25, 8: 2.6, 4: 3.0}
"""What weights of so many bits take in memory, in times of the file: they are kept as they are, unpacked where the CPU
has no arithmetic of their kind, and once more in the order it reads them. Measured with 25 M and 145 M parameters."""
ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Of GGUF files."""
LISTEN_EVERY = 0.05
"""Seconds between two questions whether the caller still waits, while no token comes."""
_SHORTEST, _LONGEST = 0.0005, 0.01
"""Seconds between two looks for tokens."""
_PLACE = re.compile(r"(\[[\d:]+\] )?(Exception from |at )?[\w./-]+\.(cpp|hpp|cc|h):\d+:?\s*|Check '.*?' failed\s*")
"""Where in its sources the engine found an error, and by what expression."""


class OpenVinoGenAiRuntime(TextRuntime):
    """OpenVINO GenAI on the CPU."""

    name = "openvino-genai"
    formats = ("openvino-text", "gguf")

    def available(self) -> str | None:
        return None if engine.installed(_MODULE) else f"{_MODULE} is not installed. Type: {_INSTALL}"

    def units(self) -> tuple[ComputeUnit, ...]:
        if not engine.installed(_MODULE):
            return ()
        return (ComputeUnit(UnitKind.CPU, "cpu", "OpenVINO runs on every CPU"),)

    def facts(self, path: Path) -> TextFacts:
        if path.is_dir() or format_of(path) == "openvino-text":
            return irfolder.facts(path)
        _check_gguf(gguf.read(path), path.name)
        return gguf.facts(path)

    def load_text(self, path: Path, options: TextOptions) -> LoadedText:
        if options.unit != "cpu":
            raise RuntimeUnavailable(f"{self.name} has no unit {options.unit!r}.", "Use the unit cpu.")
        if options.embedding:
            raise ModelFileError(f"{self.name} makes no vectors.", _LLAMA)
        for setting, name in (("draft", "drafts"), ("loras", "loras")):
            if options.settings.get(setting):
                raise ModelFileError(f"{self.name} has no [language] {name}.", f"Remove it for {options.name}.")
        told = self.facts(path)
        context = max(1, min(options.context, told.context or options.context))
        form = _form(path)
        kept = int(options.settings.get("prompt_cache", PROMPT_CACHE))
        check_fits(_need(form, context, options.slots, kept), options)
        module = engine.load_engine(_MODULE, _INSTALL)
        with ExitStack() as stack:
            place = path
            if not path.is_dir():  # the engine goes by names, which files in a store have not
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nearfar-")))
                place = folder
                if form.bos is None:
                    irfolder.unpack(path, folder)
                else:
                    place = folder / "model.gguf"
                    place.symlink_to(path.resolve())
            return _Loaded(module, place, options, context, form, kept)


class _Form(NamedTuple):
    """What must be known of a model to reckon its memory, from either kind of file."""

    weights: int
    """Bytes in the file."""
    bits: int
    layers: int
    cached: int
    """Numbers kept of a token in each layer."""
    width: int
    wide: int
    vocabulary: int
    bos: int | None
    """Of a GGUF file: the token that is put before a text; -1 for none."""


def _form(path: Path) -> _Form:
    if not path.is_dir() and format_of(path) == "gguf":
        head = gguf.read(path)
        width, heads = head.number("embedding_length"), max(1, head.number("attention.head_count", 1))
        shared = head.number("attention.head_count_kv", heads) or heads
        size = head.number("attention.key_length", width // heads) + head.number(
            "attention.value_length", width // heads
        )
        quantisation = gguf.facts(path).quantisation
        bits = 16 if "16" in quantisation else 8 if quantisation == "q8_0" else 4
        wide = head.number("feed_forward_length", 4 * width)
        layers = head.number("block_count", 1)
        return _Form(head.bytes, bits, layers, shared * size, width, wide, head.vocabulary, _bos(head))
    ir = irfolder.read(path)
    width, heads = ir.number("hidden_size", "n_embd"), max(1, ir.number("num_attention_heads", "n_head", default=1))
    shared = ir.number("num_key_value_heads", default=heads) or heads
    size = 2 * ir.number("head_dim", default=width // heads)
    layers, wide = ir.number("num_hidden_layers", "n_layer"), ir.number("intermediate_size", default=4 * width)
    if not (layers and size):
        raise ModelFileError(f"{path.name}: {irfolder.CONFIG} does not tell its layers.", irfolder.EXPORT)
    bits = irfolder.BITS.get(ir.quantisation, 16)
    return _Form(ir.weights, bits, layers, shared * size, width, wide, ir.number("vocab_size"), None)


def _need(form: _Form, context: int, slots: int, kept: int) -> gguf.Need:
    """What loading takes. Keys and values are kept in f16, which is twice the memory of the engine's own choice."""
    blocks = slots * -(-context // BLOCK)
    cache = blocks * BLOCK * form.layers * form.cached * 2
    work = 4 * gguf.BATCH * (6 * form.width + 2 * form.wide + form.vocabulary) + ENGINE
    return gguf.Need(int(form.weights * TIMES[form.bits]), cache, work, 0, kept)


def _check_gguf(head: gguf.Gguf, name: str) -> None:
    """Raise `ModelFileError` for what the engine's reader is known to fail on, mostly without saying why."""
    if head.architecture not in ARCHITECTURES:
        told = (
            f"OpenVINO GenAI reads GGUF files of {', '.join(ARCHITECTURES)}; {name} is {head.architecture or 'none'}."
        )
        raise ModelFileError(told, _LLAMA)
    kind = head.values.get("tokenizer.ggml.model")
    if kind != "gpt2" or not head.values.get("tokenizer.ggml.pre") or not head.lengths.get("tokenizer.ggml.merges"):
        told = (
            f"OpenVINO GenAI reads GGUF files whose vocabulary is of merged bytes (gpt2); {name} has {str(kind)[:40]}."
        )
        raise ModelFileError(told, _LLAMA)
    if head.values.get("general.file_type") == 0:
        raise ModelFileError(f"OpenVINO GenAI reads no GGUF files in f32, as {name} is.", "Convert it to f16 or q8_0.")


def _bos(head: gguf.Gguf) -> int:
    """The engine's tokenizer of a GGUF file puts nothing before a text, also where the model was trained so."""
    asked = head.values.get("tokenizer.ggml.add_bos_token", head.values.get("tokenizer.ggml.pre") == "llama-bpe")
    token = head.values.get("tokenizer.ggml.bos_token_id")
    return token if asked and isinstance(token, int) else -1


class _Loaded(LoadedText):
    alternatives = 1

    def __init__(self, module: Any, path: Path, options: TextOptions, context: int, form: _Form, kept: int) -> None:
        self.slots = options.slots
        self._name = options.name
        self._module = module
        self._bos = -1 if form.bos is None else form.bos
        self._openvino = engine.load_engine("openvino", _INSTALL)
        scheduler = module.SchedulerConfig()
        per_block = BLOCK * form.layers * form.cached * 2
        scheduler.num_kv_blocks = options.slots * (-(-context // BLOCK) + 1) + 1 + kept // max(1, per_block)
        scheduler.max_num_batched_tokens = gguf.BATCH
        scheduler.max_num_seqs = options.slots + 1
        scheduler.enable_prefix_caching = kept > 0
        threads = max(1, options.threads)
        properties = {
            "INFERENCE_NUM_THREADS": threads,
            "sampler_num_threads": threads,
            # Its own choices depend on the machine; with some of them it ends the process where a CPU does not tell
            # the size of its caches, as in some virtual machines.
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f16",
            # Or it binds its threads to the first cores, where those of every other service are bound too.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            pipe = module.ContinuousBatchingPipeline(
                str(path), scheduler, "CPU", properties, {"INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
            )
            self._tokenizer: Any = pipe.get_tokenizer()
            vocabulary = self._tokenizer.get_vocab()
            self._longest = max(map(len, vocabulary), default=1)
            self._vocabulary = max(vocabulary.values(), default=0) + 1
            self._default: Any = pipe.get_config
            self.context = min(context, self._uncut(context))
        except Exception as error:  # of many kinds
            raise ModelFileError(
                f"OpenVINO GenAI cannot load {options.name}: {_plain(error)}.",
                irfolder.EXPORT if form.bos is None else _LLAMA,
            ) from error
        self._pump: Pump | None = Pump(module, pipe, self._tensor([0]))

    def run(
        self, operation: Operation, body: bytes, on_piece: OnPiece, context: TextContext, budget_ms: float = 0.0
    ) -> None:
        pump = self._pump
        if pump is None:
            raise InferenceError("The model is closed.", "Ask another service.")
        if operation is Operation.EMBED:
            raise InputError(
                "This model makes text, not vectors.", "Serve an embedding model: nearfar up --model FILE.gguf."
            )
        if operation not in (Operation.CHAT, Operation.COMPLETE):
            raise InputError(f"A language model cannot {operation.value}.", "Use /v1/chat/completions.")
        asked = read(operation, body, self.slots, self.alternatives)
        grammar = grammar_for(asked)
        tokens = self._tokens(operation, asked)
        answer = Answer(self._name, operation, asked, len(tokens))
        seed = random.getrandbits(31) if asked.seed is None else asked.seed
        tensor = self._tensor(tokens)
        jobs: list[Job] = []
        try:
            for number in range(asked.n or 1):
                config = self._configured(asked, grammar, len(tokens), (seed + number) & 0x7FFFFFFF)
                jobs.append(pump.add(tensor, config))
            _Teller(jobs, self, operation, asked, answer, on_piece, budget_ms).tell()
        finally:
            for job in jobs:
                pump.leave(job)

    def close(self) -> None:
        pump, self._pump = self._pump, None
        if pump is not None:
            pump.close()

    def decode(self, tokens: list[int]) -> str:
        """Without words of control."""
        return str(self._tokenizer.decode(tokens))

    def spell(self, tokens: list[int]) -> str:
        """With them."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))

    # -- what is asked ------------------------------------------------------------------------------------------------

    def _tokens(self, operation: Operation, asked: Asked) -> list[int]:
        """Raises `InputError` for a prompt that is too long; it is never cut."""
        if operation is Operation.CHAT:
            tokens = self._encoded(self._rendered(asked), special=False)
        elif isinstance(asked.prompt, str):
            tokens = self._encoded(asked.prompt, special=True)
            if self._bos >= 0:
                tokens.insert(0, self._bos)
        else:
            tokens = self._given(asked.prompt or [])
        if not tokens:
            raise InputError("The prompt holds no token.", "Send some text.")
        if len(tokens) >= self.context:
            raise too_long(len(tokens), self.context)
        return tokens

    def _given(self, prompt: Sequence[Any]) -> list[int]:
        if len(prompt) == 1 and isinstance(prompt[0], str):
            return self._encoded(prompt[0], special=True)
        if not all(type(token) is int for token in prompt):
            raise InputError("prompt is no text and no list of tokens.", "Send one prompt in each request.")
        if not all(0 <= token < self._vocabulary for token in prompt):
            raise InputError(f"A token is none of the {self._vocabulary} of this model.", "Send tokens of its own.")
        return list(prompt)

    def _rendered(self, asked: Asked) -> str:
        """The conversation as the model's template writes it. One that ends with the assistant is continued."""
        if not self._tokenizer.chat_template:
            raise InputError("This model has no template for conversations.", "Use /v1/completions.")
        messages = [message.plain() for message in asked.messages or []]
        begun = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
        try:
            written = self._tokenizer.apply_chat_template(messages, True, extra_context=asked.chat_template_kwargs)
        except Exception:  # its words quote the messages
            raise refused("its template for conversations cannot write these messages") from None
        return str(written) + str(begun)

    def _encoded(self, text: str, special: bool) -> list[int]:
        least = len(text.encode("utf-8", "surrogatepass")) // self._longest
        if least > 4 * self.context:  # not even looked at
            raise too_long(least, self.context)
        try:
            return self._ids(text, special)
        except Exception as error:
            if isinstance(error, NearfarError):
                raise
            raise refused(f"the tokenizer failed with {type(error).__name__}") from None

    def _uncut(self, context: int) -> int:
        """Tokens of the longest prompt that the tokenizer does not cut without a word: some end at 8,192."""
        got = len(self._ids("a b " * (context + 8), special=False))
        return got if 0 < got <= context else context

    def _ids(self, text: str, special: bool) -> list[int]:
        found = self._tokenizer.encode(text, add_special_tokens=special).input_ids.data
        return [int(token) for token in found.reshape(-1)]

    def _configured(self, asked: Asked, grammar: str | None, prompt: int, seed: int) -> Any:
        config = self._default()  # a new one each time, with what the model's makers recommend
        room = self.context - prompt
        config.max_new_tokens = room if asked.limit is None else min(asked.limit, room)
        config.max_length = self.context + 1
        config.num_beams = config.num_return_sequences = 1
        config.stop_strings = set()
        config.echo = False
        if asked.temperature is not None:
            config.do_sample = asked.temperature > 0
            if asked.temperature > 0:
                config.temperature = asked.temperature
        elif not config.do_sample:
            config.do_sample, config.temperature = True, 1.0
        if asked.top_p:
            config.top_p = asked.top_p
        if asked.top_k and asked.top_k > 0:
            config.top_k = asked.top_k
        if asked.min_p is not None:
            config.min_p = min(asked.min_p, 0.999)
        if asked.repeat_penalty is not None:
            config.repetition_penalty = asked.repeat_penalty
        config.presence_penalty = asked.presence_penalty or 0.0
        config.frequency_penalty = asked.frequency_penalty or 0.0
        config.rng_seed = seed
        config.logprobs = int(asked.wants_logprobs)
        config.ignore_eos = bool(asked.ignore_eos)
        if grammar is not None:
            config.structured_output_config = self._module.StructuredOutputConfig(grammar=grammar)
        return config

    def _tensor(self, tokens: Sequence[int]) -> Any:
        return self._openvino.Tensor(np.array([tokens], np.int64))


class _Teller:
    """Says what is written, as it comes."""

    def __init__(
        self,
        jobs: Sequence[Job],
        loaded: _Loaded,
        operation: Operation,
        asked: Asked,
        answer: Answer,
        on_piece: OnPiece,
        budget_ms: float,
    ) -> None:
        self._jobs, self._loaded, self._asked = jobs, loaded, asked
        self._answer, self._on_piece = answer, on_piece
        self._chat = operation is Operation.CHAT
        self._whole = None if asked.stream else Whole(self._chat)
        self._writings = [Writing(loaded.decode, asked.stops) for _ in jobs]
        self._end = time.monotonic() + budget_ms / 1000 if budget_ms else 0.0
        self._begun = False

    def tell(self) -> None:
        listened, pause = time.monotonic(), _SHORTEST
        while not all(writing.reason for writing in self._writings):
            heard = False
            for number, (job, writing) in enumerate(zip(self._jobs, self._writings, strict=True)):
                if writing.reason:
                    continue
                state = job.state  # before the look, or its last words could be missed
                if outputs := job.read():
                    heard = True
                    if self._took(number, writing, outputs):
                        return
                elif state == "IGNORED":
                    raise InferenceError("OpenVINO GenAI had no room for the answer.", "Ask another service.")
                elif state == "FINISHED":
                    writing.end("stop")
            if heard:
                listened, pause = time.monotonic(), _SHORTEST
                continue
            self._check_deadline()
            if time.monotonic() - listened > LISTEN_EVERY:
                listened = time.monotonic()
                if self._on_piece(b""):
                    return
            time.sleep(pause)
            pause = min(_LONGEST, pause * 1.5)
        for piece in self._answer.closing(self._writings, self._whole is not None):
            if self._give(piece):
                return
        if self._whole is not None:
            self._on_piece(self._whole.answer())

    def _took(self, number: int, writing: Writing, outputs: Sequence[Any]) -> bool:
        """Whether nobody waits any more."""
        if not self._begun:
            self._begun = True
            opening = self._answer.opening()
            if self._chat and self._asked.stream and self._on_piece(opening):
                return True
        for output in outputs:
            ids = list(output.generated_ids)
            text = writing.add(ids)
            ended = output.finish_reason.name
            if ended != "NONE" and not writing.reason:
                text += writing.end("length" if ended == "LENGTH" else "stop")
            logprobs = None
            if self._asked.wants_logprobs:
                logprobs = logprobs_of(ids, output.generated_log_probs, self._loaded.spell)
            told = text or (logprobs is not None and ids)
            if self._give(self._answer.chunk(number, text, logprobs)) if told else self._on_piece(b""):
                return True
            self._check_deadline()
            if writing.reason:
                break
        return False

    def _check_deadline(self) -> None:
        """A deadline is that of the first token, or of the whole where it is wanted whole."""
        if self._end and time.monotonic() > self._end and (self._whole is not None or not self._begun):
            raise DeadlineExceeded("The deadline passed while the model worked on it.", "Allow more time.")

    def _give(self, piece: bytes) -> bool:
        if self._whole is None:
            return self._on_piece(piece)
        self._whole.add(piece)
        return self._on_piece(b"")


def _plain(error: Exception) -> str:
    return " ".join(_PLACE.sub("", str(error)).split())[:300].rstrip(".!") or type(error).__name__
