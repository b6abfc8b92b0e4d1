"""Folding loses nothing that changed: every decision's choice, frame and refusal codes come back out of a trail."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.fleet.snapshot import Snapshot
from nearfar.placement import trail
from nearfar.placement.decide import Decision, decide
from nearfar.placement.folding import MOST_RUNS, Fold
from nearfar.placement.policies.predictive import Predictive
from nearfar.placement.trail import AnyEntry, Decided, Run, decided, extended, page, read, unfold
from nearfar.types.ids import ModelName, ServiceId, StreamId
from nearfar.types.request import Qos, Request
from nearfar.types.units import Milliseconds, Ratio
from tests.fleet.build import NOW, fleet, link, service_view
from tests.placement.worlds import requests, snapshots

AT = 1.8e9
WHEN = trail.stamp(AT)
Told = list[tuple[int | None, ServiceId | None, frozenset[tuple[str, str]]]]
YARD = Request(ModelName("yard"), "here", qos=Qos(Milliseconds(100.0)), stream=StreamId("s"), frame=0)


def choose(snapshot: Snapshot, request: Request) -> Decision:
    return decide(snapshot, request, NOW, random.Random(1), Predictive())


def made(snapshot: Snapshot, request: Request = YARD) -> Decided:
    return decided(request, choose(snapshot, request), snapshot, NOW, 0, AT)


def alike(snapshot: Snapshot, request: Request) -> bool:
    """Whether this is folded into what `STEADY` decides."""
    return Fold(made(STEADY), AT).take(request, choose(snapshot, request), snapshot, NOW, AT)


class Written:
    """What a trail does, without its effects: entries in memory, and lines in a file with flushes where a test says."""

    def __init__(self) -> None:
        self.entries: list[AnyEntry] = []
        self.lines: list[bytes] = []
        self.fold: Fold | None = None

    def take(self, snapshot: Snapshot, request: Request, decision: Decision | None = None) -> Decision:
        decision = decision or choose(snapshot, request)
        if self.fold is not None and self.fold.take(request, decision, snapshot, NOW, AT):
            return decision
        self.flush()
        if self.fold is not None:
            self.entries[-1] = self.fold.entry()
        entry = decided(request, decision, snapshot, NOW, len(self.entries), AT)
        self.entries.append(entry)
        self.fold = Fold(entry, AT)
        self.lines.append(trail.encode([entry]))
        return decision

    def flush(self) -> None:
        if self.fold is not None:
            more = self.fold.untold()
            if more is not None:
                self.lines.append(trail.encode([more]))

    def finish(self) -> list[Decided]:
        self.flush()
        if self.fold is not None:
            self.entries[-1] = self.fold.entry()
        return [entry for entry in self.entries if isinstance(entry, Decided)]


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[Snapshot, Request]]:
    """Decisions of one stream: a few different fleets and requests, each asked several times in a row."""
    worlds = draw(st.lists(st.tuples(snapshots(), requests()), min_size=1, max_size=3))
    steps = draw(st.lists(st.tuples(st.integers(0, len(worlds) - 1), st.integers(0, 3)), min_size=1, max_size=25))
    framed = draw(st.booleans())
    frame, found = 0, []
    for which, step in steps:
        snapshot, request = worlds[which]
        frame += step
        found.append((snapshot, msgspec.structs.replace(request, frame=frame if framed else None)))
    return found


def told(entries: Sequence[AnyEntry]) -> Told:
    return [one for entry in entries if isinstance(entry, Decided) for one in unfold(entry)]


def of(decision: Decision) -> frozenset[tuple[str, str]]:
    return frozenset((refusal.subject, refusal.code) for refusal in decision.refusals)


@settings(deadline=None)
@given(stream=streams(), flushes=st.sets(st.integers(0, 24)), cut=st.floats(0, 1))
def test_unfolding_gives_back_every_decision(
    stream: list[tuple[Snapshot, Request]], flushes: set[int], cut: float
) -> None:
    written, want = Written(), []
    for at, (snapshot, request) in enumerate(stream):
        decision = written.take(snapshot, request)
        want.append((request.frame, decision.chosen, of(decision)))
        if at in flushes:
            written.flush()
    entries = written.finish()
    assert told(entries) == want
    # The file says the same, wherever it was flushed; and cut off at any byte it says the beginning of it.
    data = b"".join(written.lines)
    assert read(data.splitlines()) == entries
    part = told(read(data[: int(cut * len(data))].splitlines()))
    assert part == want[: len(part)]


@given(st.lists(st.integers(0, 30), max_size=60))
def test_runs_are_the_very_numbers(numbers: list[int]) -> None:
    runs = extended((), numbers)
    assert [number for run in runs for number in run] == numbers
    assert len(runs) <= max(1, len(numbers))


@given(st.lists(st.integers(0, 200), min_size=1, max_size=300))
def test_a_fold_is_bounded_and_says_when_it_is_full(frames: list[int]) -> None:
    snapshot = fleet(service_view("a/yard"))
    written = Written()
    for frame in frames:
        written.take(snapshot, msgspec.structs.replace(YARD, frame=frame))
    entries = written.finish()
    assert [frame for frame, _, _ in told(entries)] == frames
    assert all(len(entry.frames) <= MOST_RUNS for entry in entries)


STEADY = fleet(service_view("a/yard"), service_view("b/yard"), links={"a": link(2.0), "b": link(3.0)})


@pytest.mark.parametrize(
    ("changed", "request_"),
    [
        (fleet(service_view("b/yard"), links={"b": link(3.0)}), YARD),
        (fleet(service_view("a/yard"), service_view("b/yard"), links={"a": link(40.0), "b": link(60.0)}), YARD),
        (fleet(service_view("a/yard"), service_view("b/yard", alive=False), links={"a": link(2.0)}), YARD),
        (fleet(service_view("a/yard", service_ms=60.0), service_view("b/yard"), links={"a": link(2.0)}), YARD),
        (
            fleet(service_view("a/yard", queued=3), service_view("b/yard", queued=3), links={"a": link(2.0)}),
            YARD,
        ),
        (
            fleet(
                service_view("a/yard"), service_view("b/yard"), links={"a": link(2.0, loss=0.3), "b": link(3.0)}
            ),
            YARD,
        ),
        (STEADY, msgspec.structs.replace(YARD, incumbent=ServiceId("b/yard"))),
        (STEADY, msgspec.structs.replace(YARD, qos=Qos(Milliseconds(20.0)))),
        (STEADY, msgspec.structs.replace(YARD, qos=Qos(Milliseconds(100.0), node="a"))),
        (STEADY, msgspec.structs.replace(YARD, qos=Qos())),
        (STEADY, msgspec.structs.replace(YARD, frame=None)),
    ],
    ids=[
        "one is gone", "slower links", "another refusal", "slower service", "queues", "loss", "incumbent", "deadline",
        "pinned", "no deadline", "no frame",
    ],
)  # fmt: skip
def test_what_changed_is_an_entry_of_its_own(changed: Snapshot, request_: Request) -> None:
    assert alike(STEADY, msgspec.structs.replace(YARD, frame=1))
    assert not alike(changed, request_)


def test_noise_is_folded_and_its_range_is_kept() -> None:
    steady = fleet(service_view("a/yard"), service_view("b/yard"), links={"a": link(2.0), "b": link(60.0)})
    fold = Fold(made(steady), AT)
    for frame, (rtt, queued) in enumerate([(2.5, 0), (1.5, 1), (3.0, 0)], start=1):
        noisy = fleet(
            service_view("a/yard", queued=queued), service_view("b/yard"), links={"a": link(rtt), "b": link(60.0)}
        )
        request = msgspec.structs.replace(YARD, frame=frame)
        assert fold.take(request, choose(noisy, request), noisy, NOW, AT)
    entry = fold.entry()
    assert (entry.count, entry.frames) == (4, (Run(0, 4, 1),))
    assert entry.least_ms is not None and entry.most_ms is not None and entry.least_ms < entry.most_ms


def test_slow_drift_adds_up_to_a_change() -> None:
    written = Written()
    for frame in range(60):
        drifting = fleet(service_view("a/yard"), links={"a": link(2.0 + frame)})
        written.take(drifting, msgspec.structs.replace(YARD, frame=frame))
    entries = written.finish()
    links = [c.rtt_ms for entry in entries for c in entry.candidates]
    assert len(entries) > 3 and links[-1] is not None and links[-1] > 30


def test_of_a_sampled_fleet_who_was_drawn_is_chance() -> None:
    many = fleet(
        service_view("a/yard", service_ms=1.0),
        *(service_view(f"n{i}/yard", alive=i % 2 == 0) for i in range(200)),
        links={"a": link(0.1)},
    )
    request = msgspec.structs.replace(YARD, incumbent=ServiceId("a/yard"))
    rng = random.Random(3)
    written, found = Written(), []
    for frame in range(40):
        asked = msgspec.structs.replace(request, frame=frame)
        found.append(written.take(many, asked, decide(many, asked, NOW, rng, Predictive())))
    entries = written.finish()
    assert all(entry.sampled for entry in entries) and len({decision.ranking for decision in found}) > 5
    assert len(entries) < 20
    want = [(frame, decision.chosen, {r.code for r in decision.refusals}) for frame, decision in enumerate(found)]
    assert [(frame, chosen, {code for _, code in codes}) for frame, chosen, codes in told(entries)] == want


def test_figures_of_a_broken_node_are_no_json_errors() -> None:
    nan = float("nan")
    broken = fleet(service_view("a/yard", service_ms=nan), links={"a": link(nan, jitter=nan, loss=Ratio(nan))})
    (entry,) = read([trail.encode([made(broken)])])
    assert isinstance(entry, Decided) and entry.candidates[0].service_ms is None


def test_nothing_but_names_numbers_and_sentences_is_written() -> None:
    entry = made(STEADY)

    def kinds(value: object) -> set[type]:
        if isinstance(value, dict):
            return {kind for inner in value.values() for kind in kinds(inner)}
        if isinstance(value, list | tuple):
            return {kind for inner in value for kind in kinds(inner)}
        return {type(value)}

    assert kinds(msgspec.to_builtins(entry)) <= {str, int, float, bool, type(None)}


def test_lines_that_are_none_and_kinds_of_a_newer_version_are_passed_over() -> None:
    good = trail.encode([made(STEADY)])
    assert len(read([b"\xff", b"", b"{}", b"null", b'{"kind":"levitated","number":7,"at":"x"}', good, good[:-20]])) == 1


@given(st.integers(0, 30), st.none() | st.integers(-1, 40), st.integers(1, 40))
def test_pages_together_are_the_whole(count: int, since: int | None, limit: int) -> None:
    entries = [trail.Warned(number, WHEN, "w") for number in range(count)]
    status = trail.Status(StreamId("s"), ModelName("m"), WHEN, True)
    first = page(status, entries, since, limit)
    assert len(first.entries) <= limit
    if since is None:
        assert list(first.entries) == entries[-limit:] and not first.more
        return
    found, made_ = list(first.entries), first
    while made_.more:
        made_ = page(status, entries, made_.next, limit)
        found += made_.entries
    assert found == [entry for entry in entries if entry.number > since]


def test_another_choice_or_another_code_is_a_change_even_where_every_figure_is_noise() -> None:
    """Two that are nearly the same: who is chosen turns on less than the noise that folding lets pass."""
    one = fleet(service_view("a/yard"), service_view("b/yard"), links={"a": link(2.0), "b": link(2.6)})
    other = fleet(service_view("a/yard"), service_view("b/yard"), links={"a": link(2.6), "b": link(2.0)})
    assert choose(one, YARD).chosen != choose(other, YARD).chosen
    assert not Fold(made(one), AT).take(YARD, choose(other, YARD), other, NOW, AT)
    gone = fleet(service_view("a/yard"), service_view("b/yard", alive=False))
    stale = fleet(service_view("a/yard"), service_view("b/yard", age=3.0))
    assert len(choose(gone, YARD).refusals) == len(choose(stale, YARD).refusals) == 1
    assert not Fold(made(gone), AT).take(YARD, choose(stale, YARD), stale, NOW, AT)
