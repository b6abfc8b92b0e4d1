"""Events in, next snapshot out: one exhaustive `match`.

A batch copies each mapping that it touches once, so it costs O(events + touched mappings). `pending` holds only what is
under way and `observed` only whom this client has asked, so the events of a request copy little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import msgspec

from nearfar.fleet.events import (
    NEVER,
    Event,
    LinkMeasured,
    NodeAppeared,
    NodeForgotten,
    NodeReported,
    NodeVanished,
    PromiseBroken,
    RequestAnswered,
    RequestFailed,
    RequestSent,
    ServiceAppeared,
    ServiceForgotten,
    ServiceReported,
    ServiceVanished,
)
from nearfar.fleet.health import QUARANTINE, follow_node, follow_service
from nearfar.fleet.snapshot import FRESH, LinkView, NodeView, Observed, ServiceView, Snapshot
from nearfar.fleet.unreliable import UNRELIABLE_MOST, Unreliable, answered, broken, failed, fewer
from nearfar.types.ids import ModelName, NodeId, ServiceId, VariantId, node_of, service_id
from nearfar.types.telemetry import LinkReport, ServiceReport, ServiceState
from nearfar.types.units import Bytes, Milliseconds, Seconds

OTHERS = 0.3
"""Weight of the newest sample in `Observed.others`."""
WEIGHT = 0.2
"""Weight of the newest sample in the averages of `Observed`: about the last ten answers count."""
FORGET_AFTER = Seconds(60.0)
"""How long a vanished node or service is shown as gone before it leaves the snapshot."""
OBSERVED_MOST = 2048
"""Of more services than this the oldest observations are dropped, so that the fold of an answer stays cheap. A client
that asks so many asks each so rarely that what it observed has faded before it is of use (`BELIEVED` in placement)."""
BLAMELESS = frozenset({"cancelled", "invalid-input", "too-large", "overloaded", "doomed", "silent"})
"""Failures that say nothing against the service: the caller left, sent nonsense, or the queue was full or too long."""
_UNHEARD = frozenset({"deadline-exceeded", "silent"})
"""Failures in which this client stopped waiting: nothing came from the service."""
_RATIO_LEAST, _RATIO_MOST = 0.25, 4.0
_LONGEST_MS = 1e7
_INSTANCES = 4
_NO_OBSERVATION = Observed()


def fold(snapshot: Snapshot, events: Sequence[Event]) -> Snapshot:
    """The snapshot after the events, in their order. The argument is not changed."""
    if not events:
        return snapshot
    draft = Draft(snapshot)
    for event in events:
        apply(draft, event)
    return draft.freeze()


def prune(snapshot: Snapshot, now: Seconds, after: Seconds = FORGET_AFTER) -> Snapshot:
    """Forget what has been gone, and silent, for longer than `after` seconds. O(nodes + services): call it rarely."""
    gone: list[Event] = [
        ServiceForgotten(service, now)
        for service, view in snapshot.services.items()
        if not view.alive and now - max(view.heard, view.since) > after
    ]
    gone += [
        NodeForgotten(node, now)
        for node, node_view in snapshot.nodes.items()
        if not node_view.alive and now - max(node_view.heard, node_view.since) > after
    ]
    return fold(snapshot, gone)


class Draft:
    """A snapshot in the making. A mapping is copied when it is first written to: until then it is that of the base."""

    __slots__ = ("_base", "_models", "links", "missed", "nodes", "observed", "owed", "pending", "services",
                 "unreliable")  # fmt: skip

    def __init__(self, base: Snapshot) -> None:
        self._base = base
        self._models: dict[ModelName, set[ServiceId]] = {}
        # Typed as dict because they are copied before any write, by `_writable`. What every request writes to does as
        # `_writable` in place, which is twice as fast.
        self.nodes: dict[NodeId, NodeView] = base.nodes  # type: ignore[assignment]
        self.services: dict[ServiceId, ServiceView] = base.services  # type: ignore[assignment]
        self.links: dict[tuple[NodeId, NodeId], LinkView] = base.links  # type: ignore[assignment]
        self.pending: dict[ServiceId, int] = base.pending  # type: ignore[assignment]
        self.observed: dict[ServiceId, Observed] = base.observed  # type: ignore[assignment]
        self.unreliable: dict[ServiceId, Unreliable] = base.unreliable  # type: ignore[assignment]
        self.owed: dict[ServiceId, tuple[Seconds, ...]] = base.owed  # type: ignore[assignment]
        self.missed: dict[ServiceId, Seconds] = base.missed  # type: ignore[assignment]

    def freeze(self) -> Snapshot:
        base = self._base
        by_model = base.by_model
        if self._models:
            merged = dict(by_model)
            for model, members in self._models.items():
                if members:
                    merged[model] = tuple(sorted(members))
                else:
                    merged.pop(model, None)
            by_model = merged
        return Snapshot(base.me, self.nodes, self.services, by_model, self.links, self.pending, self.observed,
                        self.unreliable, self.owed, self.missed)  # fmt: skip

    def _writable(self, name: str) -> None:
        mapping = getattr(self, name)
        if mapping is getattr(self._base, name):
            setattr(self, name, mapping.copy())

    def _members(self, service: ServiceId) -> set[ServiceId]:
        model = _model_of(service)
        members = self._models.get(model)
        if members is None:
            members = self._models[model] = set(self._base.by_model.get(model, ()))
        return members

    def put_node(self, node: NodeId, view: NodeView) -> None:
        self._writable("nodes")
        self.nodes[node] = view

    def put_service(self, service: ServiceId, view: ServiceView) -> None:
        if service not in self.services:
            self._members(service).add(service)
        self._writable("services")
        self.services[service] = view

    def put_link(self, source: NodeId, report: LinkReport, at: Seconds) -> None:
        self._writable("links")
        self.links[source, report.peer] = LinkView(report.rtt, report.jitter, report.loss, report.bandwidth, at)

    def put_observed(self, service: ServiceId, observed: Observed) -> None:
        if self.observed is self._base.observed:
            self.observed = self.observed.copy()
        self.observed[service] = observed
        if len(self.observed) > OBSERVED_MOST:
            self._drop_oldest()

    def put_unreliable(self, service: ServiceId, unreliable: Unreliable | None) -> None:
        """None: nothing is held against it any more."""
        self._writable("unreliable")
        if unreliable is None:
            self.unreliable.pop(service, None)
            return
        self.unreliable[service] = unreliable
        if len(self.unreliable) > UNRELIABLE_MOST:
            self.unreliable = fewer(self.unreliable)

    def _drop_oldest(self) -> None:
        """Keep the newer half, failing services before others: else load would jump at the dead."""

        def worth(entry: tuple[ServiceId, Observed]) -> tuple[bool, float]:
            return entry[1].failures > 0, max(entry[1].answered_at, entry[1].failed_at)

        kept = sorted(self.observed.items(), key=worth, reverse=True)[: OBSERVED_MOST // 2]
        self.observed = dict(kept)

    def count(self, service: ServiceId, change: int) -> None:
        """More or fewer requests under way; never below none, as a client may have forgotten the service meanwhile."""
        if self.pending is self._base.pending:
            self.pending = self.pending.copy()
        count = self.pending.get(service, 0) + change
        if count > 0:
            self.pending[service] = count
        else:
            self.pending.pop(service, None)

    def owe(self, service: ServiceId, due: Seconds) -> None:
        if due != NEVER:
            if self.owed is self._base.owed:
                self.owed = self.owed.copy()
            self.owed[service] = (*self.owed.get(service, ()), due)

    def settle(self, service: ServiceId, due: Seconds) -> None:
        """It owes this answer no longer, whether it came or not."""
        dues = self.owed.get(service)
        if dues is None or due not in dues:
            return
        if self.owed is self._base.owed:
            self.owed = self.owed.copy()
        if len(dues) == 1:
            del self.owed[service]
        else:
            at = dues.index(due)
            self.owed[service] = dues[:at] + dues[at + 1 :]

    def miss(self, service: ServiceId, due: Seconds) -> None:
        if service not in self.missed:
            self._writable("missed")
            self.missed[service] = due

    def hear(self, service: ServiceId) -> None:
        """Anything that the service itself sent ends what was held against it for being silent."""
        if service in self.missed:
            self._writable("missed")
            del self.missed[service]

    def forget_service(self, service: ServiceId) -> None:
        self._members(service).discard(service)
        for name in ("services", "pending", "observed", "unreliable", "owed", "missed"):
            if service in getattr(self, name):
                self._writable(name)
                del getattr(self, name)[service]

    def forget_node(self, node: NodeId) -> None:
        self._writable("nodes")
        del self.nodes[node]
        if any(node in pair for pair in self.links):
            self.links = {pair: link for pair, link in self.links.items() if node not in pair}


def apply(draft: Draft, event: Event) -> None:
    """Write one event into the draft. The events of requests come first: they are by far the most frequent."""
    match event:
        case RequestSent():
            draft.count(event.service, 1)
            draft.owe(event.service, event.due)
        case RequestAnswered():
            draft.count(event.service, -1)
            draft.settle(event.service, event.due)
            draft.hear(event.service)
            _answered(draft, event)
        case RequestFailed():
            draft.count(event.service, -1)
            draft.settle(event.service, event.due)
            _failed(draft, event)
        case ServiceReported():
            _service_reported(draft, event)
        case NodeReported():
            _node_reported(draft, event)
        case ServiceAppeared():
            view = draft.services.get(event.service) or ServiceView(_unheard(event.service))
            if not view.alive:
                draft.put_service(event.service, msgspec.structs.replace(view, alive=True, since=event.at))
        case ServiceVanished():
            known = draft.services.get(event.service)
            if known is not None and known.alive:
                draft.put_service(event.service, msgspec.structs.replace(known, alive=False, since=event.at))
        case ServiceForgotten():
            known = draft.services.get(event.service)
            if known is not None and not known.alive:
                draft.forget_service(event.service)
        case NodeAppeared():
            node = draft.nodes.get(event.node) or NodeView()
            if not node.alive:
                draft.put_node(event.node, msgspec.structs.replace(node, alive=True, since=event.at))
        case NodeVanished():
            there = draft.nodes.get(event.node)
            if there is not None and there.alive:
                draft.put_node(event.node, msgspec.structs.replace(there, alive=False, since=event.at))
        case NodeForgotten():
            there = draft.nodes.get(event.node)
            if there is not None and not there.alive:
                draft.forget_node(event.node)
        case LinkMeasured():
            draft.put_link(event.source, event.report, event.at)
        case PromiseBroken():
            if event.service in draft.services:
                old = draft.unreliable.get(event.service)
                draft.put_unreliable(event.service, broken(old, event.deadline, event.reason, event.at))
        case _ as never:
            assert_never(never)


def _service_reported(draft: Draft, event: ServiceReported) -> None:
    report, at = event.report, event.at
    service = report.service
    if service != service_id(report.node, report.model):
        return  # A report that contradicts its own id could lead local data to another node.
    view = draft.services.get(service)
    if view is None:
        instances = (report.instance,) if report.instance else ()
        draft.put_service(service, follow_service(ServiceView(report, False, at, at, instances), None))
        return
    instances_after = _succession(view.instances, report.instance, view.heard, at)
    if instances_after is None:
        return
    if view.instances and instances_after[0] != view.instances[0]:
        _pardon(draft, service)
    after = ServiceView(report, view.alive, at, view.since, instances_after)
    draft.put_service(service, follow_service(after, view))
    if report.instance:  # "" is its agent, which says nothing of whether the service can be heard
        draft.hear(service)
        observed = draft.observed.get(service)
        if observed is not None:
            others = _others(draft, service, observed, report.queued + report.in_flight)
            if others != observed.others:
                draft.put_observed(service, msgspec.structs.replace(observed, others=others))


def _node_reported(draft: Draft, event: NodeReported) -> None:
    report, at = event.report, event.at
    view = draft.nodes.get(report.node)
    if view is None:
        view = NodeView(None, False, at, at, ())
    # What was known of its machine is kept over a restart of its agent: the machine is as hot as before.
    instances = _succession(view.instances, report.instance, view.heard, at)
    if instances is None:
        return
    after = NodeView(report, view.alive, at, view.since, instances)
    draft.put_node(report.node, follow_node(after, view))
    for link in report.links:
        draft.put_link(report.node, link, at)


def _succession(known: tuple[str, ...], instance: str, heard: Seconds, at: Seconds) -> tuple[str, ...] | None:
    """The instances after a report, newest first; None when the report is of an older one and must be ignored.

    Instances are opaque, so "older" means: reported before the current one did. Once the current one has been silent
    for `FRESH`, an older one is believed again: reports in the wrong order must not silence the living for good.
    """
    if not instance or (known and known[0] == instance):
        return known  # "" is the agent speaking of a service that is not running
    if instance in known and at - heard <= FRESH:
        return None
    return (instance, *(other for other in known if other != instance))[:_INSTANCES]


def _pardon(draft: Draft, service: ServiceId) -> None:
    """A restarted service leaves quarantine, but one more failure brings it back. Its measured past is void."""
    observed = draft.observed.get(service)
    if observed is not None:
        failures = min(observed.failures, QUARANTINE - 1)
        draft.put_observed(service, msgspec.structs.replace(observed, failures=failures, ratio=1.0, queued=0))
    if service in draft.unreliable:
        draft.put_unreliable(service, None)


def _others(draft: Draft, service: ServiceId, observed: Observed, there: int) -> float:
    """The mean of other clients' requests there, with one more sample: what is there less what is ours.

    Ours that are still on their way are taken off, too: it errs on the low side.
    """
    return observed.others + OTHERS * (max(there - draft.pending.get(service, 0), 0) - observed.others)


def _answered(draft: Draft, event: RequestAnswered) -> None:
    service, stages, at = event.service, event.stages, event.at
    view = draft.services.get(service)
    if view is None:
        return
    if (unreliable := draft.unreliable.get(service)) is not None and answered(unreliable, at) is not unreliable:
        draft.put_unreliable(service, answered(unreliable, at))
    old = draft.observed.get(service, _NO_OBSERVATION)
    ratio = old.ratio
    measured = stages.preprocess + stages.inference + stages.postprocess
    reported = view.report.service_ms or view.report.profile_ms
    if 0 < measured < _LONGEST_MS and 0 < reported < _LONGEST_MS:  # also keeps NaN from the wire out of averages
        sample = min(max(measured / reported, _RATIO_LEAST), _RATIO_MOST)
        ratio += WEIGHT * (sample - ratio)
    link, jitter, moved = old.link, old.jitter, old.moved
    if 0 <= stages.link < _LONGEST_MS:
        if link is None:
            link, moved = Milliseconds(stages.link), event.moved
        else:
            away = stages.link - link
            jitter = Milliseconds(jitter + WEIGHT * (abs(away) - jitter))
            link = Milliseconds(link + WEIGHT * away)
            moved = Bytes(int(moved + WEIGHT * (event.moved - moved)))
    spread: float = old.spread
    if event.due != NEVER:
        off = min(abs(at - event.due) * 1000, _LONGEST_MS)
        # The first one, as in RFC 6298, has nothing to be averaged with.
        spread = off if old.answered_at == NEVER else spread + WEIGHT * (off - spread)
    queued = max(event.queued, 0)
    draft.put_observed(
        service,
        Observed(
            ratio,
            link,
            jitter,
            moved,
            0,
            "",
            old.failed_at,
            at,
            queued,
            at,
            Milliseconds(spread),
            _others(draft, service, old, queued),
        ),
    )


def _failed(draft: Draft, event: RequestFailed) -> None:
    service, at = event.service, event.at
    view = draft.services.get(service)
    if view is None:
        return
    old = draft.observed.get(service, _NO_OBSERVATION)
    if event.code in _UNHEARD:
        if NEVER != event.due <= at and event.due > max(view.heard, old.answered_at, old.queued_at):
            draft.miss(service, event.due)
    elif event.code != "cancelled":
        draft.hear(service)
    if event.code == "doomed":
        if event.queued is not None:
            queued = max(event.queued, 0)
            others = _others(draft, service, old, queued + view.report.workers)
            draft.put_observed(service, msgspec.structs.replace(old, queued=queued, queued_at=at, others=others))
    elif event.code == "overloaded":
        # It just said that its queue is full, up to half a second before its telemetry will.
        draft.put_observed(service, msgspec.structs.replace(old, queued=view.report.queue_limit, queued_at=at))
    elif event.code not in BLAMELESS and not (event.code == "deadline-exceeded" and _too_early(event, view, old)):
        if (unreliable := draft.unreliable.get(service)) is not None and failed(unreliable, at) is not unreliable:
            draft.put_unreliable(service, failed(unreliable, at))
        draft.put_observed(
            service, msgspec.structs.replace(old, failures=old.failures + 1, error=event.code, failed_at=at)
        )


def _too_early(event: RequestFailed, view: ServiceView, observed: Observed) -> bool:
    """Whether the caller gave up before the service could have answered: its deadline must not quarantine a service."""
    if event.waited is None:
        return False
    report = view.report
    ahead = (report.queued + report.in_flight) / max(report.workers, 1)
    usual = (report.service_ms or report.profile_ms) * observed.ratio * (1 + ahead) + (observed.link or 0.0)
    return event.waited < usual


def _model_of(service: ServiceId) -> ModelName:
    return ModelName(service.partition("/")[2])


def _unheard(service: ServiceId) -> ServiceReport:
    """What stands in a view between the token and the first telemetry."""
    return ServiceReport(
        service, node_of(service), _model_of(service), VariantId(""), "", "", ServiceState.STARTING, "no telemetry yet"
    )
