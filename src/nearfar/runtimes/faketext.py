"""An engine of language without a model, for tests of one's own: a small TOML or JSON file says what it does.

Everything above the seam (service processes, placement, moving, routing, gateways) runs for real on it::

    format = "nearfar-fake-text"    # always; it is how the file is recognised
    context = 4096                  # tokens of prompt and answer; options of the node may make it smaller
    length = 0                      # mean tokens of an answer; 0: it goes on until a limit or the end of the context
    delay_ms = 5.0                  # per token of the answer
    prefill_ms = 0.0                # per token of the prompt, before the first one of the answer
    seed = 0                        # another seed writes other texts
    logprob = -0.1                  # of each token
    width = 32                      # numbers of an embedding
    embedding = false               # a model for vectors
    load_ms = 0.0
    load_while = ""                 # a file: loading waits as long as it exists
    load_error = ""                 # loading fails with these words
    memory_mib = 0.0                # kept from loading to closing
    free = true                     # false: a call costs money, so no self-test is made
    fault = ""                      # what befalls every call, and after how many of its tokens: "crash 5", "fail", ...
    fault_file = ""                 # while a file of this path exists, the words in it are the fault of every call

    [[says]]                        # scripted answers; the first whose `when` is in the prompt is given
    when = "capital of France"
    text = "Paris."
    logprob = -0.01                 # of each of its tokens
    tool = ""                       # name of a function to call instead; `text` are its arguments

Faults: `fail` (InferenceError), `busy` (Overloaded), `crash` (the process is killed), `hang` (it says no more),
`garble` (what comes is no JSON) and `wrong` (not the model's text); without a number they come before the first token.

A token is a word with the white space before it. What is not scripted is greedy: the next token is a function of the
whole text so far and the seed, so that an answer that is cut and continued, with what was said as the last message or
at the end of the prompt, is the same text. With `temperature` above 0 the request's `seed` (a fresh one when there is
none) and the number of the choice are mixed in. `max_tokens`, `stop`, `n`, `logprobs`, `stream` and `stream_options`
are respected as llama.cpp does; grammars, schemas and penalties are ignored.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import os
import random
import re
import signal
import struct
import threading
import time
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import msgspec

from nearfar.errors import InferenceError, InputError, ModelFileError, Overloaded
from nearfar.runtimes.engine import one_line
from nearfar.runtimes.modelfile import read_head
from nearfar.runtimes.text import LoadedText, OnPiece, TextFacts, TextOptions, TextRuntime
from nearfar.types.telemetry import ComputeUnit, UnitKind
from nearfar.types.wire import Operation, TextContext

NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_TOKEN = re.compile(r"\s*\S+|\s+$")
_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "xu", "za")
_FAULTS = ("fail", "busy", "crash", "hang", "garble", "wrong")


class Saying(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scripted answer."""

    when: str
    text: str = ""
    logprob: Annotated[float, msgspec.Meta(le=0)] = -0.01
    tool: str = ""


class FakeText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the file says; see the module. Write one with `path.write_bytes(FakeText(...).encode())`."""

    format: Literal["nearfar-fake-text"]
    context: Annotated[int, msgspec.Meta(ge=1)] = 4096
    length: Annotated[int, msgspec.Meta(ge=0)] = 0
    delay_ms: NotNegative = 0.0
    prefill_ms: NotNegative = 0.0
    seed: int = 0
    logprob: Annotated[float, msgspec.Meta(le=0)] = -0.1
    width: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 32
    embedding: bool = False
    load_ms: NotNegative = 0.0
    load_while: str = ""
    load_error: str = ""
    memory_mib: NotNegative = 0.0
    free: bool = True
    fault: str = ""
    fault_file: str = ""
    says: tuple[Saying, ...] = ()


def fake_text(**fields: Any) -> bytes:
    """A file's contents, for `path.write_bytes`: `fake_text(delay_ms=5.0, says=(Saying("France", "Paris."),))`."""
    return msgspec.json.encode(FakeText(format="nearfar-fake-text", **fields))


def tokens(text: str) -> list[str]:
    """
    >>> tokens("One two  three")
    ['One', ' two', '  three']
    """
    return _TOKEN.findall(text)


