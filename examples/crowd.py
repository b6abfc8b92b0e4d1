"""A crowd of clients that all ask one node at once, until they are stopped: the overload of the demo.

python -m examples.crowd NODE HOME FLEET MODEL CLIENTS ENDPOINT...
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import numpy as np

from examples.fleet import node_flags
from nearfar.client.client import Client
from nearfar.client.connect import connect
from nearfar.errors import NearfarError
from nearfar.types.ids import ModelName
from nearfar.types.image import Image
from nearfar.types.request import Qos


async def ask(client: Client, model: ModelName, node: str, image: Image) -> None:
    """One of them: asks, and asks again at once; when it is refused, after a moment."""
    while True:
        try:
            await client.see(model, image, Qos(node=node))
        except NearfarError:
            await asyncio.sleep(0.02)


async def main(node: str, home: Path, fleet: str, model: ModelName, clients: int, join: list[str]) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    image = Image.bgr(np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8))
    async with connect(flags=node_flags(home, fleet, join), wait=10) as client:
        await client.wait_for(model, 30, node=node)
        print("asking", flush=True)
        await asyncio.gather(*(ask(client, model, node, image) for _ in range(clients)))


if __name__ == "__main__":
    node, home, fleet, model, clients, *join = sys.argv[1:]
    try:
        asyncio.run(main(node, Path(home), fleet, ModelName(model), int(clients), join))
    except asyncio.CancelledError:
        sys.exit(0)
