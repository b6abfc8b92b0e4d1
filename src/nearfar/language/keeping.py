"""What routing remembers in the home folder: outcomes, the budget's state, and what feedback taught the router."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

import msgspec

from nearfar import ledger as book
from nearfar.errors import InputError, NearfarError, StoreError
from nearfar.language import budget, calibration
from nearfar.language.budget import Goal, Reserved, Routed, Settled, State, Target
from nearfar.language.call import TextCall
from nearfar.language.outcomes import FILE, OutcomeStore, Record
from nearfar.language.routers.base import Prompt, Router, Score
from nearfar.language.routers.ngram import Ngram
from nearfar.language.routers.registry import load
from nearfar.language.vectors import embedding_router
from nearfar.settings_language import RoutingSettings
from nearfar.types.units import Seconds

log = logging.getLogger(__name__)
WEIGHTS, CALIBRATION, BUDGET = "router.npz", "router-calibration.json", "budget.json"
"""Files in the home folder."""
SAVE_EVERY = 5.0
"""Seconds between two writes of the budget's state; money is in the ledger all the same."""


def router_of(settings: RoutingSettings, home: Path | None) -> Router:
    """The router that is set: the owner's weights before the shipped ones, and with what feedback taught it.

    Raises `SettingsError` for a router that cannot be made, `ModelFileError` for weights that cannot be read."""
    if settings.router == "embedding":
        return embedding_router(home)
    if settings.router != "ngram":
        return load(settings.router)
    own = home / WEIGHTS if home is not None and (home / WEIGHTS).is_file() else None
    router = Ngram(settings.weights or own or "")
    if home is not None and (home / CALIBRATION).is_file():
        with contextlib.suppress(OSError, NearfarError):  # a damaged file costs what was learned, not the routing
            router.calibration = calibration.restore((home / CALIBRATION).read_bytes())
    return router


def target_of(settings: RoutingSettings) -> Target | None:
    """The one budget that is kept. Raises `InputError` when several are set."""
    goals = (
        (Goal.MONEY, settings.money_per_day),
        (Goal.SHARE, settings.far_share),
        (Goal.QUALITY, settings.quality),
    )
    wanted = [Target(goal, amount) for goal, amount in goals if amount]
    if len(wanted) > 1:
        raise InputError(
            "More than one budget is set in [routing].", "Keep one of money_per_day, far_share and quality."
        )
    return wanted[0] if wanted else None


