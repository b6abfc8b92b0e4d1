"""What all paths of one gateway share: the client, the limits, and what was counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from nearfar.client.client import Client
from nearfar.gateway.body import header
from nearfar.gateway.named import NamedStreams
from nearfar.gateway.openai.counts import LanguageCounts
from nearfar.gateway.problems import Forbidden, TooManyRequests, Unauthorized
from nearfar.language.call import AUTO, About, Times
from nearfar.language.privacy.policy import KeyPolicy, Keyring
from nearfar.language.talker import Talker
from nearfar.settings import Settings
from nearfar.types.histogram import Histogram
from nearfar.types.ids import ModelName, is_name
from nearfar.types.request import STAGE_NAMES, Answer, Stages


class Limits(msgspec.Struct, frozen=True):
    """`max_body` in bytes; a deadline of 0 means none unless the caller states one."""

    max_body: int = 64 * 1024 * 1024
    max_in_flight: int = 256
    default_deadline_ms: float = 0.0


_OWN_HOST = re.compile(rb"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?$")
_OWN = re.compile(rb"https?://(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?$")


class State:
    """Used on the gateway's event loop only."""

    def __init__(
        self,
        client: Client,
        limits: Limits,
        api_keys: Sequence[str] = (),
        streams: NamedStreams | None = None,
        talker: Talker | None = None,
        keyring: Keyring | None = None,
    ) -> None:
        """`streams` is made for a gateway without a home folder when it is not given, `talker` for one without
        routing, `keyring` of `api_keys` when it is not given."""
        self.client = client
        self.streams = streams or NamedStreams(client)
        self.talker = talker or Talker(client)
        self.limits = limits
        self._keyring = keyring if keyring is not None else Keyring(Settings(home=Path()), api_keys)
        self._nobody = self._keyring.nobody()
        self.in_flight = 0
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """(model, `ok` or error code) -> requests. The names of unknown models are counted as one."""
        self.stages: dict[tuple[str, str], Histogram] = {}
        self._adds: dict[str, tuple[Callable[[float], None], ...]] = {}
        """`Histogram.add` of each stage of a model."""
        self.language = LanguageCounts()
        self.versions: dict[tuple[str, str], str] = {}
        """(service, instance) -> version of its model."""

    def authorize(self, headers: Iterable[tuple[bytes, bytes]]) -> KeyPolicy:
        """What the key that the request carries may do; nobody's policy when no key is set. Raises `Unauthorized`
        without the right one, `Forbidden` for a page of another site."""
        if self._keyring:
            policy = self._keyring.identify(header(headers, b"authorization") or b"")
            if policy is None:
                raise Unauthorized("The API key is missing or wrong.", "Send 'Authorization: Bearer KEY'.")
            return policy
        # Without a key, only the loopback address protects us, and a browser on this machine is inside it: a page of
        # another site shows in Origin, one whose name was bound anew to this address in Host.
        origin, host = header(headers, b"origin"), header(headers, b"host")
        if (origin is not None and not _OWN.match(origin)) or (host is not None and not _OWN_HOST.match(host)):
            raise Forbidden(
                "A page of another site may not use this gateway.", "Set [gateway] api_key_file to allow it."
            )
        return self._nobody

    def enter(self) -> None:
        """Count a request in; raises `TooManyRequests` at the limit. Every `enter` needs a `leave`."""
        if self.in_flight >= self.limits.max_in_flight:
            raise TooManyRequests(f"{self.in_flight} requests are in flight here.", "Try again shortly.", 0.2)
        self.in_flight += 1

    def leave(self) -> None:
        self.in_flight -= 1

    def answered(self, model: str, answer: Answer) -> None:
        self._count(model, answer.stages)

    def talked(self, about: About) -> None:
        """A language call was answered."""
        self._count(about.model, about.stages)
        self.language.answered(about)

    def _count(self, model: str, stages: Stages | Times) -> None:
        self.outcomes[(model, "ok")] += 1
        adds = self._adds.get(model)
        if adds is None:
            adds = self._adds[model] = tuple(
                self.stages.setdefault((model, name), Histogram()).add for name in STAGE_NAMES
            )
        link, queue, preprocess, inference, postprocess = adds
        link(stages.link)
        queue(stages.queue)
        preprocess(stages.preprocess)
        inference(stages.inference)
        postprocess(stages.postprocess)

    def failed(self, model: str, code: str, *, language: bool = False) -> None:
        # A label per misspelt name would let a stranger fill the memory of every metrics store.
        known = (language and model == AUTO) or (is_name(model) and ModelName(model) in self.client.snapshot().by_model)
        label = model if known else "(unknown)"
        self.outcomes[(label, code)] += 1
        if language:
            self.language.failed(label, code)
