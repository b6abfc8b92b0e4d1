"""What an agent does next: simulated lives of services, with every kind of accident, must come to what is wanted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nearfar.node.plan import (
    FIRST_BACK_OFF,
    LONGEST_BACK_OFF,
    START_LIMIT,
    Forget,
    Kill,
    Phase,
    Start,
    Status,
    Stop,
    back_off,
    plan,
)
from nearfar.types.ids import ModelName
from nearfar.types.units import Bytes, Seconds

MODELS = [ModelName(name) for name in ("a", "b", "c")]
LIMIT = Bytes(1000)
moments = st.floats(0, 1e6).map(Seconds)


def statuses(model: ModelName) -> st.SearchStrategy[Status]:
    return st.builds(
        Status,
        model=st.just(model),
        phase=st.sampled_from(list(Phase)),
        since=moments,
        failures=st.integers(0, 10_000),
        memory=st.integers(0, 5000).map(Bytes),
    )


worlds = st.sets(st.sampled_from(MODELS)).flatmap(
    lambda models: st.fixed_dictionaries({model: statuses(model) for model in models})
)
wishes = st.lists(st.sampled_from(MODELS), max_size=6)


@given(wishes, worlds, moments)
def test_a_plan_never_acts_twice_on_a_model_and_never_starts_what_runs(
    desired: list[ModelName], actual: dict[ModelName, Status], now: Seconds
) -> None:
    actions = plan(desired, actual, now, LIMIT)
    assert len({action.model for action in actions}) == len(actions)
    for action in actions:
        status = actual.get(action.model)
        match action:
            case Start():
                assert action.model in desired and (status is None or status.phase is Phase.DOWN)
            case Stop():
                assert action.model not in desired and status and status.phase in (Phase.STARTING, Phase.READY)
            case Kill():
                assert status and status.phase is not Phase.DOWN and action.reason
            case Forget():
                assert action.model not in desired and status and status.phase is Phase.DOWN


@given(st.integers(-5, 10**9), st.integers(0, 100))
def test_the_back_off_grows_and_is_bounded(failures: int, more: int) -> None:
    assert 0 <= back_off(failures) <= back_off(failures + more) <= LONGEST_BACK_OFF
    assert back_off(max(failures, 1)) >= FIRST_BACK_OFF


@given(st.integers(1, 100), st.floats(0, 100))
def test_a_failed_service_starts_again_after_its_back_off_and_not_before(failures: int, waited: float) -> None:
    status = Status(MODELS[0], Phase.DOWN, Seconds(0.0), failures)
    started = plan(MODELS[:1], {MODELS[0]: status}, Seconds(waited), LIMIT) == (Start(MODELS[0]),)
    assert started == (waited >= back_off(failures))


@given(wishes, worlds, st.integers(0, 200))
def test_it_converges_to_what_is_wanted(desired: list[ModelName], actual: dict[ModelName, Status], luck: int) -> None:
    """Carry the plans out in a world where processes obey, and memory stays where it is allowed."""
    world = {
        m: Status(m, s.phase, Seconds(min(s.since, 0.0)), s.failures, s.reason, Bytes(0)) for m, s in actual.items()
    }
    now = Seconds(0.0)
    for step in range(60):
        for action in plan(desired, world, now, LIMIT):
            match action:
                case Start(model):
                    world[model] = Status(model, Phase.STARTING, now, world[model].failures if model in world else 0)
                case Stop(model):
                    world[model] = Status(model, Phase.STOPPING, now)
                case Kill(model):
                    world[model] = Status(model, Phase.DOWN, now, 1)
                case Forget(model):
                    del world[model]
        now = Seconds(now + 1.0)
        for model, status in tuple(world.items()):
            if status.phase is Phase.STARTING:
                world[model] = Status(model, Phase.READY, now)
            elif status.phase is Phase.STOPPING and (step + luck) % 3 == 0:  # it answers what waits first
                world[model] = Status(model, Phase.DOWN, now)
    assert {model: status.phase for model, status in world.items()} == dict.fromkeys(desired, Phase.READY)
    assert plan(desired, world, now, LIMIT) == ()


def test_what_is_of_another_revision_is_stopped_and_what_is_down_need_not_wait() -> None:
    one, other = MODELS[:2]
    wanted = {one: "2", other: "1"}
    for phase in Phase:
        world = {
            one: Status(one, phase, Seconds(0.0), 5, revision="1"),
            other: Status(other, phase, Seconds(0.0), 5, revision="1"),
        }
        first, second = (
            tuple(a for a in plan(MODELS[:2], world, Seconds(1.0), LIMIT, revisions=wanted) if a.model == model)
            for model in (one, other)
        )
        assert second == (), "what is as it was is left alone"
        match phase:
            case Phase.STARTING | Phase.READY:
                assert first == (Stop(one),)
            case Phase.DOWN:
                assert first == (Start(one),)
            case Phase.STOPPING:
                assert first == ()


def test_what_hangs_in_start_or_stop_and_what_eats_memory_is_killed_with_the_figures() -> None:
    model = MODELS[0]

    def only(status: Status, now: float, desired: list[ModelName] = MODELS[:1]) -> object:
        (action,) = plan(desired, {model: status}, Seconds(now), Bytes(64 << 20))
        return action

    slow = only(Status(model, Phase.STARTING, Seconds(0.0)), START_LIMIT + 1)
    assert slow == Kill(model, "it was not ready after 120 s")
    stuck = only(Status(model, Phase.STOPPING, Seconds(0.0)), 11, [])
    assert stuck == Kill(model, "it did not stop")
    fat = only(Status(model, Phase.READY, Seconds(0.0), memory=Bytes(65 << 20)), 1)
    assert fat == Kill(model, "it used 65.0 MiB of memory, more than its limit of 64.0 MiB")
    assert plan(MODELS[:1], {model: Status(model, Phase.READY, Seconds(0.0), memory=LIMIT)}, Seconds(1), Bytes(0)) == ()


def test_only_a_ready_service_that_says_nothing_for_too_long_is_ended() -> None:
    limit, model = Seconds(5.0), MODELS[0]
    for phase in Phase:
        for silent in (0.0, 5.0, 5.1):
            status = Status(model, phase, Seconds(0.0), silent=Seconds(silent))
            actions = plan([model], {model: status}, Seconds(1.0), LIMIT, limit)
            ended = [action for action in actions if isinstance(action, Kill)]
            assert bool(ended) == (phase is Phase.READY and silent > limit), (phase, silent)
            assert all("said nothing for 5 s" in action.reason for action in ended)
    silent_for_ever = Status(model, Phase.READY, Seconds(0.0), silent=Seconds(1e9))
    assert plan([model], {model: silent_for_ever}, Seconds(1.0), LIMIT) == (), "without a limit nobody is ended"
