"""States of llama.cpp: a slot is saved in one process and restored in another, by way of the engine's own port.

The engine writes and reads states as files alone. They live for milliseconds, in a folder that nobody else may enter
and that is made and removed each time; in memory where the system has such a place.

A call is marked by `n_discard`, which means something only when the engine shifts contexts, which it is told not to:
the engine shows it with the slot that the call was given. What is resumed is a completion of token ids, so that not a
token is read in another way than it was written.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import platform
import secrets
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from nearfar.errors import InferenceError, InputError, NearfarError
from nearfar.runtimes import kvstate
from nearfar.runtimes.states import Marked, Resumed, States
from nearfar.types.wire import Operation

log = logging.getLogger(__name__)
SOON = 2.0
"""Seconds within which the engine must have done what it is asked here; else the state is left where it is."""
RESTING = 2.0
"""Seconds in which a slot that was restored is not taken for another state: its call is on the way."""
MOST_BEYOND = 64
"""Tokens that the engine may have been ahead of what its caller got."""
ALIKE = 0.5
"""Share of a state's tokens that must be those of the prompt, for it to be worth a slot."""
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
_FIRST_MARK = 1 << 20
_MARKS = 1 << 30
_NOT_OF_A_COMPLETION = (
    "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "max_completion_tokens", "n_predict",
    "chat_template_kwargs", "reasoning_format", "add_generation_prompt", "n",
)  # fmt: skip


def private_folder() -> Path:
    """A name for a folder that nobody can guess; in memory where the system has such a place."""
    parent = _MEMORY if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    return parent / f"nearfar-{secrets.token_hex(16)}"


class _Parameters(msgspec.Struct):
    n_discard: int = 0


class _Slot(msgspec.Struct):
    id: int
    is_processing: bool = False
    id_task: int = -1
    n_prompt_tokens: int = 0
    params: _Parameters = msgspec.field(default_factory=_Parameters)


class _Seen(msgspec.Struct):
    """What of a call decides whether its state can be moved."""

    lora: Any = None
    n: int | None = None
    prompt: Any = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n_predict: int | None = None
    stream_options: dict[str, Any] | None = None

    def limit(self) -> int | None:
        given = [n for n in (self.max_completion_tokens, self.max_tokens, self.n_predict) if n is not None and n >= 0]
        return given[0] if given else None


_slots = msgspec.json.Decoder(list[_Slot])
_seen = msgspec.json.Decoder(_Seen)
_raw = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Geometry(NamedTuple):
    """What of a loaded model decides whether a state fits."""

    engine: str
    """Name and version of the engine, and how it was built."""
    vocabulary: int
    context: int
    slots: int


