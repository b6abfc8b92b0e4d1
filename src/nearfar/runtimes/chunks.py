"""A whole answer from the chunks of a streamed one.

An engine can only be told between two chunks that nobody waits any more, so a long answer is always asked for in
chunks, also when its caller wants it whole.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nearfar.errors import InferenceError


class _Choice:
    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {}
        """Parts of `text`, or of the message's `content`, `reasoning_content` and `refusal`."""
        self.tools: dict[int, dict[str, Any]] = {}
        self.logprobs: list[Any] = []
        self.has_logprobs = False
        self.reason: str | None = None


class Whole:
    """Takes chunks of a chat completion or a completion; `answer` is what would have come without streaming."""

    def __init__(self, chat: bool) -> None:
        self._chat = chat
        self._choices: dict[int, _Choice] = {}
        self._head: dict[str, Any] = {}

    def add(self, piece: bytes) -> None:
        """Raises `InferenceError` for what is no chunk."""
        try:
            chunk: dict[str, Any] = msgspec.json.decode(piece, type=dict[str, Any])
            for told in chunk.pop("choices", ()):
                choice = self._choices.setdefault(told.get("index", 0), _Choice())
                self._said(choice, told.get("delta") or {} if self._chat else {"text": told.get("text")})
                logprobs = told.get("logprobs")
                if logprobs is not None:
                    choice.has_logprobs = True
                    choice.logprobs += logprobs.get("content") or ()
                choice.reason = told.get("finish_reason") or choice.reason
        except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError, TypeError) as error:
            raise InferenceError(f"The engine said what is no chunk: {type(error).__name__}.", "Ask again.") from None
        self._head.update(chunk)

    def _said(self, choice: _Choice, delta: dict[str, Any]) -> None:
        for name in ("text", "content", "reasoning_content", "refusal"):
            if (part := delta.get(name)) is not None:
                choice.texts.setdefault(name, []).append(part)
        for told in delta.get("tool_calls") or ():
            call = choice.tools.setdefault(told.get("index", 0), {"type": "function", "function": {"arguments": ""}})
            call.update({key: told[key] for key in ("id", "type") if told.get(key)})
            function = told.get("function") or {}
            if function.get("name"):
                call["function"]["name"] = function["name"]
            call["function"]["arguments"] += function.get("arguments") or ""

    def answer(self) -> bytes:
        """Raises `InferenceError` when no chunk has come."""
        if not self._choices:
            raise InferenceError("The engine ended without an answer.", "Ask another service.")
        kind = "chat.completion" if self._chat else "text_completion"
        choices = [self._finished(number, choice) for number, choice in sorted(self._choices.items())]
        return msgspec.json.encode({**self._head, "object": kind, "choices": choices})

    def _finished(self, number: int, choice: _Choice) -> dict[str, Any]:
        texts = {name: "".join(parts) for name, parts in choice.texts.items()}
        made: dict[str, Any] = {"index": number, "finish_reason": choice.reason}
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": None if choice.tools else "", **texts}
            if choice.tools:
                message["tool_calls"] = [call for _, call in sorted(choice.tools.items())]
            made["message"] = message
        else:
            made["text"] = texts.get("text", "")
        if choice.has_logprobs:
            made["logprobs"] = {"content": choice.logprobs}
        elif not self._chat:
            made["logprobs"] = None
        return made
