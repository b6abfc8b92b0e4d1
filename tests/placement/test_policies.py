from __future__ import annotations

import random
import sys
import types
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import SettingsError
from nearfar.fleet.snapshot import ServiceView, Snapshot
from nearfar.fleet.steady import Steady
from nearfar.placement.expectation import link_to
from nearfar.placement.policies import registry
from nearfar.placement.policies.base import Policy, Ranked
from nearfar.placement.policies.nearest import Nearest
from nearfar.placement.policies.predictive import Predictive
from nearfar.placement.policies.weighted import Weighted
from nearfar.types.ids import ModelName, NodeId, ServiceId
from nearfar.types.request import Qos, Request
from nearfar.types.units import Milliseconds
from tests.fleet.build import NOW, fleet, link, node_view, service_view, sid
from tests.placement.worlds import requests, snapshots

REQUEST = Request(ModelName("yard"), "here")


def ranked(policy: Policy, snapshot: Snapshot, request: Request = REQUEST, seed: int = 0) -> Sequence[Ranked]:
    return policy.rank(snapshot, request, list(snapshot.services.values()), NOW, random.Random(seed))


def order(policy: Policy, snapshot: Snapshot, request: Request = REQUEST) -> list[str]:
    return [NodeId(r.service.partition("/")[0]) for r in ranked(policy, snapshot, request)]


@given(snapshots(), requests(), st.sampled_from(sorted(registry.BUILT_IN)))
def test_every_policy_ranks_every_candidate_once_and_is_pure(snapshot: Snapshot, request: Request, name: str) -> None:
    candidates = [v for v in snapshot.services.values() if v.report.model == "yard"]
    if not candidates:
        return
    policy = registry.load(name)
    once, again = (policy.rank(snapshot, request, candidates, NOW, random.Random(3)) for _ in range(2))
    assert once == again
    assert sorted(r.service for r in once) == sorted(v.report.service for v in candidates)
    assert all(r.why for r in once)
    if request.incumbent is None:
        assert [r.late for r in once] == sorted(r.late for r in once)


# nearest


def algorithm_1_as_printed(latencies: Sequence[tuple[str, float]]) -> str | None:
    """Algorithm 1 with its two defects, as they were handed to us: the bound is set once and never lowered.

    So every node below the greatest latency replaces the one before it, and with none below it there is no answer.
    """
    bound = max(latency for _, latency in latencies)
    chosen = None
    for node, latency in latencies:
        if latency < bound:
            chosen = node
    return chosen


def world_of(latencies: Sequence[tuple[str, float]]) -> Snapshot:
    return fleet(
        *(service_view(f"{node}/yard") for node, _ in latencies), links={node: link(rtt) for node, rtt in latencies}
    )


def test_as_printed_the_last_node_wins_as_meant_the_nearest() -> None:
    latencies = [("a", 1.0), ("b", 9.0), ("c", 8.0)]
    assert algorithm_1_as_printed(latencies) == "c"
    assert order(Nearest(), world_of(latencies)) == ["a", "c", "b"]


def test_as_printed_equal_latencies_select_none_as_meant_the_first() -> None:
    latencies = [("a", 4.0), ("b", 4.0)]
    assert algorithm_1_as_printed(latencies) is None
    assert order(Nearest(), world_of(latencies)) == ["a", "b"]


@given(snapshots(), requests())
def test_nearest_is_the_brute_force_minimum(snapshot: Snapshot, request: Request) -> None:
    views = list(snapshot.services.values())
    if not views:
        return
    first = Nearest().rank(snapshot, request, views, NOW, random.Random(0))[0]
    rtts = [link_to(snapshot, NodeId(request.origin), view, NOW).rtt for view in views]
    assert first.cost == min(rtts)
    assert first.service == views[rtts.index(min(rtts))].report.service


def test_nearest_does_not_look_at_load() -> None:
    world = fleet(
        service_view("a/yard", queued=50, service_ms=900.0), service_view("b/yard"), links={"a": link(1), "b": link(2)}
    )
    assert order(Nearest(), world) == ["a", "b"]


# weighted


def three() -> Snapshot:
    return fleet(
        service_view("idle/yard", service_ms=90.0),
        service_view("fast/yard", service_ms=5.0),
        service_view("near/yard", service_ms=90.0),
        nodes=[
            ("idle", node_view("idle", cpu=0.0, cores=16.0)),
            ("fast", node_view("fast", cpu=0.9)),
            ("near", node_view("near", cpu=0.9)),
        ],
        links={"idle": link(20), "fast": link(20), "near": link(1)},
    )


