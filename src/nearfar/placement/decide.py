"""One placement decision: filters with reasons, then a policy. Pure: the same arguments give the same decision.

When a model has very many services and the policy samples, a few are drawn at random, with the incumbent and the one on
the origin's own node. It draws again when too few may serve or all would be late; when nobody may, it looks at all.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import msgspec

from nearfar.errors import NearfarError, NoCandidate, UnknownModel
from nearfar.fleet.snapshot import ServiceView, Snapshot
from nearfar.placement.expectation import Expectation, expect
from nearfar.placement.filters import RESERVE, absent, refuse
from nearfar.placement.policies.base import SHOWN, Policy, Ranked
from nearfar.placement.qos import gives_up
from nearfar.placement.refusal import Refusal
from nearfar.types.ids import NodeId, ServiceId, service_id
from nearfar.types.request import Degrade, Privacy, Request
from nearfar.types.units import Seconds

SMALL = 64
"""Up to so many services of a model every one is looked at, whatever the policy."""
REFUSALS = 64
"""A decision carries at most so many refusals; `refused` counts them all."""
SMALL_FLEET = 16
"""Up to so many nodes, those without the model are named in every decision; above, only when nothing was chosen."""
_DRAWS = 3
_AGAIN = 3
_NAMES = 2000


class Decision(msgspec.Struct, frozen=True):
    """Who shall serve a request, and why not the others."""

    chosen: ServiceId | None
    expected: Expectation | None
    """Of the chosen one, whatever the policy ranks by."""
    late: bool
    """The chosen one is expected to miss the deadline, and with `predictive` so is every other; refusing is the
    caller's choice."""
    ranking: tuple[Ranked, ...]
    """Best first, at most `SHOWN`; the incumbent is among them, last, when it is not among the best."""
    refusals: tuple[Refusal, ...]
    """At most `REFUSALS`."""
    reason: str
    """One sentence for people."""
    considered: int
    """Services that were looked at: candidates plus refused ones."""
    eligible: int
    """How many of them may take the request."""
    refused: int
    """How many refusals there were, of services and nodes."""
    policy: str
    aside: bool = False
    """Chosen for this request alone; its answer does not move the stream from its incumbent."""

    def error(self) -> NearfarError:
        """The exception for a request that nobody may take: `UnknownModel`, or `NoCandidate` with the refusals."""
        if self.chosen is None and self.refusals and self.refusals[0].code == "unknown-model":
            return UnknownModel(self.reason, "Run `nearfar models` to see what the fleet has.")
        return NoCandidate(
            self.reason,
            "Run `nearfar services` to see every service with its health.",
            refusals=[refusal.as_mapping() for refusal in self.refusals],
        )


def decide(
    snapshot: Snapshot,
    request: Request,
    now: Seconds,
    rng: random.Random,
    policy: Policy,
    *,
    everyone: bool = False,
) -> Decision:
    """Choose a service. `chosen` is None when no service may take the request; that is no exception here.

    `everyone` looks at all services and names all nodes however many there are. `rng` is
    advanced only when candidates are drawn or a tie is broken.
    """
    ids = snapshot.by_model.get(request.model)
    if ids is None:
        return _unserved(snapshot, request, policy, now)
    sieve = _Sieve(snapshot, request, now)
    may_draw = False
    if everyone or len(ids) <= SMALL or policy.sample is None:
        sieve.look_at(ids)
    else:
        may_draw = _draw(sieve, ids, rng, policy.sample)
    candidates = sieve.candidates
    if not candidates:
        sieve.take_reserve()
    if not candidates:
        sieve.last_resort()
    if not candidates or everyone or len(snapshot.nodes) <= SMALL_FLEET:
        sieve.refuse_all(absent(snapshot, request, now))
    if not candidates:
        refusals = sieve.refusals
        reason = f"None of {sieve.considered} services of {request.model} may take the request"
        if refusals:
            reason += f": {refusals[0].subject}: {refusals[0].reason}"
        return Decision(
            None, None, False, (), tuple(refusals), f"{reason}.", sieve.considered, 0, sieve.refused, policy.name
        )

    ranked = policy.rank(snapshot, request, candidates, now, rng)
    if ranked[0].late and may_draw and policy.sample is not None:
        # Of those drawn none keeps the deadline; another may. Once, as a deadline may also be beyond everybody.
        sieve.look_at(_some(ids, rng, _AGAIN * policy.sample))
        ranked = policy.rank(snapshot, request, candidates, now, rng)
    if sieve.reserve and _is_late(snapshot, request, ranked[0], now) and sieve.take_reserve():
        ranked = policy.rank(snapshot, request, candidates, now, rng)
    best = ranked[0]
    expected = best.expected
    if expected is None:
        expected = expect(snapshot, request, snapshot.services[best.service], now)
    late = best.late or not expected.keeps(request.qos.deadline)
    return Decision(
        best.service,
        expected,
        late,
        _shown(ranked, request.incumbent),
        tuple(sieve.refusals),
        _sentence(request, best, expected, late, len(candidates), policy.name),
        sieve.considered,
        len(candidates),
        sieve.refused,
        policy.name,
        best.aside,
    )


