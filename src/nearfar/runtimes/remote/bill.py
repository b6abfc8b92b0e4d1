"""What a far end's answer says of its cost, in the field `nearfar` of its last piece."""

from __future__ import annotations

import msgspec

from nearfar.ledger import Counted


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """What the last piece says in its field `nearfar`."""

    far: str
    """The public name of the far end."""
    model: str
    """What the far end itself called the model."""
    request: str
    """Its rows in the ledger."""
    attempts: int
    tokens_in: int
    tokens_out: int
    counted: Counted
    reason: str = ""
    """Why the tokens are an estimate."""
    cost: float
    currency: str


class _Billed(msgspec.Struct):
    nearfar: Bill | None = None


_billed = msgspec.json.Decoder(_Billed)


def bill_in(piece: bytes) -> Bill | None:
    """The bill in an answer or in a chunk of one; None when it has none, as those of near models."""
    try:
        return _billed.decode(piece).nearfar
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
