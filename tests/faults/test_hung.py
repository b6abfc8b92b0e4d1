"""A service that holds the interpreter's lock for ever: it cannot say that it hangs, so its agent must see it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import psutil
import pytest

from benchmarks.faults import parts
from benchmarks.faults.fleet import ROOT
from tests.faults.load import ask, healthy, reason
from tests.fleetlab import Lab, poll, tensors
from tests.fleetlab import lab as lab
from tests.waiting import until_now


@pytest.mark.slow
def test_a_hung_interpreter_is_left_out_ended_told_and_started_again(lab: Lab, tmp_path: Path) -> None:
    plugin, orders = tmp_path / "plugin", tmp_path / "orders"
    parts.install(plugin)
    orders.mkdir()
    file = tmp_path / "mirror.x"
    file.write_bytes(b"glass")
    env = {
        "PYTHONPATH": os.pathsep.join((str(plugin), str(ROOT), str(ROOT / "src"))),
        parts.ORDERS: str(orders),
        "NEARFAR_NODE_STUCK_AFTER_MS": "1000",
    }
    node = lab.node("one", [tensors(file, "mirror", parts.FORMAT)], env=env)
    pid = node.service_pid("mirror")
    with node.http() as http:
        assert ask(http, "mirror").ok
        order = orders / "one~mirror.json"
        order.write_bytes(msgspec.json.encode(parts.Orders("hang")))
        late = ask(http, "mirror", deadline="300ms")
        assert (late.status, late.code) == (503, "deadline-exceeded")
        poll(lambda: not healthy(node, "mirror"), "it is seen not to be well")
        order.unlink()
        until_now(lambda: not psutil.pid_exists(pid), "the hung process was ended", 60.0)
        poll(lambda: "said nothing" in reason(node, "mirror"), "why it was ended")
        poll(lambda: healthy(node, "mirror"), "it is back")
        assert ask(http, "mirror").ok
    assert node.stop() == 0
