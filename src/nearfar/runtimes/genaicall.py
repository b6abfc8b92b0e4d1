"""What OpenVINO GenAI is asked by the body of a call, and the JSON of its answer.

The engine takes no bodies: whatever is not looked at here would be ignored. So fields that change an answer and that it
cannot follow are refused by name.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec

from nearfar.errors import InputError
from nearfar.runtimes.jsongrammar import Unsupported, grammar_of
from nearfar.runtimes.llamacall import asked_schema, check_depth
from nearfar.types.wire import Operation

LEAST = -104.0
"""Natural logarithm of the smallest float32 above 0, rounded; JSON has no infinity."""
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Decode = Callable[[list[int]], str]


class Message(msgspec.Struct, omit_defaults=True):
    """What templates know of a message."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """For the template: a content in parts becomes one text. Raises `InputError` for parts that are none."""
        told: dict[str, Any] = msgspec.to_builtins(self)
        if isinstance(self.content, list):
            if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in self.content):
                raise InputError("A message holds what is no text.", "This model takes text only.")
            told["content"] = "".join(part["text"] for part in self.content)
        return {"content": "", **told}


class Asked(msgspec.Struct):
    """The fields of a body that are followed or refused."""

    messages: list[Message] | None = None
    prompt: str | list[Any] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    stop: str | list[str] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=1 << 31)] | None = None
    min_p: Share | None = None
    seed: int | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None
    ignore_eos: bool | None = None
    logprobs: bool | int | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0)] | None = None
    response_format: dict[str, Any] | None = None
    json_schema: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    echo: bool | None = None
    suffix: str | None = None
    grammar: str | None = None
    lora: list[Any] | None = None
    logit_bias: Any = None
    best_of: int | None = None

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None and self.logprobs is not False

    @property
    def stops(self) -> list[str]:
        return [text for text in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if text]

    @property
    def limit(self) -> int | None:
        """Tokens of the answer; None for as many as there is room for."""
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return None if limit is None or limit < 0 else limit


_asked = msgspec.json.Decoder(Asked)


def read(operation: Operation, body: bytes, slots: int, alternatives: int) -> Asked:
    """Raises `InputError`, never with a word of the prompt in it."""
    try:
        check_depth(body)
        asked = _asked.decode(body)
    except msgspec.ValidationError as error:
        raise InputError(f"The request does not fit: {error}.", "Correct the field.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        told = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InputError(f"The request is no JSON that can be read: {told}.", "Send a JSON object.") from None
    field = "messages" if operation is Operation.CHAT else "prompt"
    if not getattr(asked, field):
        raise InputError(f"There is nothing in {field!r}.", f"Send {field!r} with what is to be answered.")
    if (asked.n or 1) > slots:
        raise InputError(f"n is {asked.n}, and the model has {slots} slots.", "Ask for fewer answers.")
    if asked.limit == 0:
        raise InputError("max_tokens is 0.", "Ask for one token at least.")
    _refuse(asked, alternatives)
    return asked


def _refuse(asked: Asked, alternatives: int) -> None:
    """Raise `InputError` for what another engine can and this one cannot."""
    beside = asked.top_logprobs or 0
    if type(asked.logprobs) is int:  # the completions of old: a number, of which the token itself is the first
        beside = asked.logprobs
    unknown = {
        "echo": asked.echo,
        "suffix": asked.suffix,
        "grammar (JSON schemas work)": asked.grammar,
        "lora": asked.lora,
        "logit_bias": asked.logit_bias,
        "best_of": (asked.best_of or 1) > (asked.n or 1),
        "tools": asked.tools and asked.tool_choice != "none",
        f"top_logprobs above {alternatives}": beside > alternatives,
    }
    if found := [name for name, value in unknown.items() if value]:
        raise InputError(
            f"The engine of this model (openvino-genai) cannot do {', '.join(found)}.",
            "Leave it away, or serve the model as GGUF with llama.cpp.",
        )


def grammar_for(asked: Asked) -> str | None:
    """A grammar that holds the answer to the schema that was asked for; None when none was. Raises `InputError`.

    Only grammars of our own making reach the engine: one that it cannot read would end every call under way.
    """
    schema = asked_schema(asked.response_format or {}, asked.json_schema)
    if schema is None:
        return None
    try:
        return grammar_of(schema)
    except Unsupported as error:
        raise InputError(
            f"The schema holds {error}, which this engine (openvino-genai) is not made to follow.",
            "Make it simpler, or serve the model as GGUF with llama.cpp.",
        ) from None


class Writing:
    """One answer: tokens become text that ends before a stop text, and never in the middle of a character."""

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self.tokens = 0
        self.reason = ""
        """Why it ended: `stop` or `length`; "" while it goes on."""
        self._decode = decode
        self._stops = stops
        self._ids: list[int] = []
        self._said = 0
        """Tokens that are text already; some before the last of them are kept, as a token's text may depend on them."""
        self._held = ""

    def add(self, ids: Sequence[int]) -> str:
        """The text that can be said now."""
        self._ids += ids
        self.tokens += len(ids)
        known, now = self._decode(self._ids[: self._said]), self._decode(self._ids)
        if len(now) <= len(known) or not now.startswith(known):
            return ""
        del self._ids[: self._said]
        self._said = len(self._ids)
        return self._before_stop(self._held + now[len(known) :])

    def end(self, reason: str) -> str:
        """It ended; what was held back."""
        self.reason = reason
        held, self._held = self._held, ""
        return held

    def _before_stop(self, text: str) -> str:
        if found := [text.index(stop) for stop in self._stops if stop in text]:
            self.reason, self._held = "stop", ""
            return text[: min(found)]
        longest = max((len(stop) for stop in self._stops), default=1)
        for size in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                self._held = text[-size:]
                return text[:-size]
        self._held = ""
        return text


