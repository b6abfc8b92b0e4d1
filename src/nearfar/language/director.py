"""What all calls of one gateway share: the router and its threshold, the budget, the judge, the cache, the outcomes."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any, Protocol

import msgspec

from nearfar.client.client import Client
from nearfar.language.cache import ExactCache, Key, repeatable, scope_of
from nearfar.language.call import AUTO, About, Route, TextCall
from nearfar.language.conversations import Conversations
from nearfar.language.judge.model import Judge
from nearfar.language.judge.model import default as default_judge
from nearfar.language.offers import Offer, offers
from nearfar.language.plan import Facts, Plan, Rules, Strategy, Where, plan
from nearfar.language.privacy.gate import Ruling
from nearfar.language.prompt import Asked, asked
from nearfar.language.tokens import estimate
from nearfar.settings_language import RoutingSettings
from nearfar.settings_privacy import CacheSettings
from nearfar.types.units import Seconds
from nearfar.types.wire import Operation

EXPECTED_ANSWER = 512
"""Tokens of an answer whose length the caller does not limit, for asking whether it fits near."""


class Scored(msgspec.Struct, frozen=True):
    """Probability that near is good enough, with what spoke for and against it."""

    probability: float
    reasons: tuple[str, ...] = ()


class Scorer(Protocol):
    """A router as the director uses it."""

    def score(self, question: Asked) -> Scored | None: ...


class Director:
    """Used on one event loop."""

    def __init__(
        self,
        client: Client,
        routing: RoutingSettings = RoutingSettings(),  # noqa: B008 - frozen
        kept: CacheSettings = CacheSettings(),  # noqa: B008
        scorer: Scorer | None = None,
    ) -> None:
        self.client = client
        self.settings = routing
        self.cache = ExactCache(kept.max_bytes, kept.max_entries, Seconds(kept.max_age_ms / 1000))
        self._scorer = scorer
        self.conversations = Conversations()

    @cached_property
    def judge(self) -> Judge:
        return default_judge()

    # -- deciding -----------------------------------------------------------------------------------------------------

    def offers(self) -> tuple[Offer, ...]:
        now = Seconds(time.monotonic())
        return offers(self.client.view.snapshot(now), now)

    def context_of(self, model: str) -> int:
        return next((offer.context for offer in self.offers() if offer.model == model), 0)

    def near_only(self, call: TextCall) -> bool:
        """Whether the call names a model that no far end serves, so that nothing of it can go far."""
        if call.model == AUTO or call.route is Route.FAR:
            return False
        return not any(offer.far for offer in self.offers() if offer.model == call.model)

    def plan(self, call: TextCall, ruling: Ruling) -> Plan:
        """Raises `NoCandidate` with the reasons when nobody may answer."""
        offered = self.offers()
        if call.model != AUTO:
            far = any(offer.far for offer in offered if offer.model == call.model)
            return Plan(Where.FAR if far else Where.NEAR, call.model, ("asked for by its name",))
        if call.operation is Operation.EMBED:
            offered = tuple(offer for offer in offered if not offer.far)
        question = asked(msgspec.json.decode(ruling.near()))
        scored = self.score(question) if call.route is Route.AUTO else None
        facts = self._facts(call, ruling, question)
        made = plan(facts, offered, scored.probability if scored is not None else None, self.rules())
        if scored is not None and scored.reasons and made.score is not None:
            made = msgspec.structs.replace(made, why=(*made.why, *scored.reasons))
        return made

    def score(self, question: Asked) -> Scored | None:
        return self._scorer.score(question) if self._scorer is not None else None

    def rules(self) -> Rules:
        mine = self.settings
        return Rules(Strategy(mine.strategy), mine.threshold, mine.near, mine.far, mine.split)

    def _facts(self, call: TextCall, ruling: Ruling, question: Asked) -> Facts:
        view = call.view
        around = estimate(question.before)
        answer = view.max_completion_tokens or view.max_tokens or EXPECTED_ANSWER
        return Facts(
            route=call.route,
            privacy=ruling.privacy,
            private_because=ruling.reasons,
            tokens=estimate(question.prompt) + around + min(answer, EXPECTED_ANSWER),
            context_tokens=around,
            max_cost=call.policy.cost(call.qos.max_cost),
            plain=call.operation is not Operation.EMBED
            and not (view.tools or view.functions or view.echo or (view.n or 1) > 1),
        )

    # -- what is kept -------------------------------------------------------------------------------------------------

    def kept(self, call: TextCall, ruling: Ruling, model: str, far: bool) -> bytes | None:
        """The answer to the same question, as the service gave it."""
        key = self._key(call, ruling, model, far)
        return self.cache.get(key, Seconds(time.monotonic())) if key is not None else None

    def has(self, call: TextCall, ruling: Ruling, model: str, far: bool) -> bool:
        return self.kept(call, ruling, model, far) is not None

    def keep(self, call: TextCall, ruling: Ruling, model: str, far: bool, answer: bytes) -> None:
        key = self._key(call, ruling, model, far)
        if key is not None:
            self.cache.put(key, answer, Seconds(time.monotonic()))

    def _key(self, call: TextCall, ruling: Ruling, model: str, far: bool) -> Key | None:
        view = call.view
        wanted = view.nearfar.cache
        sure = view.temperature == 0 or view.seed is not None or call.operation is Operation.EMBED
        if wanted is False or not (sure or wanted) or not self.cache.max_bytes:
            return None
        request: Any = msgspec.json.decode(ruling.far() if far else ruling.near())
        if not repeatable(request, asked=bool(wanted)):
            return None
        snapshot = self.client.snapshot()
        services = [v.report for v in snapshot.services.values() if v.report.model == model and v.alive]
        served = f"{model}:{','.join(sorted({report.variant for report in services}))}"
        scope = scope_of(ruling, call.policy.name, served, far=far)
        return self.cache.key(request, scope, ruling.redaction if far else None)

    # -- what came of it ----------------------------------------------------------------------------------------------

    def judged(self, call: TextCall, probability: float | None, *, escalated: bool) -> None:
        """A cascade judged the near answer of a call."""

    def note(self, call: TextCall, made: Plan, ruling: Ruling, about: About) -> None:
        """An answer was given whole."""