class Keeping:
    """Used on one event loop. Nothing here ends serving: what cannot be written is told by `trouble`."""

    def __init__(self, settings: RoutingSettings, home: Path) -> None:
        """Nothing is opened yet: most nodes never route a prompt, and a full disk must not keep them from starting."""
        self._settings, self.home = settings, home
        self._store: OutcomeStore | None = None
        self.trouble = ""
        """Why the outcomes could not be opened; "" while they could."""
        target = target_of(settings)
        self.budget = self._restored(target) if target is not None else None
        self._written = self.budget
        """Who only looks writes nothing: another process may have spent meanwhile."""
        self._saved = time.monotonic()

    @property
    def outcomes(self) -> OutcomeStore:
        """Opened when it is first wanted. Raises `StoreError`."""
        if self._store is None:
            self._store = OutcomeStore(self.home / FILE, keep_prompts=self._settings.keep_prompts)
        return self._store

    def _restored(self, target: Target) -> State:
        state = State(target)
        with contextlib.suppress(OSError, NearfarError):
            kept = budget.restore((self.home / BUDGET).read_bytes())
            if kept.target == target:
                state = kept
        if target.goal is Goal.MONEY and (self.home / book.FILE).is_file():
            state = self._with_ledger(state)
        return state

    def _with_ledger(self, state: State) -> State:
        """What the ledger says was spent today is what was spent, whatever this program remembers of it."""
        now = Seconds(time.time())
        spent = self._ledger_says(now)
        if spent is None:
            return state
        return msgspec.structs.replace(state, day=budget.day_of(state.target, now), spent=spent, reserved=0.0)

    def _ledger_says(self, now: Seconds) -> float | None:
        """The most that far calls of this home folder may have cost today; None when there is no ledger that says."""
        if not (self.home / book.FILE).is_file():
            return None
        ledger = book.Ledger(self.home / book.FILE)
        try:
            totals = ledger.totals(time.strftime("%Y-%m-%d", time.gmtime(now)))
        except NearfarError:
            return None
        finally:
            ledger.close()
        return sum(total.cost + total.cost_maybe for total in totals)

    # -- the budget ---------------------------------------------------------------------------------------------------

    def threshold(self, otherwise: float) -> float:
        return budget.threshold(self.budget, Seconds(time.time())) if self.budget is not None else otherwise

    def refusal(self, bound: float) -> str:
        """Why a far call of at most this price may not be made; "" when it may."""
        return budget.refusal(self.budget, bound, Seconds(time.time())) if self.budget is not None else ""

    def routed(self, score: float | None, *, far: bool, reserved: float) -> int:
        """A prompt goes its way; the day on which its money is reserved."""
        if self.budget is None:
            return 0
        now = Seconds(time.time())
        event = Routed(score if score is not None else 0.5, far, reserved if far else 0.0, forced=score is None)
        self.budget = budget.after(self.budget, event, now)
        return budget.day_of(self.budget.target, now)

    @property
    def money(self) -> bool:
        return self.budget is not None and self.budget.target.goal is Goal.MONEY

    def reserve(self, amount: float) -> int:
        """For a far call that was not planned; the day on which it is reserved."""
        if self.budget is None:
            return 0
        now = Seconds(time.time())
        self.budget = budget.after(self.budget, Reserved(amount), now)
        return budget.day_of(self.budget.target, now)

    def settled(self, reserved: float, cost: float, day: int, *, doubt: float = 0.0) -> None:
        """A call ended. `doubt`: the most that those of its far calls cost that ended without a bill: the ledger knows
        better, where there is one."""
        if self.budget is None:
            return
        now = Seconds(time.time())
        said = self._ledger_says(now) if doubt and self.money else None
        if said is None:
            cost += doubt
        self.budget = budget.after(self.budget, Settled(reserved, cost, day), now)
        if said is not None and said > self.budget.spent:
            self.budget = msgspec.structs.replace(self.budget, spent=said)
        self._save()

    def _save(self, *, now: bool = False) -> None:
        if (
            self.budget is None
            or self.budget is self._written
            or (not now and time.monotonic() - self._saved < SAVE_EVERY)
        ):
            return
        self._saved = time.monotonic()
        with contextlib.suppress(OSError):
            _write(self.home / BUDGET, budget.export(self.budget))
            self._written = self.budget

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def note(self, record: Record, prompt: str) -> None:
        """Keep an outcome, if that can be done."""
        try:
            self.outcomes.note(record, prompt)
        except StoreError as error:
            if not self.trouble:
                log.warning("%s", error)
            self.trouble = str(error)

    def feedback(self, request: str, good: bool | float, router: Router) -> None:
        """What somebody said of an answer; the router's probability follows. Raises `InputError`, `StoreError`."""
        self.outcomes.record_feedback(request, good)
        value = (1.0 if good else 0.0) if isinstance(good, bool) else (float(good) + 1) / 2
        found = next((r for r in self.outcomes.records() if r.id == request), None)
        if found is None or found.answered != "near" or found.score is None:
            return  # it says nothing of the near answer
        learnt = self.learn(found.score, value, router)
        if learnt and self.budget is not None:
            self.budget = budget.after(self.budget, budget.Fed(found.score, value >= 0.5), Seconds(time.time()))

    def learn(self, score: float, good: float, router: Router) -> bool:
        """How good a near answer was (0 to 1) that the router had given this score; False when it does not learn."""
        if not isinstance(router, Ngram):
            return False
        router.calibration = router.calibration.update(router.calibration.raw(score), good)
        with contextlib.suppress(OSError):
            _write(self.home / CALIBRATION, router.calibration.export())
        return True

    def close(self) -> None:
        self._save(now=True)
        if self._store is not None:
            self._store.close()


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


def score(router: Router, text: str, before: str, call: TextCall | None = None) -> Score:
    """What a router says of a question and what stood before it."""
    tools = bool(call and (call.view.tools or call.view.functions))
    schema = bool(call and call.view.constrained and not tools)
    return router.score(Prompt(text, before, "", tools, schema))
