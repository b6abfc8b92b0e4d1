"""The settings of privacy: what may go far, who may send it, and what is kept of answers. Read by `settings.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from nearfar.errors import SettingsError


class PrivacySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a prompt may go to a far end. A request can only ask for more privacy. A key (`[[keys]]`) has its own
    word on personal data and on what is unreadable, and can lower the level."""

    level: Annotated[
        Literal["any", "fleet", "local"],
        Meta(description="The farthest that any prompt may travel: a far end, this fleet, or the node it came to."),
    ] = "any"
    on_personal_data: Annotated[
        Literal["near", "refuse", "redact", "ignore"],
        Meta(
            description="What becomes of a prompt in which personal data or a secret is found: it stays near, is "
            "refused, goes far with placeholders instead, or goes far as it is."
        ),
    ] = "near"
    unreadable: Annotated[
        Literal["near", "any"],
        Meta(description="Where a prompt may go that holds what no detector reads: pictures, sound, files, tokens."),
    ] = "near"


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers kept in memory, never on disk, and never across keys or levels of privacy."""

    max_bytes: Annotated[
        int, Meta(ge=0, description="Most bytes of answers kept. 0: none are.", extra={"kind": "bytes"})
    ] = 64 * 1024 * 1024
    max_entries: Annotated[int, Meta(ge=1, le=1_000_000, description="Most answers kept.")] = 10_000
    max_age_ms: Annotated[
        int, Meta(ge=1, description="How long an answer is kept, in milliseconds.", extra={"kind": "milliseconds"})
    ] = 3_600_000
    semantic: Annotated[
        bool, Meta(description="Also give the answer to a question that means nearly the same, see `similarity`.")
    ] = False
    similarity: Annotated[
        float,
        Meta(ge=0.5, le=1, description="Cosine between two questions from which on one answer does for both."),
    ] = 0.97


class KeySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one API key may do. The file holds the name of a variable or a digest, never the key itself."""

    name: Annotated[
        str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="Who it is, in reasons and in the ledger.")
    ]
    key_env: Annotated[
        str, Meta(pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,99})?$", description="Environment variable that holds the key.")
    ] = ""
    sha256: Annotated[
        str, Meta(pattern=r"^([0-9a-f]{64})?$", description="Instead of `key_env`: SHA-256 of the key, 64 hex digits.")
    ] = ""
    privacy: Annotated[
        Literal["any", "fleet", "local"], Meta(description="The farthest that its requests may travel.")
    ] = "any"
    on_personal_data: Annotated[
        Literal["", "near", "refuse", "redact", "ignore"],
        Meta(description="Instead of what `[privacy]` says. Empty: what stands there."),
    ] = ""
    unreadable: Annotated[
        Literal["", "near", "any"], Meta(description="Instead of what `[privacy]` says. Empty: what stands there.")
    ] = ""
    max_cost: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="Most that one request may cost, in the fleet's currency. Unset: any."),
    ] = None
    models: Annotated[tuple[str, ...], Meta(description="Models that it may ask for. Empty: all.")] = ()


def read_keys(entries: Any, path: Path) -> tuple[KeySettings, ...]:
    """The `[[keys]]` of a file. Raises `SettingsError` with the entry, the field and what is allowed; it quotes no
    value, as somebody may have written a key where its digest belongs."""
    if not isinstance(entries, list):
        raise SettingsError(f"keys in {path} is not a list of tables.", "Write [[keys]] for each key.")
    keys: list[KeySettings] = []
    for number, entry in enumerate(entries, 1):
        place = f"[[keys]] number {number} in {path}"
        unknown = sorted(set(entry) - set(KeySettings.__struct_fields__)) if isinstance(entry, dict) else []
        if unknown:
            raise SettingsError(
                f"{place} has an unknown field {unknown[0][:40]!r}.",
                f"Known are: {', '.join(KeySettings.__struct_fields__)}.",
            )
        try:
            key = msgspec.convert(entry, KeySettings)
        except msgspec.ValidationError as error:
            field = str(error).rpartition("`$.")[2].rstrip("`") if "`$." in str(error) else "name"
            raise SettingsError(
                f"{place}: {field} will not do.", "docs/reference-settings.md says what is allowed."
            ) from None
        if bool(key.key_env) == bool(key.sha256):
            raise SettingsError(f"{place} ({key.name}) needs key_env or sha256, one of both.", "Write one of them.")
        if key.name in {other.name for other in keys}:
            raise SettingsError(f"{place} has the name of another: {key.name}.", "Give each a name of its own.")
        keys.append(key)
    return tuple(keys)
