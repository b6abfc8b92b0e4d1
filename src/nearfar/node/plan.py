"""What an agent must do next: desired minus actual. Pure: first start, recovery and change are one code path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from nearfar.types.ids import ModelName
from nearfar.types.units import Bytes, Seconds, show_bytes

FIRST_BACK_OFF = 0.5
LONGEST_BACK_OFF = 30.0
FORGIVEN_AFTER = 60.0
"""Seconds of service after which earlier failures no longer count."""
START_LIMIT = 120.0
"""Seconds a service may take to load and warm up."""


class Phase(StrEnum):
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    DOWN = "down"


class Status(msgspec.Struct, frozen=True):
    """One service process as its agent knows it. Moments are of the agent's monotonic clock."""

    model: ModelName
    phase: Phase
    since: Seconds
    failures: int = 0
    """Failures in a row."""
    reason: str = ""
    memory: Bytes = Bytes(0)
    silent: Seconds = Seconds(0.0)
    """Since its last word to the agent; a service that is ready says one every second."""
    code: str = ""
    """Of the failure that ended it last, where it said one."""
    self_tests_failed: int = 0
    """Since the agent started."""
    revision: str = ""
    """Of what it was started from; "" for what does not change while its node runs."""


class Wanted(msgspec.Struct, frozen=True):
    """What a node shall serve."""

    models: tuple[ModelName, ...] = ()
    revisions: Mapping[ModelName, str] = {}
    """Of those that may change while the node runs: a service of another revision is started again. Each begins with
    the digest of the model's file."""
    refused: Mapping[ModelName, str] = {}
    """What it should serve and cannot, each with the reason: told to the fleet, and not tried."""


class Start(msgspec.Struct, frozen=True):
    model: ModelName


class Stop(msgspec.Struct, frozen=True):
    """Let it answer what waits, then end."""

    model: ModelName


class Kill(msgspec.Struct, frozen=True):
    model: ModelName
    reason: str


class Forget(msgspec.Struct, frozen=True):
    """It is down and not wanted: remove what is known of it."""

    model: ModelName


Action = Start | Stop | Kill | Forget
_NO_REVISIONS: Mapping[ModelName, str] = {}


def back_off(failures: int) -> Seconds:
    """Seconds to wait before the next start after so many failures in a row.

    >>> [back_off(n) for n in (0, 1, 2, 3, 20)]
    [0.0, 0.5, 1.0, 2.0, 30.0]
    """
    if failures <= 0:
        return Seconds(0.0)
    return Seconds(min(LONGEST_BACK_OFF, FIRST_BACK_OFF * 2.0 ** min(failures - 1, 30)))


def plan(
    desired: Iterable[ModelName],
    actual: Mapping[ModelName, Status],
    now: Seconds,
    memory_limit: Bytes,
    silence_limit: Seconds = Seconds(0.0),  # noqa: B008 - a number
    revisions: Mapping[ModelName, str] = _NO_REVISIONS,
) -> tuple[Action, ...]:
    """The actions that bring what runs closer to what is wanted. `memory_limit` per service in bytes, 0 for none;
    `silence_limit` in seconds, 0 for none: a ready service that says nothing for longer holds its interpreter's lock,
    or is stopped, and cannot even see that it hangs. A service whose revision is not the one of `revisions` is stopped,
    to be started from what is there now; one that is down need not wait for that."""
    wanted = tuple(dict.fromkeys(desired))
    actions: list[Action] = [Start(model) for model in wanted if model not in actual]
    for model, status in actual.items():
        changed = status.revision != revisions.get(model, "")
        match status.phase:
            case Phase.DOWN if model not in wanted:
                actions.append(Forget(model))
            case Phase.DOWN if changed or now - status.since >= back_off(status.failures):
                actions.append(Start(model))
            case Phase.STARTING | Phase.READY if changed or model not in wanted:
                actions.append(Stop(model))
            case Phase.STARTING | Phase.READY if 0 < memory_limit < status.memory:
                used, limit = show_bytes(status.memory), show_bytes(memory_limit)
                actions.append(Kill(model, f"it used {used} of memory, more than its limit of {limit}"))
            case Phase.READY if 0 < silence_limit < status.silent:
                actions.append(Kill(model, f"it said nothing for {status.silent:.0f} s: its process hangs"))
            case Phase.STARTING if now - status.since > START_LIMIT:
                actions.append(Kill(model, f"it was not ready after {START_LIMIT:.0f} s"))
            case Phase.STOPPING if now - status.since > 10:
                actions.append(Kill(model, "it did not stop"))
            case _:
                pass
    return tuple(actions)
