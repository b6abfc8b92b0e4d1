"""What comes back: chunks and answers checked, their usage believed or recounted, never an empty result."""

from __future__ import annotations

from typing import Any

import msgspec

from nearfar.ledger import Counted
from nearfar.runtimes.remote.outgoing import Outgoing, tokens_of
from nearfar.types.wire import Operation

MOST_TOKENS = 1 << 40
"""More of a usage is not believed, nor fits it into the ledger."""
SPARE_TOKENS = 4096
"""What a template, a system prompt of the far end's own or tools may add to a prompt, before its count is doubted."""
CODES = frozenset({
    "insufficient_quota", "rate_limit_exceeded", "rate_limit_error", "invalid_api_key", "authentication_error",
    "permission_error", "model_not_found", "not_found_error", "context_length_exceeded", "invalid_request_error",
    "content_filter", "content_policy_violation", "server_error", "api_error", "overloaded_error", "timeout",
})  # fmt: skip
"""Codes of errors that are written down. Any other word of a far end might be a word of the prompt."""
_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Malformed(Exception):
    """The far end's words are not what the convention says; the message says what is wrong, without the words."""


class Told(Exception):
    """The far end reported an error in an answer that began well."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code)
        self.code = code
        self.message = message


class Usage(msgspec.Struct, frozen=True):
    """Tokens that are owed, and why they are believed or not."""

    tokens_in: int
    tokens_out: int
    counted: Counted
    reason: str = ""


class Message(msgspec.Struct):
    """The texts of one choice, of a chunk (`delta`) or an answer (`message`)."""

    content: Any = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: Any = None
    function_call: Any = None


class Choice(msgspec.Struct):
    index: int = 0
    delta: Message | None = None
    message: Message | None = None
    text: str | None = None
    finish_reason: str | None = None

    def size(self) -> int:
        """Bytes of all that the model wrote."""
        size = len(self.text.encode()) if self.text else 0
        for part in (self.delta, self.message):
            if part is not None:
                texts = (part.content, part.reasoning_content, part.refusal)
                size += sum(len(text.encode()) for text in texts if isinstance(text, str))
                size += sum(len(msgspec.json.encode(one)) for one in (part.tool_calls, part.function_call) if one)
                size += len(msgspec.json.encode(part.content)) if isinstance(part.content, list) else 0
        return size


class Piece(msgspec.Struct):
    """A chunk, or a whole answer."""

    choices: list[Choice] | None = None
    data: list[Any] | None = None
    """Of embeddings."""
    usage: Any = None
    error: Any = None
    model: str = ""

    def size(self) -> int:
        return sum(choice.size() for choice in self.choices or ())

    def finishes(self) -> bool:
        return any(choice.finish_reason for choice in self.choices or ())


_piece = msgspec.json.Decoder(Piece)


def read_piece(data: bytes) -> Piece:
    """Raises `Malformed` for what is no such object, `Told` for an error object."""
    try:
        piece = _piece.decode(str(data, "utf-8"))  # all of it: msgspec looks only at what it decodes
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"what is no JSON of the convention ({_where(error)})") from None
    if piece.error:
        code, message = error_of(piece.error)
        raise Told(code, message)
    return piece


def rewritten(data: bytes, fields: dict[str, Any]) -> bytes:
    """A JSON object with some fields replaced (or, for None, left away), the others as they were, on one line."""
    parts = _decoder.decode(data)
    for name, value in fields.items():
        if value is None:
            parts.pop(name, None)
        else:
            parts[name] = msgspec.Raw(msgspec.json.encode(value))
    made = msgspec.json.encode(parts)
    return msgspec.json.format(made, indent=-1) if b"\n" in made or b"\r" in made else made


def complete(operation: Operation, piece: Piece) -> None:
    """Raise `Malformed` for an answer that holds none."""
    if operation is Operation.EMBED:
        if not piece.data:
            raise Malformed("an answer without a vector")
    elif not piece.choices:
        raise Malformed("an answer without a choice")
    elif not any(choice.message is not None or choice.text is not None for choice in piece.choices):
        raise Malformed("a choice without a text")


def usage_of(raw: Any, asked: Outgoing, operation: Operation, written: int, pieces: int) -> Usage:
    """What the far end counted when it can be believed, else an estimate, with the reason.

    `written` bytes came in so many `pieces`; an engine streams at least one token with each.
    """
    tokens_out = 0 if operation is Operation.EMBED else max(tokens_of(written), pieces)
    doubt = _doubt(raw, asked, operation, written)
    if doubt:
        return Usage(asked.tokens_in, tokens_out, Counted.ESTIMATED, doubt)
    return Usage(raw["prompt_tokens"], raw.get("completion_tokens") or 0, Counted.REPORTED)


def _doubt(raw: Any, asked: Outgoing, operation: Operation, written: int) -> str:
    """Why a usage is not believed; "" when it is."""
    if raw is None:
        return "no usage was reported"
    if not isinstance(raw, dict):
        return "the reported usage is no table"
    embeds = operation is Operation.EMBED
    names = ("prompt_tokens",) if embeds else ("prompt_tokens", "completion_tokens")
    for name in names:
        value = raw.get(name)
        if type(value) is not int or not 0 <= value <= MOST_TOKENS:
            return f"the reported {name} is no count"
    tokens_in, tokens_out, total = raw["prompt_tokens"], raw.get("completion_tokens") or 0, raw.get("total_tokens")
    if type(tokens_out) is not int or tokens_out < 0:
        return "the reported completion_tokens is no count"
    if type(total) is int and total < tokens_in + tokens_out:
        return "the reported total_tokens is less than its parts"
    if asked.tokens_in and not tokens_in:
        return "no token of the prompt was reported"
    if written and not tokens_out and not embeds:
        return "no token of the answer was reported"
    if asked.text_only and tokens_in > 4 * asked.tokens_in + SPARE_TOKENS:  # a token is a byte at least
        return "more tokens than bytes of the prompt were reported"
    return ""


def error_of(raw: Any) -> tuple[str, str]:
    """(code, message) of an error object as far ends write them: a table, or a text."""
    if isinstance(raw, dict):
        code = raw.get("code") or raw.get("type") or ""
        return code if code in CODES else "", str(raw.get("message") or "")[:2000]
    return "", str(raw)[:2000] if isinstance(raw, str) else ""


def _where(error: Exception) -> str:
    """What msgspec says is wrong, without the values, which may be the model's words."""
    if isinstance(error, msgspec.ValidationError):
        return str(error).partition(", got")[0][:80]
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"
