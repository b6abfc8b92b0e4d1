"""What all calls of one gateway share: the router and its threshold, the budget, the judge, the cache, the outcomes."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec

from nearfar.client.client import Client
from nearfar.errors import InputError, NearfarError, NoCandidate, SettingsError
from nearfar.language.cache import ExactCache, Key, Scope, repeatable, scope_of
from nearfar.language.call import AUTO, About, Route, TextCall
from nearfar.language.conversations import Conversations
from nearfar.language.judge.model import Judge
from nearfar.language.judge.model import default as default_judge
from nearfar.language.keeping import Keeping, router_of, score
from nearfar.language.offers import Lasting, Offer
from nearfar.language.outcomes import Record
from nearfar.language.plan import Facts, Plan, Rules, Strategy, Where, plan
from nearfar.language.privacy.gate import Ruling, rule
from nearfar.language.privacy.policy import strictest
from nearfar.language.prompt import Asked, asked, only_text
from nearfar.language.purse import Purse
from nearfar.language.routers.base import Router
from nearfar.language.semantic import Hit, Question, SemanticCache
from nearfar.language.tokens import estimate
from nearfar.language.vectors import VECTOR, vector_of
from nearfar.settings_language import RoutingSettings
from nearfar.settings_privacy import CacheSettings
from nearfar.types.request import Privacy
from nearfar.types.units import Seconds
from nearfar.types.wire import Operation

log = logging.getLogger(__name__)
EXPECTED_ANSWER = 512
"""Tokens of an answer whose length the caller does not limit, for asking whether it fits near."""


LONGEST_ANSWER = 4096
"""The same for the price that is reserved: what far ends give when nobody limits it."""
FORM = 400
"""Bytes of a body that are the form of a usual question, and no text that is paid for."""
MARGIN = 1.3
"""By which estimates of a prompt's tokens may be too low."""


class Details(msgspec.Struct):
    """What a run knows of itself beyond its answer."""

    answered: str = ""
    """`near` or `far`: whose answer was given."""
    escalated: bool = False
    judged: float | None = None
    taught: float | None = None
    """The same where the judge knows answers of this kind: then the router learns from it."""
    features: Mapping[str, float] | None = None
    near_in: int = 0
    near_out: int = 0
    far_in: int = 0
    far_out: int = 0
    saved_in: int = 0
    saved_out: int = 0