def _shown(ranked: Sequence[Ranked], incumbent: ServiceId | None) -> tuple[Ranked, ...]:
    """The best ones; the last of them gives way to the incumbent, whose figures its stream needs."""
    shown = tuple(ranked[:SHOWN])
    if incumbent is not None and len(ranked) > SHOWN and not any(entry.service == incumbent for entry in shown):
        own = next((entry for entry in ranked[SHOWN:] if entry.service == incumbent), None)
        if own is not None:
            return (*shown[:-1], own)
    return shown


def _is_late(snapshot: Snapshot, request: Request, best: Ranked, now: Seconds) -> bool:
    expected = best.expected or expect(snapshot, request, snapshot.services[best.service], now)
    return best.late or not expected.keeps(request.qos.deadline)


class _Sieve:
    """Runs services through the filters and keeps both sides."""

    __slots__ = ("candidates", "considered", "now", "refusals", "refused", "request", "reserve", "seen", "silent",
                 "snapshot")  # fmt: skip

    def __init__(self, snapshot: Snapshot, request: Request, now: Seconds) -> None:
        self.snapshot = snapshot
        self.request = request
        self.now = now
        self.candidates: list[ServiceView] = []
        self.refusals: list[Refusal] = []
        self.refused = 0
        self.considered = 0
        self.reserve: list[tuple[Refusal, ServiceView]] = []
        """Refused, but better than nothing: `filters.RESERVE`."""
        self.seen: set[ServiceId] = set()
        self.silent: list[tuple[Refusal, ServiceView]] = []

    def look_at(self, ids: Iterable[ServiceId], enough: int | None = None) -> None:
        """Filter services that were not looked at before, until there are `enough` candidates."""
        snapshot, request, now = self.snapshot, self.request, self.now
        services, seen = snapshot.services, self.seen
        for service in ids:
            if service in seen:
                continue
            seen.add(service)
            view = services[service]
            refusal = refuse(snapshot, request, view, now)
            if refusal is None:
                self.candidates.append(view)
                if enough is not None and len(self.candidates) >= enough:
                    break
            else:
                self.refused += 1
                if len(self.refusals) < REFUSALS:
                    self.refusals.append(refusal)
                if refusal.code in RESERVE:
                    self.reserve.append((refusal, view))
                if refusal.code == "silent":
                    self.silent.append((refusal, view))
        self.considered = len(seen)

    def take_reserve(self) -> bool:
        """Take back refusals that hold only while somebody else is in time; whether there were any.

        A far end is taken when the caller may be sent there now. A service that broke a promise is taken unless the
        caller would rather be refused than late.
        """
        qos = self.request.qos
        late_is_better = not gives_up(qos, Degrade.REFUSE)
        taken = [
            (refusal, view)
            for refusal, view in self.reserve
            if (late_is_better if refusal.code == "unreliable" else gives_up(qos, Degrade.FAR))
        ]
        back = {id(refusal) for refusal, _ in taken}
        self.refusals = [refusal for refusal in self.refusals if id(refusal) not in back]
        self.refused -= len(taken)
        self.reserve = []
        self.candidates += [view for _, view in taken]
        return bool(taken)

    def last_resort(self) -> None:
        """Silence is a suspicion: where nobody else is left, who fell silent is asked all the same."""
        for refusal, view in self.silent:
            self.candidates.append(view)
            self.refused -= 1
            if refusal in self.refusals:
                self.refusals.remove(refusal)
        self.silent.clear()

    def refuse_all(self, refusals: list[Refusal]) -> None:
        self.refusals += refusals[: max(REFUSALS - len(self.refusals), 0)]
        self.refused += len(refusals)