class FakeTextRuntime(TextRuntime):
    name = "faketext"
    formats = ("fake-text",)

    def available(self) -> str | None:
        return None

    def units(self) -> tuple[ComputeUnit, ...]:
        return (ComputeUnit(UnitKind.CPU, "cpu", "the fake engine of language computes nothing"),)

    def facts(self, path: Path) -> TextFacts:
        model = read_fake_text(path)
        return TextFacts("fake", 0, model.context, "none", model.embedding, chat=not model.embedding)

    def load_text(self, path: Path, options: TextOptions) -> LoadedFakeText:
        model = read_fake_text(path)
        time.sleep(model.load_ms / 1000)
        while model.load_while and Path(model.load_while).exists():
            time.sleep(0.02)
        if model.load_error:
            raise ModelFileError(f"{path.name}: {model.load_error}", "Remove load_error from the file.")
        return LoadedFakeText(model, options)


def read_fake_text(path: Path) -> FakeText:
    """Read and check a file. Raises `ModelFileError` naming the field that is wrong."""
    read_head(path)
    try:
        data = path.read_bytes()
        if data.lstrip().startswith(b"{"):
            model = msgspec.json.decode(data, type=FakeText)
        else:
            model = msgspec.convert(tomllib.loads(data.decode()), FakeText)
        _fault(model.fault)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        told = f"{path.name} is not a fake language model: {one_line(error)}."
        raise ModelFileError(told, "See docs/how-to-add-a-runtime.md.") from error
    return model


def _fault(words: str) -> tuple[str, int]:
    """(fault, tokens before it); ("", 0) for none. Raises `ValueError`."""
    word, _, count = words.strip().partition(" ")
    if word and word not in _FAULTS:
        raise ValueError(f"the fault {word!r} is none of {', '.join(_FAULTS)}")
    return word, int(count or 0)


class _Asked(msgspec.Struct):
    """The fields of a body that are respected."""

    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    prompt: str | list[str] | None = None
    input: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    temperature: float | None = None
    seed: int | None = None
    n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    stop: str | list[str] | None = None
    logprobs: bool | int | None = None
    encoding_format: str = "float"


class _Token(NamedTuple):
    text: str
    logprob: float


class _Choice(NamedTuple):
    """A finished answer."""

    tokens: list[_Token]
    reason: str
    tool: str


