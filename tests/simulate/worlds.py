"""Small scenarios: a few nodes, seconds long, with everything that can happen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from nearfar.simulate.scenario import Scenario, parse

EXAMPLES = Path(__file__).parents[2] / "examples" / "scenarios"
LINKS = {"lan": {"rtt_ms": 1.0}, "wifi": {"rtt_ms": 6.0, "jitter_ms": 3.0, "loss": 0.01, "bandwidth_mbit": 50}}


def plain(**changes: Any) -> dict[str, Any]:
    """Two quick nodes and a slow one, four streams; any top-level key can be replaced."""
    return {
        "name": "small",
        "seconds": 8,
        "links": LINKS,
        "nodes": [
            {"name": "coral", "device": "coral", "count": 2, "link": "lan"},
            {"name": "nano", "device": "jetson-nano", "link": "wifi"},
        ],
        "clients": [{"name": "cams", "streams": 4, "fps": 10, "gateways": 2}],
        **changes,
    }


def small(**changes: Any) -> Scenario:
    return parse(plain(**changes))


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Everything that can happen, in any order and overlapping."""
    nodes = [
        {
            "name": f"n{i}",
            "device": draw(st.sampled_from(["coral", "pi5", "ncs2", "jetson-nano", "pi3b+"])),
            "link": draw(st.sampled_from(["lan", "wifi", "radio"])),
            "count": draw(st.integers(1, 3)),
            "workers": draw(st.integers(1, 3)),
            "queue_limit": draw(st.sampled_from([1, 4, 64])),
            "ambient_c": draw(st.sampled_from([25.0, 60.0])),
        }
        | draw(st.sampled_from([{}, {"churn": {"up_s": 2, "down_s": 1, "crash": 0.4, "cut": 0.4}}]))
        | draw(st.sampled_from([{}, {"interference": {"off_s": 1, "on_s": 1, "factor": 4}}]))
        for i in range(draw(st.integers(1, 3)))
    ]
    change = st.fixed_dictionaries(
        {
            "at_s": st.floats(0, 6),
            "kind": st.sampled_from(["crash", "cut", "leave", "slow", "rate", "link"]),
            "nodes": st.sampled_from(["*", "n0-*", "n0-0"]),
            "clients": st.just("*"),
            "for_s": st.sampled_from([0.0, 0.5, 2.0]),
            "factor": st.sampled_from([0.5, 3.0]),
            "link": st.sampled_from(["lan", "radio"]),
            "stagger_s": st.sampled_from([0.0, 0.7]),
        }
    )
    return parse(
        {
            "name": "drawn",
            "seconds": 6,
            "lease_s": draw(st.sampled_from([0.3, 2.0])),
            "links": LINKS | {"radio": {"kind": "stable"}},
            "sites": {"count": 2, "backhaul": "radio"},
            "nodes": nodes,
            "clients": [
                {
                    "name": "c",
                    "streams": draw(st.integers(2, 5)),
                    "fps": draw(st.sampled_from([2, 10])),
                    "gateways": 2,
                    "deadline_ms": draw(st.sampled_from([0, 30, 100, 600])),
                    "large": draw(st.booleans()),
                    "mobile": draw(st.booleans()),
                    "dwell_s": 1.5,
                }
            ],
            "changes": draw(st.lists(change, max_size=4)),
        }
    )