def _draw(sieve: _Sieve, ids: tuple[ServiceId, ...], rng: random.Random, size: int) -> bool:
    """Look at a few; False when drawing more could find nobody else."""
    request = sieve.request
    qos = request.qos
    only = qos.node if qos.node is not None else request.origin if qos.privacy is Privacy.LOCAL else None
    if only is not None:
        # At most one service can pass, and its id is known: looking at all others would find the same.
        service = service_id(NodeId(only), request.model)
        if service in sieve.snapshot.services:
            sieve.look_at((service,))
        rest = len(ids) - sieve.considered
        if rest:
            code, why = (
                ("pinned", "the request is pinned to") if qos.node is not None else ("private", "the data is on")
            )
            sieve.refused += rest
            sieve.refusals.append(
                Refusal(request.model, code, f"{rest} services are on other nodes; {why} node {only}")
            )
        return False
    known = [service_id(NodeId(request.origin), request.model)]
    if request.incumbent is not None:
        known.append(request.incumbent)
    services = sieve.snapshot.services
    # The incumbent may serve another model: only what is listed for this one counts.
    sieve.look_at([s for s in known if s in services and services[s].report.model == request.model])
    for _ in range(_DRAWS):
        sieve.look_at(_some(ids, rng, size))
        if len(sieve.candidates) >= 2:
            return True  # one alone would be a blind choice
    if not sieve.candidates:
        start = int(rng.random() * len(ids))
        sieve.look_at(ids[start:], size)
        if len(sieve.candidates) < size:
            sieve.look_at(ids[:start], size)
    return True


def _some(ids: tuple[ServiceId, ...], rng: random.Random, size: int) -> list[ServiceId]:
    """Drawn with replacement: cheaper than `random.sample`, and equal in effect for so few of so many."""
    count, number = len(ids), rng.random
    return [ids[int(number() * count)] for _ in range(size)]


def _sentence(request: Request, best: Ranked, expected: Expectation, late: bool, eligible: int, policy: str) -> str:
    of = f"first of {eligible} by {policy}" if eligible > 1 else "the only candidate"
    stays = " stays" if best.service == request.incumbent else ""
    deadline = request.qos.deadline
    misses = f", but late for {deadline:.4g} ms" if late and deadline is not None else ""
    if misses and deadline is not None and expected.total <= deadline:
        misses += f" with {expected.margin:.1f} ms that jitter may add"
    note = f" {best.note};" if best.note else ""
    return f"{best.service}{stays}, {of}{misses}:{note} expected in {expected}."


def _unserved(snapshot: Snapshot, request: Request, policy: Policy, now: Seconds) -> Decision:
    model = request.model
    missing = absent(snapshot, request, now)
    holders = [
        node for node, view in snapshot.nodes.items() if view.alive and view.report and model in view.report.models
    ]
    if holders:
        reason = f"No node serves {model}; {holders[0]} has it: run `nearfar models serve {model}` there."
        refusals = missing
    else:
        reason = f"No node of the fleet knows the model {model}"
        near = _nearest_name(snapshot, model)
        reason += f"; did you mean {near}?" if near else "."
        refusals = [Refusal(model, "unknown-model", reason), *missing]
    return Decision(None, None, False, (), tuple(refusals[:REFUSALS]), reason, 0, 0, len(refusals), policy.name)


def _nearest_name(snapshot: Snapshot, model: str) -> str | None:
    import difflib

    names: dict[str, None] = dict.fromkeys(snapshot.by_model)
    for view in snapshot.nodes.values():
        if view.report is not None:
            names.update(dict.fromkeys(view.report.models))
        if len(names) > _NAMES:
            break  # a wrong name must not cost a busy gateway seconds
    close = difflib.get_close_matches(model, list(names)[:_NAMES], n=1)
    return close[0] if close else None
