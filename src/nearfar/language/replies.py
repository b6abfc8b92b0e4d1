"""What an answer's JSON says of itself: usage, and the bill of a far end, which does not travel on to the caller."""

from __future__ import annotations

from typing import Any

import msgspec

from nearfar.language.privacy.redact import Redaction, Restorer


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Bill(msgspec.Struct):
    """The field `nearfar` of a far end's last piece."""

    cost: float = 0.0
    currency: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    counted: str = ""
    reason: str = ""


class _Timings(msgspec.Struct):
    """llama.cpp's own counts, which come also where no usage was asked for."""

    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0


class _Said(msgspec.Struct):
    usage: _Usage | None = None
    timings: _Timings | None = None
    nearfar: _Bill | None = None


class Counts(msgspec.Struct, frozen=True):
    """Tokens and money of one answer; 0 where nothing was stated."""

    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    currency: str = ""
    estimated: str = ""
    """Why the tokens are an estimate; "" when they are not."""


NOTHING = Counts()
_said = msgspec.json.Decoder(_Said)
BILL = b'"nearfar"'


def counts(data: bytes, known: Counts = NOTHING) -> Counts:
    """What the JSON of an answer, or of its last chunk, says; what it does not say stays as it is `known`."""
    try:
        said = _said.decode(data)
    except msgspec.MsgspecError:
        return known
    if said.nearfar is not None:
        bill = said.nearfar
        why = (bill.reason or "the far end stated none") if bill.counted == "estimated" else ""
        return Counts(bill.tokens_in, bill.tokens_out, bill.cost, bill.currency, why)
    if said.usage is not None:
        return Counts(said.usage.prompt_tokens, said.usage.completion_tokens, known.cost, known.currency)
    if said.timings is not None:
        timings = said.timings
        return Counts(timings.cache_n + timings.prompt_n, timings.predicted_n, known.cost, known.currency)
    return known


def without_bill(data: bytes) -> bytes:
    """The JSON without the field in which a far end's service tells its price to us."""
    if BILL not in data:
        return data
    raw: dict[str, msgspec.Raw] = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    raw.pop("nearfar", None)
    return msgspec.json.encode(raw)


_WRITTEN = ("content", "reasoning_content", "refusal")
"""Fields of a message that a model writes."""


def restored(data: bytes, redaction: Redaction) -> bytes:
    """A whole answer with the values put back in every text that the far end wrote."""
    answer: dict[str, Any] = msgspec.json.decode(data)
    for choice in answer.get("choices") or ():
        if isinstance(choice.get("text"), str):
            choice["text"] = redaction.restore(choice["text"])
        message = choice.get("message")
        if isinstance(message, dict):
            for name in _WRITTEN:
                if isinstance(message.get(name), str):
                    message[name] = redaction.restore(message[name])
            for call in message.get("tool_calls") or ():
                function = call.get("function") or {}
                if isinstance(function.get("arguments"), str):
                    function["arguments"] = redaction.restore(function["arguments"], in_json=True)
    return msgspec.json.encode(answer)


class StreamRestorer:
    """As `restored`, for chunks. What is held back of a choice comes with its finish reason, or with the last chunk."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._texts: dict[tuple[int, str], Restorer] = {}
        self._arguments: dict[tuple[int, int], Restorer] = {}

    def feed(self, line: bytes) -> bytes:
        chunk: dict[str, Any] = msgspec.json.decode(line)
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            if "text" in choice:
                self._restore(index, "text", choice, choice)
            else:
                holder = choice["delta"] = choice.get("delta") or {}
                for name in _WRITTEN:
                    self._restore(index, name, holder, choice)
            for call in (choice.get("delta") or {}).get("tool_calls") or ():
                function = call.get("function") or {}
                if isinstance(function.get("arguments"), str):
                    key = (index, call.get("index", 0))
                    known = self._arguments.setdefault(key, self._redaction.restorer(in_json=True))
                    function["arguments"] = known.feed(function["arguments"])
            if choice.get("finish_reason"):
                self._end_arguments(index, choice)
        return msgspec.json.encode(chunk)

    def _restore(self, index: int, name: str, holder: dict[str, Any], choice: dict[str, Any]) -> None:
        text, key = holder.get(name), (index, name)
        if isinstance(text, str):
            holder[name] = self._texts.setdefault(key, self._redaction.restorer()).feed(text)
        if choice.get("finish_reason") and key in self._texts and (rest := self._texts[key].finish()):
            holder[name] = (holder.get(name) or "") + rest

    def _end_arguments(self, index: int, choice: dict[str, Any]) -> None:
        """An answer that was cut at its longest may end inside of the arguments, with something held back."""
        rests = {at: known.finish() for (of, at), known in self._arguments.items() if of == index}
        ends = [{"index": at, "function": {"arguments": rest}} for at, rest in rests.items() if rest]
        if ends:
            delta = choice.setdefault("delta", {})
            delta["tool_calls"] = [*(delta.get("tool_calls") or ()), *ends]
