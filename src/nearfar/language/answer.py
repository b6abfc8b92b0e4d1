"""What a language service answered, as the judge and the cascade see it, and the callable that asks one.

Read from the conventional JSON of `/v1/chat/completions` and `/v1/completions`; nothing else in this room knows it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from nearfar.errors import InferenceError

MOST_TOKENS = 100_000
"""Of one answer whose log-probabilities are read."""


class TokenChance(msgspec.Struct, frozen=True, array_like=True):
    """One produced token: its natural log-probability (at most 0) and those of the likeliest tokens at its place."""

    logprob: float
    top: tuple[float, ...] = ()


class Answer(msgspec.Struct, frozen=True):
    """One choice of one call. Token counts are 0 when the service did not state them."""

    text: str
    finish_reason: str = ""
    """`stop`, `length`, `tool_calls`, `content_filter`; empty when it was not stated."""
    chances: tuple[TokenChance, ...] | None = None
    """Of the produced tokens; None when the service gave none."""
    tokens_in: int = 0
    tokens_out: int = 0
    calls: tuple[str, ...] = ()
    """Names of the tools that it calls."""
    raw: bytes = b""
    """The JSON as it came, for whoever passes it on."""
    served_by: str = ""
    """Which service answered; empty when whoever asked did not say."""
    cost: float = 0.0
    """What it cost, in the fleet's currency."""


Ask = Callable[[bytes], Awaitable[Answer]]
"""Sends one JSON body (never with `stream` true) and waits for its answer. Raises `NearfarError`.

Whoever passes one in holds it to privacy and deadline; the callers here only decide what to ask whom.
"""


def read_answer(data: bytes) -> Answer:
    """The first choice of a chat completion or completion.

    Raises `InferenceError` when it is no such JSON: a broken answer is never an empty one.

    >>> read_answer(b'{"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]}').text
    'Yes.'
    """
    try:
        body = msgspec.json.decode(data)
        choice = body["choices"][0]
        message = choice.get("message")
        text = choice["text"] if message is None else message.get("content")
        calls = tuple(str(call["function"]["name"]) for call in (message or {}).get("tool_calls") or ())
        if isinstance(text, list):
            text = "".join(part.get("text", "") for part in text)
        usage = body.get("usage") or {}
        return Answer(
            text or "",
            choice.get("finish_reason") or "",
            _chances(choice.get("logprobs")),
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
            calls,
            data,
        )
    except (msgspec.DecodeError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InferenceError(
            f"The answer is not a completion ({type(error).__name__}).", "Look at the log of the service that answered."
        ) from error


def _chances(logprobs: Any) -> tuple[TokenChance, ...] | None:
    """Either form: chat's `content` list of objects, or the parallel lists of completions."""
    if not logprobs:
        return None
    if (content := logprobs.get("content")) is not None:
        made = [
            TokenChance(float(token["logprob"]), tuple(float(t["logprob"]) for t in token.get("top_logprobs") or ()))
            for token in content[:MOST_TOKENS]
        ]
        return tuple(made) or None
    plain = list(logprobs.get("token_logprobs") or ())[:MOST_TOKENS]
    top = list(logprobs.get("top_logprobs") or ())
    top += [None] * (len(plain) - len(top))
    found = [
        TokenChance(float(value), tuple(float(v) for v in (others or {}).values()))
        for value, others in zip(plain, top, strict=False)
        if value is not None  # the first token of an echoed prompt has none
    ]
    return tuple(found) or None
