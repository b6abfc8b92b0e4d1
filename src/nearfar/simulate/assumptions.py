"""What in a scenario is not measured but assumed; stands under every table."""

from __future__ import annotations

from nearfar.simulate.scenario import Scenario


def assumptions_of(scenario: Scenario) -> list[str]:
    """One sentence each, only for what the scenario uses."""
    told = [
        "service times are log-normal around the stated means",
        "streams do not contend for the bandwidth of a link; a lost packet costs one time-out of 200 ms",
    ]
    if any(link.kind == "stable" for link in scenario.links.values()):
        told.append("5G round trips: log10(ms) is stable (1.6878, beta 0, 0.0980, 1.0762), cut at 920 ms")
    if any(scenario.device(group.device).rise_c for group in scenario.nodes):
        told.append("heat: first-order, 60 s time constant, the device's rise at full load")
    if any(client.large for client in scenario.clients):
        told.append("large frames add 45 to 60 %, drawn evenly")
    return told
