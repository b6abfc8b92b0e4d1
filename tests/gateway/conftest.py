"""Nodes that several test files of this room share: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nearfar.runtimes.fake import FakeTensor
from nearfar.types.tensor import DType
from tests.fleetlab import Lab, LabModel, Node, add, fake, identity

SLOW_MS = 200.0


def every_dtype(folder: Path) -> LabModel:
    """One input and one output, through unchanged, of each element type there is."""
    types = [(dtype, FakeTensor(f"x-{dtype.value}", dtype, (-1, -1))) for dtype in DType]
    outputs = tuple(FakeTensor(f"y-{dtype.value}", dtype, (-1, -1)) for dtype in DType)
    return fake(folder, "every-dtype", inputs=tuple(tensor for _, tensor in types), outputs=outputs)


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with the embedded detector and models of arrays; `slow` takes `SLOW_MS` for each request, and `counted` is
    asked by one test alone."""
    folder = tmp_path_factory.mktemp("house")
    slow = fake(folder, "slow", delay_ms=SLOW_MS)
    with Lab(folder) as lab:
        models = [identity(folder), add(folder), every_dtype(folder), slow, fake(folder, "counted")]
        yield lab.node("house", ["yard", *models])


@pytest.fixture
def http(house: Node) -> Iterator[httpx.Client]:
    with house.http() as client:
        yield client