class LlamaStates(States):
    def __init__(self, address: str, key: str, folder: Path, geometry: Geometry) -> None:
        self._address = address
        self._key = key
        self._folder = folder
        self._geometry = geometry
        self._own: kvstate.Layout | None = None
        self._files = threading.Lock()
        """Held while there is a file."""
        self._marks = itertools.count(secrets.randbelow(_MARKS))  # a caller who sends `n_discard` cannot guess one
        self._restored: dict[int, tuple[int, float]] = {}
        """Slot -> its last task and the moment at which a state was restored into it."""

    def learn(self, model: str) -> None:
        try:
            used = [slot.id for slot in self._look() if slot.id_task >= 0]
            if not used:
                return
            with self._files:
                self._own = kvstate.read(self._written(used[0])).layout
        except (NearfarError, OSError) as error:  # as for a model whose cache has another form
            log.info("conversations do not move with their state here: %s", error)
            return
        told = (model, *self._geometry, platform.machine(), self._own)
        self.build = hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()

    def marked(self, body: bytes) -> Marked | None:
        if not self.build:
            return None
        try:
            seen, raw = _seen.decode(body), _raw.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None  # the engine says what is wrong with it
        if seen.lora or (seen.n or 1) > 1:
            return None
        mark = _FIRST_MARK + next(self._marks) % _MARKS
        raw["n_discard"] = msgspec.Raw(str(mark).encode())
        return Marked(msgspec.json.encode(raw), mark)

    def save(self, mark: int, most: int) -> bytes:
        slot = self._marked(mark)
        if self._own is None or slot is None:
            raise _gone()
        if slot.n_prompt_tokens * self._own.token_bytes > most:
            raise InferenceError(f"The state is larger than {most} bytes.", "Set [language] state_limit higher.")
        with self._files:
            state = self._written(slot.id)
        if self._marked(mark) is None:  # another call was given the slot meanwhile: whose state is it?
            raise _gone()
        if len(state) > most:
            raise InferenceError(f"The state is larger than {most} bytes.", "Set [language] state_limit higher.")
        kvstate.check(state, self._own, self._geometry.vocabulary, self._geometry.context)
        return state

    def resume(self, operation: Operation, body: bytes, state: bytes, written: int) -> Resumed:
        if self._own is None:
            raise InputError("This model takes no state.", "The answer is written again without it.")
        tokens = kvstate.check(state, self._own, self._geometry.vocabulary, self._geometry.context).tokens
        seen, fields = _decoded(body)
        prompt = self._prompt(operation, seen, fields)
        same = _common(tokens, prompt)
        if written < 0 and same < ALIKE * len(tokens):
            raise InputError("The state is of another conversation.", "The prompt is read without it.")
        if written >= 0 and same < len(prompt):
            raise InputError("The state is not of this call.", "The answer is written again without it.")
        text, count = self._text(tokens[len(prompt) :], written) if written > 0 else ("", 0)
        limit = seen.limit()
        self._restore(state, len(tokens))
        if not count or (limit is not None and limit <= count):  # the prompt alone is known
            return Resumed(operation, body, b"", same, lambda piece: (piece,))
        for name in _NOT_OF_A_COMPLETION:
            fields.pop(name, None)
        fields["prompt"] = tokens[: len(prompt) + count]
        if limit is not None:
            fields["max_tokens"] = limit - count
        chat = operation is Operation.CHAT
        usage = bool((seen.stream_options or {}).get("include_usage"))
        first = {"choices": [_choice(chat, text)], "created": int(time.time()), "id": "", "object": _kind(chat)}
        first["model"] = fields.get("model", "")
        chunks = _Chunks(chat, count, usage)
        return Resumed(
            Operation.COMPLETE, msgspec.json.encode(fields), msgspec.json.encode(first), len(prompt) + count, chunks
        )

    # -- what the engine is asked -------------------------------------------------------------------------------------

    def _prompt(self, operation: Operation, seen: _Seen, fields: dict[str, Any]) -> list[int]:
        """Tokens of the call's prompt, as the engine itself makes them."""
        prompt = seen.prompt
        if operation is Operation.CHAT:
            prompt = _field(self._ask("/apply-template", fields), "prompt", str)
        if isinstance(prompt, str):
            prompt = _field(
                self._ask("/tokenize", {"content": prompt, "add_special": True, "parse_special": True}), "tokens", list
            )
        if not isinstance(prompt, list) or not prompt or not all(type(token) is int for token in prompt):
            raise InputError("The prompt is of a form that no state is kept for.", "Send a text.")
        return prompt

    def _text(self, produced: list[int], written: int) -> tuple[str, int]:
        """The longest beginning of what was produced that is not longer than `written`, and how many tokens it has."""
        for count in range(len(produced), max(0, len(produced) - MOST_BEYOND), -1):
            text: str = _field(self._ask("/detokenize", {"tokens": produced[:count]}), "content", str)
            if len(text) <= written and not text.endswith("\ufffd"):
                return text, count
        return "", 0

    def _restore(self, state: bytes, tokens: int) -> None:
        """Into a slot that is not worked on, one that was never used rather than one that is long at rest."""
        with self._files:
            free = [slot for slot in self._look() if not slot.is_processing and not self._rests(slot)]
            if not free:
                raise InferenceError("No slot is free for the state.", "The answer is written again without it.")
            chosen = min(free, key=lambda slot: slot.id_task)
            slot = chosen.id
            self._restored[slot] = (chosen.id_task, time.monotonic())
            self._folder.mkdir(mode=0o700)
            try:
                (self._folder / "state").write_bytes(state)
                told = self._ask(f"/slots/{slot}?action=restore", {"filename": "state"})
            except OSError as error:
                raise InferenceError(f"The state cannot be kept: {error.strerror}.", "Free some space.") from None
            finally:
                shutil.rmtree(self._folder, ignore_errors=True)
        if told.get("n_restored") != tokens:
            raise InferenceError("llama.cpp did not take the whole state.", "The answer is written again without it.")

    def _rests(self, slot: _Slot) -> bool:
        """Whether a state was restored into it, and the call for which that was done has not come yet."""
        task, since = self._restored.get(slot.id, (-2, 0.0))
        return slot.id_task == task and time.monotonic() - since < RESTING

    def _written(self, slot: int) -> bytes:
        """A slot's state; with `_files` held."""
        self._folder.mkdir(mode=0o700)
        try:
            self._ask(f"/slots/{slot}?action=save", {"filename": "state"})
            return (self._folder / "state").read_bytes()
        except OSError as error:
            raise InferenceError(f"The state cannot be read: {error.strerror}.", "Free some space.") from None
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _marked(self, mark: int) -> _Slot | None:
        return next((slot for slot in self._look() if slot.params.n_discard == mark), None)

    def _look(self) -> list[_Slot]:
        try:
            return _slots.decode(self._fetch("/slots", None))
        except msgspec.MsgspecError as error:
            raise InferenceError(f"llama.cpp tells of its slots in another form: {error}.", "Ask again.") from None

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return msgspec.json.decode(self._fetch(path, msgspec.json.encode(body)), type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise InferenceError(f"llama.cpp answers {path} in another form: {error}.", "Ask again.") from None

    def _fetch(self, path: str, body: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        request = urllib.request.Request(f"{self._address}{path}", body, headers)  # noqa: S310 - the engine's own
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=SOON) as answer:
                return bytes(answer.read())
        except (OSError, ValueError) as error:  # its body may quote the prompt
            name = path.partition("?")[0]
            raise InferenceError(f"llama.cpp did not do {name}: {type(error).__name__}.", "Ask again.") from None


class _Chunks:
    """Makes the chunks of a completion those of a call whose answer had `count` tokens already."""

    def __init__(self, chat: bool, count: int, usage: bool) -> None:
        self._chat = chat
        self._count = count
        self._usage = usage

    def __call__(self, piece: bytes) -> Sequence[bytes]:
        raw: dict[str, Any] = msgspec.json.decode(piece)
        usage = raw.get("usage")
        if isinstance(usage, dict):
            usage["completion_tokens"] = usage.get("completion_tokens", 0) + self._count
            usage["prompt_tokens"] = max(0, usage.get("prompt_tokens", 0) - self._count)
        if not self._chat:
            return (msgspec.json.encode(raw),)
        raw["object"] = _kind(True)
        for place, choice in enumerate(raw.get("choices") or ()):
            raw["choices"][place] = _choice(True, choice.get("text") or "", choice.get("finish_reason"), first=False)
        if usage is None:
            return (msgspec.json.encode(raw),)
        timings = raw.pop("timings", None)
        last = {**raw, "choices": [], "timings": timings}
        del raw["usage"]
        if not self._usage:
            return (msgspec.json.encode({**raw, "timings": timings}),)
        return (msgspec.json.encode(raw), msgspec.json.encode(last))


def _gone() -> InferenceError:
    return InferenceError("The state of this call is not kept any more.", "Ask again.")


def _kind(chat: bool) -> str:
    return "chat.completion.chunk" if chat else "text_completion"


def _choice(chat: bool, text: str, reason: str | None = None, *, first: bool = True) -> dict[str, Any]:
    if not chat:
        return {"text": text, "index": 0, "logprobs": None, "finish_reason": reason}
    delta: dict[str, Any] = {"role": "assistant", "content": text} if first else {"content": text} if text else {}
    return {"finish_reason": reason, "index": 0, "delta": delta}


def _decoded(body: bytes) -> tuple[_Seen, dict[str, Any]]:
    try:
        return _seen.decode(body), msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InputError("The request cannot be read.", "Send JSON.") from None


def _common(one: list[int], other: list[int]) -> int:
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def _field(told: dict[str, Any], name: str, kind: type) -> Any:
    value = told.get(name)
    if not isinstance(value, kind):
        raise InferenceError(f"llama.cpp tells no {name}.", "Ask again.")
    return value