@pytest.mark.parametrize(
    ("weights", "first"), [((1, 0, 0), "idle"), ((0, 1, 0), "fast"), ((0, 0, 1), "near"), ((0, 0.3, 0.7), "near")]
)
def test_each_weight_pulls_its_way(weights: tuple[float, float, float], first: str) -> None:
    assert order(Weighted(*weights), three())[0] == first


def test_the_sum_by_hand_with_the_weights_in_the_reason() -> None:
    entry = {r.service: r for r in ranked(Weighted(), three())}[sid("near")]
    assert entry.cost == pytest.approx(1 - (0 + 0 + 1) / 3)
    assert entry.why == "W 0.333 (cpu 0.00, ai 0.00, link 1.00)"


def test_weights_follow_the_load() -> None:
    def first(cpu_a: float) -> str:
        nodes = [("a", node_view("a", cpu=cpu_a)), ("b", node_view("b", cpu=0.5))]
        return order(Weighted(1, 0, 0), fleet(service_view("a/yard"), service_view("b/yard"), nodes=nodes))[0]

    assert (first(0.1), first(0.9)) == ("a", "b")


def test_alpha_beta_gamma_are_thirds_and_sum_to_one_however_given() -> None:
    assert (Weighted().alpha, Weighted().beta, Weighted().gamma) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    policy = Weighted(2, 1, 1)
    assert (policy.alpha, policy.beta, policy.gamma) == (0.5, 0.25, 0.25)


@pytest.mark.parametrize("weights", [(0, 0, 0), (-1, 1, 1), (float("nan"), 1, 1), (float("inf"), 1, 1)])
def test_weights_that_mean_nothing_are_refused(weights: tuple[float, float, float]) -> None:
    with pytest.raises(SettingsError, match="alpha"):
        Weighted(*weights)


# predictive


def pair(a: float, b: float, **changes: object) -> Snapshot:
    """Two services on nodes without a network between, so that the service time is the expectation."""
    views: list[ServiceView] = [service_view(f"{n}/yard", service_ms=ms) for n, ms in (("a", a), ("b", b))]
    return fleet(*views, links={"a": link(0.0), "b": link(0.0)}, **changes)  # type: ignore[arg-type]


def asks(incumbent: str | None = None, deadline: float | None = None) -> Request:
    qos = Qos(deadline=None if deadline is None else Milliseconds(deadline))
    return Request(ModelName("yard"), "here", qos=qos, incumbent=None if incumbent is None else sid(incumbent))


def test_the_soonest_answer_wins_over_the_nearest_node() -> None:
    world = fleet(
        service_view("near/yard", service_ms=300.0),
        service_view("far/yard", service_ms=10.0),
        links={"near": link(0.5), "far": link(20.0)},
    )
    assert order(Predictive(), world)[0] == "far"
    big = Request(ModelName("yard"), "here")
    world = fleet(*world.services.values(), links={"near": link(0.5), "far": link(20.0, bandwidth=1000.0)})
    assert order(Predictive(), world, big)[0] == "near"  # the bytes would take a second


def test_load_moves_new_requests_elsewhere() -> None:
    assert order(Predictive(), pair(20, 30))[0] == "a"
    assert order(Predictive(), pair(20, 30, pending={"a/yard": 2}))[0] == "b"


@pytest.mark.parametrize(
    ("a", "b", "first"),
    [
        (100, 81, "a"),  # 19 % better is not enough
        (100, 79, "b"),
        (5.0, 3.5, "a"),  # 30 % better, but less than 2 ms
        (5.0, 2.5, "b"),
    ],
)
def test_an_incumbent_stays_until_another_is_clearly_better(a: float, b: float, first: str) -> None:
    assert order(Predictive(), pair(a, b), asks("a"))[0] == first


def test_an_incumbent_that_would_be_late_leaves_for_one_that_would_not() -> None:
    assert order(Predictive(), pair(105, 98), asks("a", 100))[0] == "b"
    assert order(Predictive(), pair(105, 102), asks("a", 100))[0] == "a"
    assert order(Predictive(), pair(95, 90), asks("a", 100))[0] == "a"


