"""Near, far or both? A pure function of what is offered, what may travel, what a router says, and what may be spent.

Privacy comes first, as a filter; then what the caller asked for; then what the models can take at all; then the
router's probability against the threshold. Whoever was not chosen has a reason, and the same words go to the answer,
to `nearfar route explain` and to the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from nearfar.errors import NoCandidate
from nearfar.language.call import Route
from nearfar.language.offers import Offer
from nearfar.types.request import Privacy


class Where(StrEnum):
    NEAR = "near"
    FAR = "far"
    CASCADE = "cascade"
    """Near first; far when the answer is judged to be not good enough."""
    SPLIT = "split"
    """Near does the preliminary work, far gets only that."""


class Strategy(StrEnum):
    ROUTE = "route"
    """The router alone decides."""
    CASCADE = "cascade"
    """What the router would send near is judged before it is given out."""


class Rules(msgspec.Struct, frozen=True):
    """What the operator wants, and what the budget allows just now."""

    strategy: Strategy = Strategy.ROUTE
    threshold: float = 0.5
    """Least probability with which near is good enough."""
    near: str = ""
    """Model that answers near; "" for the largest."""
    far: str = ""
    """Model that answers far; "" for the cheapest."""
    split: bool = False
    grey: float = 0.15
    """Below the threshold by at most this is the grey area in which a split is worth a look."""
    split_least: int = 400
    """Tokens of context (without the question) from which on a split may pay."""
    spent: str = ""
    """Why nothing may be spent any more; "" while something may."""


class Facts(msgspec.Struct, frozen=True):
    """What must be known of one call."""

    route: Route = Route.AUTO
    privacy: Privacy = Privacy.ANY
    private_because: tuple[str, ...] = ()
    tokens: int = 0
    """Of the prompt, estimated, and of the answer at most."""
    context_tokens: int = 0
    """Of what stands around the question."""
    seen: int = 0
    """Bytes of the text that `tokens` were estimated from."""
    max_cost: float | None = None
    plain: bool = True
    """Whether its answer is text only: a split or a judgement of anything else makes no sense."""
    splits: bool = True
    """Whether question and context are all there is to it: what the caller said of the answer's form, and pictures,
    would be lost in a split."""


class Plan(msgspec.Struct, frozen=True):
    """What to do. `second` is asked when the first fails before anything was delivered; "" for nobody."""

    where: Where
    model: str
    why: tuple[str, ...]
    second: str = ""
    """The model on the other side."""
    score: float | None = None
    threshold: float = 0.0
    expected_cost: float = 0.0
    expected_quality: float | None = None
    """Probability that the answer is good enough, taking far as good."""
    bound: float = 0.0
    """The most that its far call may cost; 0 when there is none."""
    refused: tuple[str, ...] = ()
    """Who was not chosen, each with the reason."""


def plan(facts: Facts, offered: Sequence[Offer], score: float | None, rules: Rules) -> Plan:
    """Raises `NoCandidate` with the reasons when nobody may answer."""
    refused: list[str] = []
    near = _pick([o for o in offered if not o.far], rules.near, refused)
    far = _pick([o for o in offered if o.far], rules.far, refused)
    barred = _barred(facts, far, rules)
    if barred and far is not None:
        refused.append(f"{far.model}: {barred}")
        far = None
    if facts.route is Route.FAR:
        near = None
    if near is None or far is None:
        return _only(facts, near, far, barred, refused)
    both = _Both(near, far, facts, score, rules, tuple(refused))
    if near.context and facts.tokens > near.context:
        return both.far_first(f"the prompt needs about {facts.tokens} tokens, {near.model} takes {near.context}")
    if score is None:
        return both.near_first("no router looked at it")
    told = f"near is good enough with probability {score:.2f}"
    if score >= rules.threshold:
        return both.near_first(f"{told}, the threshold is {rules.threshold:.2f}")
    short = f"{told}, below the threshold of {rules.threshold:.2f}"
    grey = rules.split and facts.plain and facts.splits and score >= rules.threshold - rules.grey
    if grey and facts.context_tokens >= rules.split_least:
        return both.split(f"{short} but close, with about {facts.context_tokens} tokens of context to condense")
    return both.far_first(short)


def _pick(offered: Sequence[Offer], wanted: str, refused: list[str]) -> Offer | None:
    """The model of that name, or the first that may be asked."""
    able = []
    for offer in offered:
        if wanted and offer.model != wanted:
            refused.append(f"{offer.model}: {wanted} is set in [routing]")
        elif not offer.services:
            refused.append(f"{offer.model}: {offer.reason or 'no service of it may be asked'}")
        else:
            able.append(offer)
    for offer in able[1:]:
        refused.append(f"{offer.model}: {able[0].model} is {'cheaper' if offer.far else 'larger'}")
    return able[0] if able else None


def _barred(facts: Facts, far: Offer | None, rules: Rules) -> str:
    """Why nothing of this call may go far; "" when it may."""
    if facts.privacy is not Privacy.ANY:
        because = f" ({'; '.join(facts.private_because)})" if facts.private_because else ""
        return f"private, {facts.privacy.value} at most{because}"
    if facts.route is Route.NEAR:
        return "near was asked for"
    if rules.spent:
        return rules.spent
    if far is not None and facts.max_cost is not None and far.cost > facts.max_cost:
        return f"it would cost about {far.cost:g}, and at most {facts.max_cost:g} is allowed"
    return ""


def _only(facts: Facts, near: Offer | None, far: Offer | None, barred: str, refused: Sequence[str]) -> Plan:
    if near is not None:
        why = barred or "no far end is there"
        return Plan(Where.NEAR, near.model, (why,), refused=tuple(refused))
    if far is not None:
        why = "far was asked for" if facts.route is Route.FAR else "no model answers near just now"
        return Plan(Where.FAR, far.model, (why,), expected_cost=far.cost, refused=tuple(refused))
    if facts.route is Route.FAR and not barred and not refused:
        hint = "Add one: nearfar far add; see why one does not run: nearfar services; or ask with the route near."
        raise NoCandidate("No far end is there.", hint)
    told = "; ".join(refused) or "the fleet serves no language model"
    hint = "Start one: nearfar up --model FILE.gguf, or nearfar far add."
    if barred and facts.route is Route.FAR:
        raise NoCandidate(f"It may not go far: {barred}.", "Ask with the route near or auto.")
    raise NoCandidate(f"Nobody can answer: {told}.", hint)


class _Both(msgspec.Struct, frozen=True):
    """Near and far are both possible."""

    near: Offer
    far: Offer
    facts: Facts
    score: float | None
    rules: Rules
    refused: tuple[str, ...]

    def near_first(self, why: str) -> Plan:
        judged = self.rules.strategy is Strategy.CASCADE and self.facts.route is Route.AUTO and self.facts.plain
        where = Where.CASCADE if judged else Where.NEAR
        missing = 1 - self.score if judged and self.score is not None else 0.0
        return Plan(
            where,
            self.near.model,
            (why, "its answer is judged first") if judged else (why,),
            self.far.model,
            self.score,
            self.rules.threshold,
            missing * self.far.cost,
            1.0 if judged and self.score is not None else self.score,
            refused=(*self.refused, f"{self.far.model}: not needed"),
        )

    def far_first(self, why: str) -> Plan:
        return Plan(
            Where.FAR,
            self.far.model,
            (why,),
            self.near.model,
            self.score,
            self.rules.threshold,
            self.far.cost,
            1.0,
            refused=(*self.refused, f"{self.near.model}: {why}"),
        )

    def split(self, why: str) -> Plan:
        return msgspec.structs.replace(self.far_first(why), where=Where.SPLIT)
