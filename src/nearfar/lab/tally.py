"""What a live run came to, counted as the testbed counts, so that both stand in the same tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from nearfar.errors import DeadlineExceeded
from nearfar.lab.gateway import Ended, Work
from nearfar.lab.plan import Down, Happening, Pace, Plan, Rate, Reroute, Up
from nearfar.simulate.frames import Frame, Outcome, Stream
from nearfar.simulate.measures import Measures, Summary
from nearfar.simulate.run import PATIENCE, PROVOKED_S
from nearfar.simulate.scenario import Scenario
from nearfar.simulate.world import Node
from nearfar.types.ids import ServiceId

Spent = Mapping[tuple[str, str], Work]
"""By service and instance: what it said of its work last."""


class Run(msgspec.Struct, frozen=True):
    """One policy's run as it was recorded."""

    policy: str
    options: Mapping[str, float]
    ended: Sequence[Ended]
    before: Spent
    after: Spent
    played_s: float
    complete: bool
    wall_s: float
    figures: Mapping[str, float] = {}
    """What else was measured, to stand beside the options."""


def summarise(scenario: Scenario, seed: int | None, run: Run) -> Summary:
    """The run in the testbed's own measures.

    `late` counts answers that services made although nobody waited for them any more, by their own telemetry: a real
    caller does not wait to see whether one comes. So the latencies are those of answers in time alone.
    """
    plan = Plan(scenario, seed)
    measures = Measures(scenario.seconds)
    _count(plan, measures, run)
    _book(plan.nodes, run)
    summary = measures.summary(
        scenario.name, run.policy, plan.seed, run.played_s, run.complete, plan.nodes, len(run.ended), run.wall_s
    )
    answered = sum(_since(run.before, work).answered for work in run.after.values())
    code = DeadlineExceeded.code
    late = max(0, min(answered - summary.in_time, summary.lost_by.get(code, 0)))
    lost_by = summary.lost_by | {code: summary.lost_by.get(code, 0) - late}
    return msgspec.structs.replace(
        summary,
        late=late,
        lost=summary.lost - late,
        lost_by={name: count for name, count in lost_by.items() if count},
        options={**run.options, **run.figures},
    )


def _count(plan: Plan, measures: Measures, run: Run) -> None:
    happenings = [change for change in plan.happenings if change.at <= run.played_s and _is_change(change)]
    by_service = {node.service: node for node in plan.nodes}
    coming = iter(happenings)
    change = next(coming, None)
    for end in sorted(run.ended, key=lambda end: end.ended):
        while change is not None and change.at <= end.ended:
            _note(plan, change)
            change = next(coming, None)
        stream = plan.streams[end.stream]
        measures.frames += 1
        measures.attempts += end.attempts
        frame = Frame(stream, end.number, end.born, end.born + (stream.deadline or PATIENCE), 0.0, 0.0, 0.0, 1.0)
        measures.end(frame, Outcome.LOST if end.code else Outcome.IN_TIME, end.ended, end.code)
        if not end.code:
            _served(measures, stream, end, by_service, plan.scenario.flap_s)
    measures.changes = len(happenings)


def _is_change(change: Happening) -> bool:
    """The speed at which a node begins is none."""
    return change.at > 0


def _note(plan: Plan, change: Happening) -> None:
    match change:
        case Down(at, name) | Up(at, name) | Pace(at, name):
            next(node for node in plan.nodes if node.name == name).changed_at = at
        case Rate(at, name) | Reroute(at, name):
            next(gateway for gateway in plan.gateways if gateway.name == name).changed_at = at


def _served(
    measures: Measures, stream: Stream, end: Ended, by_service: Mapping[ServiceId, Node], flap_s: float
) -> None:
    """Who serves the stream now, and whether that is a move or a flap: by the rules of the testbed's engine."""
    if end.number < stream.newest:
        return
    stream.newest = end.number
    before, stream.incumbent = stream.incumbent, ServiceId(end.served_by)
    if before is None or before == stream.incumbent:
        return
    measures.moved(end.ended)
    nodes = (by_service[before], by_service[stream.incumbent])
    changed = max(*(node.changed_at for node in nodes), stream.gateway.changed_at)
    if changed < stream.moved_at - PROVOKED_S:
        measures.unprovoked += 1
    back = stream.left == stream.incumbent and end.ended - stream.left_at <= flap_s
    if back and changed < stream.left_at - PROVOKED_S:
        measures.flaps += 1
    stream.left, stream.left_at = before, end.ended
    stream.moved_at = end.ended


def _book(nodes: Iterable[Node], run: Run) -> None:
    by_service = {str(node.service): node for node in nodes}
    for work in run.after.values():
        by_service[work.service].busy_time += _since(run.before, work).spent_ms / 1000


def _since(before: Spent, work: Work) -> Work:
    old = before.get((work.service, work.instance))
    if old is None:
        return work
    return Work(work.service, work.instance, work.answered - old.answered, work.spent_ms - old.spent_ms)
