"""The eye of the bounds: who would answer this very frame first, in truth."""

from __future__ import annotations

import heapq

from nearfar.simulate.frames import Frame
from nearfar.simulate.view import ANSWER
from nearfar.simulate.world import Node, World


def foresee(world: World, frame: Frame, now: float, deaths: bool = True) -> Node | None:
    """The node whose answer comes first; None when none comes by the deadline. Books the work at that node.

    `deaths`: whether it knows that nodes will die or leave.

    Nodes are looked at from the fastest device on, until even an idle one could not be quicker.
    """
    stream = frame.stream
    gateway = stream.gateway
    best: Node | None = None
    best_at = frame.end
    best_done = 0.0
    for node in world.by_speed:
        device_s = node.device.service_ms(frame.z) * frame.factor / 1000
        if best is not None and now + device_s >= best_at:
            break
        if not node.serving:
            continue
        arrives = now + gateway.up_s(node, now, frame.up, stream.size)
        begins = max(arrives, node.committed[0])
        done = begins + device_s * node.factor
        if done >= best_at:
            continue
        answered = done + gateway.up_s(node, done, frame.down, ANSWER)
        if answered < best_at and (not deaths or (done < node.next_death(now) and arrives < _leaves(node, now))):
            best, best_at, best_done = node, answered, done
    if best is not None:
        heapq.heapreplace(best.committed, best_done)
    return best


def _leaves(node: Node, now: float) -> float:
    """When it stops taking frames."""
    for outage in node.outages[node.outage :]:
        if outage.end > now:
            return outage.start
    return float("inf")
