"""What a key may do: how far its requests may travel, what happens to personal data in them, what they may cost.

A policy comes from `[privacy]` and, for the keys that have one, from a `[[keys]]` entry
(docs/reference-settings.md).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from nearfar.errors import InputError, SettingsError
from nearfar.settings import Settings
from nearfar.settings_privacy import KeySettings, PrivacySettings
from nearfar.types.request import Privacy

NOBODY = "(no key)"
"""Name of the caller while the gateway asks for no key."""


class OnPersonalData(StrEnum):
    """What becomes of a request in which personal data is found."""

    REFUSE = "refuse"
    """It is answered by nobody."""
    NEAR = "near"
    """It stays in the fleet."""
    REDACT = "redact"
    """It may go far, with placeholders instead of what was found."""
    IGNORE = "ignore"
    """It may go far as it is: somebody decided so, and is named in the reasons."""


_STRICTNESS = (OnPersonalData.REFUSE, OnPersonalData.NEAR, OnPersonalData.REDACT, OnPersonalData.IGNORE)
_DISTANCE = (Privacy.LOCAL, Privacy.FLEET, Privacy.ANY)


def strictest(*levels: Privacy) -> Privacy:
    """The level that keeps what each of these demands.

    >>> strictest(Privacy.ANY, Privacy.LOCAL, Privacy.FLEET)
    <Privacy.LOCAL: 'local'>
    """
    return min(levels, key=_DISTANCE.index, default=Privacy.ANY)


def stricter(one: OnPersonalData, other: OnPersonalData) -> OnPersonalData:
    return min(one, other, key=_STRICTNESS.index)


class KeyPolicy(msgspec.Struct, frozen=True):
    """Made without arguments it is the default: anything may go far in which nothing is found or unreadable."""

    name: str = NOBODY
    """Who this is, for reasons, the ledger and the cache; never the key."""
    privacy: Privacy = Privacy.ANY
    """The farthest that any request of this key may travel."""
    on_personal_data: OnPersonalData = OnPersonalData.NEAR
    unreadable_near: bool = True
    """Whether what no detector can read (pictures, sound, files, tokens) stays near."""
    max_cost: float | None = None
    """Most that one request may cost, in the fleet's currency; None for any."""
    models: tuple[str, ...] = ()
    """Public names of the models it may ask for; none named: all."""

    def check_model(self, model: str) -> None:
        """Raise `InputError` unless this key may ask for the model of that public name."""
        if self.models and model not in self.models:
            raise InputError(
                f"The key {self.name} may not ask for {model[:80]!r}.", f"Ask for one of: {', '.join(self.models)}."
            )

    def cost(self, asked: float | None) -> float | None:
        """The lower of the request's own highest cost and this key's."""
        return min((cost for cost in (asked, self.max_cost) if cost is not None), default=None)


class Keyring:
    """Who a request comes from, by its key. It holds digests of the keys, not the keys."""

    def __init__(self, settings: Settings, plain: Iterable[str] = (), env: Mapping[str, str] | None = None) -> None:
        """`plain`: keys of `[gateway] api_key_file`; those without a `[[keys]]` entry follow `[privacy]` alone. `env`
        is the process's own environment when not given. Raises `SettingsError` for a `key_env` that is not set, and for
        one key under two names."""
        env = os.environ if env is None else env
        self._default = settings.privacy
        self._by_digest: dict[str, KeyPolicy] = {}
        for entry in settings.keys:
            digest = _digest_of(entry, env)
            if digest in self._by_digest:
                raise SettingsError(
                    f"[[keys]] {entry.name} has the same key as {self._by_digest[digest].name}.",
                    "Give each a key of its own, or remove one.",
                )
            self._by_digest[digest] = policy_of(self._default, entry)
        for key in plain:
            digest = hashlib.sha256(key.encode()).hexdigest()
            named = policy_of(self._default, KeySettings(name=f"key-{digest[:8]}", sha256=digest))
            self._by_digest.setdefault(digest, named)

    def __bool__(self) -> bool:
        """Whether any key is known: then requests without one are refused."""
        return bool(self._by_digest)

    def __repr__(self) -> str:
        return f"Keyring({', '.join(policy.name for policy in self._by_digest.values())})"

    def nobody(self) -> KeyPolicy:
        """The policy while no key is asked for."""
        return policy_of(self._default, None)

    def identify(self, authorization: bytes) -> KeyPolicy | None:
        """The policy of the key in an `Authorization: Bearer KEY` header; None when it is none of ours. It takes as
        long for a wrong key as for a right one."""
        scheme, _, key = authorization.partition(b" ")
        digest = hashlib.sha256(key.strip()).hexdigest()
        matching = [policy for known, policy in self._by_digest.items() if hmac.compare_digest(known, digest)]
        return matching[0] if matching and scheme.lower() == b"bearer" else None


def policy_of(default: PrivacySettings, entry: KeySettings | None) -> KeyPolicy:
    """A key's own words win over `[privacy]`, but for the level: there the stricter of both holds."""
    general = KeyPolicy(
        NOBODY, Privacy(default.level), OnPersonalData(default.on_personal_data), default.unreadable == "near"
    )
    if entry is None:
        return general
    return KeyPolicy(
        entry.name,
        strictest(general.privacy, Privacy(entry.privacy)),
        OnPersonalData(entry.on_personal_data or default.on_personal_data),
        (entry.unreadable or default.unreadable) == "near",
        entry.max_cost,
        entry.models,
    )


def _digest_of(entry: KeySettings, env: Mapping[str, str]) -> str:
    if not entry.key_env:
        return entry.sha256
    key = env.get(entry.key_env, "").strip()
    if not key:
        raise SettingsError(
            f"[[keys]] {entry.name} takes its key from {entry.key_env}, which is not set.",
            f"Set {entry.key_env}, or write sha256 instead.",
        )
    return hashlib.sha256(key.encode()).hexdigest()
