"""The agent with scripted processes, on a mesh inside this process."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from nearfar.errors import DuplicateNode, ModelFileError, StoreError
from nearfar.mesh.memory import MemoryMesh
from nearfar.node import agent as agent_module
from nearfar.node import keys
from nearfar.node.plan import Phase, Wanted
from nearfar.node.prober import answer_ping
from nearfar.node.spec import Milestone, Word
from nearfar.types.ids import ModelName, NodeId
from nearfar.types.telemetry import NodeReport, ServiceState
from nearfar.types.units import Bytes, Seconds
from tests.node.agents import ME, YARD, FakeChild, World, world
from tests.node.agents import children as children
from tests.waiting import until


def test_who_hears_a_node_has_heard_what_starts_on_it(children: list[FakeChild]) -> None:
    async def body() -> None:
        async with world() as w:
            order: list[str] = []
            w.other.subscribe(keys.NODE_REPORTS, lambda *_: order.append("node"))
            w.other.subscribe(keys.SERVICE_REPORTS, lambda *_: order.append("service"))
            await w.start(YARD)
            await until(lambda: "node" in order, "the node reports")
            assert order[0] == "service", "a client that knew only the node would say that it serves nothing"
            assert w.services[0].state is ServiceState.STARTING

    asyncio.run(body())


def test_a_service_that_fails_is_told_with_reason_count_and_next_start(children: list[FakeChild]) -> None:
    async def body() -> None:
        async with world() as w:
            await w.start(YARD)
            for failures in (1, 2):
                await until(lambda n=failures: len(children) == n, "it is started")  # type: ignore[misc]
                children[-1].end("killed by SIGSEGV")
                wanted = (
                    f"killed by SIGSEGV. Failed {'once' if failures == 1 else '2 times in a row'}; starts again in "
                )
                await until(
                    lambda t=wanted: any(s.reason.startswith(t) for s in w.services),  # type: ignore[misc]
                    "the fleet hears why, how often, and when it goes on",
                )
            assert all(s.state is not ServiceState.READY for s in w.services)
            await until(lambda: len(children) == 3, "it is started again")
            children[-1].ready()
            await until(lambda: w.phase() is Phase.READY, "it serves")

    asyncio.run(body())


@pytest.mark.parametrize("error", [ModelFileError("the file is cut short"), OSError("no process"), KeyError("a bug")])
def test_whatever_goes_wrong_before_the_start_is_a_reason_and_tried_again(
    children: list[FakeChild], error: Exception
) -> None:
    async def body() -> None:
        async with world() as w:
            w.failure = error
            await w.start(YARD)
            words = str(error.args[0])
            await until(lambda: any(words in s.reason for s in w.services), "the fleet hears the reason")
            w.failure = None
            await until(lambda: children, "it is started when it can be")

    asyncio.run(body())


def test_a_supervisor_that_fails_leaves_no_process_behind(
    children: list[FakeChild], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: FakeChild) -> None:
        raise ValueError("a line of ten megabytes")

    async def body() -> None:
        async with world() as w:
            monkeypatch.setattr(FakeChild, "listen", broken)
            await w.start(YARD)
            await until(lambda: w.phase() is Phase.DOWN, "it is not believed to run")
            assert children[0].killed

    asyncio.run(body())


def test_a_stop_that_comes_before_the_process_is_there_is_obeyed(children: list[FakeChild]) -> None:
    async def body() -> None:
        FakeChild.hold_start = asyncio.Event()
        try:
            async with world() as w:
                await w.start(YARD)
                await until(lambda: children, "it is about to start")
                w.agent.desire(())
                await until(lambda: w.phase() is Phase.STOPPING, "it shall stop")
                FakeChild.hold_start.set()
                await until(lambda: children[0].stopped, "it was told to")
                await until(lambda: w.phase() is None, "and is forgotten")
        finally:
            FakeChild.hold_start = None

    asyncio.run(body())


def test_closing_during_a_start_stops_the_process_instead_of_waiting_to_kill_it(children: list[FakeChild]) -> None:
    async def body() -> None:
        FakeChild.hold_start = asyncio.Event()
        try:
            async with world() as w:
                await w.start(YARD)
                await until(lambda: children, "it is about to start")
                closing = asyncio.create_task(w.close())
                await asyncio.sleep(0)
                FakeChild.hold_start.set()
                await closing
                assert children[0].stopped and not children[0].killed
        finally:
            FakeChild.hold_start = None

    asyncio.run(body())


def test_too_much_memory_is_told_with_the_figures(children: list[FakeChild]) -> None:
    async def body() -> None:
        async with world(memory_limit=Bytes(100 << 20)) as w:
            await w.start(YARD)
            await until(lambda: children, "it is started")
            children[0].ready()
            await until(lambda: w.phase() is Phase.READY, "it serves")
            children[0].resident = Bytes(150 << 20)
            wanted = "it used 150.0 MiB of memory, more than its limit of 100.0 MiB"
            await until(lambda: any(wanted in s.reason for s in w.services), "the fleet hears the figures")
            await until(lambda: len(children) == 2, "it is started again")

    asyncio.run(body())


def test_a_store_that_cannot_be_read_does_not_end_the_node() -> None:
    async def body() -> None:
        async with world() as w:
            await w.start()
            await until(lambda: w.nodes and w.nodes[-1].models == (YARD,), "the models are told")
            w.models = StoreError("the disk is gone")
            seen = len(w.nodes)
            await until(lambda: len(w.nodes) > seen + 2, "the node goes on reporting")
            assert w.nodes[-1].models == (YARD,) and w.running is not None and not w.running.done()
            w.models = ()
            await until(lambda: w.nodes[-1].models == (), "what is in the store again is told")

    asyncio.run(body())


def test_what_changes_is_started_again_and_nothing_else(children: list[FakeChild]) -> None:
    far, other = ModelName("far"), ModelName("other")

    async def body() -> None:
        async with world() as w:
            asked: list[Wanted | Exception | None] = []

            def look() -> Wanted | None:
                found = asked.pop(0) if asked else None
                if isinstance(found, Exception):
                    raise found
                return found

            w.agent.look_again = look
            await w.start(YARD)
            await until(lambda: len(children) == 1, "it is started")
            children[0].ready()
            asked.append(Wanted((YARD, far), {far: "1"}, {other: "no key"}))
            await until(lambda: len(children) == 2, "what came is started")
            children[1].ready()
            await until(lambda: w.phase(far) is Phase.READY, "and serves")
            await until(lambda: any(s.model == other and s.reason == "no key" for s in w.services), "so is a refusal")
            asked += [OSError("the disk is gone"), Wanted((YARD, far), {far: "1"})]
            await until(lambda: not asked, "nothing has changed")
            asked.append(Wanted((YARD, far), {far: "2"}))
            await until(lambda: len(children) == 3, "what changed is started again")
            assert children[1].stopped and not children[1].killed
            children[2].end("wrong price")
            await until(lambda: w.phase(far) is Phase.DOWN, "it fails")
            asked.append(Wanted((YARD, far), {far: "3"}))
            await until(lambda: w.agent.status[far].revision == "3", "what was put right is started")
            assert w.agent.status[far].failures == 0
            await until(lambda: w.phase(far) is Phase.STARTING and far in w.agent._children, "its process is there")
            asked.append(Wanted((YARD,)))
            await until(lambda: w.phase(far) is None, "what went is forgotten")
            assert children[-1].stopped and not children[0].stopped and w.phase() is Phase.READY

    asyncio.run(body())


# -- one id, two agents ----------------------------------------------------------------------------------------------


def test_a_second_agent_of_the_id_is_refused_and_the_first_does_not_notice() -> None:
    async def body() -> None:
        async with world() as w:
            await w.start()
            second = World(w.ether)
            with pytest.raises(DuplicateNode, match=r"'pi' is alive in this fleet.*--name"):
                await second.start()
            await second.close()
            assert w.running is not None
            seen = len(w.nodes)
            await until(lambda: len(w.nodes) > seen + 1, "the first goes on")
            assert not w.running.done()

    asyncio.run(body())


def test_a_ghost_of_the_id_is_outlived() -> None:
    """The token of an agent whose machine lost its power is still there when that machine is back."""

    async def body() -> None:
        async with world() as w:
            token = w.other.announce(keys.node_key(ME, "00000000ghost"))
            starting = asyncio.create_task(w.start())
            await until(lambda: w.agent._rivals, "the ghost is seen")
            token.close()
            await starting
            assert w.running is not None

    asyncio.run(body())


def test_a_ghost_that_stays_is_a_duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "GHOST", 0.2)

    async def body() -> None:
        async with world() as w:
            w.other.announce(keys.node_key(ME, "00000000ghost"))
            with pytest.raises(DuplicateNode):
                await w.start()

    asyncio.run(body())


@pytest.mark.parametrize(("rival", "stays"), [("00000000old", False), ("ffffffffnew", True)])
def test_of_two_that_meet_later_the_older_one_stays(rival: str, stays: bool) -> None:
    async def body() -> None:
        async with world() as w:
            await w.start()
            assert w.running is not None
            w.other.serve(keys.ping_key(ME), answer_ping)
            token = w.other.announce(keys.node_key(ME, rival))
            if stays:
                await until(lambda: w.agent._rivals, "the other is seen")
                seen = len(w.nodes)
                await until(lambda: len(w.nodes) > seen + 1, "this one goes on")
                token.close()
                await until(lambda: not w.agent._rivals, "and is alone again")
            else:
                with pytest.raises(DuplicateNode, match="--name"):
                    await w.running

    asyncio.run(body())


# -- leaving, and being cut off ---------------------------------------------------------------------------------------


def test_a_cut_that_heals_starts_no_second_process(children: list[FakeChild]) -> None:
    """Everybody's token vanishes for the agent, and comes back: what it shall serve it serves already."""

    async def body() -> None:
        async with world() as w:
            away = MemoryMesh(w.ether)
            token = away.announce(keys.node_key(NodeId("desk"), "1"))
            await w.start(YARD)
            await until(lambda: children, "it is started")
            children[0].ready()
            await until(lambda: w.phase() is Phase.READY, "it serves")
            for _ in range(3):
                token.close()
                await until(lambda: NodeId("desk") not in w.agent._others, "the other is gone")
                token = away.announce(keys.node_key(NodeId("desk"), "1"))
                await until(lambda: NodeId("desk") in w.agent._others, "the other is back")
                w.agent.desire((YARD,))
            seen = len(w.nodes)
            await until(lambda: len(w.nodes) > seen + 2, "it goes on")
            assert len(children) == 1 and w.phase() is Phase.READY and not children[0].stopped
            await away.close()

    asyncio.run(body())


