"""How a node loads a language model, from its settings."""

from __future__ import annotations

from pathlib import Path

from nearfar import ledger
from nearfar.errors import SettingsError
from nearfar.node.spec import TextSpec
from nearfar.settings import Settings
from nearfar.types.ids import is_name


def text_spec(settings: Settings, model: str) -> TextSpec:
    """Raises `SettingsError` naming the entry of [language] that cannot be read or leads to no file."""
    language = settings.language
    loras = {}
    for entry in language.loras:
        name, file = _named("loras", entry)
        of, slash, short = name.rpartition("/")
        if not is_name(short) or (slash and not is_name(of)):
            raise SettingsError(f"[language] loras: {entry!r} has no name.", "Write NAME=FILE or MODEL/NAME=FILE.")
        if not slash or of == model:
            loras[short] = file
    drafts = dict(_named("drafts", entry) for entry in language.drafts)
    told = {
        "prompt_cache": str(language.prompt_cache),
        "draft_tokens": str(language.draft_tokens),
        "ledger": str(settings.home / ledger.FILE),  # of far ends; other engines do not look at it
    }
    if loras:
        told["loras"] = "\n".join(f"{name}={file}" for name, file in loras.items())
    if model in drafts:
        told["draft"] = str(drafts[model])
    elif language.ngram:
        told["ngram"] = "1"
    return TextSpec(language.context, language.slots, settings.node.memory_limit, told, language.state_limit)


def _named(key: str, entry: str) -> tuple[str, Path]:
    name, sign, text = entry.partition("=")
    file = Path(text.strip()).expanduser().absolute()
    if not sign or not text.strip():
        raise SettingsError(f"[language] {key}: {entry!r} names no file.", "Write NAME=FILE.")
    if not file.is_file():
        raise SettingsError(f"[language] {key}: there is no file {file}.", "Correct the path.")
    return name.strip(), file
