"""A far end as a service of a real node: started without being named, asked over the mesh, never tried or private."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nearfar.client.connect import connect
from nearfar.client.talking import TextRequest
from nearfar.errors import NoCandidate
from nearfar.language import far
from nearfar.ledger import FILE, Ledger
from nearfar.models.store import Store
from nearfar.runtimes.remote.bill import bill_in
from nearfar.runtimes.remote.description import FarEnd
from nearfar.types.ids import ModelName
from nearfar.types.request import Privacy, Qos
from nearfar.types.wire import Operation, TextContext
from tests.far.calls import CHAT, KEY
from tests.far.misbehaving import Act, FarServer, Kind
from tests.fleetlab import Lab, poll
from tests.fleetlab import lab as lab


def request(privacy: Privacy, stream: bool = True) -> TextRequest:
    body = json.dumps({**CHAT, "stream": stream}).encode()
    return TextRequest(Operation.CHAT, ModelName("large"), body, Qos(privacy=privacy), TextContext(streamed=stream))


async def ask(settings: dict[str, Any]) -> tuple[bytes, bytes]:
    async with connect(flags=settings) as client:
        await client.wait_for(ModelName("large"), 20)
        streamed = b"\n".join([piece.lines async for piece in client.text.stream(request(Privacy.ANY))])
        whole = await client.text.ask(request(Privacy.ANY, stream=False))
        for privacy in (Privacy.FLEET, Privacy.LOCAL):
            with pytest.raises(NoCandidate) as told:
                await client.text.ask(request(privacy, stream=False))
            assert "private" in {refusal["code"] for refusal in told.value.refusals}
        return streamed, bytes(whole.body)


def test_a_node_serves_its_far_ends(lab: Lab, tmp_path: Path) -> None:
    with FarServer([Act(Kind.STATUS, status=429, retry_after="0")]) as server:
        described = FarEnd(base_url=server.url, model="large-1", price_in=2.0, price_out=10.0, key_env="FAR_TEST_KEY")
        store = Store(tmp_path / "home-a" / "models")
        far.add(store, "large", described)
        far.add(store, "keyless", FarEnd(base_url=server.url, model="m", price_in=0, price_out=0, key_env="FAR_NO_KEY"))
        node = lab.node("a", ["yard"], env={"FAR_TEST_KEY": KEY})
        poll(lambda: (node.service_json("large") or {}).get("healthy"), "the far end is served")
        keyless = node.service_json("keyless") or {}
        assert keyless["health"] == "failed" and "export FAR_NO_KEY" in keyless["reason"]
        assert "FAR_NO_KEY is not set in the environment of node a" in node.stderr
        assert not server.received, "no money is spent to try it"
        settings = {"home": str(node.home), "mesh.fleet": lab.fleet, "mesh.discover": False}
        streamed, whole = asyncio.run(ask(settings))
        assert json.loads(whole)["choices"][0]["message"]["content"] == "one two three four"
        bill = bill_in(whole)
        assert bill is not None and bill.cost > 0 and bill_in(streamed.splitlines()[-1]) is not None
        ledger = Ledger(node.home / FILE)
        assert [row.outcome.value for row in ledger.rows()] == ["not-billed", "ok", "ok"]
        assert len(server.requests) == 3
        poll(
            lambda: (node.service_json("large") or {}).get("cost") == pytest.approx(bill.cost),
            "the price of the last answers is what placement and budgets see",
        )
        ledger.close()
        assert KEY not in node.stderr and "Count, please" not in node.stderr