class Director:
    """Used on one event loop."""

    def __init__(
        self,
        client: Client,
        routing: RoutingSettings = RoutingSettings(),  # noqa: B008 - frozen
        kept: CacheSettings = CacheSettings(),  # noqa: B008
        router: Router | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        """`router`: the one that `routing` names when it is not given. Without `keeping` nothing is remembered."""
        self.client = client
        self.settings = routing
        self.cache = ExactCache(kept.max_bytes, kept.max_entries, Seconds(kept.max_age_ms / 1000))
        self.semantic: SemanticCache | None = None
        """Off by default."""
        if kept.semantic:
            if not routing.embedding:
                raise SettingsError(
                    "The semantic cache needs vectors.", "Set [routing] embedding to an embedding model of the fleet."
                )
            limits = (kept.max_bytes, kept.max_entries, Seconds(kept.max_age_ms / 1000))
            self.semantic = SemanticCache(lambda _: VECTOR.get(), kept.similarity, *limits)
        self._router = router
        self.keeping = keeping
        self.conversations = Conversations()
        self._offers = Lasting()

    @cached_property
    def router(self) -> Router:
        """Loaded when the first prompt wants it: most nodes never do."""
        home = self.keeping.home if self.keeping is not None else None
        return self._router or router_of(self.settings, home)

    @cached_property
    def judge(self) -> Judge:
        return default_judge()

    # -- deciding -----------------------------------------------------------------------------------------------------

    def offers(self) -> tuple[Offer, ...]:
        now = Seconds(time.monotonic())
        return self._offers.of(self.client.view.snapshot(now), now)

    def context_of(self, model: str) -> int:
        return next((offer.context for offer in self.offers() if offer.model == model), 0)

    def near_only(self, call: TextCall) -> bool:
        """Whether the call names a model that no far end serves, so that nothing of it can go far."""
        if call.model == AUTO or call.route is Route.FAR:
            return False
        return not any(offer.far for offer in self.offers() if offer.model == call.model)

    async def look(self, call: TextCall, ruling: Ruling) -> Sequence[float] | None:
        """What the router wants to have before it is asked: a prompt's vector, for the one that reads vectors."""
        if call.model != AUTO or call.route is not Route.AUTO or self.settings.router != "embedding":
            return None
        question = asked(msgspec.json.decode(ruling.near()))
        try:
            return await vector_of(self.client, self.settings.embedding, question.prompt, ruling.privacy)
        except NearfarError as error:  # the prompt is answered all the same, as if there were no router
            log.warning("the router has no vector: %s", error)
            return None

    def plan(self, call: TextCall, ruling: Ruling, vector: Sequence[float] | None = None) -> Plan:
        """Raises `NoCandidate` with the reasons when nobody may answer."""
        offered = self.offers()
        if call.model != AUTO:
            return self._named(call, ruling, [offer for offer in offered if offer.model == call.model])
        wants_vector = call.operation is Operation.EMBED
        offered = tuple(offer for offer in offered if offer.embedding == wants_vector)
        question = asked(msgspec.json.decode(ruling.near()))
        scored = None
        if call.route is Route.AUTO and (vector is not None or self.settings.router != "embedding"):
            token = VECTOR.set(vector or ())
            try:
                scored = score(self.router, question.prompt, question.before, call)
            finally:
                VECTOR.reset(token)
        facts = self._facts(call, ruling, question)
        bound = max((self.bound(offer, call, facts) for offer in offered if offer.far), default=0.0)
        made = plan(facts, offered, scored.probability if scored is not None else None, self.rules(bound))
        if scored is not None and made.score is not None:
            made = msgspec.structs.replace(made, why=(*made.why, *scored.reasons), bound=bound)
        return msgspec.structs.replace(made, bound=bound)

    def _named(self, call: TextCall, ruling: Ruling, offered: Sequence[Offer]) -> Plan:
        """For a model that was asked for by its name; also such a call is paid from the day's money."""
        why = "asked for by its name"
        far = [offer for offer in offered if offer.far]
        if not far or self.keeping is None or not self.keeping.money or ruling.privacy is not Privacy.ANY:
            return Plan(Where.FAR if far else Where.NEAR, call.model, (why,))
        facts = self._facts(call, ruling, asked(msgspec.json.decode(ruling.near())))
        bound = max(self.bound(offer, call, facts) for offer in far)
        if not (spent := self.keeping.refusal(bound)):
            return Plan(Where.FAR, call.model, (why,), bound=bound)
        if len(far) < len(offered):
            return Plan(Where.NEAR, call.model, (why, spent))
        raise NoCandidate(f"{call.model} may not be asked: {spent}.", "Ask for another model, or for auto.")

    def rules(self, bound: float = 0.0) -> Rules:
        mine, keeping = self.settings, self.keeping
        threshold = keeping.threshold(mine.threshold) if keeping is not None else mine.threshold
        spent = keeping.refusal(bound) if keeping is not None and bound else ""
        return Rules(Strategy(mine.strategy), threshold, mine.near, mine.far, mine.split, spent=spent)

    def bound(self, offer: Offer, call: TextCall, facts: Facts) -> float:
        """The most that a call of a far end may cost."""
        view = call.view
        answer = view.max_completion_tokens or view.max_tokens or LONGEST_ANSWER
        written = 0 if call.operation is Operation.EMBED else answer * max(view.n or 1, view.best_of or 1)
        # Tools, lists of tokens, texts to embed, and whatever else is more than `facts` has seen.
        unseen = max(0, len(call.body) - facts.seen - FORM) / 2
        return ((facts.tokens * MARGIN + unseen) * offer.price_in + written * offer.price_out) / 1e6

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
            seen=len((question.prompt + question.before).encode()),
            max_cost=call.policy.cost(call.qos.max_cost),
            plain=call.operation is not Operation.EMBED
            and not (view.tools or view.functions or view.echo or (view.n or 1) > 1 or (view.best_of or 1) > 1),
            splits=not (view.constrained or view.logprobs or view.stop) and only_text(view.messages),
        )

    def too_long(self, call: TextCall, ruling: Ruling, model: str) -> bool:
        """Whether a private prompt is a question with a document that the model cannot take at once."""
        if call.model != AUTO or call.operation is not Operation.CHAT or ruling.privacy is Privacy.ANY:
            return False
        context = self.context_of(model)
        if not context:
            return False
        facts = self._facts(call, ruling, asked(msgspec.json.decode(ruling.near())))
        return facts.plain and facts.splits and facts.context_tokens > 0 and facts.tokens > context

    def question_alone(self, call: TextCall, question: str) -> tuple[Privacy, str]:
        """How far the question may travel without its document, and the far model that may plan with it; "" for
        none. The request's own demands hold for the question too; only what was found in the document does not."""
        wishes = msgspec.json.decode(call.body).get("nearfar")
        body = {"messages": [{"role": "user", "content": question}], **({"nearfar": wishes} if wishes else {})}
        alone = rule(msgspec.json.encode(body), call.qos.privacy, call.policy)
        if alone.refusal or alone.counts or alone.privacy is not Privacy.ANY or call.route is not Route.AUTO:
            return strictest(alone.privacy, Privacy.FLEET), ""
        far = next((o for o in self.offers() if o.far and o.services and self.settings.far in ("", o.model)), None)
        if far is None or self.rules(self.bound(far, call, Facts(tokens=estimate(question)))).spent:
            return Privacy.FLEET, ""
        return Privacy.ANY, far.model

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

    async def alike(self, call: TextCall, ruling: Ruling, model: str, far: bool) -> tuple[Question | None, Hit | None]:
        """The question by its meaning, and the answer to one that meant nearly the same. Vectors are made near."""
        found = self._scoped(call, ruling, model, far) if self.semantic is not None else None
        if found is None or self.semantic is None or call.operation is Operation.EMBED:
            return None, None
        request, scope = found
        redaction = ruling.redaction if far else None
        try:
            words = asked(request).prompt
            token = VECTOR.set(await vector_of(self.client, self.settings.embedding, words, ruling.privacy))
            try:
                question = self.semantic.question(request, scope, redaction)
            finally:
                VECTOR.reset(token)
        except NearfarError as error:  # the prompt is answered all the same, as if there were no such cache
            log.warning("the semantic cache has no vector: %s", error)
            return None, None
        return question, self.semantic.get(question, Seconds(time.monotonic()))

    def keep_alike(self, question: Question | None, answer: bytes) -> None:
        if self.semantic is not None and question is not None:
            self.semantic.put(question, answer, Seconds(time.monotonic()))

    def _key(self, call: TextCall, ruling: Ruling, model: str, far: bool) -> Key | None:
        found = self._scoped(call, ruling, model, far)
        return self.cache.key(*found, ruling.redaction if far else None) if found is not None else None

    def _scoped(self, call: TextCall, ruling: Ruling, model: str, far: bool) -> tuple[Any, Scope] | None:
        """The request as it would be sent, and who may see its answer again; None when no kept answer will do."""
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
        served = f"{model}:{','.join(sorted({f'{report.variant}@{report.revision}' for report in services}))}"
        return request, scope_of(ruling, call.policy.name, served, far=far)

    # -- what came of it ----------------------------------------------------------------------------------------------

    def begin(self, call: TextCall, made: Plan) -> Purse:
        """A call goes its way, with the money that it may need."""
        far = made.where in (Where.FAR, Where.SPLIT)
        if self.keeping is None or (call.model != AUTO and not far):
            return Purse(None)
        day = self.keeping.routed(made.score, far=far, reserved=made.bound)
        return Purse(self.keeping, made.bound, reserved=far, day=day)

    def end(
        self, call: TextCall, made: Plan, ruling: Ruling, about: About | None, details: Details, purse: Purse
    ) -> None:
        """A call ended; `about` is None when it was not answered."""
        purse.settle(about.cost if about is not None else 0.0)
        if self.keeping is None or call.model != AUTO:
            return
        if call.operation is Operation.EMBED:
            return
        if details.taught is not None and made.score is not None:
            self.keeping.learn(made.score, details.taught, self.router)
        question = asked(msgspec.json.decode(ruling.near()))
        record = Record(
            id=call.id,
            at=time.time(),
            privacy=ruling.privacy,
            decision="cache" if about is not None and about.where == "cache" else made.where.value,
            answered=details.answered or "none" if about is not None else "none",
            escalated=details.escalated,
            refused=any("money is spent" in line for line in (*made.why, *made.refused)),
            score=made.score,
            threshold=made.threshold if made.score is not None else None,
            judged=details.judged,
            features=details.features,
            cost=about.cost if about is not None else 0.0,
            near_in=details.near_in,
            near_out=details.near_out,
            far_in=details.far_in,
            far_out=details.far_out,
            saved_in=max(0, details.saved_in),
            saved_out=max(0, details.saved_out),
            latency_ms=about.ms if about is not None else 0.0,
        )
        self.keeping.note(record, question.prompt)

    def feedback(self, request: str, good: bool | float) -> None:
        """What somebody said of an answer. Raises `InputError` when its request is not known here."""
        if self.keeping is None:
            raise InputError("This gateway keeps no outcomes.", "Ask the node that gave the answer.")
        self.keeping.feedback(request, good, self.router)