def logprobs_of(ids: Sequence[int], values: Sequence[float], decode: Decode) -> dict[str, Any]:
    """OpenAI's form; the engine tells of the token that it chose, and of no other."""
    content = []
    for token, value in zip(ids, values, strict=False):
        text = decode([token])
        told = {"id": token, "token": text, "bytes": list(text.encode()), "logprob": min(0.0, max(LEAST, value))}
        content.append({**told, "top_logprobs": [told]})
    return {"content": content}


class Answer:
    """The JSON of an answer in chunks, each one line."""

    def __init__(self, name: str, operation: Operation, asked: Asked, prompt_tokens: int) -> None:
        self._asked = asked
        self._prompt = prompt_tokens
        self._chat = operation is Operation.CHAT
        kind: Literal["chat.completion.chunk", "text_completion"]
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        self._head = {
            "id": f"genai-{uuid.uuid4().hex[:16]}",
            "object": kind,
            "created": int(time.time()),
            "model": name,
        }
        self._begun = self._first = time.monotonic()

    def opening(self) -> bytes:
        """When the first token is there."""
        self._first = time.monotonic()
        return self._piece([{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}])

    def started(self) -> None:
        self._first = time.monotonic()

    def chunk(self, index: int, text: str, logprobs: dict[str, Any] | None) -> bytes:
        choice: dict[str, Any] = {"index": index, "finish_reason": None}
        choice |= {"delta": {"content": text}} if self._chat else {"text": text}
        if logprobs is not None:
            choice["logprobs"] = logprobs
        return self._piece([choice])

    def closing(self, choices: Sequence[Writing], whole: bool) -> list[bytes]:
        """The last chunks; `whole` when they become one answer."""
        end: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        ends = [{"index": number, "finish_reason": choice.reason, **end} for number, choice in enumerate(choices)]
        count, now = sum(choice.tokens for choice in choices), time.monotonic()
        usage = {"prompt_tokens": self._prompt, "completion_tokens": count, "total_tokens": self._prompt + count}
        timings = {
            "prompt_n": self._prompt,
            "prompt_ms": (self._first - self._begun) * 1000,
            "predicted_n": count,
            "predicted_ms": (now - self._first) * 1000,
        }
        totals = {"usage": usage, "timings": timings}
        if whole or (not self._chat and not (self._asked.stream_options or {}).get("include_usage")):
            return [self._piece(ends, totals)]
        if (self._asked.stream_options or {}).get("include_usage"):
            return [self._piece(ends), self._piece([], totals)]
        return [self._piece(ends, {"timings": timings})]

    def _piece(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
        return msgspec.json.encode({**self._head, "choices": choices, **(more or {})})
