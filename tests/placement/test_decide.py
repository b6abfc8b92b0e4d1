from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.errors import NoCandidate, UnknownModel
from nearfar.fleet.snapshot import Snapshot
from nearfar.placement.decide import REFUSALS, SMALL, Decision, decide
from nearfar.placement.filters import refuse
from nearfar.placement.policies import registry
from nearfar.placement.policies.base import SHOWN
from nearfar.types.ids import ModelName, node_of
from nearfar.types.request import Privacy, Qos, Request
from nearfar.types.units import Milliseconds
from tests.fleet.build import NOW, fleet, link, node_view, service_view, sid
from tests.placement.worlds import requests, snapshots

REQUEST = Request(ModelName("yard"), "here")
POLICIES = st.sampled_from(sorted(registry.BUILT_IN)).map(registry.load)
PREDICTIVE = registry.load("predictive")


def choose(snapshot: Snapshot, request: Request = REQUEST, seed: int = 0, **options: bool) -> Decision:
    return decide(snapshot, request, NOW, random.Random(seed), PREDICTIVE, **options)


@given(snapshots(), requests(), POLICIES, st.integers())
def test_equal_arguments_give_an_equal_decision(
    snapshot: Snapshot, request: Request, policy: object, seed: int
) -> None:
    once, again = (decide(snapshot, request, NOW, random.Random(seed), policy) for _ in range(2))  # type: ignore[arg-type]
    assert once == again


@given(snapshots(), requests(), POLICIES)
def test_the_chosen_one_is_never_refused(snapshot: Snapshot, request: Request, policy: object) -> None:
    decision = decide(snapshot, request, NOW, random.Random(0), policy)  # type: ignore[arg-type]
    if decision.chosen is None:
        assert decision.expected is None and not decision.ranking and decision.refused
    else:
        assert refuse(snapshot, request, snapshot.services[decision.chosen], NOW) is None
        assert decision.ranking[0].service == decision.chosen
        assert decision.chosen not in {r.subject for r in decision.refusals}
        assert decision.late == (not decision.expected.keeps(request.qos.deadline))  # type: ignore[union-attr]
    assert decision.reason


@given(snapshots(), requests(), POLICIES)
def test_every_candidate_is_ranked_or_refused(snapshot: Snapshot, request: Request, policy: object) -> None:
    decision = decide(snapshot, request, NOW, random.Random(0), policy)  # type: ignore[arg-type]
    ranked = {r.service for r in decision.ranking}
    refused = {r.subject for r in decision.refusals if "/" in r.subject}
    assert not ranked & refused
    assert ranked | refused == set(snapshot.by_model.get(request.model, ()))
    nodes = {r.subject for r in decision.refusals if "/" not in r.subject} - {request.model}
    assert nodes == {n for n in snapshot.nodes if sid(n) not in snapshot.services}


@given(snapshots(), requests(privacy=Privacy.LOCAL), POLICIES, st.booleans())
def test_local_never_leaves_the_node(snapshot: Snapshot, request: Request, policy: object, everyone: bool) -> None:
    decision = decide(snapshot, request, NOW, random.Random(0), policy, everyone=everyone)  # type: ignore[arg-type]
    for service in {decision.chosen, *(r.service for r in decision.ranking)} - {None}:
        assert node_of(service) == request.origin  # type: ignore[arg-type]
        assert snapshot.services[service].report.runtime != "remote"  # type: ignore[index]


@given(snapshots(), requests(privacy=Privacy.FLEET), POLICIES)
def test_fleet_never_asks_a_far_end(snapshot: Snapshot, request: Request, policy: object) -> None:
    decision = decide(snapshot, request, NOW, random.Random(0), policy)  # type: ignore[arg-type]
    assert all(snapshot.services[r.service].report.runtime != "remote" for r in decision.ranking)


@given(snapshots(), requests())
def test_ghosts_change_nothing_for_the_living(snapshot: Snapshot, request: Request) -> None:
    """With and without a hundred dead services of the same model, the same services are ranked alike."""
    ghosts = [service_view(f"ghost{i}/yard", alive=False, age=5) for i in range(30)]
    haunted = msgspec.structs.replace(
        snapshot,
        services={**snapshot.services, **{g.report.service: g for g in ghosts}},
        by_model={
            **snapshot.by_model,
            request.model: (*snapshot.by_model.get(request.model, ()), *(g.report.service for g in ghosts)),
        },
    )
    plain, other = choose(snapshot, request), choose(haunted, request)
    assert (plain.chosen, plain.ranking, plain.expected) == (other.chosen, other.ranking, other.expected)