def test_the_younger_of_two_that_meet_stops_its_services(children: list[FakeChild]) -> None:
    """Two agents of one id never both serve for longer than it takes to be sure that the other is no ghost."""

    async def body() -> None:
        async with world(ghost=Seconds(0.2)) as w:
            await w.start(YARD)
            await until(lambda: children, "it is started")
            children[0].ready()
            await until(lambda: w.phase() is Phase.READY, "it serves")
            w.other.serve(keys.ping_key(ME), answer_ping)
            w.other.announce(keys.node_key(ME, "00000000old"))
            assert w.running is not None
            with pytest.raises(DuplicateNode):
                await w.running
            seen = len(w.nodes)
            await w.agent.close()  # as `nearfar up` does when the agent ends
            assert children[0].stopped and len(children) == 1
            assert not any(report.leaving for report in w.nodes[seen:]), "the other one of that name stays"

    asyncio.run(body())


def test_an_agent_says_goodbye_while_its_token_is_still_there(children: list[FakeChild]) -> None:
    async def body() -> None:
        async with world() as w:
            alive: dict[str, bool] = {}
            at_goodbye: list[bool] = []
            w.other.watch(keys.NODES, lambda key, there: alive.__setitem__(key, there))
            decoder = msgspec.msgpack.Decoder(NodeReport)

            def heard(_: str, data: bytes) -> None:
                if decoder.decode(data).leaving:
                    at_goodbye.append(all(alive.values()))

            w.other.subscribe(keys.NODE_REPORTS, heard)
            await w.start(YARD)
            await until(lambda: w.nodes and not w.nodes[-1].leaving, "it reports")
            assert w.running is not None
            w.running.cancel()
            await asyncio.gather(w.running, return_exceptions=True)
            await w.agent.close()
            await until(lambda: not all(alive.values()), "its token is gone")
            assert at_goodbye and all(at_goodbye)

    asyncio.run(body())


