"""The parts of the far end without a network: its description, its key, events, waits."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import ModelFileError, NearfarError, Overloaded, RuntimeUnavailable
from nearfar.ledger import Outcome
from nearfar.runtimes.registry import runtime
from nearfar.runtimes.remote.description import FarEnd, Key, check, parse, read_key, to_toml
from nearfar.runtimes.remote.failures import PATIENCE, Failed, retry_after, wait_before
from nearfar.runtimes.remote.runtime import RemoteRuntime
from nearfar.runtimes.remote.sse import Events, TooLong
from nearfar.runtimes.remote.transport import Allowance, Transport
from nearfar.runtimes.text import TextOptions

FAR = FarEnd(base_url="https://api.example.com/v1", model="large-1", price_in=2.5, price_out=10.0)


def made(**fields: Any) -> FarEnd:
    plain = {name: getattr(FAR, name) for name in FAR.__struct_fields__}
    return FarEnd(**{**plain, **fields})


# -- description -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base_url": "http://api.example.com/v1"}, "unencrypted"),
        ({"base_url": "http://127.0.0.1.example.com/v1"}, "unencrypted"),
        ({"base_url": "ftp://x/v1"}, "base_url"),
        ({"base_url": "api.example.com"}, "base_url"),
        ({"base_url": "https://user:secret@x/v1"}, "a name or a password"),
        ({"base_url": "https://x:port/v1"}, "base_url"),
        ({"base_url": "https://x/v1/chat/completions"}, "one of its functions"),
        ({"base_url": "https://x/v1\r\nhost: y"}, "base_url"),
        ({"headers": {"Authorization": "Bearer x"}}, "no place for one"),
        ({"headers": {"x-api-key": "x"}}, "no place for one"),
        ({"headers": {"host": "x"}}, "nearfar itself"),
        ({"headers": {"x": "a\r\nb: c"}}, "is no header"),
        ({"headers": {"x y": "a"}}, "is no header"),
        ({"key_env": "A", "key_file": "b"}, "Both"),
        ({"proxy": "socks5://x:1"}, "proxy"),
        ({"format": "other"}, "format"),
    ],
    ids=str,
)
def test_what_will_not_do_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelFileError, match=words) as told:
        check(made(**fields))
    assert told.value.hint


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "http://[::1]:1/v1", "http://localhost/v1"])
def test_this_machine_needs_no_encryption(url: str) -> None:
    assert check(made(base_url=url)).base_url == url
    assert check(made(base_url="http://far.lan/v1", insecure=True)).insecure


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "format"),
        ("x", "TOML"),
        ("base_url = 1", "base_url"),
        (to_toml(FAR) + "[more]\n", "more"),
        (to_toml(FAR).replace("price_in = 2.5", "price_in = -1"), "price_in"),
        (to_toml(FAR).replace("2.5", "nan"), "price_in"),
        (to_toml(FAR).replace("2.5", "inf"), "price_in"),
    ],
    ids=str,
)
def test_a_file_that_is_none_is_refused(text: str, words: str) -> None:
    with pytest.raises(ModelFileError) as told:
        parse(text, "x.toml")
    assert "x.toml" in str(told.value) and (words in str(told.value) or "field" in str(told.value))


@given(
    model=st.text(min_size=1, max_size=50),
    price=st.floats(0, 1e6),
    headers=st.dictionaries(st.from_regex(r"x-[a-z]{1,8}", fullmatch=True), st.text("abc \"\\'#=", max_size=20)),
)
def test_a_description_survives_its_file(model: str, price: float, headers: dict[str, str]) -> None:
    try:
        far = check(made(model=model, price_in=price, headers=headers))
    except ModelFileError:
        return
    assert parse(to_toml(far), "") == far


# -- key ---------------------------------------------------------------------------------------------------------------


def test_a_key_is_read_where_the_description_says_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k-1\n")
    key = read_key(made(key_env="A_KEY"), {"A_KEY": " k-2 "})
    assert key is not None and key.value == "k-2" and "k-2" not in f"{key} {key!r}"
    from_file = read_key(made(key_file=str(tmp_path / "key")), {})
    assert from_file is not None and from_file.value == "k-1"
    assert read_key(FAR, {}) is None


@pytest.mark.parametrize(
    "environment", [{}, {"A_KEY": ""}, {"A_KEY": "  "}, {"A_KEY": "a b"}, {"A_KEY": "kä"}], ids=str
)
def test_a_missing_key_says_what_to_type(environment: dict[str, str]) -> None:
    with pytest.raises(RuntimeUnavailable, match="A_KEY") as told:
        read_key(made(key_env="A_KEY"), environment)
    assert "export A_KEY" in told.value.hint


def test_loading_sends_nothing_and_needs_the_key_and_a_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "far.toml"
    file.write_text(to_toml(made(key_env="FAR_TEST_KEY")))
    engine = runtime("remote")
    assert isinstance(engine, RemoteRuntime) and engine.available() is None
    assert engine.facts(file).context == 128_000 and engine.units()[0].kind == "far"
    settings = {"ledger": str(tmp_path / "ledger")}
    monkeypatch.delenv("FAR_TEST_KEY", raising=False)
    with pytest.raises(RuntimeUnavailable, match="FAR_TEST_KEY"):
        engine.load_text(file, TextOptions("large", settings=settings))
    monkeypatch.setenv("FAR_TEST_KEY", "k")
    with pytest.raises(RuntimeUnavailable, match="no ledger"):
        engine.load_text(file, TextOptions("large"))
    loaded = engine.load_text(file, TextOptions("large", settings=settings))
    assert loaded.slots == 16 and loaded.expected_cost() == pytest.approx((500 * 2.5 + 250 * 10) / 1e6)
    loaded.close()
    loaded.close()
    assert not (tmp_path / "ledger").exists()


# -- events ------------------------------------------------------------------------------------------------------------


@given(
    texts=st.lists(st.lists(st.text("ab: é", max_size=6), min_size=1, max_size=3), max_size=5),
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\r"]), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 400), max_size=12),
    noise=st.sampled_from(["", ": comment", "event: x", "id", ":"]),
)
def test_events_are_the_same_wherever_chunks_end(
    texts: list[list[str]], ends: list[str], cuts: list[int], noise: str
) -> None:
    data, number = "", 0
    for lines in texts:
        for line in [noise, *(f"data: {line}" for line in lines), ""]:
            if line or data:
                data += line + ends[number % len(ends)]
                number += 1
    whole = data.encode()
    # "\r" before an empty line that ends with "\n" is one line end, not two: such a text means something else.
    wanted = list(Events().feed(whole))
    places = sorted({min(cut, len(whole)) for cut in cuts})
    events = Events()
    found: list[bytes] = []
    for start, end in zip([0, *places], [*places, len(whole)], strict=True):
        found += events.feed(whole[start:end])
    assert found == wanted
    if set(ends) == {"\n"} and noise:
        assert wanted == [
            b"\n".join(line.encode() for line in lines) for lines in texts if any(lines) or len(lines) > 1
        ]


def test_what_has_no_blank_line_is_no_event() -> None:
    assert list(Events().feed(b"data: x\ndata: y\n")) == []
    assert list(Events().feed(b"\xef\xbb\xbfdata: x\n\n")) == [b"x"]
    assert list(Events().feed(b"data\n\ndata:\n\nother: x\n\n")) == []


@pytest.mark.parametrize("text", [b"data: " + b"x" * 200, b"data: xxxxxxxxxx\n" * 20])
def test_an_event_has_a_longest_length(text: bytes) -> None:
    events = Events(100)
    with pytest.raises(TooLong):
        for at in range(0, len(text), 8):
            list(events.feed(text[at : at + 8]))


# -- waits -------------------------------------------------------------------------------------------------------------

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("0", 0.0),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("-3", None),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("99999999999999999999", 1e6),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": text}, NOW) == seconds


def failed(again: bool = True, after: float | None = None) -> Failed:
    return Failed(Overloaded("x", "y"), Outcome.NOT_BILLED, "x", again=again, after=after)


@given(
    retry=st.integers(1, 12),
    after=st.none() | st.floats(0, 100),
    left=st.none() | st.floats(-1, 100),
    most=st.integers(0, 10),
    seed=st.integers(),
)
def test_a_wait_is_within_the_deadline_and_what_was_asked(
    retry: int, after: float | None, left: float | None, most: int, seed: int
) -> None:
    wait, why = wait_before(retry, failed(after=after), left, most, random.Random(seed))
    assert (wait is None) == bool(why)
    if wait is not None:
        assert retry <= most and wait >= (after or 0.0) and (wait < left if left is not None else wait <= PATIENCE)
    assert wait_before(retry, failed(again=False), left, most, random.Random(seed))[0] is None


def foreign() -> list[type[Exception]]:
    found = [getattr(httpcore, name) for name in dir(httpcore)]
    return [one for one in found if isinstance(one, type) and issubclass(one, Exception)]


@pytest.mark.parametrize("error", foreign(), ids=lambda error: error.__name__)
def test_every_exception_of_the_http_library_is_one_of_ours(error: type[Exception]) -> None:
    transport = Transport(made(base_url="http://127.0.0.1:9/v1"), Key("k"))
    translated = transport._translated(error("words"), Allowance(1.0, 1e12))
    assert translated is not None and isinstance(translated.error, NearfarError) and translated.error.hint
    assert translated.outcome is Outcome.NOT_BILLED, "nothing was sent"
    transport.close()
