"""`nearfar far`: what it says, what it keeps, and that a call is made only when it was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nearfar.runtimes.remote.description import FarEnd, to_toml
from tests.cli.commands import nearfar
from tests.far.calls import KEY
from tests.far.misbehaving import Act, FarServer, Kind

PRICES = ["--price-in", "2", "--price-out", "10"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_a_far_end_from_its_adding_to_its_removal(home: Path) -> None:
    env = {"FAR_TEST_KEY": KEY}
    with FarServer() as server:
        where = ["--base-url", server.url, "--model", "large-1", "--key-env", "FAR_TEST_KEY"]
        added = nearfar(
            "far", "add", "large", *where, *PRICES, "--timeout", "2s", "--header", "x-a=b", "--json", home=home
        )
        assert added.json["headers"] == {"x-a": "b"} and added.json["timeout_s"] == 2.0, added.err
        assert added.json["key_there"] is False and "export FAR_TEST_KEY" in added.json["key_state"]
        assert "Changed large" in nearfar("far", "add", "large", *where, *PRICES, home=home).out
        refused = nearfar("far", "test", "large", home=home, env=env)
        assert refused.code == 2 and "nearfar far test large --yes" in refused.sentence and not server.requests
        tested = nearfar("far", "test", "large", "--yes", "--json", home=home, env=env)
        assert tested.json["text"] == "one two three four" and tested.json["cost"] == pytest.approx(58e-6)
        server.add(Act(Kind.STATUS, status=401))
        wrong = nearfar("far", "test", "large", "--yes", home=home, env=env)
        assert wrong.code == 4 and "FAR_TEST_KEY" in wrong.sentence and KEY not in wrong.err
        assert len(server.requests) == 2
    [row] = nearfar("far", "list", "--json", home=home, env=env).json
    assert row["key_there"] is True and row["spent_today"] == pytest.approx(58e-6)
    told = nearfar("far", "ledger", "--json", "--day", "today", "--far", "large", home=home).json
    assert [row["outcome"] for row in told["attempts"]] == ["ok", "not-billed"]
    assert (told["totals"][0]["ok"], told["totals"][0]["failed"]) == (1, 1)
    assert "large" in nearfar("far", "ledger", "--rows", "5", home=home).out
    assert "large" in nearfar("far", "list", home=home).out
    assert nearfar("far", "remove", "large", "--json", home=home).json == {"removed": "large", "nodes": []}
    assert nearfar("far", "list", "--json", home=home).json == []
    assert nearfar("far", "ledger", "--json", home=home).json["totals"], "what was spent stays known"
    assert KEY.encode() not in b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


ADD = ["far", "add", "large", "--model", "m", *PRICES]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([*ADD, "--base-url", "http://far.example/v1"], 2, "--insecure"),
        ([*ADD, "--base-url", "far.example"], 2, "https://HOST/v1"),
        ([*ADD, "--base-url", "https://x/v1", "--currency", "dollars"], 2, "currency"),
        ([*ADD, "--base-url", "https://x/v1", "--timeout", "soon"], 2, "not a duration"),
        ([*ADD, "--base-url", "https://x/v1", "--header", "x"], 2, "NAME=VALUE"),
        ([*ADD, "--base-url", "https://x/v1", "--header", "api-key=x"], 2, "key_env"),
        (["far", "add", "yard", "--model", "m", *PRICES, "--base-url", "https://x/v1"], 3, "another name"),
        (["far", "add", "Not A Name", "--model", "m", *PRICES, "--base-url", "https://x/v1"], 3, "name"),
        (["far", "test", "large", "--yes"], 3, "nearfar far add"),
        (["far", "remove", "yard"], 3, "no far end 'yard'"),
        (["far", "ledger", "--day", "yesterday"], 2, "YYYY-MM-DD"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_with_what_to_type(home: Path, words: list[str], code: int, told: str) -> None:
    said = nearfar(*words, home=home)
    assert said.code == code, said.err
    assert said.err.startswith("nearfar: ") and told in said.sentence and not said.out
    assert not (home / "models" / "manifests").exists()


def test_a_description_is_no_model_file(home: Path) -> None:
    far = FarEnd(base_url="https://x/v1", model="m", price_in=1, price_out=1)
    (home.parent / "large.toml").write_text(to_toml(far))
    said = nearfar("models", "add", "large.toml", home=home)
    assert said.code == 2 and "nearfar far add" in said.sentence


def test_a_name_that_is_almost_right_is_answered_with_the_right_one(home: Path) -> None:
    nearfar(*ADD, "--base-url", "https://x/v1", home=home)
    said = nearfar("far", "remove", "lagre", "--json", home=home)
    assert said.code == 3 and "did you mean 'large'" in json.loads(said.out)["error"]["message"]
    assert "Nothing was sent" in nearfar("far", "ledger", home=home).out
