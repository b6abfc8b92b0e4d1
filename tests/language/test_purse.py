"""The money of single calls: whatever becomes of them, the day's budget holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nearfar import ledger as book
from nearfar.errors import Cancelled, InferenceError, NearfarError, NoCandidate, Overloaded
from nearfar.language.keeping import BUDGET, Keeping
from nearfar.language.purse import Purse
from nearfar.ledger import Attempt, End, Ledger, Outcome
from nearfar.settings_language import RoutingSettings

NOON = 1_800_014_400.0
DAY = 86_400.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [NOON]
    monkeypatch.setattr("time.time", lambda: now[0])
    return now


@pytest.fixture
def keeping(tmp_path: Path, clock: list[float]) -> Iterator[Keeping]:
    made = Keeping(RoutingSettings(money_per_day=1.0), tmp_path)
    yield made
    made.close()


def spent(keeping: Keeping) -> Any:
    assert keeping.budget is not None
    return keeping.budget.spent, keeping.budget.reserved


def planned(keeping: Keeping, bound: float) -> Purse:
    return Purse(keeping, bound, reserved=True, day=keeping.routed(0.2, far=True, reserved=bound))


def unplanned(keeping: Keeping, bound: float) -> Purse:
    return Purse(keeping, bound, day=keeping.routed(0.9, far=False, reserved=bound))


def test_what_is_reserved_is_given_back_but_for_the_bill(keeping: Keeping) -> None:
    purse = planned(keeping, 0.4)
    assert spent(keeping) == (0, 0.4)
    with purse.far():
        pass
    purse.settle(0.1)
    assert spent(keeping) == (pytest.approx(0.1), 0)


def test_near_calls_that_go_far_after_all_reserve_before_they_ask(keeping: Keeping) -> None:
    purses = [unplanned(keeping, 0.4) for _ in range(3)]  # all under way at once; none holds money yet
    assert spent(keeping) == (0, 0)
    for purse in purses[:2]:
        with purse.far():
            pass
    with pytest.raises(NoCandidate, match=r"may not go far: the day's money is spent"), purses[2].far():
        raise AssertionError("nothing is sent")
    for purse, cost in zip(purses, (0.4, 0.3, 0.0), strict=True):
        purse.settle(cost)
    assert spent(keeping) == (pytest.approx(0.7), 0)


def test_a_second_far_call_of_one_prompt_reserves_anew(keeping: Keeping) -> None:
    purse = planned(keeping, 0.4)
    with pytest.raises(Overloaded), purse.far():
        raise Overloaded("429", "Wait.")
    with purse.far():
        assert spent(keeping) == (0, pytest.approx(0.8))
    purse.settle(0.2)
    assert spent(keeping) == (pytest.approx(0.2), 0)


@pytest.mark.parametrize("ending", [GeneratorExit, Cancelled])
def test_a_caller_who_leaves_has_spent_what_was_reserved(keeping: Keeping, ending: type[BaseException]) -> None:
    purse = planned(keeping, 0.4)
    with pytest.raises(ending), purse.far():
        raise ending("left")
    purse.settle(0.0)
    assert spent(keeping) == (pytest.approx(0.4), 0)
    late = planned(keeping, 0.4)
    with pytest.raises(GeneratorExit), late.far():
        late.billed()  # left at the very end: the price is known
        raise GeneratorExit
    late.settle(0.1)
    assert spent(keeping) == (pytest.approx(0.5), 0)


def _row(home: Path, outcome: Outcome | None, tokens: int) -> None:
    ledger = Ledger(home / book.FILE)
    attempt = Attempt(
        far_end="large", model="m", request="r", attempt=1, operation="chat", privacy="any", tokens_in=tokens,
        price_in=1.0, price_out=1.0, currency="USD",
    )  # fmt: skip
    row = ledger.begin(attempt)
    if outcome is not None:
        ledger.end(row, attempt, End(outcome=outcome, tokens_in=tokens, tokens_out=tokens))
    ledger.close()


@pytest.mark.parametrize(
    ("outcome", "owed"), [(Outcome.NOT_BILLED, 0.0), (Outcome.CUT, 0.2), (Outcome.MAYBE_BILLED, 0.2), (None, 0.1)]
)
def test_what_a_failed_call_cost_stands_in_the_ledger(
    keeping: Keeping, tmp_path: Path, outcome: Outcome | None, owed: float
) -> None:
    purse = planned(keeping, 0.4)
    with pytest.raises(InferenceError), purse.far():
        _row(tmp_path, outcome, 100_000)
        raise InferenceError("cut", "Ask again.")
    purse.settle(0.0)
    assert spent(keeping) == (pytest.approx(owed), 0)


@pytest.mark.parametrize(("error", "owed"), [(InferenceError("x"), 0.4), (NoCandidate("x"), 0.0)])
def test_without_a_ledger_a_failed_call_counts_as_dear_as_it_could_be(
    keeping: Keeping, error: NearfarError, owed: float
) -> None:
    purse = planned(keeping, 0.4)
    with pytest.raises(NearfarError), purse.far():
        raise error
    purse.settle(0.0)
    assert spent(keeping) == (pytest.approx(owed), 0)


def test_the_next_day_has_its_own_money_also_after_a_restart(
    keeping: Keeping, clock: list[float], tmp_path: Path
) -> None:
    purse = planned(keeping, 1.0)
    with purse.far():
        pass
    purse.settle(1.0)
    assert "the day's money is spent: 1 of 1" in keeping.refusal(0.1)
    keeping.close()
    assert (tmp_path / BUDGET).is_file()
    again = Keeping(RoutingSettings(money_per_day=1.0), tmp_path)
    assert again.refusal(0.1)
    clock[0] += DAY
    assert not again.refusal(0.1)
    again.close()


def test_without_a_budget_everything_may_be_spent(tmp_path: Path) -> None:
    for keeping in (None, Keeping(RoutingSettings(), tmp_path)):
        purse = Purse(keeping, 1e9)
        with purse.far():
            pass
        purse.settle(1e9)


def test_who_only_looks_writes_nothing(keeping: Keeping, tmp_path: Path) -> None:
    """`route explain` beside a running node must not undo what that has spent meanwhile."""
    looking = Keeping(RoutingSettings(money_per_day=1.0), tmp_path)
    purse = planned(keeping, 1.0)
    purse.settle(1.0)
    keeping.close()
    kept = (tmp_path / BUDGET).read_bytes()
    assert not looking.refusal(0.1)
    looking.close()
    assert (tmp_path / BUDGET).read_bytes() == kept
