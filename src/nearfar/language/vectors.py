"""Vectors of prompts for the router `embedding`, from any embedding model of the fleet; never from a far end."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

import msgspec

from nearfar.client.client import Client
from nearfar.client.talking import TextRequest
from nearfar.errors import InferenceError, SettingsError
from nearfar.language.routers.embedding import Embedding, Head
from nearfar.types.ids import ModelName
from nearfar.types.request import Privacy, Qos
from nearfar.types.wire import Operation, TextContext

HEAD = "router-embedding.json"
"""In the home folder: what `nearfar route train --embedding` learnt."""
LONGEST = 4000
"""Characters of a prompt that are embedded."""
VECTOR: ContextVar[Sequence[float]] = ContextVar("vector")
"""Of the prompt that is being scored: routers do not wait, so it is fetched before they are asked."""


class _Row(msgspec.Struct):
    embedding: list[float] = []


class _Answer(msgspec.Struct):
    data: list[_Row] = []


async def vector_of(client: Client, model: str, text: str, privacy: Privacy = Privacy.FLEET) -> list[float]:
    """Raises what asking raises, and `InferenceError` for an answer without a vector."""
    level = privacy if privacy is Privacy.LOCAL else Privacy.FLEET
    body = msgspec.json.encode({"input": text[:LONGEST] or " "})
    request = TextRequest(Operation.EMBED, ModelName(model), body, Qos(privacy=level), TextContext(level))
    reply = await client.text.ask(request)
    try:
        vector = msgspec.json.decode(reply.body, type=_Answer).data[0].embedding
    except (msgspec.MsgspecError, IndexError):
        vector = []
    if not vector:
        raise InferenceError(f"{reply.served_by} gave no vector.", "Is it an embedding model?")
    return vector


def embedding_router(home: Path | None) -> Embedding:
    """The trained one of a home folder. Raises `SettingsError` when there is none."""
    place = home / HEAD if home is not None else None
    try:
        head = msgspec.json.decode(place.read_bytes(), type=Head) if place is not None else None
    except (OSError, msgspec.MsgspecError):
        head = None
    if head is None:
        raise SettingsError(
            "The router embedding was not trained here.", "Type: nearfar route train DATA --embedding MODEL."
        )
    return Embedding(lambda _: VECTOR.get(), head)
