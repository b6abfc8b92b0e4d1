"""The judge: learning, calibration, its file, its caps, and how it does on real responses."""

from __future__ import annotations

import io
import json
import math
import random
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import routing_cascade as bench
from nearfar.errors import InputError, ModelFileError
from nearfar.language.answer import Answer, TokenChance
from nearfar.language.judge.features import GROUPS, NAMES
from nearfar.language.judge.model import MOST_BYTES, Judge, default, load
from nearfar.language.judge.train import Row, calibration_error, folds, train
from nearfar.language.prompt import Asked
from tests.realdata import need_data


def rows(count: int, seed: int = 0, *, name: str = "mean_logprob", missing: float = 0.0) -> list[Row]:
    """Good with a probability that one feature alone decides; the others are noise or absent."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        value = rng.gauss(-1, 0.5)
        good = rng.random() < 1 / (1 + math.exp(-(4 * (value + 1) + 0.5)))
        features = {"words": rng.gauss(4, 1), "hedges": rng.random()}
        if rng.random() >= missing:
            features[name] = value
        made.append(Row(f"prompt {i}", features, good))
    return made


def chances(judge: Judge, given: list[Row]) -> np.ndarray:
    return np.array([judge.probability(row.features) for row in given])


def good(given: list[Row]) -> np.ndarray:
    return np.array([row.good for row in given], float)


def test_it_learns_what_decides_and_is_calibrated_on_new_rows() -> None:
    judge, new = train(rows(800), "made up"), rows(4000, seed=1)
    weights = dict(zip(judge.names, judge.weight, strict=True))
    assert weights["mean_logprob"] > 5 * max(abs(weights["words"]), abs(weights["hedges"]))
    assert calibration_error(chances(judge, new), good(new)) < 0.04
    scrambled = np.random.default_rng(0).permutation(chances(judge, new))
    assert calibration_error(scrambled, good(new)) > 0.1, "the measure sees what is not calibrated"


def test_what_never_occurred_in_training_has_no_weight() -> None:
    judge = train(rows(200), "made up")
    at = judge.names.index("agreement")
    assert (judge.weight[at], judge.absent[at], judge.scale[at]) == (0, 0, 0)
    with_it, without = {"mean_logprob": -1.0, "agreement": 0.0}, {"mean_logprob": -1.0}
    assert judge.probability(with_it) == judge.probability(without)


def test_absence_counts_as_what_it_told_in_training() -> None:
    """Rows without log-probabilities that are always bad teach that their absence is a bad sign."""
    rng = random.Random(0)
    made = [Row(f"a{i}", {"mean_logprob": rng.gauss(0, 1)}, rng.random() < 0.8) for i in range(200)]
    made += [Row(f"b{i}", {}, rng.random() < 0.2) for i in range(200)]
    judge = train(made, "made up")
    assert judge.probability({}) < 0.35 < 0.65 < judge.probability({"mean_logprob": 0.0})
    assert judge.probability({"mean_logprob": math.nan}) == judge.probability({})


def test_training_goes_on_from_another_judge() -> None:
    old = train(rows(1000), "old")
    few = rows(60, seed=3, name="agreement")
    new = train(few, "new", start=old)
    weights = dict(zip(new.names, new.weight, strict=True))
    assert weights["mean_logprob"] == pytest.approx(dict(zip(old.names, old.weight, strict=True))["mean_logprob"])
    assert weights["agreement"] > 0
    assert (new.provenance, new.rows) == ("new", 60)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InputError, match="too few"):
        train(rows(20), "few")
    with pytest.raises(InputError, match="too few"):
        train([Row(str(i), {}, True) for i in range(100)], "one outcome")


def test_rows_of_one_prompt_stay_on_one_side() -> None:
    prompts = [f"Question {i % 30}" for i in range(90)] + [f"question  {i}?" for i in range(30)]
    fold = folds(prompts, 5, seed=1)
    for i in range(30):
        assert len({int(fold[j]) for j in (i, i + 30, i + 60, 90 + i)}) == 1
    assert np.bincount(fold).tolist() == [24] * 5


def test_calibration_error_by_hand() -> None:
    chance = np.array([0.1] * 5 + [0.9] * 5)
    assert calibration_error(chance, np.array([0.0] * 5 + [1.0] * 5), bins=2) == pytest.approx(0.1)


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_judge_travels_as_a_file() -> None:
    judge = train(rows(200), "where from: ünïcode")
    assert load(judge.export()) == judge
    assert judge.export() == load(judge.export()).export()


def repacked(**changes: np.ndarray) -> bytes:
    with np.load(io.BytesIO(default().export()), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files} | changes
    out = io.BytesIO()
    np.savez(out, allow_pickle=True, **{k: v for k, v in arrays.items() if v is not None})
    return out.getvalue()


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": np.array(np.nan)},
        {"weight": np.full(len(NAMES), np.inf)},
        {"weight": np.zeros(3)},
        {"weight": np.zeros(len(NAMES), np.float32)},
        {"weight": np.array([{}] * len(NAMES), object)},
        {"names": np.array(["words"] * len(NAMES))},
        {"names": np.array([f"x{i}" for i in range(len(NAMES))])},
        {"scale": np.full(len(NAMES), -1.0)},
        {"slope": np.array(0.0)},
        {"format": np.array(2)},
        {"extra": np.array(1)},
        {"offset": None},
    ],
    ids=str,
)
def test_a_wrong_file_is_refused(changes: dict[str, np.ndarray]) -> None:
    assert load(repacked()) == default()
    with pytest.raises(ModelFileError, match="default"):
        load(repacked(**changes))


def test_a_file_that_unpacks_to_much_is_refused() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("names.npy", b"\0" * (10 * MOST_BYTES))
    assert len(out.getvalue()) < MOST_BYTES
    with pytest.raises(ModelFileError, match="too much"):
        load(out.getvalue())


@given(st.binary(max_size=200), st.integers(0, 3800), st.integers(0, 255))
@settings(max_examples=200)
def test_damage_is_an_error_or_harmless(junk: bytes, at: int, byte: int) -> None:
    with pytest.raises(ModelFileError):
        load(junk)
    data = bytearray(default().export())
    data[at % len(data)] = byte
    try:
        judge = load(bytes(data))
    except ModelFileError:
        return
    assert 0 <= judge.probability({}) <= 1


# -- judging -----------------------------------------------------------------------------------------------------------

QUESTION = Asked("Ann has 3 boxes of 12 eggs and eats 4. How many eggs are left?")
RIGHT = Answer("She has 3 * 12 = 36 eggs, so 36 - 4 = 32 are left.\n#### 32", "stop")


def test_wrong_arithmetic_costs_trust_and_the_reason_is_told() -> None:
    sound = default().judge(QUESTION, RIGHT)
    wrong = default().judge(QUESTION, Answer(RIGHT.text.replace("4 = 32", "4 = 31"), "stop"))
    assert sound.probability > 0.75
    assert wrong.probability < sound.probability - 0.3
    assert any("wrong" in reason for reason in wrong.reasons)
    assert sound.findings == ()


@pytest.mark.parametrize(
    ("question", "answer", "code", "most"),
    [
        (QUESTION, Answer(""), "empty", 0.01),
        (QUESTION, Answer("I'm sorry, but I cannot help with that."), "refusal", 0.1),
        (Asked("What is 2 + 2?"), Answer("It is 5."), "sum", 0.05),
        (QUESTION, Answer("I don't know."), "unknowing", 0.25),
        (QUESTION, Answer(RIGHT.text, "length"), "cut", 0.2),
        (QUESTION, Answer(RIGHT.text, "content_filter"), "filtered", 0.05),
        (QUESTION, Answer("the eggs are in the box " * 30), "loop", 0.05),
        (Asked("Give it.", wants_json=True), Answer("no json"), "form-json", 0.02),
        (Asked("What is the name of the city that you live in?"),
         Answer("Die Stadt ist nicht sehr alt und der Ort ist da."),
         "language", 0.2),
    ],
)  # fmt: skip
def test_plain_faults_cap_the_probability(question: Asked, answer: Answer, code: str, most: float) -> None:
    found = default().judge(question, answer)
    assert code in [finding.code for finding in found.findings]
    assert found.probability <= most
    assert found.reasons[0] == found.findings[0].reason


def test_what_is_unlike_the_training_rows_is_said_to_be() -> None:
    assert default().judge(QUESTION, RIGHT).familiar
    other = default().judge(Asked("What is the capital of France?"), Answer("Paris."))
    assert not other.familiar
    assert "unlike what the judge was trained on" in other.reasons[-1]
    assert default().judge(Asked("What is 2 + 2?"), Answer("4")).findings == ()


def test_a_translation_may_be_in_another_language() -> None:
    question = Asked("Translate to German: what is the name of the city that you live in and is it old?")
    found = default().judge(question, Answer("Wie ist der Name der Stadt, und ist sie nicht sehr alt?"))
    assert "language" not in [finding.code for finding in found.findings]


def test_the_default_says_what_it_was_trained_on_and_what_it_cannot_know() -> None:
    judge = default()
    assert "Apache-2.0" in judge.provenance
    assert "GSM8K" in judge.provenance
    assert judge.names == NAMES
    assert len(judge.export()) < 8192
    blind = {name for name, weight in zip(judge.names, judge.weight, strict=True) if weight == 0}
    assert set(GROUPS["certainty"]) | set(GROUPS["samples"]) | set(GROUPS["format"]) <= blind
    unsure = Answer(RIGHT.text, "stop", (TokenChance(-9.0),))
    assert judge.judge(QUESTION, unsure).probability == judge.judge(QUESTION, RIGHT).probability


# -- the benchmark's arithmetic, and real responses --------------------------------------------------------------------


def test_recovered_quality_by_hand() -> None:
    near, far = np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0])
    best = bench.recovered(np.array([0.1, 0.8, 0.2, 0.9]), near, far)
    assert best.tolist() == [0, 0.5, 1, 1, 1]
    assert bench.apgr(best) == pytest.approx(0.75, abs=1e-3)
    assert (bench.cpt(best, 0.5), bench.cpt(best, 0.8)) == (0.25, 0.5)
    blind = bench.recovered(np.zeros(4), near, far)
    assert blind.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert bench.apgr(blind) == pytest.approx(0.5)
    assert bench.apgr(best, 0.2) < bench.apgr(best), "a near answer that is paid in any case makes it dearer"
    assert bench.cpt(best, 0.5, 0.5) == 0.5


def test_real_responses_are_judged_out_of_fold() -> None:
    """One division into folds; the benchmark states the mean of five (APGR 0.80, random 0.50)."""
    data = bench.read(need_data("routing", bench.FILE).parent)
    told = bench.judged(data.rows, count=5)
    assert len(told) > 600
    assert bench.figures(told, data)["apgr"] > 0.70
    assert calibration_error(told, data.near) < 0.08
    plain = [name for name in NAMES if name not in (*GROUPS["arithmetic"], *GROUPS["numbers"])]
    assert bench.figures(bench.judged(data.rows, plain, count=5), data)["apgr"] < bench.figures(told, data)["apgr"]


def test_rows_that_the_protocol_leaves_out_are_left_out() -> None:
    folder = need_data("routing", bench.FILE).parent
    kept, everything = bench.read(folder), bench.read(folder, all_rows=True)
    left_out = {json.loads(line)["eval_prompt"] for line in (folder / bench.LEFT_OUT).read_text().splitlines()}
    assert len(everything.rows) > len(kept.rows)
    assert not left_out & {row.prompt for row in kept.rows}
