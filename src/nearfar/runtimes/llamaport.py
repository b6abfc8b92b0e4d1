"""llama.cpp's own port on the loopback address, for what its binding cannot do: tell tokens, and let go of a whole
answer that nobody waits for. The key is known to this process alone."""

from __future__ import annotations

import http.client
import selectors
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from nearfar.errors import InferenceError

LOOK_EVERY = 0.05
"""Seconds between two looks whether anybody still waits."""
BRIEF = 64
"""Tokens of an answer that is over before it would be worth letting go of."""


class _Length(msgspec.Struct):
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n_predict: int | None = None


_length = msgspec.json.Decoder(_Length)


def brief(body: bytes) -> bool:
    """Whether the answer is surely short."""
    try:
        asked = _length.decode(body)
    except msgspec.MsgspecError:
        return True  # the engine refuses it at once
    limits = [n for n in (asked.max_tokens, asked.max_completion_tokens, asked.n_predict) if n is not None]
    return any(0 <= n <= BRIEF for n in limits)


class LlamaPort:
    """Used by any thread; each call has a connection of its own, and closing it is what stops the engine's work."""

    def __init__(self, address: str, key: str) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 0
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", "Connection": "close"}

    def ask(self, path: str, body: bytes, gone: Callable[[], bool]) -> bytes | None:
        """The answer, an error in llama.cpp's own form included; None when `gone` said that nobody waits for it.
        Raises `InferenceError` when the engine closed the connection."""
        connection = http.client.HTTPConnection(self._host, self._port)
        try:
            connection.request("POST", path, body, self._headers)
            with selectors.DefaultSelector() as selector:
                selector.register(connection.sock, selectors.EVENT_READ)
                while not selector.select(LOOK_EVERY):
                    if gone():
                        return None
            return connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            raise InferenceError(f"llama.cpp ended the connection: {error}.", "Ask another service.") from None
        finally:
            connection.close()

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, with the one that begins every text where the model has it."""
        answer = self.ask("/tokenize", msgspec.json.encode({"content": text, "add_special": True}), lambda: False)
        try:
            tokens: list[int] = msgspec.json.decode(answer or b"")["tokens"]
        except (KeyError, msgspec.MsgspecError):
            raise InferenceError("llama.cpp could not tell the tokens of a text.", "Ask another service.") from None
        return tokens