def test_an_incumbent_that_keeps_the_deadline_does_not_leave_for_a_faster_one_that_jitters() -> None:
    world = fleet(
        service_view("a/yard", service_ms=90.0),
        service_view("b/yard", service_ms=20.0),
        links={"a": link(0.0), "b": link(10.0, jitter=40.0)},
    )
    assert order(Predictive(), world, asks("a", 100)) == ["a", "b"]


def test_an_incumbent_with_room_to_its_deadline_stays_whatever_others_offer() -> None:
    assert order(Predictive(), pair(79, 20), asks("a", 100))[0] == "a"
    assert order(Predictive(), pair(81, 20), asks("a", 100))[0] == "b"
    assert order(Predictive(settled=0.0), pair(79, 20), asks("a", 100))[0] == "b"
    assert order(Predictive(), pair(79, 20), asks("a"))[0] == "b", "without a deadline, sooner is better"


def test_jitter_takes_from_the_room() -> None:
    world = fleet(
        service_view("a/yard", service_ms=60.0),
        service_view("b/yard", service_ms=20.0),
        links={"a": link(5.0, jitter=10.0), "b": link(0.0)},
    )
    assert order(Predictive(), world, asks("a", 100))[0] == "b"
    assert order(Predictive(), world, asks("a", 110))[0] == "a"


def test_an_incumbent_that_is_no_candidate_is_forgotten() -> None:
    assert order(Predictive(), pair(20, 30), asks("zzz"))[0] == "a"


def test_late_ones_come_last_and_say_so() -> None:
    entries = ranked(Predictive(), pair(150, 90), asks(deadline=100))
    assert [(e.service, e.late) for e in entries] == [(sid("b"), False), (sid("a"), True)]


@given(st.lists(st.tuples(st.floats(0.9, 1.1), st.floats(0.9, 1.1), st.floats(0.9, 1.1)), min_size=20, max_size=60))
def test_noise_of_ten_per_cent_moves_nothing(walk: list[tuple[float, float, float]]) -> None:
    """Times of three equal services wander within 10 %: the stream must not move once."""
    policy, incumbent = Predictive(), sid("a")
    for step, factors in enumerate(walk):
        world = fleet(
            *(service_view(f"{n}/yard", service_ms=50 * f) for n, f in zip("abc", factors, strict=True)),
            links={n: link(0.0) for n in "abc"},
        )
        request = Request(ModelName("yard"), "here", incumbent=incumbent)
        chosen = policy.rank(world, request, list(world.services.values()), NOW, random.Random(step))[0].service
        assert chosen == incumbent


def test_without_hysteresis_the_same_noise_moves_the_stream() -> None:
    rng, policy, incumbent, moves = (
        random.Random(1),
        Predictive(hysteresis=0.0, least_gain=Milliseconds(0.0)),
        sid("a"),
        0,
    )
    for _ in range(50):
        world = pair(50 * rng.uniform(0.9, 1.1), 50 * rng.uniform(0.9, 1.1))
        chosen = ranked(policy, world, Request(ModelName("yard"), "here", incumbent=incumbent))[0].service
        moves += chosen != incumbent
        incumbent = chosen
    assert moves > 10


def test_ties_are_broken_at_random_so_that_gateways_do_not_herd() -> None:
    firsts = {ranked(Predictive(), pair(20.0, 20.1), seed=seed)[0].service for seed in range(20)}
    assert firsts == {sid("a"), sid("b")}
    assert {ranked(Predictive(), pair(20.0, 21.0), seed=seed)[0].service for seed in range(20)} == {sid("a")}


def test_a_tie_never_puts_a_late_one_first() -> None:
    for seed in range(20):
        assert ranked(Predictive(), pair(99.9, 100.1), asks(deadline=100), seed)[0].service == sid("a")