def test_a_decision_reads_as_a_sentence_and_carries_its_numbers() -> None:
    world = fleet(
        service_view("pi/yard", service_ms=40.0), service_view("desk/yard"), links={"pi": link(1), "desk": link(2)}
    )
    decision = choose(world)
    assert decision.reason == (
        "desk/yard, first of 2 by predictive: expected in 22.0 ms "
        "(link 2.0, measured link; transfer 0.0; wait 0.0; service 20.0)."
    )
    assert (decision.considered, decision.eligible, decision.refused, decision.policy) == (2, 2, 0, "predictive")
    assert [r.why for r in decision.ranking][1].startswith("expected in 41.0 ms")


def test_an_incumbent_is_said_to_stay() -> None:
    world = fleet(service_view("pi/yard"), service_view("desk/yard"), links={"pi": link(1), "desk": link(2)})
    request = Request(ModelName("yard"), "here", incumbent=sid("desk"))
    assert "desk/yard stays, first of 2" in choose(world, request).reason


def test_when_none_keeps_the_deadline_the_best_is_named_and_flagged() -> None:
    world = fleet(service_view("pi/yard", service_ms=200.0), service_view("desk/yard", service_ms=150.0))
    decision = choose(world, Request(ModelName("yard"), "here", qos=Qos(deadline=Milliseconds(100))))
    assert decision.chosen == sid("desk") and decision.late
    assert "but late for 100 ms" in decision.reason


def test_late_because_of_jitter_is_told_with_the_jitter() -> None:
    """Else the sentence contradicts itself: late for 96.51 ms, and expected in less."""
    world = fleet(service_view("pi/yard", service_ms=20.0), links={"pi": link(10, jitter=60)})
    decision = choose(world, Request(ModelName("yard"), "here", qos=Qos(deadline=Milliseconds(96.5069))))
    assert decision.late
    assert "but late for 96.51 ms with 120.0 ms that jitter may add: expected in 30.0 ms" in decision.reason


def test_late_is_told_for_policies_that_do_not_look_at_deadlines() -> None:
    world = fleet(service_view("pi/yard", service_ms=200.0), links={"pi": link(1)})
    request = Request(ModelName("yard"), "here", qos=Qos(deadline=Milliseconds(100)))
    decision = decide(world, request, NOW, random.Random(0), registry.load("nearest"))
    assert decision.late and decision.expected is not None and "1.00 ms away" in decision.reason


def test_an_unknown_model_offers_the_nearest_name() -> None:
    decision = choose(fleet(service_view("pi/yard")), Request(ModelName("yrad"), "here"))
    assert decision.chosen is None
    assert (decision.refusals[0].subject, decision.refusals[0].code) == ("yrad", "unknown-model")
    assert "did you mean yard?" in decision.reason
    assert isinstance(decision.error(), UnknownModel)
    assert choose(Snapshot("me")).refusals[0].code == "unknown-model"


def test_a_model_that_is_only_stored_says_where_to_start_it() -> None:
    nodes = [("pi", node_view("pi", models=(ModelName("gate"),)))]
    decision = choose(fleet(service_view("pi/yard"), nodes=nodes), Request(ModelName("gate"), "here"))
    assert decision.reason == "No node serves gate; pi has it: run `nearfar models serve gate` there."
    assert [r.code for r in decision.refusals] == ["not-served"]
    assert isinstance(decision.error(), NoCandidate)


def test_no_candidate_is_an_error_with_every_refusal() -> None:
    decision = choose(fleet(service_view("pi/yard", alive=False), nodes=[("desk", node_view("desk"))]))
    error = decision.error()
    assert isinstance(error, NoCandidate)
    assert [(r["subject"], r["code"]) for r in error.refusals] == [("pi/yard", "gone"), ("desk", "not-served")]


def test_a_decision_travels_as_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(choose(fleet(service_view("pi/yard")))))["chosen"] == "pi/yard"


# at scale


def crowd(count: int, dead: int = 0, me: str = "here") -> Snapshot:
    """The last `count - dead` of the nodes `n0000` ... are alive; service time grows with the number."""
    return fleet(*(service_view(f"n{i:04}/yard", alive=i >= dead, service_ms=10.0 + i) for i in range(count)), me=me)


def test_at_scale_a_few_are_drawn_and_the_best_of_them_is_taken() -> None:
    world = crowd(1000)
    decision = choose(world)
    assert 2 <= decision.considered <= 12 and len(decision.ranking) <= SHOWN
    assert decision.ranking[0].cost == min(r.cost for r in decision.ranking)
    assert len({choose(world, seed=seed).chosen for seed in range(20)}) > 5
    assert choose(world, seed=1) == choose(world, seed=1)