def test_failed_self_tests_are_counted_over_restarts_and_told_to_the_next_process(children: list[FakeChild]) -> None:
    async def body() -> None:
        async with world() as w:
            await w.start(YARD)
            for number in (1, 2):
                await until(lambda n=number: len(children) == n, "it is started")  # type: ignore[misc]
                assert children[-1].spec.self_tests_failed == number - 1
                children[-1].word = Word(Milestone.FAILED, "self-test", "zeros")
                children[-1].end("zeros")
                await until(
                    lambda n=number: (False, n) in [(s.self_test.passed, s.self_test.failed) for s in w.services],  # type: ignore[misc]
                    "the fleet hears that it was the self-test, and how often",
                )
            await until(lambda: len(children) == 3, "it is started again")
            children[-1].end("killed by SIGSEGV")
            await until(lambda: w.services[-1].self_test.passed is None, "another failure is no self-test")
            assert w.services[-1].self_test.failed == 2

    asyncio.run(body())


def test_a_service_that_says_nothing_any_more_is_ended_and_started_again(children: list[FakeChild]) -> None:
    async def body() -> None:
        async with world(silence_limit=Seconds(0.3)) as w:
            await w.start(YARD)
            await until(lambda: len(children) == 1, "it is started")
            children[0].ready()
            await until(lambda: children[0].killed, "it is ended")
            assert "said nothing" in children[0].killed[0]
            await until(lambda: len(children) == 2, "another is started")
            assert any("said nothing" in s.reason for s in w.services)

    asyncio.run(body())


def test_an_agent_that_was_stopped_itself_does_not_blame_its_services(children: list[FakeChild]) -> None:
    async def body() -> None:
        async with world() as w:
            await w.start(YARD)
            await until(lambda: len(children) == 1, "it is started")
            before = children[0].silent
            w.agent._looked -= 3600.0  # as after SIGCONT: the clock went on, and the words lie unread in the pipe
            w.agent._look()
            assert before < children[0].silent <= before + agent_module.LONGEST_STEP + 0.5

    asyncio.run(body())
