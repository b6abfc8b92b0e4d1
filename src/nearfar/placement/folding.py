"""When a decision says nothing new. Thirty frames a second decide the same thing thirty times a second.

A decision is folded into the one before when nothing stands between the two and all of this holds, each against the
*first* decision of the fold, so that slow drift adds up to a change:

- the same model, privacy, pinned node, incumbent, policy, chosen service and verdict (late or not, aside or not), and
  both have a frame number or neither has; the deadline left is the same within noise;
- the same refused subjects with the same codes, and equally many refusals; the words of a reason may differ ("no
  telemetry for 3.1 s");
- the same ranked services, in whatever order behind the chosen one. Of each: late or not is the same; link (in which
  loss is counted), transfer and service time are the same within noise, or the cost, where a policy expects no times;
  queue and in flight together differ by at most one request, and the expected wait by at most that one's service time;
  its telemetry is older than a second in both or in neither.

Noise is `SHARE` of the larger figure or `LEAST` milliseconds, whichever is more. When a fleet is so large that services
are drawn (`considered < known`), who was drawn is chance: then only the chosen one's figures and the set of codes
count. A fold keeps how many decisions it stands for and the number of every one's frame, as arithmetic runs (`Run`).
"""

from __future__ import annotations

import msgspec

from nearfar.fleet.snapshot import Snapshot
from nearfar.placement.decide import Decision
from nearfar.placement.refusal import Refusal
from nearfar.placement.trail import Decided, Repeated, Run, extended, finite, stamp
from nearfar.types.request import Request
from nearfar.types.units import Seconds

SHARE, LEAST = 0.5, 5.0
MOST_RUNS = 32
"""A fold with more runs of frame numbers than this is closed, so that no entry grows without bound."""
OLD = 1.0
"""Seconds after which telemetry counts as old in a comparison."""


class Fold:
    """The newest decision of a trail and its repetitions so far. `first` is its first decision, alone."""

    __slots__ = (
        "_by_service", "_codes", "_framed", "_told_count", "count", "first", "frames", "last", "least",
        "most",
    )  # fmt: skip

    def __init__(self, first: Decided, at: float) -> None:
        """`at`: seconds since 1970 of the decision, as all moments that a fold is told."""
        self.first = first
        self.last = at
        self.count = first.count
        self.frames = first.frames
        self.least, self.most = first.least_ms, first.most_ms
        self._told_count = first.count
        self._framed = bool(first.frames)
        counted = [c for c in first.candidates if c.service == first.chosen or not first.sampled]
        self._by_service = {candidate.service: candidate for candidate in counted}
        self._codes = frozenset(refusal.code for refusal in first.refusals)

    def take(self, request: Request, decision: Decision, snapshot: Snapshot, now: Seconds, at: float) -> bool:
        """Add one more decision; False when it differs or the fold is full, and nothing was changed."""
        if not self._same(request, decision, snapshot, now):
            return False
        if request.frame is not None:
            frames = (*self.frames[:-1], *extended(self.frames[-1:], (request.frame,)))
            if len(frames) > MOST_RUNS:
                return False
            self.frames = frames
        self.count += 1
        self.last = at
        if decision.expected is not None and self.least is not None and self.most is not None:
            total = decision.expected.total
            if total < self.least:
                self.least = round(total, 3)
            elif total > self.most:
                self.most = round(total, 3)
        return True

    def _same(self, request: Request, decision: Decision, snapshot: Snapshot, now: Seconds) -> bool:
        """Whether the decision says nothing that the first one does not, by the rule at the top of this file.

        It runs for every frame: nothing is made here that only a new entry needs.
        """
        first, qos = self.first, request.qos
        if (
            decision.chosen != first.chosen
            or decision.late != first.late
            or decision.aside != first.aside
            or request.incumbent != first.incumbent
            or request.model != first.model
            or qos.privacy != first.privacy
            or qos.node != first.node
            or decision.policy != first.policy
            or request.excluded != first.excluded
            or (request.frame is not None) != self._framed
            or not _near(qos.deadline, first.deadline_ms)
        ):
            return False
        sampled = decision.considered < len(snapshot.by_model.get(request.model, ()))
        if sampled != first.sampled:
            return False
        if sampled:
            if self._codes != {refusal.code for refusal in decision.refusals}:
                return False
        elif (
            decision.refused != first.refused
            or len(decision.ranking) != len(self._by_service)
            or not _same_refusals(first.refusals, decision.refusals)
        ):
            return False
        services, pending, by_service = snapshot.services, snapshot.pending, self._by_service
        for ranked in decision.ranking:
            known = by_service.get(ranked.service)
            if known is None:
                if sampled:
                    continue
                return False
            if ranked.late != known.late or abs(pending.get(ranked.service, 0) - known.pending) > 1:
                return False
            view = services.get(ranked.service)
            if view is not None:
                report = view.report
                if abs(report.queued + report.in_flight - known.queued - known.in_flight) > 1:
                    return False
                if (now - view.heard > OLD) != (known.age_s is None or known.age_s > OLD):
                    return False
            x, y = ranked.expected, known.expected
            if x is None or y is None:
                if x is not y or not _near(finite(ranked.cost), known.cost):
                    return False
                continue
            if x.basis != y.basis or not (_near(x.link, y.link) and _near(x.service, y.service)):
                return False
            one = x.service if x.service > y.service else y.service
            if abs(x.wait - y.wait) > one + max(LEAST, SHARE * one) or not _near(x.transfer, y.transfer):
                return False
        return True

    def entry(self) -> Decided:
        """The first decision, with all that the others add."""
        if self.count == self.first.count:
            return self.first
        return msgspec.structs.replace(
            self.first,
            until=stamp(self.last),
            count=self.count,
            frames=self.frames,
            least_ms=self.least,
            most_ms=self.most,
        )

    def untold(self) -> Repeated | None:
        """What was added since the last call; None when nothing was."""
        more = self.count - self._told_count
        if not more:
            return None
        told = Repeated(
            self.first.number, stamp(self.last), more, _after(self._told_count, self.frames), self.least, self.most
        )
        self._told_count = self.count
        return told


def _after(count: int, runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """The runs without their first `count` frames."""
    found = []
    for run in runs:
        if count < run.count:
            found.append(Run(run.first + count * run.step, run.count - count, run.step))
        count = max(0, count - run.count)
    return tuple(found)


def _same_refusals(a: tuple[Refusal, ...], b: tuple[Refusal, ...]) -> bool:
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        if x.subject != y.subject or x.code != y.code:  # perhaps only in another order
            return sorted((r.subject, r.code) for r in a) == sorted((r.subject, r.code) for r in b)
    return True


def _near(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return a == b or abs(a - b) <= max(LEAST, SHARE * max(a, b))