def test_up_to_the_threshold_all_are_looked_at_and_explain_always_looks_at_all() -> None:
    assert choose(crowd(SMALL)).considered == SMALL
    assert choose(crowd(SMALL + 1)).considered < SMALL
    decision = choose(crowd(1000, dead=100), everyone=True)
    assert (decision.considered, decision.eligible, decision.refused) == (1000, 900, 100)
    assert decision.chosen in (sid("n0100"), sid("n0101"))  # these tie within 1 %
    assert len(decision.refusals) == REFUSALS


def test_the_incumbent_and_the_own_node_are_always_among_those_drawn() -> None:
    world = crowd(1000)
    for seed in range(10):
        assert choose(world, Request(ModelName("yard"), "n0000"), seed).chosen == sid("n0000")
        kept = choose(world, Request(ModelName("yard"), "x", incumbent=sid("n0001")), seed)
        assert kept.chosen == sid("n0001")


def test_an_incumbent_of_another_model_is_not_drawn() -> None:
    world = crowd(200)
    extra = service_view("n0000/gate", service_ms=0.1)
    world = msgspec.structs.replace(world, services={**world.services, extra.report.service: extra})
    request = Request(ModelName("yard"), "x", incumbent=extra.report.service)
    assert choose(world, request).chosen != extra.report.service


@pytest.mark.parametrize("seed", range(5))
def test_the_last_living_one_of_many_ghosts_is_found(seed: int) -> None:
    assert choose(crowd(2000, dead=1999), seed=seed).chosen == sid("n1999")


def test_among_ghosts_it_goes_on_until_it_has_a_choice() -> None:
    for seed in range(10):
        assert choose(crowd(1000, dead=800), seed=seed).eligible >= 2
    none = choose(crowd(300, dead=300))
    assert (none.chosen, none.considered) == (None, 300)
    assert none.refused >= 300 and len(none.refusals) == REFUSALS


@pytest.mark.parametrize("qos", [Qos(node="n0500"), Qos(privacy=Privacy.LOCAL)])
def test_pinned_and_local_look_at_the_only_service_that_can_pass(qos: Qos) -> None:
    request = Request(ModelName("yard"), "n0500", qos=qos)
    decision = choose(crowd(1000), request)
    assert (decision.chosen, decision.considered, decision.refused) == (sid("n0500"), 1, 999)
    assert decision.refusals[0].reason.startswith("999 services are on other nodes")


def test_local_from_a_client_that_is_no_node_finds_nobody() -> None:
    decision = choose(crowd(1000), Request(ModelName("yard"), "phone", qos=Qos(privacy=Privacy.LOCAL)))
    assert decision.chosen is None and decision.refusals[0].code == "private"


def test_what_sampling_loses_is_bounded() -> None:
    """The best of d draws lies, in the mean, at rank 1/(d+1): with 12 of 1000 around the 77th, rarely beyond 300."""
    world = crowd(1000)
    ranks = [int((choose(world, seed=seed).chosen or "n9999").partition("/")[0][1:]) for seed in range(200)]
    assert sum(ranks) / len(ranks) < 100
    assert sorted(ranks)[190] < 300


def test_it_draws_again_when_all_that_were_drawn_would_be_late() -> None:
    world = crowd(1000)  # 100 of 1000 keep the deadline; one draw of 12 misses them in 28 of 100 cases
    tight = Request(ModelName("yard"), "x", qos=Qos(deadline=Milliseconds(115.0)))
    assert sum(choose(world, tight, seed).late for seed in range(100)) <= 5
    hopeless = choose(world, Request(ModelName("yard"), "x", qos=Qos(deadline=Milliseconds(1.0))))
    assert hopeless.late and 12 < hopeless.considered <= 48


def test_many_requests_spread_over_equal_services() -> None:
    """Balls into bins: a choice among draws keeps the fullest far below what blind random choice gives."""
    count, sent = 100, 1000
    rng, pending = random.Random(5), dict.fromkeys((sid(f"n{i:04}") for i in range(count)), 0)
    world = fleet(*(service_view(f"n{i:04}/yard") for i in range(count)))
    for _ in range(sent):
        busy = msgspec.structs.replace(world, pending={s: n for s, n in pending.items() if n})
        chosen = decide(busy, REQUEST, NOW, rng, PREDICTIVE).chosen
        assert chosen is not None
        pending[chosen] += 1
    blind = [0] * count
    for _ in range(sent):
        blind[rng.randrange(count)] += 1
    assert max(pending.values()) <= sent / count + 2 < max(blind)
