"""A gateway in this process, of a fleet that is not there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

from nearfar.client.client import Client
from nearfar.gateway.server import Address, Gateway
from nearfar.gateway.state import Limits, State


@contextlib.asynccontextmanager
async def gateway(**client: Any) -> AsyncIterator[tuple[Gateway, State]]:
    """A gateway whose client has only the methods that are given, and a snapshot without models."""
    given = {"snapshot": lambda: SimpleNamespace(by_model={})} | client
    state = State(cast(Client, SimpleNamespace(**given)), Limits())
    made = Gateway(state, Address(port=0))
    await made.start()
    try:
        yield made, state
    finally:
        await made.close()