class LoadedFakeText(LoadedText):
    """`calls` counts since loading; `running` says how many are worked on just now."""

    def __init__(self, model: FakeText, options: TextOptions) -> None:
        self.slots = options.slots
        self.context = min(model.context, options.context)
        self.free = model.free
        self.calls = self.running = 0
        self._model = model
        self._name = options.name
        self._open = True
        self._lock = threading.Lock()
        self._kept = bytearray(int(model.memory_mib * 1024 * 1024))
        self._kept[::4096] = b"\1" * len(self._kept[::4096])  # touched, so that it counts as resident

    def run(
        self, operation: Operation, body: bytes, on_piece: OnPiece, context: TextContext, budget_ms: float = 0.0
    ) -> None:
        if not self._open:
            raise InferenceError("The model is closed.", "Load it again.")
        try:
            asked = msgspec.json.decode(body, type=_Asked)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"The model does not take this request: {one_line(error)}.", "Correct it.") from None
        with self._lock:
            self.calls += 1
            self.running += 1
        try:
            if operation is Operation.EMBED:
                self._embed(asked, on_piece)
            else:
                self._write(operation, asked, on_piece)
        finally:
            with self._lock:
                self.running -= 1

    def close(self) -> None:
        self._open = False
        self._kept = bytearray()

    # -- texts --------------------------------------------------------------------------------------------------------

    def _write(self, operation: Operation, asked: _Asked, on_piece: OnPiece) -> None:
        prompts = _prompts(operation, asked)
        if self._model.embedding:
            raise InputError("This model makes vectors, not text.", "Use /v1/embeddings.")
        choices = asked.n or 1
        if choices > self.slots:
            raise InputError(f"n is {choices}, and the model has {self.slots} slots.", "Ask for fewer answers.")
        for prompt in prompts:
            if (count := len(tokens(prompt))) >= self.context:
                raise InputError(f"The prompt has {count} tokens, the context {self.context}.", "Send a shorter one.")
        answer = _Answer(self._name, operation, asked, sum(len(tokens(prompt)) for prompt in prompts))
        self._befall(0)
        time.sleep(self._model.prefill_ms * answer.prompt_tokens / 1000)
        answer.started()
        if asked.stream and operation is Operation.CHAT and on_piece(answer.opening()):
            return
        finished: list[_Choice] = []
        for number, (prompt, choice) in enumerate((p, c) for p in prompts for c in range(choices)):
            produced: list[_Token] = []
            for token, reason, tool in self._tokens(prompt, choice, asked):
                if token is None:
                    finished.append(_Choice(produced, reason, tool))
                    break
                if self._model.delay_ms:
                    time.sleep(self._model.delay_ms / 1000)
                fault = self._befall(len(produced))
                if fault == "wrong":
                    token = token._replace(text=" wrong")
                produced.append(token)
                piece = answer.chunk(number, token, tool)
                if not asked.stream:
                    piece = b""
                if on_piece(b"<html>" if piece and fault == "garble" else piece) or not self._open:
                    return
        if asked.stream:
            for piece in answer.closing(finished):
                if on_piece(piece):
                    return
        else:
            on_piece(b"<html>" if self._befall(1 << 30) == "garble" else answer.whole(finished))

    def _tokens(self, prompt: str, choice: int, asked: _Asked) -> Iterator[tuple[_Token | None, str, str]]:
        """Tokens, then (None, finish reason, tool)."""
        limit = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
        left = self.context - len(tokens(prompt))
        limit = left if limit is None else min(limit, left)
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        saying = next((saying for saying in self._model.says if saying.when in prompt), None)
        tool = saying.tool if saying else ""
        source = _scripted(saying, prompt) if saying else self._greedy(prompt, choice, asked)
        said = ""
        for number, token in enumerate(source):
            if number == limit:
                yield None, "length", tool
                return
            said += token.text
            if found := [said.index(stop) for stop in stops if stop in said]:
                rest = token.text[: len(token.text) - (len(said) - min(found))]
                if rest:
                    yield token._replace(text=rest), "", tool
                yield None, "stop", tool
                return
            yield token, "", tool
        yield None, "tool_calls" if tool else "stop", tool

    def _greedy(self, prompt: str, choice: int, asked: _Asked) -> Iterator[_Token]:
        model = self._model
        state = hashlib.blake2b(f"{model.seed}\n{prompt}".encode("utf-8", "surrogatepass"), digest_size=8)
        if asked.temperature:
            drawn = uuid.uuid4().hex if asked.seed is None else str(asked.seed)
            state = hashlib.blake2b(f"{drawn} {choice} {state.hexdigest()}".encode(), digest_size=8)
        while True:
            drawn_bytes = state.digest()
            if model.length and int.from_bytes(drawn_bytes[4:]) % model.length == 0:
                return
            word = " " + "".join(_SYLLABLES[byte & 15] for byte in drawn_bytes[: 1 + drawn_bytes[3] % 3])
            state.update(word.encode())
            yield _Token(word, model.logprob)

    def _befall(self, produced: int) -> str:
        """Do what the fault asks for when so many tokens were produced; the fault, when it is for the caller to do."""
        words = self._model.fault
        if self._model.fault_file:
            with contextlib.suppress(OSError):
                words = Path(self._model.fault_file).read_text() or words
        fault, after = _fault(words)
        if not fault or produced < after:
            return ""
        match fault:
            case "fail":
                raise InferenceError("The fake failed, as told.", "Ask again.")
            case "busy":
                raise Overloaded("The fake is busy, as told.", "Ask again.", 0.05)
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                _for_ever()
        return fault

    # -- vectors ------------------------------------------------------------------------------------------------------

    def _embed(self, asked: _Asked, on_piece: OnPiece) -> None:
        if not self._model.embedding:
            raise InputError("This model makes text, not vectors.", "Use /v1/chat/completions.")
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        if not texts:
            raise InputError("There is no input.", 'Send {"input": "text"} or a list of texts.')
        self._befall(0)
        count = sum(len(tokens(text)) for text in texts)
        time.sleep(self._model.prefill_ms * count / 1000)
        data = []
        for number, text in enumerate(texts):
            vector = _vector(text, self._model.width)
            packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
            told = packed if asked.encoding_format == "base64" else vector
            data.append({"object": "embedding", "index": number, "embedding": told})
        usage = {"prompt_tokens": count, "total_tokens": count}
        on_piece(msgspec.json.encode({"object": "list", "model": self._name, "data": data, "usage": usage}))


def _for_ever() -> NoReturn:
    while True:
        threading.Event().wait()


