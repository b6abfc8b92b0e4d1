"""`echo` of OpenAI's completions for llama.cpp, which has none: the prompt's own tokens, and how probable each one was.

Evaluation harnesses score given texts in this way (log-likelihood). The engine tells probabilities of what it writes
alone, so it is made to write the prompt: a grammar of one sequence of tokens leaves it no choice, and the probabilities
are those before the grammar. That costs a step of decoding for each token, where reading a prompt would take them
together: several times slower than prefill, and exact.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from nearfar.errors import InferenceError, InputError

LEAST = -104.0
"""Natural logarithm of the smallest float32 above 0, rounded: what is less probable comes as 0 from the engine."""
Complete = Callable[[dict[str, Any]], dict[str, Any]]
"""A completion, whole: the engine's own answer to a body."""
Tokenize = Callable[[str], list[int]]


class _Asked(msgspec.Struct):
    prompt: Any = None
    echo: bool | None = False
    logprobs: int | bool | None = None
    max_tokens: int | None = 16
    stream: bool | None = False
    n: int | None = None


_asked = msgspec.json.Decoder(_Asked)


def wants_echo(body: bytes) -> bool:
    """Whether the body of a completion asks for its prompt back."""
    if b'"echo"' not in body:
        return False
    try:
        return bool(_asked.decode(body).echo)
    except msgspec.MsgspecError:
        return False  # the engine says what is wrong with it


def echoed(body: bytes, complete: Complete, tokenize: Tokenize) -> bytes:
    """The answer to a completion with `echo`: OpenAI's `tokens`, `token_logprobs`, `top_logprobs`, `text_offset` with
    `logprobs`, and without them the text and `prompt_token_ids`. Raises `InputError`, and what `complete` raises."""
    asked = _asked.decode(body)
    fields: dict[str, Any] = msgspec.json.decode(body)
    if asked.stream or (asked.n or 1) > 1:
        raise InputError("echo goes with neither stream nor n above 1.", "Ask for one whole answer.")
    prompts = _prompts(asked.prompt)
    top = max(1, int(asked.logprobs)) if asked.logprobs is not None and asked.logprobs is not False else 0
    most = 16 if asked.max_tokens is None else asked.max_tokens
    answer: dict[str, Any] = {"object": "text_completion", "choices": []}
    read = written = 0
    for index, prompt in enumerate(prompts):
        ids = tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise InputError("The prompt holds no token.", "Send some text.")
        scored = _scored(ids, fields, top, complete) if top else []
        choice: dict[str, Any] = {"index": index, "finish_reason": "length", "logprobs": None, "prompt_token_ids": ids}
        text = prompt if isinstance(prompt, str) else "".join(token["token"] for token in scored)
        if most > 0:
            more = complete({**fields, "prompt": ids, "echo": False, "max_tokens": most})
            answer = {**more, "choices": answer["choices"]}
            own = more["choices"][0]
            text += own["text"]
            choice["finish_reason"] = own["finish_reason"]
            scored += (own.get("logprobs") or {}).get("content", [])
            written += more.get("usage", {}).get("completion_tokens", 0)
        read += len(ids)
        choice["text"] = text
        if top:
            choice["logprobs"] = _legacy(scored, top)
        answer["choices"].append(choice)
    answer["usage"] = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return msgspec.json.encode(answer)


def _prompts(prompt: Any) -> Sequence[str | list[int]]:
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(type(i) is int for i in prompt)):
        return [prompt]
    if isinstance(prompt, list) and prompt and all(isinstance(one, str | list) for one in prompt):
        return prompt
    raise InputError("prompt is no text, no list of texts and no list of tokens.", "Send a text.")


def _scored(ids: list[int], fields: dict[str, Any], top: int, complete: Complete) -> list[dict[str, Any]]:
    """Each token of the prompt as the engine describes what it writes; the first has nothing before it, so no score."""
    first: dict[str, Any] = {"token": "", "logprob": None, "top_logprobs": []}
    if len(ids) == 1:
        return [first]
    body = {
        "model": fields.get("model", ""),
        "prompt": ids[:1],
        "max_tokens": len(ids) - 1,
        "temperature": 0,
        "logprobs": top,
        "grammar": "root ::= " + " ".join(f"<[{int(token)}]>" for token in ids[1:]),
    }
    found = (complete(body)["choices"][0].get("logprobs") or {}).get("content", [])
    if [token.get("id") for token in found] != ids[1:]:
        raise InferenceError("The prompt could not be scored token by token.", "Leave special tokens out of it.")
    return [first, *found]


def _legacy(scored: list[dict[str, Any]], top: int) -> dict[str, Any]:
    """The form of the completions of old, which harnesses read."""
    offsets, at = [], 0
    for token in scored:
        offsets.append(at)
        at += len(token["token"])
    return {
        "tokens": [token["token"] for token in scored],
        "token_logprobs": [_bounded(token["logprob"]) for token in scored],
        "top_logprobs": [
            {one["token"]: _bounded(one["logprob"]) for one in token["top_logprobs"][:top]} or None for token in scored
        ],
        "text_offset": offsets,
    }


def _bounded(logprob: float | None) -> float | None:
    return None if logprob is None else max(LEAST, logprob)


def tokenizer(address: str, key: str) -> Tokenize:
    """The engine's own, through its port on the loopback address."""

    def tokenize(text: str) -> list[int]:
        request = urllib.request.Request(  # noqa: S310 - an address that the engine itself told
            f"{address}/tokenize",
            msgspec.json.encode({"content": text, "add_special": True}),
            {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
                tokens: list[int] = msgspec.json.decode(answer.read())["tokens"]
        except (OSError, KeyError, msgspec.MsgspecError) as error:
            raise InferenceError(f"llama.cpp could not tell tokens: {error}.", "Ask another service.") from None
        return tokens

    return tokenize
