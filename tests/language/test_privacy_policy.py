"""Policies of keys: read from a file, resolved against the general settings, and looked up by a key."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from nearfar import settings
from nearfar.errors import InputError, SettingsError
from nearfar.language.privacy.policy import NOBODY, KeyPolicy, Keyring, OnPersonalData, stricter
from nearfar.types.request import Privacy

KEY = "kitchen-key-1"
DIGEST = hashlib.sha256(b"office-key-2").hexdigest()
FILE = f"""
[privacy]
level = "fleet"
unreadable = "any"
[[keys]]
name = "kitchen"
key_env = "KITCHEN_KEY"
privacy = "local"
on_personal_data = "refuse"
[[keys]]
name = "office"
sha256 = "{DIGEST}"
on_personal_data = "redact"
unreadable = "near"
max_cost = 0.02
models = ["auto"]
"""


def loaded(folder: Path, text: str) -> settings.Settings:
    (folder / "nearfar.toml").write_text(text)
    return settings.load({"home": folder / "home"}, {}, folder)


def test_a_key_has_its_own_words_and_no_more_reach_than_everybody(tmp_path: Path) -> None:
    ring = Keyring(loaded(tmp_path, FILE), ["plain-key-3"], {"KITCHEN_KEY": KEY})
    assert ring.identify(b"Bearer kitchen-key-1") == KeyPolicy("kitchen", Privacy.LOCAL, OnPersonalData.REFUSE, False)
    office = ring.identify(b"bearer office-key-2")
    assert office == KeyPolicy("office", Privacy.FLEET, OnPersonalData.REDACT, True, 0.02, ("auto",))
    plain = ring.identify(b"Bearer plain-key-3")
    assert plain is not None and plain.name.startswith("key-") and plain.privacy is Privacy.FLEET
    assert ring.nobody() == KeyPolicy(NOBODY, Privacy.FLEET, OnPersonalData.NEAR, False)
    for wrong in (b"", b"Bearer", b"Bearer x", b"Basic kitchen-key-1", b"kitchen-key-1", DIGEST.encode()):
        assert ring.identify(wrong) is None
    assert KEY not in repr(ring) and "plain-key" not in repr(ring)


def test_what_a_key_may_ask_for_and_spend() -> None:
    policy = KeyPolicy("office", max_cost=0.02, models=("auto",))
    policy.check_model("auto")
    KeyPolicy().check_model("anything")
    with pytest.raises(InputError, match="auto"):
        policy.check_model("gpt")
    assert [policy.cost(asked) for asked in (None, 0.01, 1.0)] == [0.02, 0.01, 0.02]
    assert KeyPolicy().cost(None) is None and KeyPolicy().cost(0.0) == 0.0


def test_the_stricter_of_two() -> None:
    order = [OnPersonalData.REFUSE, OnPersonalData.NEAR, OnPersonalData.REDACT, OnPersonalData.IGNORE]
    for a in order:
        for b in order:
            assert stricter(a, b) is order[min(order.index(a), order.index(b))]


@pytest.mark.parametrize(
    "text",
    [
        'keys = "x"',
        "[keys]\nname = 'a'",
        "[[keys]]\nname = 'a'",
        "[[keys]]\nkey_env = 'A'",
        "[[keys]]\nname = 'A B'\nkey_env = 'A'",
        "[[keys]]\nname = 'a'\nsha256 = 'not-a-digest-but-my-secret'",
        f"[[keys]]\nname = 'a'\nkey_env = 'A'\nsha256 = '{DIGEST}'",
        "[[keys]]\nname = 'a'\nkey_env = 'A'\nprivacy = 'none'",
        "[[keys]]\nname = 'a'\nkey_env = 'A'\nmax_cost = -1",
        "[[keys]]\nname = 'a'\nkey_env = 'A'\nkey = 'my-secret'",
        "[[keys]]\nname = 'a'\nkey_env = 'A'\n[[keys]]\nname = 'a'\nkey_env = 'B'",
    ],
)
def test_an_entry_that_cannot_be_meant_is_refused_without_being_quoted(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, text)
    assert caught.value.hint and "my-secret" not in str(caught.value)


def test_a_key_that_is_not_set_or_has_two_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="KITCHEN_KEY"):
        Keyring(loaded(tmp_path, FILE), (), {})
    with pytest.raises(SettingsError, match="same key"):
        Keyring(loaded(tmp_path, FILE), (), {"KITCHEN_KEY": "office-key-2"})


def test_the_keys_of_the_working_folder_replace_those_of_home(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "nearfar.toml").write_text("[[keys]]\nname = 'far'\nkey_env = 'A'\n")
    assert [key.name for key in settings.load({"home": tmp_path / "home"}, {}, tmp_path).keys] == ["far"]
    assert [key.name for key in loaded(tmp_path, FILE).keys] == ["kitchen", "office"]
