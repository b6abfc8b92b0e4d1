"""Something is killed, or everything is stopped and started."""

from __future__ import annotations

import psutil

from benchmarks.faults.base import Stage, fault
from benchmarks.faults.fleet import Broken


@fault("kill-service", "kill -9 of a service under load")
def kill_service(stage: Stage) -> None:
    node, model = stage.service()
    stage.note(f"{node.name}/{model}")
    pid = node.kill_service(model)
    stage.hold(1.0)
    stage.fleet.wait(lambda: node.service_pid(model) not in (0, pid), f"{node.name}/{model} is started again")


@fault("kill-agent", "kill -9 of an agent alone; its services must end by themselves while it is started again")
def kill_agent(stage: Stage) -> None:
    node = stage.node()
    stage.note(node.name)
    stage.excuse(node)
    orphans = node.children()
    node.kill_agent()
    stage.hold(stage.rng.choice((0.0, 2.0)))  # a service manager starts it at once, or somebody does by hand
    node.launch()
    gone, left = psutil.wait_procs(orphans, timeout=30.0)
    if left:
        raise Broken(f"services of a killed agent live on: {[process.pid for process in left]} of {len(gone)}")


@fault("kill-node", "kill -9 of an agent and its services at once, as a power cut; then it is started again")
def kill_node(stage: Stage) -> None:
    node = stage.node()
    stage.note(node.name)
    stage.excuse(node)
    node.kill()
    others = [name for name in ("one", "three") if name != node.name]
    took = stage.goes_on(others)
    stage.note(f"the others answered in a row after {took:.1f} s")
    node.launch()


@fault("restart-everything", "SIGTERM to every node at once, all started again in the same homes")
def restart_everything(stage: Stage) -> None:
    nodes = stage.fleet.nodes
    stage.excuse(*nodes)
    for node in nodes:
        psutil.Process(node.pid).terminate()
    codes = [node.ended() for node in nodes]
    if any(codes):
        raise Broken(f"after SIGTERM the nodes ended with {codes}: {'; '.join(node.tail() for node in nodes)}")
    stage.hold(1.0)
    for node in nodes:
        node.launch()


FAULTS = (kill_service, kill_agent, kill_node, restart_everything)
