"""Near, far or both: what the pure function decides, and what it must never do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import NoCandidate
from nearfar.language.call import Route
from nearfar.language.offers import Offer
from nearfar.language.plan import Facts, Plan, Rules, Strategy, Where, plan
from nearfar.types.ids import ModelName
from nearfar.types.request import Privacy
from nearfar.types.units import Bytes

SMALL = Offer(ModelName("small"), False, 1, 4096, memory=Bytes(100), nodes=("pi",))
LARGE = Offer(ModelName("large"), True, 1, 128_000, 0.01, nodes=("hub",))
BOTH = (SMALL, LARGE)


def test_a_prompt_that_near_answers_well_stays_near_and_one_that_it_does_not_goes_far() -> None:
    near = plan(Facts(), BOTH, 0.9, Rules())
    far = plan(Facts(), BOTH, 0.2, Rules())
    assert (near.where, near.model, near.second) == (Where.NEAR, "small", "large")
    assert (far.where, far.model, far.second) == (Where.FAR, "large", "small")
    assert "0.90" in near.why[0] and "0.50" in near.why[0]
    assert far.expected_cost == 0.01 and near.expected_cost == 0
    assert any("large" in line for line in near.refused)


def test_a_cascade_judges_what_would_stay_near_and_expects_to_pay_for_the_rest() -> None:
    made = plan(Facts(), BOTH, 0.9, Rules(strategy=Strategy.CASCADE))
    assert made.where is Where.CASCADE and made.expected_cost == pytest.approx(0.001)
    assert plan(Facts(plain=False), BOTH, 0.9, Rules(strategy=Strategy.CASCADE)).where is Where.NEAR


def test_the_grey_area_is_split_only_where_there_is_context_to_condense() -> None:
    rules = Rules(split=True)
    assert plan(Facts(context_tokens=1000), BOTH, 0.4, rules).where is Where.SPLIT
    assert plan(Facts(context_tokens=10), BOTH, 0.4, rules).where is Where.FAR
    assert plan(Facts(context_tokens=1000), BOTH, 0.2, rules).where is Where.FAR
    assert plan(Facts(context_tokens=1000), BOTH, 0.4, Rules()).where is Where.FAR


def test_a_prompt_too_long_for_near_goes_far_with_both_numbers() -> None:
    made = plan(Facts(tokens=5000), BOTH, 0.99, Rules())
    assert made.where is Where.FAR and "5000" in made.why[0] and "4096" in made.why[0]


def test_what_is_spent_or_too_dear_stays_near() -> None:
    assert plan(Facts(), BOTH, 0.0, Rules(spent="the 2.00 of today are spent")).why == ("the 2.00 of today are spent",)
    assert plan(Facts(max_cost=0.001), BOTH, 0.0, Rules()).where is Where.NEAR


def test_without_a_near_model_far_answers_and_without_both_the_reasons_are_told() -> None:
    assert plan(Facts(), (LARGE,), 0.9, Rules()).where is Where.FAR
    ill = Offer(ModelName("small"), False, 0, reason="quarantined: 5 failures")
    with pytest.raises(NoCandidate, match="quarantined"):
        plan(Facts(route=Route.NEAR), (ill, LARGE), 0.9, Rules())
    with pytest.raises(NoCandidate, match="nearfar up --model"):
        plan(Facts(), (), None, Rules())


def test_far_that_is_asked_for_but_not_allowed_is_refused_with_the_reason() -> None:
    private = Facts(Route.FAR, Privacy.FLEET, ("found: 1 e-mail address",))
    with pytest.raises(NoCandidate, match="e-mail"):
        plan(private, BOTH, 0.0, Rules())


def test_a_model_named_in_the_settings_is_taken_before_a_larger_one() -> None:
    other = Offer(ModelName("tiny"), False, 1, 4096, memory=Bytes(1))
    made = plan(Facts(), (SMALL, other, LARGE), 1.0, Rules(near="tiny"))
    assert made.model == "tiny"


_OFFERS = st.lists(
    st.builds(
        Offer,
        st.sampled_from([ModelName(name) for name in "abcdef"]),
        st.booleans(),
        st.integers(0, 2),
        st.integers(0, 5000),
        st.floats(0, 1),
    ),
    max_size=6,
    unique_by=lambda offer: offer.model,
)
_FACTS = st.builds(
    Facts,
    st.sampled_from(Route),
    st.sampled_from(Privacy),
    st.just(()),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.none() | st.floats(0, 1),
    st.booleans(),
)
_RULES = st.builds(
    Rules,
    st.sampled_from(Strategy),
    st.floats(0, 1),
    st.just(""),
    st.just(""),
    st.booleans(),
    spent=st.sampled_from(["", "spent"]),
)


@given(_FACTS, _OFFERS, st.none() | st.floats(0, 1), _RULES)
def test_nothing_private_and_nothing_unpaid_ever_goes_far(
    facts: Facts, offered: list[Offer], score: float | None, rules: Rules
) -> None:
    far = {offer.model for offer in offered if offer.far}
    try:
        made = plan(facts, offered, score, rules)
    except NoCandidate as error:
        assert error.message and error.hint
        return
    named = {made.model, made.second}
    assert made.why
    if facts.privacy is not Privacy.ANY or facts.route is Route.NEAR or rules.spent:
        assert made.where is Where.NEAR and not named & far
    if facts.route is Route.FAR:
        assert made.model in far and made.second not in {o.model for o in offered if not o.far}
    assert all(any(o.model == name and o.services for o in offered) for name in named if name)


@given(_FACTS, _OFFERS, st.floats(0, 1), _RULES, st.floats(0, 1))
def test_a_higher_threshold_never_brings_a_prompt_near(
    facts: Facts, offered: list[Offer], score: float, rules: Rules, higher: float
) -> None:
    import msgspec

    def go(threshold: float) -> Plan | None:
        try:
            return plan(facts, offered, score, msgspec.structs.replace(rules, threshold=threshold))
        except NoCandidate:
            return None

    low, high = sorted((rules.threshold, higher))
    first, second = go(low), go(high)
    assert (first is None) == (second is None)
    if first is not None and second is not None and first.where in (Where.FAR, Where.SPLIT):
        assert second.where in (Where.FAR, Where.SPLIT)
