"""[language] becomes what one model is loaded with."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearfar.errors import SettingsError
from nearfar.node.textspec import text_spec
from nearfar.settings import NodeSettings, Settings
from nearfar.settings_language import LanguageSettings


def settings(home: Path, **language: object) -> Settings:
    return Settings(home=home, node=NodeSettings(memory_limit=99), language=LanguageSettings(**language))  # type: ignore[arg-type]


def test_what_is_set_arrives_at_the_model_it_is_for(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"x")
    stated = settings(tmp_path, context=512, slots=2, loras=(f"all={file}", f"m/mine={file}", f"other/not={file}"),
                      drafts=(f"m={file}",), ngram=True, draft_tokens=3, prompt_cache=7)  # fmt: skip
    spec = text_spec(stated, "m")
    assert (spec.context, spec.slots, spec.memory) == (512, 2, 99)
    assert spec.settings == {
        "prompt_cache": "7",
        "draft_tokens": "3",
        "loras": f"all={file}\nmine={file}",
        "draft": str(file),
        "ledger": str(tmp_path / "ledger.sqlite3"),
    }
    assert text_spec(stated, "third").settings["ngram"] == "1"
    assert text_spec(stated, "third").settings["loras"] == f"all={file}"


@pytest.mark.parametrize(
    ("language", "says"),
    [
        ({"loras": ("x",)}, "names no file"),
        ({"loras": ("x=",)}, "names no file"),
        ({"loras": ("x=/no/such.gguf",)}, "no file /no/such.gguf"),
        ({"loras": ("UPPER CASE={here}",)}, "no name"),
        ({"loras": ("/x={here}",)}, "no name"),
        ({"drafts": ("m=/no/such.gguf",)}, "drafts"),
    ],
)
def test_an_entry_that_cannot_be_read_is_named(tmp_path: Path, language: dict[str, tuple[str]], says: str) -> None:
    stated = {key: tuple(e.replace("{here}", __file__) for e in entries) for key, entries in language.items()}
    with pytest.raises(SettingsError, match=says):
        text_spec(settings(tmp_path, **stated), "m")
