"""The caches: what is one request's is no other's, and what is no whole answer is not kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import InputError, SettingsError
from nearfar.language.cache import OVERHEAD, ExactCache, Scope, complete, repeatable, scope_of
from nearfar.language.privacy.gate import rule
from nearfar.language.privacy.policy import KeyPolicy, OnPersonalData
from nearfar.language.semantic import SemanticCache
from nearfar.types.request import Privacy
from nearfar.types.units import Seconds

SCOPE = Scope("kitchen", Privacy.FLEET, "near:tiny")


def at(seconds: float) -> Seconds:
    return Seconds(seconds)


def ask(text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def answer(text: str = "ho", reason: str | None = "stop", **message: Any) -> bytes:
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text, **message}}
    return msgspec.json.encode({"choices": [choice]})


scopes = st.builds(
    Scope, st.sampled_from("ab"), st.sampled_from(Privacy), st.sampled_from(["near:m", "far:m"]), st.booleans()
)
requests = st.builds(
    lambda text, model, temperature, extra: {**ask(text, model=model, temperature=temperature), **extra},
    st.sampled_from(["a", "b"]), st.sampled_from(["m", "n"]), st.sampled_from([0, 0.5]),
    st.sampled_from([{}, {"seed": 1}, {"top_p": 0.5}, {"unknown": [1]}]),
)  # fmt: skip


@given(scopes, scopes, requests, requests)
def test_two_share_an_answer_only_when_everything_is_the_same(a: Scope, b: Scope, one: Any, other: Any) -> None:
    cache = ExactCache()
    assert cache.put(cache.key(one, a), answer(), at(0))
    assert (cache.get(cache.key(other, b), at(1)) is not None) == ((a, one) == (b, other))
    alike = SemanticCache(lambda text: [1.0, 0.0], 0.5)
    assert alike.put(alike.question(one, a), answer(), at(0))

    def rest(request: Any) -> Any:
        return {name: value for name, value in request.items() if name != "messages"}

    hit = alike.get(alike.question(other, b), at(1))
    assert (hit is not None) == ((a, rest(one)) == (b, rest(other))), "any two questions are alike here, nothing else"


def test_the_spelling_of_a_request_does_not_matter() -> None:
    cache = ExactCache()
    assert cache.put(cache.key(ask(stream=True, user="x", nearfar={"a": 1}), SCOPE), answer(), at(0))
    assert cache.get(cache.key(dict(reversed(ask().items())), SCOPE), at(0)) == answer()
    assert cache.key({"x": object()}, SCOPE) is None and cache.get(None, at(0)) is None


@pytest.mark.parametrize(
    "bad",
    [
        answer(reason="length"), answer(reason=None), answer(reason="tool_calls"), answer(reason="content_filter"),
        answer(tool_calls=[{"id": "1"}]), b"", b"{", b"[]", b"{}", b'{"error": {"message": "x"}}', b'{"choices": []}',
        b'{"data": []}', b'{"choices": [1]}', b"\xff", answer()[:-1],
        b'{"error": {}, "choices": [{"finish_reason": "stop"}]}',
    ],
)  # fmt: skip
def test_what_failed_was_cut_or_waits_for_a_tool_is_not_kept(bad: bytes) -> None:
    cache, alike = ExactCache(), SemanticCache(lambda text: [1.0], 0.9)
    assert not complete(bad)
    assert not cache.put(cache.key(ask(), SCOPE), bad, at(0))
    assert not alike.put(alike.question(ask(), SCOPE), bad, at(0))
    assert (len(cache), cache.counters.refused, len(alike), alike.counters.refused) == (0, 1, 0, 1)


def test_which_requests_are_to_have_the_same_answer_again() -> None:
    yes: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 0.0}, {"seed": 3}, {"seed": 0}, {"input": "x"}]
    no: list[dict[str, Any]] = [
        {}, {"temperature": 0.7}, {"seed": None}, {"temperature": False}, {"seed": True},
        {"input": "x", "messages": []},
    ]  # fmt: skip
    assert all(map(repeatable, yes)) and not any(map(repeatable, no))
    assert all(repeatable(request, asked=True) for request in no)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 400), st.booleans()), max_size=40))
def test_bounds_hold_and_the_least_recently_used_goes(steps: list[tuple[int, int, bool]]) -> None:
    cache = ExactCache(max_bytes=3_000, max_entries=4)
    order: list[int] = []
    for name, size, put in steps:
        key = cache.key(ask(str(name)), SCOPE)
        if put:
            assert cache.put(key, answer("x" * size), at(0))
            order = [*(one for one in order if one != name), name]
        elif cache.get(key, at(0)) is not None:
            order = [*(one for one in order if one != name), name]
        assert len(cache) <= 4 and cache.bytes <= 3_000
        kept = order[-len(cache) :] if len(cache) else []
        order = kept
        assert cache.bytes >= len(kept) * OVERHEAD
    before = cache.counters.hits
    for name in order:
        assert cache.get(cache.key(ask(str(name)), SCOPE), at(0)) is not None
    assert cache.counters.hits == before + len(order)


def test_old_and_oversized_answers_are_not_given() -> None:
    cache = ExactCache(max_bytes=1_000, max_age=at(10))
    key = cache.key(ask(), SCOPE)
    assert cache.put(key, answer(), at(0))
    assert cache.get(key, at(10)) and cache.get(key, at(10.1)) is None
    assert (len(cache), cache.bytes, cache.counters.expired) == (0, 0, 1)
    assert not cache.put(key, answer("x" * 2_000), at(0)) and not ExactCache(0).put(key, answer(), at(0))


def test_an_answer_with_values_put_back_is_not_kept_for_the_redacted_request() -> None:
    body = msgspec.json.encode(ask('write to ada@example.org, patient: Jané "J" Roe'))
    ruling = rule(body, policy=KeyPolicy("k", on_personal_data=OnPersonalData.REDACT))
    cache = ExactCache()
    scope = scope_of(ruling, "k", "gpt", far=True)
    assert scope.redacted and not scope_of(ruling, "k", "gpt", far=False).redacted
    key = cache.key(msgspec.json.decode(ruling.far()), scope, ruling.redaction)
    assert ruling.redaction is not None
    raw = answer("Dear <EMAIL_1>, <NAME_1>")
    restored = ruling.redaction.restore(raw.decode(), in_json=True).encode()
    assert not cache.put(key, restored, at(0)) and cache.put(key, raw, at(0))
    assert not cache.put(key, answer("to ada@example.org").replace(b"@", b"\\u0040"), at(0))
    assert cache.get(key, at(0)) == raw
    assert cache.get(cache.key(msgspec.json.decode(ruling.near()), scope), at(0)) is None
    assert "ada" not in f"{key!r} {cache!r}"


# -- by meaning --------------------------------------------------------------------------------------------------------


def circle(text: str) -> Sequence[float]:
    """A question is an angle in degrees here, and its vector the point there, at some distance."""
    angle = math.radians(float(text))
    return [7 * math.cos(angle), 7 * math.sin(angle)]


@given(st.floats(0, 90), st.floats(0, 90), st.floats(0.5, 1))
def test_a_hit_is_as_near_as_the_bound_says_and_says_how_near(a: float, b: float, bound: float) -> None:
    cache = SemanticCache(circle, bound)
    assert cache.put(cache.question(ask(str(a)), SCOPE), answer(), at(0))
    hit = cache.get(cache.question(ask(str(b)), SCOPE), at(0))
    cosine = math.cos(math.radians(a - b))
    if abs(cosine - bound) > 1e-5:
        assert (hit is not None) == (cosine >= bound)
    if hit is not None:
        assert hit.similarity == pytest.approx(cosine, abs=1e-5) and bound <= hit.similarity <= 1


def test_the_nearest_is_given_and_an_old_one_is_not() -> None:
    cache = SemanticCache(circle, 0.9, max_age=at(10), max_entries=2)
    for moment, angle in ((0, "0"), (5, "10"), (6, "50")):
        cache.put(cache.question(ask(angle), SCOPE), answer(angle), at(moment))
    assert len(cache) == 2 and cache.counters.evicted == 1
    hit = cache.get(cache.question(ask("12"), SCOPE), at(7))
    assert hit is not None and hit.answer == answer("10") and "hi" not in repr(hit)
    assert cache.get(cache.question(ask("12"), SCOPE), at(15.5)) is None
    assert cache.counters.expired == 1 and len(cache) == 1


def test_a_private_question_is_not_given_to_a_far_embedding() -> None:
    def never(text: str) -> Sequence[float]:
        raise AssertionError("it left the fleet")

    cache = SemanticCache(never, 0.9, far_embedding=True)
    assert cache.question(ask(), SCOPE) is None
    assert cache.question(ask(), Scope("k", Privacy.LOCAL, "far:m")) is None
    assert cache.question(ask(), Scope("k", Privacy.ANY, "near:m")) is None, "near, it is not redacted"
    asked = SemanticCache(circle, 0.9, far_embedding=True).question(ask("1"), Scope("k", Privacy.ANY, "far:m"))
    assert asked is not None


def test_what_cannot_be_compared_is_not() -> None:
    cache = SemanticCache(lambda text: [1.0], 0.9)
    assert cache.question({"messages": []}, SCOPE) is None and cache.question({"messages": [1]}, SCOPE) is None
    assert cache.question(ask([{"type": "text", "text": "x"}]), SCOPE) is None  # type: ignore[arg-type]
    for vector in ([], [0.0, 0.0], [math.nan], [math.inf], [[1.0]], [1e300]):
        with pytest.raises(InputError):
            SemanticCache(lambda text, v=vector: v, 0.9).question(ask(), SCOPE)  # type: ignore[misc]
    for bound in (0.0, 0.49, 1.01, math.nan):
        with pytest.raises(SettingsError):
            SemanticCache(circle, bound)
