"""How many tokens a text has, where the tokenizer that would know is not at hand."""

from __future__ import annotations

import re

_PIECE = re.compile(r"[A-Za-z]+|\d+|\s+|[^A-Za-z\d\s]")
PER_MESSAGE = 4
"""Tokens that a chat template puts around one message, about."""


def estimate(text: str) -> int:
    """The stated rule: a word of Latin letters is one token for each six letters begun, a run of digits one for each
    three, any other sign one, a run of spaces none and a run with a line break one.

    Against GPT-2's vocabulary (November 2026): English questions and answers 2 to 13 % too high in sum, single texts
    from 7 % too low to 32 % too high (5th to 95th percentile); Python 15 % too low, single files down to 28 %, as that
    vocabulary counts each space. Newer vocabularies and other scripts were not measured.

    >>> estimate("How many eggs do I have?"), estimate("")
    (7, 0)
    """
    total = 0
    for piece in _PIECE.findall(text):
        if piece[0].isspace():
            total += "\n" in piece
        elif piece[0].isdigit():
            total += -(-len(piece) // 3)
        elif piece.isascii() and piece.isalpha():
            total += -(-len(piece) // 6)
        else:
            total += 1
    return total