def _prompts(operation: Operation, asked: _Asked) -> list[str]:
    """The text so far. A conversation whose last message is the assistant's is continued, as llama.cpp does."""
    if operation is Operation.COMPLETE:
        if not asked.prompt:
            raise InputError("There is no prompt.", 'Send {"prompt": "text"}.')
        return [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if operation is not Operation.CHAT:
        raise InputError(f"A language model cannot {operation.value}.", "Use /v1/chat/completions.")
    if not asked.messages:
        raise InputError("There are no messages.", 'Send {"messages": [{"role": "user", "content": "text"}]}.')
    lines = [f"{message.get('role')}: {_content(message)}" for message in asked.messages]
    if asked.messages[-1].get("role") == "assistant":
        return ["\n".join(lines)]
    return ["\n".join([*lines, "assistant: "])]


def _content(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)


def _scripted(saying: Saying, prompt: str) -> Iterator[_Token]:
    """The tokens of it that the prompt does not end with already."""
    text = saying.text
    known = next(n for n in range(len(text), -1, -1) if prompt.endswith(text[:n]))
    return (_Token(token, saying.logprob) for token in tokens(text[known:]))


def _vector(text: str, width: int) -> list[float]:
    """Of length 1; texts that share words are near each other."""
    total = [0.0] * width
    for word in re.findall(r"\w+", text.lower()) or [text]:
        source = random.Random(word)  # noqa: S311 - no secret
        total = [known + source.gauss(0, 1) for known in total]
    length = math.sqrt(sum(value * value for value in total)) or 1.0
    return [value / length for value in total]


class _Answer:
    """The JSON of one answer."""

    def __init__(self, name: str, operation: Operation, asked: _Asked, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self._asked = asked
        self._chat = operation is Operation.CHAT
        kind = "chat.completion" if self._chat else "text_completion"
        kind += ".chunk" if self._chat and asked.stream else ""
        self._head = {"id": f"fake-{uuid.uuid4().hex[:12]}", "object": kind, "created": int(time.time()), "model": name}
        self._begun = self._start = time.monotonic()

    def started(self) -> None:
        """The prompt is read."""
        self._start = time.monotonic()

    def opening(self) -> bytes:
        return self._piece([{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}])

    def chunk(self, number: int, token: _Token, tool: str) -> bytes:
        choice: dict[str, Any] = {"index": number, "finish_reason": None}
        if not self._chat:
            choice["text"] = token.text
        elif tool:
            call = {"index": 0, "id": "call-0", "type": "function", "function": {"name": tool, "arguments": token.text}}
            choice["delta"] = {"tool_calls": [call]}
        else:
            choice["delta"] = {"content": token.text}
        return self._piece([choice | self._logprobs([token])])

    def closing(self, finished: list[_Choice]) -> Iterator[bytes]:
        end: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        ends = [{"index": number, "finish_reason": choice.reason, **end} for number, choice in enumerate(finished)]
        totals = self._totals(finished)
        if (self._asked.stream_options or {}).get("include_usage"):
            yield self._piece(ends)
            yield self._piece([], totals)
        else:
            yield self._piece(ends, {"timings": totals["timings"]} if self._chat else totals)

    def whole(self, finished: list[_Choice]) -> bytes:
        choices = []
        for number, (produced, reason, tool) in enumerate(finished):
            text = "".join(token.text for token in produced)
            choice: dict[str, Any] = {"index": number, "finish_reason": reason}
            if not self._chat:
                choice["text"] = text
            elif tool:
                call = {"id": "call-0", "type": "function", "function": {"name": tool, "arguments": text}}
                choice["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
            else:
                choice["message"] = {"role": "assistant", "content": text}
            choices.append(choice | self._logprobs(produced))
        return self._piece(choices, self._totals(finished))

    def _logprobs(self, produced: list[_Token]) -> dict[str, Any]:
        asked = self._asked.logprobs
        if asked is None or asked is False:
            return {}
        content = []
        for token in produced:
            told = {"token": token.text, "bytes": list(token.text.encode()), "logprob": token.logprob}
            content.append({**told, "top_logprobs": [told]})
        return {"logprobs": {"content": content}}

    def _totals(self, finished: list[_Choice]) -> dict[str, Any]:
        count, now = sum(len(choice.tokens) for choice in finished), time.monotonic()
        usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": count}
        timings = {
            "prompt_n": self.prompt_tokens,
            "prompt_ms": (self._start - self._begun) * 1000,
            "predicted_n": count,
            "predicted_ms": (now - self._start) * 1000,
        }
        return {"usage": {**usage, "total_tokens": self.prompt_tokens + count}, "timings": timings}

    def _piece(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
        return msgspec.json.encode({**self._head, "choices": choices, **(more or {})})
