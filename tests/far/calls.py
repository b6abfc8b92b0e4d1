"""A far end of the tests, and one call to it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from nearfar.ledger import Ledger
from nearfar.runtimes.remote.description import FarEnd, Key, check
from nearfar.runtimes.remote.runtime import RemoteText
from nearfar.types.request import Privacy
from nearfar.types.wire import Operation, TextContext

KEY = "k-far-0123456789"
ANY = TextContext(privacy=Privacy.ANY, reason="the router said so", conversation="talk-1", request="")
CHAT = {"messages": [{"role": "user", "content": "Count, please."}], "model": "large"}


class Quick(random.Random):
    """No jitter: retries come at once, unless the far end asks for a wait."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0


class Asked(NamedTuple):
    pieces: list[Any]

    @property
    def text(self) -> str:
        """What the caller reads."""
        told = ""
        for piece in self.pieces:
            for choice in piece["choices"]:
                part = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
                told += part.get("content") or ""
        return told

    @property
    def bill(self) -> dict[str, Any]:
        found: dict[str, Any] = self.pieces[-1]["nearfar"]
        return found


class Far:
    """A loaded far end with its ledger; fields of the description may be given."""

    def __init__(self, url: str, folder: Path, **fields: Any) -> None:
        told = {"model": "large-1", "price_in": 2.0, "price_out": 10.0, "timeout_s": 5.0, **fields}
        self.description = check(FarEnd(base_url=url, **told))
        self.ledger = Ledger(folder / "ledger.sqlite3")
        self.text = RemoteText(self.description, Key(KEY), "large", self.ledger, Quick())

    def __enter__(self) -> Far:
        return self

    def __exit__(self, *_: object) -> None:
        self.text.close()

    def ask(
        self,
        stream: bool = True,
        context: TextContext = ANY,
        budget_ms: float = 0.0,
        operation: Operation = Operation.CHAT,
        leave_after: int = 0,
        **fields: Any,
    ) -> Asked:
        """The pieces, as JSON; `leave_after` so many the caller is gone."""
        body = {**CHAT, **({"stream": True} if stream else {}), **fields}
        pieces: list[Any] = []

        def on_piece(piece: bytes) -> bool:
            assert b"\n" not in piece
            pieces.append(json.loads(piece))
            return len(pieces) == leave_after

        self.text.run(operation, json.dumps(body).encode(), on_piece, context, budget_ms)
        return Asked(pieces)
