"""The second part of the demo: questions about a fridge, answered near or far, by the model that ships with nearfar.

The far end is a second nearfar node in a fleet of its own, asked over HTTP as any API would be; it serves the same
model, and only its price is made up. Everything else is real: the gate, the router, the ledger.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from examples.fleet import DemoNode
from nearfar.errors import NearfarError
from nearfar.language import far
from nearfar.ledger import FILE, Ledger
from nearfar.models.store import Store
from nearfar.runtimes.remote.description import FarEnd

FRIDGE = "[fridge] eggs: 6; milk: 2 bottles; brown sugar: 300 g"
FAR, MODEL = "cloud", "facts"
PRICE_IN, PRICE_OUT = 2.5, 10.0
READY_LIMIT = 60.0
QUESTIONS: tuple[tuple[str, str, str], ...] = (
    ("fridge, how many eggs do I have?", "near", ""),
    ("Is there any butter?", "near", ""),
    ("how much brown sugar do I have?", "far", ""),
    ("how much milk do I have?", "auto", "ann@example.org"),
)
"""Each with its route and with who asks. The last one holds personal data, so it must not go far."""


async def _ready(http: httpx.AsyncClient, models: set[str]) -> None:
    end = time.monotonic() + READY_LIMIT
    while time.monotonic() < end:
        listed = (await http.get("/v1/models")).json()["data"]
        if models <= {model["id"] for model in listed}:
            return
        await asyncio.sleep(0.1)
    raise NearfarError(f"The demo's nodes did not serve {', '.join(sorted(models))} in {READY_LIMIT:.0f} s.")


async def _ask(http: httpx.AsyncClient, question: str, route: str, user: str) -> dict[str, Any]:
    body = {
        "model": "auto",
        "messages": [{"role": "system", "content": FRIDGE}, {"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 48,
        "nearfar": {"route": route},
        **({"user": user} if user else {}),
    }
    told = (await http.post("/v1/chat/completions", json=body)).json()
    if "error" in told:
        raise NearfarError(f"The question was not answered: {told['error']['message']}")
    shown = f"{question} (user {user})" if user else question
    return {"question": shown, "answer": told["choices"][0]["message"]["content"], **told["nearfar"]}


async def talk(out: Console) -> list[dict[str, Any]]:
    """Ask, print a table of the answers, and return them. Raises `NearfarError` when a node does not start."""
    out.print("\nstarting two nodes with the language model that ships with nearfar; one stands for somebody's API")
    with tempfile.TemporaryDirectory(prefix="nearfar-demo-") as folder:
        home, number = Path(folder), time.time_ns() % 10**9
        async with DemoNode(FAR, models=(MODEL,)).running(home, f"demo-far-{number}", ()) as there:
            end = FarEnd(base_url=f"{there.gateway}/v1", model=MODEL, price_in=PRICE_IN, price_out=PRICE_OUT)
            far.add(Store(home / "kitchen" / "models"), FAR, end)
            async with (
                DemoNode("kitchen", models=(MODEL,)).running(home, f"demo-{number}", ()) as here,
                httpx.AsyncClient(base_url=str(there.gateway), trust_env=False, timeout=60) as beyond,
                httpx.AsyncClient(base_url=str(here.gateway), trust_env=False, timeout=60) as http,
            ):
                await _ready(beyond, {MODEL})
                await _ready(http, {MODEL, FAR})
                answers = [await _ask(http, *question) for question in QUESTIONS]
        ledger = Ledger(home / "kitchen" / FILE)
        spent = sum(row.cost for row in ledger.rows())
        ledger.close()
    table = Table(box=box.SIMPLE_HEAD, title=escape(FRIDGE), title_justify="left")
    for column in ("question", "answer", "where", "ms", "cost", "why"):
        table.add_column(column, justify="right" if column in ("ms", "cost") else "left")
    for told in answers:
        cost = f"{told['cost']:.6f}" if told["cost"] else "-"
        table.add_row(
            told["question"], told["answer"], told["where"], f"{told['ms']:.0f}", cost, escape(told["why"][0])
        )
    out.print(table)
    out.print(f"[dim]the ledger says that the far end cost {spent:.6f} USD, at a price that is made up[/]")
    return answers
