"""Routers: what they promise for any prompt, how weights travel, what a hostile file gets, and how they are named."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nearfar.errors import InputError, ModelFileError, SettingsError
from nearfar.language.calibration import Calibration
from nearfar.language.routers import registry
from nearfar.language.routers.base import Prompt, Router
from nearfar.language.routers.duplicates import near_duplicates
from nearfar.language.routers.embedding import Embedding, train_head
from nearfar.language.routers.features import BITS, HEAD, KINDS, NAMES, TAIL, clip, features
from nearfar.language.routers.fixed import AlwaysFar, AlwaysNear, Length, Random
from nearfar.language.routers.ngram import SHIPPED, Ngram, looked_at
from nearfar.language.routers.train import Row, fold_of, train
from nearfar.language.routers.weights import Weights, average, load, read

ANY_TEXT = st.text(st.characters(), max_size=400) | st.text("Aa1 .\n?)(é\ud800", max_size=60)


def embedding() -> Router:
    vectors = np.random.default_rng(0).normal(size=(60, 3))
    return Embedding(lambda text: [len(text), text.count("a"), 1.0], train_head(vectors, (vectors[:, 0] > 0) * 1.0))


ROUTERS = {
    "always-near": AlwaysNear,
    "always-far": AlwaysFar,
    "random": Random,
    "length": Length,
    "ngram": Ngram,
    "embedding": embedding,
}


@pytest.fixture(scope="module")
def small() -> Weights:
    """Weights trained on a rule: questions about tides need the far model."""
    return train(rule(200)).weights


def rule(count: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        hard = bool(rng.random() < 0.5)
        topic = "how the tides follow the moon" if hard else "which colour the fridge has"
        rows.append(Row(f"Please tell me {topic}, number {number} of {rng.integers(1000)}", float(not hard), 1.0))
    return rows


@pytest.mark.parametrize("name", list(ROUTERS))
def test_a_score_is_a_probability_for_any_text(name: str) -> None:
    router = ROUTERS[name]()

    @given(ANY_TEXT, ANY_TEXT, st.booleans())
    @settings(max_examples=60, deadline=None)
    def holds(text: str, before: str, tools: bool) -> None:
        score = router.score(Prompt(text, before, tools=tools))
        assert 0.0 <= score.probability <= 1.0
        assert score.reasons and all(score.reasons)
        assert all(q is None or 0.0 <= q <= 1.0 for q in (score.near, score.far))

    holds()


@pytest.mark.parametrize("name", [name for name in ROUTERS if name != "random"])
def test_equal_prompts_get_equal_scores_from_two_routers(name: str) -> None:
    one, other = ROUTERS[name](), ROUTERS[name]()
    for text in ("", "Why?", "Ω" * 5000):
        assert one.score(Prompt(text)) == other.score(Prompt(text)) == one.score(Prompt(text))


def test_chance_follows_its_seed() -> None:
    def drawn(seed: int) -> list[float]:
        router = Random(seed)
        return [router.score(Prompt("x")).probability for _ in range(5)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1))) == 5


def test_the_fixed_ones_and_length() -> None:
    assert AlwaysNear().score(Prompt("x")).probability == 1.0
    assert AlwaysFar().score(Prompt("x")).probability == 0.0
    assert Length(100).score(Prompt("x" * 100)).probability == 0.5
    assert Length().score(Prompt("x")).probability > Length().score(Prompt("x" * 900)).probability
    with pytest.raises(SettingsError, match="half=400"):
        Length(0)


# -- features ---------------------------------------------------------------------------------------------------------


@given(ANY_TEXT)
@settings(max_examples=150, deadline=None)
def test_features_of_any_text(text: str) -> None:
    found = features(text)
    assert np.all(np.diff(found.buckets) > 0)
    assert not len(found.buckets) or (found.buckets[0] >= 0 and found.buckets[-1] < 1 << BITS)
    assert np.isfinite(found.values).all() and np.isfinite(found.counts).all()
    assert not len(found.values) or float(found.values @ found.values) == pytest.approx(1, abs=1e-3)
    assert len(found.counts) == len(NAMES) and 0 <= found.kind < len(KINDS)


def test_counts_are_what_their_names_say() -> None:
    found = features("How many eggs does he sell for $2.50? He sells 12 of 1,200.\nA. twice\nB) 5%")
    counts = dict(zip(NAMES, np.expm1(found.counts).round().tolist(), strict=True))
    assert counts["numbers"] == 6  # 2 50 12 1 200 5
    assert counts["decimal points"] == counts["dollar signs"] == counts["per cent signs"] == 1
    assert counts["lettered options"] == 2 and counts["lines"] == 2
    assert counts["'how many'"] == 1 and counts["'how much'"] == 0
    assert counts["multiples"] == 1 and counts["persons"] == 2 and counts["question marks"] == 1
    assert counts["sentences"] == 3
    assert counts["large numbers"] == 1
    assert KINDS[found.kind] == "a question with lettered options"
    assert KINDS[features("2 and 3 make?").kind] == "a question with figures"
    assert KINDS[features("Who?").kind] == "an open question"


def test_words_count_wherever_they_stand_and_in_any_case() -> None:
    one, other = features("fridge"), features("FRIDGE")
    assert one.buckets.tolist() == other.buckets.tolist()
    inside = features("zzz fridge qqq").buckets.tolist()
    assert set(one.buckets.tolist()) <= set(inside)
    assert not set(features("moonlit", characters=False).buckets.tolist()) & set(inside)


def test_a_megabyte_is_cut_before_anything_else() -> None:
    assert len(clip("é" * 1_000_000)) <= HEAD + TAIL
    long = "start " + "x" * 1_000_000 + " end"
    assert clip(long).startswith(b"start") and clip(long).endswith(b"end")
    middle = "start " + "x" * 400_000 + "MIDDLE" + "x" * 599_994 + " end"
    assert Ngram().score(Prompt(long)) == Ngram().score(Prompt(middle))


def test_a_short_follow_up_is_looked_at_with_what_stood_before() -> None:
    assert "Peru" in looked_at(Prompt("And why?", before="Tell me of Peru."))
    assert looked_at(Prompt("Tell me at length about the capital of Chile.", before="Peru")).count("Peru") == 0


# -- the trained one --------------------------------------------------------------------------------------------------


def test_what_is_shipped_is_small_and_tells_no_word_of_the_prompt() -> None:
    assert SHIPPED.stat().st_size < 1_000_000
    score = Ngram().score(Prompt("Xylophonist Zebediah owes 17 and 4 and 9 zlotys. How many?"))
    assert not any(word in reason for reason in score.reasons for word in ("Xylophonist", "Zebediah", "zlotys", "17"))
    assert score.near is not None and score.far is not None


def test_training_finds_a_rule_and_generalises(small: Weights) -> None:
    router = Ngram(weights=small)
    fresh = rule(60, seed=9)
    right = [(router.score(Prompt(row.prompt)).probability > 0.5) == (row.near > 0.5) for row in fresh]
    assert sum(right) >= 57
    trained = train(rule(200))
    assert trained.error < 0.1 and trained.unseen.shape == (200,)


def test_training_twice_gives_the_same_weights(small: Weights) -> None:
    again = train(rule(200)).weights
    assert again.grams.tobytes() == small.grams.tobytes() and again.calibration == small.calibration


def test_groups_stay_on_one_side() -> None:
    rows = [Row(f"p{i}", 0, 1, group=str(i % 7)) for i in range(70)]
    side = fold_of(rows, 3, 0)
    assert all(len({int(side[i]) for i in range(70) if i % 7 == group}) == 1 for group in range(7))
    assert len(set(side.tolist())) == 3


@pytest.mark.parametrize("row", [Row("x", 2.0, 1.0), Row("x", 0.0, float("nan")), Row("x", 0, 1, weight=0)])
def test_rows_out_of_range_are_refused(row: Row) -> None:
    with pytest.raises(InputError, match="Row 20"):
        train([*rule(20), row])


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InputError, match="too few"):
        train(rule(19))


def test_near_duplicates_are_tied() -> None:
    long = "The treaty was signed in the spring of that year by all the powers that had been at war for three decades."
    texts = [
        "Natalia sold clips to 48 of her friends in April and half as many in May. How many in all?",
        "natalia sold clips to 48 of her friends in april, and half as many in may! How many altogether?",
        f"{long}\nWho signed?",
        f"{long}\nWhen was it broken, and by whom?",
        "Something else.",
        "Something ELSE",
    ]
    assert near_duplicates(texts) == [0, 0, 2, 2, 4, 4]


# -- weights ----------------------------------------------------------------------------------------------------------


def test_weights_go_out_and_come_back(small: Weights, tmp_path: Path) -> None:
    path = tmp_path / "router.npz"
    path.write_bytes(small.export())
    back = load(path)
    assert arrays(back).keys() == arrays(small).keys()
    assert all(np.array_equal(value, arrays(small)[name]) for name, value in arrays(back).items())
    assert back.calibration == small.calibration and back.rows == 200
    prompt = Prompt("How do the tides work?")
    assert registry.load("ngram", path=path).score(prompt) == Ngram(weights=small).score(prompt)


def arrays(weights: Weights) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(weights.export())) as archive:
        return {name: archive[name] for name in archive.files}


def packed(parts: dict[str, NDArray[Any]]) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **parts)  # type: ignore[arg-type]
    return out.getvalue()


def hostile(small: Weights) -> dict[str, bytes]:
    good, parts = small.export(), arrays(small)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in parts:
            archive.writestr(f"{name}.npy", b"\0" * (20 << 20))
    return {
        "empty": b"",
        "noise": bytes(range(256)) * 10,
        "truncated": good[: len(good) // 2],
        "flipped": good[:2000] + bytes(b ^ 0xFF for b in good[2000:2600]) + good[2600:],
        "objects": packed(parts | {"bias": np.array([{}, []], object)}),
        "shape": packed(parts | {"columns": parts["columns"][:, :-1]}),
        "type": packed(parts | {"grams": parts["grams"].astype(np.float32)}),
        "nan": packed(parts | {"bias": np.array([np.nan, 0])}),
        "missing": packed({name: value for name, value in parts.items() if name != "rows"}),
        "more": packed(parts | {"extra": np.zeros(1)}),
        "version": packed(parts | {"version": np.array(99)}),
        "calibration": packed(parts | {"calibration": np.array([-1.0, 0, 1, 0, 1])}),
        "bomb": bomb.getvalue(),
        "large": b"\0" * (9 << 20),
    }


def test_a_hostile_file_is_refused_with_what_to_do_next(small: Weights) -> None:
    for name, data in hostile(small).items():
        with pytest.raises(ModelFileError, match="explanation-routing"):
            read(data)
            pytest.fail(name)


def test_cut_anywhere_a_file_is_refused(small: Weights) -> None:
    good = small.export()
    for size in np.linspace(0, len(good) - 1, 25).astype(int).tolist():
        with pytest.raises(ModelFileError):
            read(good[:size])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read"):
        Ngram(path=tmp_path / "no.npz")


def test_averages_weigh_by_rows(small: Weights) -> None:
    other = small._replace(bias=small.bias + 4.0, rows=600)
    both = average([small, other])
    assert np.allclose(both.bias, small.bias + 3.0) and both.rows == 800
    assert np.allclose(both.grams, small.grams, atol=1e-3)
    same = average([small])
    assert same.grams.tobytes() == small.grams.tobytes()
    assert read(both.export()).rows == 800
    with pytest.raises(InputError, match="nothing to average"):
        average([])


def test_outcomes_can_replace_the_calibration(small: Weights) -> None:
    prompt = Prompt("Please tell me which colour the fridge has")
    router = Ngram(weights=small, calibration=Calibration(slope=1.0))
    raw, before = router.raw(prompt), router.score(prompt).probability
    for _ in range(50):
        router.calibration = router.calibration.update(raw, 0.0)
    assert router.score(prompt).probability < before - 0.1
    assert router.raw(prompt) == pytest.approx(raw, abs=1e-6)
    assert Ngram(weights=small, calibration=Calibration(1.0, 20.0)).score(prompt).probability > 0.99


# -- embedding --------------------------------------------------------------------------------------------------------


def test_an_embedding_head_learns_a_direction() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 8))
    head = train_head(x, (x[:, 0] > 0) * 1.0)
    router = Embedding(lambda text: [float(text), *[0.1] * 7], head)
    assert router.score(Prompt("1")).probability > 0.8 > 0.2 > router.score(Prompt("-1")).probability
    with pytest.raises(InputError, match="was trained on 8"):
        head.probability([1.0, 2.0])
    with pytest.raises(InputError, match="finite"):
        head.probability([float("nan")] * 8)
    with pytest.raises(InputError, match="too few"):
        train_head(x[:3], [0, 1, 0])
    with pytest.raises(SettingsError, match="ngram"):
        registry.load("embedding")


# -- names ------------------------------------------------------------------------------------------------------------


def test_names() -> None:
    assert set(ROUTERS) <= set(registry.names())
    assert registry.load().name == "ngram"
    for name in ("always-near", "always-far", "random", "length"):
        assert registry.load(name).name == name
    assert registry.load("nearfar.language.routers.fixed:Length", half=10).name == "length"


@pytest.mark.parametrize("name", ["nonsense", "no.such.module:X", "nearfar.language.routers.fixed:Nope", "math:pi"])
def test_a_name_that_is_no_router(name: str) -> None:
    with pytest.raises(SettingsError):
        registry.load(name)


def test_wrong_options_and_what_is_no_router() -> None:
    with pytest.raises(SettingsError, match="explanation-routing"):
        registry.load("length", width=3)
    with pytest.raises(SettingsError, match="is not a router"):
        registry.load("builtins:dict")
