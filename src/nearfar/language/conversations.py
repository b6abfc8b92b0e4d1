"""Who answered a conversation last, so that its next turn goes where its beginning is known already.

A conversation is known by the name that its caller gave it, else by its messages: those that were not the model's own.
The key's name and the privacy are part of it: what one caller asked never steers, nor tells of, another's calls. Only
digests are kept, bounded in number, in memory, and beside them where the state of the last answer is: should another
service be chosen, it can fetch that.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from nearfar.language.call import TextCall
from nearfar.types.ids import ServiceId
from nearfar.types.wire import Operation, StateTicket

MOST = 4096
"""Conversations that are remembered: about half a megabyte."""


class _Kept(NamedTuple):
    service: ServiceId
    state: StateTicket | None


class Conversations:
    """Used from one event loop.

    >>> from nearfar.language.call import read_call
    >>> from nearfar.types.request import Qos
    >>> first = read_call(Operation.CHAT, b'{"messages": [{"role": "user", "content": "Hi"}]}', Qos())
    >>> then = read_call(Operation.CHAT, b'{"messages": [{"role": "user", "content": "Hi"},'
    ...     b'{"role": "assistant", "content": "Ho"}, {"role": "user", "content": "So?"}]}', Qos())
    >>> kept = Conversations()
    >>> kept.answered(first, ServiceId("pi/tiny"))
    >>> kept.incumbent(then)
    'pi/tiny'
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._by_key: OrderedDict[bytes, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_key)

    def incumbent(self, call: TextCall) -> ServiceId | None:
        """Who answered the turn before this one; None when that is not known."""
        found = self._before(call)
        return found.service if found is not None else None

    def state(self, call: TextCall) -> StateTicket | None:
        """Where the state of the turn before this one is, for a service that did not answer that."""
        found = self._before(call)
        return found.state if found is not None else None

    def _before(self, call: TextCall) -> _Kept | None:
        key = _named(call) or _digest(call, _asked(call)[:-1])
        found = self._by_key.get(key) if key else None
        if found is not None and key:
            self._by_key.move_to_end(key)
        return found

    def answered(self, call: TextCall, service: ServiceId, state: StateTicket | None = None) -> None:
        """Remember who answered this turn, and where its state is."""
        key = _named(call) or _digest(call, _asked(call))
        if not key:
            return
        self._by_key[key] = _Kept(service, state)
        self._by_key.move_to_end(key)
        while len(self._by_key) > self._most:
            self._by_key.popitem(last=False)


def _named(call: TextCall) -> bytes:
    return _hash(call, [call.conversation]) if call.conversation else b""


def _asked(call: TextCall) -> list[Any]:
    """What came from the caller. The model's answers follow from it, and callers trim or edit them."""
    if call.operation is not Operation.CHAT:
        return []
    return [message for message in call.view.messages if message.get("role") not in ("assistant", "tool")]


def _digest(call: TextCall, messages: Sequence[Any]) -> bytes:
    if not any(message.get("role") == "user" for message in messages):
        return b""  # a system prompt alone is shared by conversations that have nothing else in common
    return _hash(call, messages)


def _hash(call: TextCall, what: Sequence[Any]) -> bytes:
    told = [call.policy.name, call.qos.privacy, call.model, bool(call.conversation), what]
    return hashlib.blake2b(msgspec.json.encode(told), digest_size=16).digest()