@pytest.mark.parametrize(
    "options",
    [
        {"hysteresis": -0.1},
        {"hysteresis": 1.0},
        {"tie": float("nan")},
        {"sample": 1},
        {"least_gain": -1.0},
        {"settled": 1.1},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="not usable"):
        registry.load("predictive", **options)


# registry


def test_built_in_policies_by_name_and_the_default() -> None:
    assert [registry.load(name).name for name in sorted(registry.BUILT_IN)] == ["nearest", "predictive", "weighted"]
    assert registry.load().name == "predictive"
    assert set(registry.BUILT_IN) <= set(registry.names())


def test_a_third_party_policy_as_module_and_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reverse:
        name = "reverse"
        sample: int | None = None

        def rank(
            self,
            snapshot: Snapshot,
            request: Request,
            candidates: Sequence[ServiceView],
            now: float,
            rng: random.Random,
        ) -> Sequence[Ranked]:
            return [Ranked(ServiceId(v.report.service), 0.0) for v in reversed(candidates)]

    module = types.ModuleType("somebodys_policy")
    module.Reverse = Reverse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys_policy", module)
    assert registry.load("somebodys_policy:Reverse").name == "reverse"


def test_a_third_party_policy_as_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint, EntryPoints

    point = EntryPoint("theirs", "nearfar.placement.policies.nearest:Nearest", registry.GROUP)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **by: EntryPoints([point]).select(**by))
    assert registry.load("theirs").name == "nearest"
    assert "theirs" in registry.names()


@pytest.mark.parametrize(
    "name", ["nearst", "no_such_module:Thing", "math:nothing", ":x", "x:", "math:pi", "math:floor"]
)
def test_what_is_no_policy_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(SettingsError):
        registry.load(name)


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(SettingsError, match="nearest, predictive, weighted"):
        registry.load("nearst")


def test_unknown_options_are_refused() -> None:
    with pytest.raises(SettingsError, match="does not take"):
        registry.load("nearest", alpha=1)


# degraded services

WEAK = Steady(on=True, at=NOW)


def weak(view: ServiceView) -> ServiceView:
    """The same, with more errors than usual."""
    return msgspec.structs.replace(view, errors=WEAK)


def test_a_degraded_service_comes_after_those_that_are_ready_and_keep_the_deadline() -> None:
    snapshot = fleet(
        weak(service_view("quick/yard", service_ms=5.0)),
        service_view("slow/yard", service_ms=60.0),
        service_view("late/yard", service_ms=500.0),
    )
    within = Request(ModelName("yard"), "here", qos=Qos(Milliseconds(200.0)))
    assert order(Predictive(), snapshot, within) == ["slow", "quick", "late"]
    tight = Request(ModelName("yard"), "here", qos=Qos(Milliseconds(40.0)))
    assert order(Predictive(), snapshot, tight)[0] == "quick", "the deadline counts more"
    assert [r.degraded for r in ranked(Predictive(), snapshot, within)] == [False, True, False]


def test_two_services_as_good_as_each_other_are_no_tie_when_one_is_degraded() -> None:
    snapshot = fleet(weak(service_view("a/yard")), service_view("b/yard"))
    firsts = {ranked(Predictive(), snapshot, seed=seed)[0].service for seed in range(30)}
    assert firsts == {sid("b")}


@pytest.mark.parametrize(
    ("other_ms", "deadline", "stays"),
    [(60.0, 200.0, False), (500.0, 200.0, True), (60.0, None, False)],
    ids=["a ready one keeps the deadline", "the ready one would be late", "without a deadline"],
)
def test_a_stream_leaves_a_degraded_incumbent_only_for_a_ready_one_that_keeps_the_deadline(
    other_ms: float, deadline: float | None, stays: bool
) -> None:
    snapshot = fleet(weak(service_view("held/yard", service_ms=20.0)), service_view("other/yard", service_ms=other_ms))
    qos = Qos(None if deadline is None else Milliseconds(deadline))
    request = Request(ModelName("yard"), "here", qos=qos, incumbent=sid("held"))
    assert order(Predictive(), snapshot, request)[0] == ("held" if stays else "other")


def test_a_hot_node_makes_its_services_come_last() -> None:
    hot = msgspec.structs.replace(node_view("hot", temperature=95.0), hot=WEAK)
    snapshot = fleet(service_view("hot/yard", service_ms=5.0), service_view("cool/yard"), nodes=[("hot", hot)])
    assert order(Predictive(), snapshot) == ["cool", "hot"]


def test_an_incumbent_that_is_ready_is_not_left_for_a_degraded_one() -> None:
    snapshot = fleet(service_view("held/yard", service_ms=100.0), weak(service_view("quick/yard", service_ms=1.0)))
    request = Request(ModelName("yard"), "here", incumbent=sid("held"))
    assert order(Predictive(), snapshot, request)[0] == "held"
